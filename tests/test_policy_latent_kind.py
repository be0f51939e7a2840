"""`lamina policy --kind latent`: pi(z | o) on every frame, and the run's translator."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import lamina
import lamina.api
import lamina.training.loop
import tiny_encoders
from lamina.data.dataset import Dataset
from lamina.data.sampling import open_source
from lamina.data.stream import evenly_spaced
from lamina.envs.collect import collect
from lamina.errors import LaminaError
from lamina.evaluation.actions import kept_translator
from lamina.evaluation.settings import EvaluateConfig
from lamina.images import to_float
from lamina.models.hub import LatentActionModel
from lamina.play.stage import Stage
from lamina.policies.base import Observations, Policy
from lamina.policies.latent import LatentConfig, LatentPairs, LatentPolicy, side_of, train_latent_policy
from lamina.policies.rollout import rollout_worlds
from lamina.policies.windows import LATENTS, open_steps
from lamina.training.alignment import load_translator, save_translator
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec
from processes import dies_in, in_child

torch.set_num_threads(1)
SIZE = (16, 16)


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> tuple[Path, Path]:
    """Episodes of the grid's expert, and a run that was trained and aligned on them."""
    folder = tmp_path_factory.mktemp("grid")
    collect("grid/0.3", folder / "data", episodes=16, size=SIZE, progress=False)
    options = {"size": "debug", "slots": 2, "decoder": "unet", "device": "cpu", "warmup": 20}
    run = lamina.train(
        "fixed_k", folder / "data", out=folder / "run", steps=300, lr=3e-3, image=SIZE, batch=32, **options
    )
    lamina.align(run, folder / "data", labels="50%", steps=200, device="cpu")
    return folder / "data", folder / "run"


def training(**changes) -> TrainConfig:
    return TrainConfig(
        **{"steps": 6, "batch": 8, "lr": 1e-3, "ema": 0.0, "warmup": 10, "checkpoint_every": 2, "validate_every": 3}
        | {"device": "cpu"} | changes
    )  # fmt: skip


def copy_of(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("policy", "checkpoints"))


def test_each_row_is_a_frame_the_one_before_and_the_latent_that_label_writes(grid, tmp_path):
    data, run = grid
    run = copy_of(run, tmp_path)
    train_latent_policy(run, [data], LatentConfig(), training())
    pairs = LatentPairs(open_steps(run / "policy" / LATENTS, "train", LATENTS))
    table = lamina.label(run, data)
    source = open_source(str(data))
    row = 0
    for episode in (e for e in source.episodes if e.splits[0][0] == "train"):
        frames = source.frames(episode, source.cameras[0], 0, episode.length, SIZE)
        rows = table.rows(episode.number)
        steps = np.flatnonzero(table.valid[rows])
        found = pairs[np.arange(row, row + len(steps))]
        before = frames[np.maximum(steps - 1, 0)]
        np.testing.assert_array_equal(found.frames.permute(0, 1, 3, 4, 2), np.stack([before, frames[steps]], 1))
        np.testing.assert_allclose(found.target, table.latents[rows][steps].reshape(len(steps), -1), atol=1e-5)
        row += len(steps)
    assert row == len(pairs)


def test_it_plays_what_the_expert_showed(grid, tmp_path):
    data, run = grid
    run = copy_of(run, tmp_path)
    policy = lamina.train_policy(run, data, kind="latent", steps=400, batch=32, lr=3e-3, shift=0.0, device="cpu")
    assert isinstance(policy, LatentPolicy) and policy.decision_seconds == pytest.approx(0.1)
    several = Policy.from_run(run, batch=4, device="cpu")
    record = rollout_worlds(several, ["grid/0.3"], 8, 4, seed=9, size=SIZE, progress=False)
    assert record.worlds["grid/0.3"].mean > 30  # of 48; random actions earn about 12


def test_it_is_played_on_the_camera_that_it_was_trained_on(grid, tmp_path):
    data, run = grid
    run = copy_of(run, tmp_path)
    train_latent_policy(run, [data], LatentConfig(), training(), ("observation.images.paired",))
    policy, seen = Policy.from_run(run, device="cpu"), []
    regress = policy.regressor.forward
    policy.regressor.forward = lambda frames: (seen.append(frames), regress(frames))[1]
    shown = [np.full((1, *SIZE, 3), value, np.uint8) for value in (0, 9)]
    policy.act_batch(Observations(dict(zip(("grid", "paired"), shown, strict=True))))
    assert policy.cameras == ("paired",) and (seen[0] == 9).all()


def test_a_joint_alignment_is_trained_for_and_played(grid, tmp_path):
    """It keeps model, translator and policy in one folder; the side that its translator reads is not the model's own here."""
    data, run = grid
    joint = copy_of(run, tmp_path)
    translator, note = load_translator(run / "translator")
    shutil.rmtree(joint / "translator")
    save_translator(joint, translator, dataclasses.replace(note, side="continuous"))
    assert side_of(joint, LatentActionModel.from_pretrained(joint)) == "continuous" != note.side
    policy = lamina.train_policy(joint, data, kind="latent", steps=4, batch=8, device="cpu")
    assert isinstance(policy, LatentPolicy) and policy.read.side == "continuous"
    for found in (policy.read.translator, lamina.api.Run(joint).translator(), Stage.load(joint, str(data)).translator):
        assert found is not None and torch.equal(found.mlp.inputs.weight, translator.mlp.inputs.weight)
    kept = kept_translator(joint, open_source(str(data)), EvaluateConfig())
    assert kept is not None and kept[1].side == "continuous"


