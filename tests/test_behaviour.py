"""Policies that read two frames: training, closed loop, and errors for inputs that do not fit."""

import dataclasses

import numpy as np
import pytest
import torch

from lamina import methods
from lamina.envs.base import rollout
from lamina.envs.registry import make
from lamina.errors import LaminaError
from lamina.models.heads import Translator, TranslatorConfig
from lamina.models.lam import LAM
from lamina.policies.cloning import (
    FramePairRegressor,
    FramePolicy,
    cloning,
    frame_pair_targets,
    latent_policy,
    train_regressor,
)
from lamina.policies.rollout import rollout_worlds
from lamina.training.heads import head_training, train_translator
from lamina.training.labelled import LabelledTransitions
from lamina.types import ActionSpec, Clip

torch.set_num_threads(1)
method = methods.load("fixed_k")
CONFIG = method.build(method.Config(size="debug", image=(16, 16), slots=2, decoder="unet"))
SPEC = ActionSpec(discrete=(4,), names=("left", "right", "up", "down"))


@pytest.fixture(scope="module")
def grid() -> LabelledTransitions:
    """Every step of the grid's expert, whose frame says what it does; the latent is a vector for each action."""
    with make("grid/0.3", (16, 16)) as world:
        steps = [step for n in range(12) for step in rollout(world, world.expert, 0, n)]
    frames = torch.from_numpy(np.stack([s.observation.frames["grid"] for s in steps])).permute(0, 3, 1, 2)
    action = torch.from_numpy(np.stack([s.action for s in steps])).float()
    turn = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    z = (torch.nn.functional.one_hot(action[:, 0].long(), 4).float() @ turn).view(-1, 2, 5)
    episode, number = torch.arange(len(steps)) // 48, torch.arange(len(steps)) % 48
    index = torch.stack([number, number + 1], 1)
    clip = Clip(frames=torch.stack([frames, frames], 1), time=index.float(), index=index, episode=episode)
    return LabelledTransitions(z, torch.zeros_like(action), action, episode, clip)


def halves(items: LabelledTransitions) -> tuple[LabelledTransitions, LabelledTransitions]:
    held = items.episode >= 10
    return items[~held], items[held]


def test_behaviour_cloning_plays_what_it_saw(grid: LabelledTransitions):
    policy = cloning(CONFIG, *halves(grid), SPEC, head_training(250, 0, lr=2e-3), batch=2)
    record = rollout_worlds(policy, ["grid/0.3"], 4, 2, seed=9, size=(16, 16), progress=False)
    assert record.worlds["grid/0.3"].mean > 40  # of 48; random actions earn about 12


def test_a_latent_policy_plays_through_the_translator(grid: LabelledTransitions):
    train, held = halves(grid)
    config = TranslatorConfig(condition="latent", size="debug")
    translator, _ = train_translator(LAM(CONFIG).prefix, train, held, SPEC, config, head_training(150, 0, lr=1e-3))
    policy = latent_policy(CONFIG, train, held, translator, head_training(250, 0, lr=2e-3), batch=2)
    record = rollout_worlds(policy, ["grid/0.3"], 4, 2, seed=9, size=(16, 16), progress=False)
    assert record.worlds["grid/0.3"].mean > 36


def test_a_policy_learns_from_what_it_will_see(grid: LabelledTransitions):
    shuffled = torch.randperm(len(grid), generator=torch.Generator().manual_seed(3))
    items = grid[shuffled]
    frames = frame_pair_targets(items, items.z).frames
    assert grid.clip is not None
    acted: list[torch.Tensor] = []
    regressor = FramePairRegressor(CONFIG, 1)
    regressor.forward = lambda pairs: (acted.append(pairs.clone()), torch.zeros(len(pairs), 1))[1]  # type: ignore[method-assign]
    policy = FramePolicy(regressor, lambda o, p, present: torch.zeros(len(o), 1), SPEC, (3, 16, 16))
    for row in range(96):  # two episodes, one after the other
        if row % 48 == 0:
            policy.reset([0])
        policy.act_batch(grid.clip.frames[row : row + 1, 0].permute(0, 2, 3, 1).numpy())
    order = shuffled.argsort()
    assert torch.equal(torch.cat(acted), frames[order[:96]])
    assert not torch.equal(frames[:, 0], frames[:, 1])


def test_the_error_is_in_units_of_the_targets_variance(grid: LabelledTransitions):
    train, held = halves(grid)
    noise = [
        frame_pair_targets(x, torch.randn(len(x), 3, generator=torch.Generator().manual_seed(1))) for x in (train, held)
    ]
    _, blind = train_regressor(CONFIG, *noise, head_training(20, 0))
    assert blind == pytest.approx(1, abs=0.15)
    scaled = [frame_pair_targets(x, 1000 * x.z + 5) for x in (train, held)]
    regressor, error = train_regressor(CONFIG, *scaled, head_training(200, 0, lr=2e-3))
    assert error < 0.2
    with torch.no_grad():
        predicted = regressor(scaled[1].frames)
    off = (predicted - scaled[1].target).square().mean() / scaled[1].target.var(0).mean()
    assert float(off) == pytest.approx(error, rel=0.5)


def test_continuous_actions_stay_in_the_range_of_the_labels(grid: LabelledTransitions):
    """Angles of 30 to 120 degrees, which are cut to neither [-1, 1] nor left as far out as the network says."""
    degrees = dataclasses.replace(grid, action=30 * (1 + grid.action))
    spec, training = ActionSpec(continuous=1), head_training(30, 0, lr=2e-3)
    policy = cloning(CONFIG, *halves(degrees), spec, training)
    assert grid.clip is not None
    frames = grid.clip.frames[:40, 0].permute(0, 2, 3, 1).numpy()
    actions = np.stack([policy.act(frame) for frame in frames])
    assert 30 <= actions.min() < actions.max() <= 120 and actions.max() > 60
    policy.regressor.forward = lambda pairs: torch.full((1, 1), 50.0)  # type: ignore[method-assign]
    assert policy.act(frames[0]).tolist() == [120]
    translator = Translator(10, spec, TranslatorConfig(condition="latent", size="debug"))
    translator.calibrate(degrees.action)
    translator.forward = lambda z, previous: torch.full((1, 1), -50.0)  # type: ignore[method-assign]
    policy = latent_policy(CONFIG, *halves(degrees), translator, training)
    assert policy.act(frames[0]).tolist() == [30]


def test_previous_actions_are_remembered():
    spec = ActionSpec(continuous=2)
    regressor = FramePairRegressor(CONFIG, 2)
    told = []

    def read(output: torch.Tensor, previous: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        told.append(previous.clone())
        return torch.full((2, 2), 3.0) + output * 0

    policy = FramePolicy(regressor, read, spec, (3, 16, 16), batch=2)
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    assert (policy.act_batch(frames) == 3).all()
    policy.reset([1])
    policy.act_batch(frames)
    assert told[1].tolist() == [[3, 3], [0, 0]]


@pytest.mark.parametrize(
    "frames", [np.zeros((1, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 4), np.uint8), np.zeros((2, 16, 16, 3))]
)
def test_other_frames_are_refused(frames: np.ndarray):
    policy = FramePolicy(
        FramePairRegressor(CONFIG, 2), lambda o, p, present: o, ActionSpec(continuous=2), (3, 16, 16), batch=2
    )
    with pytest.raises(LaminaError, match="reads uint8 frames"):
        policy.act_batch(frames)