class Degrees(Dataset):
    """The same episodes, whose action is an angle of 30, 60, 90 or 120 degrees."""

    columns = ("action",)

    def __init__(self, source: Dataset):
        self.source, self.cameras = source, source.cameras

    @property
    def episodes(self):
        return self.source.episodes

    def frames(self, *arguments, **options):
        return self.source.frames(*arguments, **options)

    def action_spec(self, name):
        return ActionSpec(continuous=1) if name == "action" else None

    def width(self, name):
        return 1 if name == "action" else None

    def column(self, episode, name):
        return 30 * (1 + self.source.column(episode, "action"))


def test_actions_in_degrees_are_kept_in_the_range_of_the_labels(grid, tmp_path):
    data, run = grid
    run, source = copy_of(run, tmp_path), open_source(str(data))
    shutil.rmtree(run / "translator")
    lamina.align(run, Degrees(source), labels="50%", steps=20, device="cpu")
    train_latent_policy(run, [data], LatentConfig(), training())
    translator, note = load_translator(run / "translator")
    assert (note.low, note.high) == ((30,), (120,)) == (tuple(translator.action.low), tuple(translator.action.high))
    frames = source.frames(source.episodes[0], source.cameras[0], 0, 10, SIZE)

    def actions() -> np.ndarray:
        policy = Policy.from_run(run, device="cpu")
        return np.stack([policy.act(frame) for frame in frames])

    assert actions().min() >= 30 and actions().max() <= 120 and actions().mean() > 40
    translator.action.mean += 1000
    save_translator(run / "translator", translator, note)
    assert (actions() == 120).all()
    for ends in (translator.action.low, translator.action.high):  # as an older version wrote it
        ends.fill_(torch.inf)
    save_translator(run / "translator", translator, dataclasses.replace(note, low=None, high=None))
    assert (actions() == 1).all()


def test_pretrained_features_are_standardised_as_for_the_lam(grid, tmp_path):
    pytest.importorskip("transformers")
    data, _ = grid
    options = {"image": (32, 32), "batch": 8, "size": "debug", "slots": 2, "device": "cpu"}
    space = str(tiny_encoders.dinov2(tmp_path / "encoder"))
    run = lamina.train("fixed_k", data, out=tmp_path / "run", steps=2, space=space, **options)
    lamina.align(run, data, labels="20", steps=2, device="cpu")
    policy = lamina.train_policy(run, data, kind="latent", steps=2, batch=8, device="cpu")
    assert isinstance(policy, LatentPolicy)
    frames = open_steps(tmp_path / "run" / "policy" / LATENTS, "train", LATENTS).frames
    some = torch.from_numpy(frames[evenly_spaced(len(frames), 256)]).permute(0, 3, 1, 2)
    features = policy.regressor.space.float()(to_float(some)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(features.mean(1), torch.zeros(len(features)), atol=0.1, rtol=0)
    torch.testing.assert_close(features.std(1), torch.ones(len(features)), atol=0.1, rtol=0)


def test_killed_training_resumes_bit_for_bit(grid, tmp_path):
    data, run = grid
    ours, theirs = copy_of(run, tmp_path / "a"), copy_of(run, tmp_path / "b")
    train_latent_policy(theirs, [data], LatentConfig(), training())

    def work():
        dies_in(lamina.training.loop, "total", 4)
        train_latent_policy(ours, [data], LatentConfig(), training())

    assert in_child(work) == signal.SIGKILL
    with pytest.raises(LaminaError, match=r"other settings \(latent_policy\.shift\)"):
        train_latent_policy(ours, [data], LatentConfig(0.1), training(resume=True))
    train_latent_policy(ours, [data], LatentConfig(), training(resume=True))
    one, other = (load_file(r / "policy" / "model.safetensors") for r in (ours, theirs))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    with pytest.raises(LaminaError, match="trained already; add --resume"):
        train_latent_policy(ours, [data], LatentConfig(), training())


def test_what_does_not_fit_is_refused_in_one_line(grid, tmp_path):
    data, run = grid
    run = copy_of(run, tmp_path)
    train_latent_policy(run, [data], LatentConfig(), training())
    with pytest.raises(LaminaError, match="deterministic"):
        Policy.from_run(run, temperature=1.0)
    with pytest.raises(LaminaError, match="retained prefixes, got 1"):
        Policy.from_run(run, k=1)
    with pytest.raises(LaminaError, match="one dataset, got 2"):
        train_latent_policy(run, [data, data], LatentConfig(), training(resume=True))
    config = run / "policy" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"lam": "another"}))
    with pytest.raises(LaminaError, match="was trained with another LAM"):
        Policy.from_run(run)
    config.write_text(json.dumps(values | {"outputs": 10**9}))
    with pytest.raises(LaminaError, match="numbers of quantised latents"):
        Policy.from_run(run)
