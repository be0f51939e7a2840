"""Gymnasium environments in Lamina's rollouts, and a Lamina policy in a Gymnasium loop."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from fake_worlds import returns
from lamina import envs as worlds
from lamina.envs.base import World
from lamina.errors import LaminaError
from lamina.policies.rollout import rollout_worlds
from lamina.types import ActionSpec, ImageSize

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces
gym = importlib.import_module("lamina.envs.gym")


class Toy(gymnasium.Env):
    """Remembers what it was given; draws the step's number; never ends."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's own way)

    def __init__(self, action_space=None, render_mode: str | None = "rgb_array", picture=None):
        self.action_space = action_space or spaces.Discrete(2)
        self.observation_space = spaces.Discrete(2)
        self.render_mode, self.picture = render_mode, picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.given: list = []
        return 0, {}

    def step(self, action):
        self.given.append(action)
        return 0, 0.5, False, False, {}

    def render(self):
        return np.full((30, 40, 3), len(self.given) % 256, np.uint8) if self.picture is None else self.picture


def open_gym(world: str, size: ImageSize) -> World:
    return gym.make("gym", world, size)


SPACES = [
    (spaces.Discrete(3), ActionSpec((3,), names=("0", "1", "2")), [2], 2),
    (spaces.Discrete(3, start=-1), ActionSpec((3,), names=("0", "1", "2")), [2], 1),
    (spaces.MultiDiscrete([2, 4]), ActionSpec((2, 4)), [1, 3], [1, 3]),
    (
        spaces.MultiDiscrete([[2, 4], [5, 2]], start=[[0, 1], [2, 3]]),
        ActionSpec((2, 4, 5, 2)),
        [1, 3, 4, 0],
        [[1, 4], [6, 3]],
    ),
    (spaces.Box(-2, 1, (2,)), ActionSpec(continuous=2), [-2, 1], [-2, 1]),
    (spaces.Box(0, 1, (2, 1), np.float64), ActionSpec(continuous=2), [0.25, 1], [[0.25], [1]]),
]


@pytest.mark.parametrize(("space", "spec", "action", "outward"), SPACES, ids=lambda value: str(value)[:30])
def test_actions_reach_the_environment_in_its_own_terms(space, spec, action, outward):
    env = Toy(space)
    world = gym.GymWorld(env, "Toy-v0")
    assert world.action == spec
    world.reset(0)
    world.step(np.array(action, dtype=np.float32 if spec.continuous else np.int64))
    assert np.array_equal(env.given[0], outward) and space.contains(env.given[0])
    drawn = [world.random(np.random.default_rng(seed)) for seed in (0, 0, 1, 2, 3, 4, 5, 6)]
    for each in drawn:
        assert each.shape == (spec.dim,) and each.dtype == (np.float32 if spec.continuous else np.int64)
        world.step(each)
    assert np.array_equal(drawn[0], drawn[1]) and len({tuple(each) for each in drawn}) > 1


@pytest.mark.parametrize(
    ("space", "action"),
    [
        (spaces.Discrete(3), [3]),
        (spaces.Discrete(3, start=1), [-1]),
        (spaces.MultiDiscrete([2, 4]), [0, 4]),
        (spaces.Box(-1, 1, (1,)), [1.1]),
        (spaces.Box(-1, 1, (1,)), [np.nan]),
    ],
    ids=str,
)
def test_an_action_outside_the_space_is_refused(space, action):
    env = Toy(space)
    world = gym.GymWorld(env, "Toy-v0")
    world.reset(0)
    with pytest.raises(LaminaError, match="outside its space"):
        world.step(np.array(action))
    assert env.given == []


@pytest.mark.parametrize(
    "space",
    [spaces.Dict(a=spaces.Discrete(2)), spaces.MultiBinary(3), spaces.Discrete(1), spaces.Box(0, 255, (2,), np.uint8)],
    ids=str,
)
def test_other_spaces_are_refused(space):
    with pytest.raises(LaminaError, match=r"Toy-v0: its actions .* cannot be used; they must be Discrete"):
        gym.GymWorld(Toy(space), "Toy-v0")


def test_an_endless_environment_ends_at_a_stated_bound():
    world = gym.GymWorld(Toy(), "Toy-v0", size=None)
    assert (world.fps, world.max_steps, world.reference) == (4, 1000, None)
    steps = list(worlds.rollout(world, world.random, seed=0))
    assert len(steps) == 1000 and steps[-1].done and sum(step.reward for step in steps) == 500
    assert [int(step.observation.frames["render"][0, 0, 0]) for step in steps[:3]] == [0, 1, 2]
    assert steps[0].observation.frames["render"].shape == (30, 40, 3)


def test_pictures_that_are_none():
    with pytest.raises(LaminaError, match="render_mode is None and not rgb_array"):
        gym.GymWorld(Toy(render_mode=None), "Toy-v0")
    with pytest.raises(LaminaError, match="not one colour picture"):
        gym.GymWorld(Toy(picture=np.zeros((8, 8), np.uint8)), "Toy-v0").observe()


@pytest.mark.parametrize(
    ("variant", "part"),
    [
        ("", "gym/CartPole-v1, for example"),
        ("CartPoll-v1", "Did you mean: `CartPole`"),
        ("CartPole-v99", r"provides versioned environments"),
        ("a b", "Malformed"),
        ("nowhere.at.all:Task-v0", "No module named 'nowhere'"),
    ],
)
def test_environments_that_cannot_be_made(variant, part):
    with pytest.raises(LaminaError, match=part) as caught:
        gym.make("gym", variant, (64, 64))
    assert "\n" not in str(caught.value)


def test_a_missing_gymnasium_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "lamina.envs.gym")
    with pytest.raises(LaminaError, match=r"pip install 'lamina\[doom\]'"):
        importlib.import_module("lamina.envs.gym")


class Robot(Toy):
    """As LeRobot's environments: pictures by camera, a state, and whether it has succeeded, which it does in the third step only."""

    observation_space = spaces.Dict(
        pixels=spaces.Dict(
            top=spaces.Box(0, 255, (10, 12, 3), np.uint8), wrist=spaces.Box(0, 255, (6, 6, 3), np.uint8)
        ),
        agent_pos=spaces.Box(-10, 10, (2,)),
        image=spaces.Box(0, 255, (4, 4, 3), np.uint8),
        goal=spaces.Box(-1, 1, (3, 1)),
    )

    def __init__(self, told: str = "is_success", **options):
        super().__init__(**options)
        space, self.told = Robot.observation_space, told
        self.observation_space = space

    def seen(self):
        n = len(self.given)
        pixels = {"top": np.full((10, 12, 3), n, np.uint8), "wrist": np.full((6, 6, 3), 100 + n, np.uint8)}
        return {
            "pixels": pixels,
            "agent_pos": np.array([n, -n]),
            "image": np.full((4, 4, 3), 200 + n, np.uint8),
            "goal": np.ones((3, 1)),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.seen(), {}

    def step(self, action):
        self.given.append(action)
        return self.seen(), 0.0, len(self.given) == 5, False, {self.told: len(self.given) == 3}


gymnasium.register("lamina/Robot-v0", Robot)


def test_an_environments_own_cameras_state_and_success():
    with gym.make("gym", "lamina/Robot-v0", (8, 8)) as world:
        assert world.cameras == ("top", "wrist") and world.proprio == 2
        steps = list(worlds.rollout(world, world.random, seed=0))
        assert world.success is True and len(steps) == 5  # in any step
        for n, step in enumerate(steps):
            assert {c: f.shape for c, f in step.observation.frames.items()} == {"top": (8, 8, 3), "wrist": (8, 8, 3)}
            assert (step.observation.frames["top"] == n).all() and (step.observation.frames["wrist"] == 100 + n).all()
            assert step.observation.proprio.tolist() == [n, -n] and step.observation.proprio.dtype == np.float32
        world.reset(0)
        world.step(np.array([0]))
        assert world.success is False
    record = rollout_worlds("random", ["lamina/Robot-v0"], 2, parallel=1, make=open_robot, progress=False)
    assert record.worlds["lamina/Robot-v0"].success == [True, True] and record.success.mean == 1


def open_robot(world: str, size: ImageSize) -> World:
    return gym.make("gym", world, size)  # in a worker, which imports this file: the robot is registered


def test_keys_that_are_named():
    named = "lamina/Robot-v0?camera=image&proprio=goal&success=solved&told=solved"
    with gym.make("gym", named, (8, 8)) as world:
        assert world.cameras == ("image",) and world.proprio == 3
        first = next(worlds.rollout(world, world.random, seed=0)).observation
        assert (first.frames["image"] == 200).all() and first.proprio.tolist() == [1, 1, 1]
        assert world.success is False


class Told(Toy):
    """Keeps the arguments that it was made with."""

    def __init__(self, render_mode=None, **told):
        super().__init__(render_mode=render_mode)
        self.told = told


gymnasium.register("lamina/Told-v0", Told)


def test_arguments_of_the_environment_are_values():
    variant = "lamina/Told-v0?slippery=False&gravity=-9.5&lives=3&map=4x4&size=(2,%203)&seed=None&name='7'&camera=True"
    with pytest.raises(LaminaError, match="observes no 'True'"):  # the name of a camera is text, whatever it says
        gym.make("gym", variant, (8, 8))
    with gym.make("gym", variant.removesuffix("&camera=True"), (8, 8)) as world:
        told = world._env.unwrapped.told
    assert told == {
        "slippery": False, "gravity": -9.5, "lives": 3, "map": "4x4", "size": (2, 3), "seed": None, "name": "7"
    }  # fmt: skip
    assert type(told["slippery"]) is bool and type(told["lives"]) is int
    with gym.make("gym", "lamina/Told-v0?max_episode_steps=7", (8, 8)) as world:
        assert world.max_steps == 7


def test_an_environments_own_time_limit_counts_as_truncated():
    for variant, bound, length, truncated in [
        ("lamina/Told-v0?max_episode_steps=7", None, 7, 2),
        ("lamina/Told-v0?max_episode_steps=7", 9, 7, 2),
        ("lamina/Told-v0?max_episode_steps=7", 4, 4, 2),
        ("lamina/Robot-v0", None, 5, 0),
        ("lamina/Robot-v0?max_episode_steps=5", None, 5, 0),  # it has ended by itself in the last step
    ]:
        record = rollout_worlds("random", [variant], 2, 1, max_steps=bound, make=open_robot, progress=False)
        world = record.worlds[variant]
        assert (world.lengths, world.truncated) == ([length] * 2, truncated)


@pytest.mark.parametrize(
    ("variant", "part"),
    [
        ("lamina/Robot-v0?camera=front", "observes no 'front', but pixels, agent_pos, image, goal"),
        ("lamina/Robot-v0?proprio=arm", "observes no 'arm'"),
        ("lamina/Robot-v0?colour=red", "unexpected keyword argument 'colour'"),
    ],
)
def test_keys_that_are_not_there(variant, part):
    with pytest.raises(LaminaError, match=part):
        gym.make("gym", variant, (8, 8))


def test_a_named_success_that_never_comes():
    with gym.make("gym", "lamina/Robot-v0?success=solved", (8, 8)) as world:
        world.reset(0)
        with pytest.raises(LaminaError, match="its info has no 'solved', but is_success"):
            world.step(np.array([0]))


def open_cartpole() -> World:
    try:
        return gym.make("gym", "CartPole-v1", (64, 64))
    except LaminaError as error:
        pytest.skip(str(error))


def test_cartpole_in_the_closed_loop():
    with open_cartpole() as world:
        assert (world.action.discrete, world.fps, world.max_steps) == ((2,), 50, 500)
        expected = returns(world, world.random, 3).tolist()
        frames = next(worlds.rollout(world, world.random, 0)).observation.frames["render"]
        assert frames.shape == (64, 64, 3) and frames.min() < 50 < 200 < frames.max()
    record = rollout_worlds("random", ["CartPole-v1"], 3, parallel=2, seed=0, make=open_gym, progress=False)
    assert record.worlds["CartPole-v1"].returns == expected
    assert record.normalized is None
    with pytest.raises(LaminaError, match="gym/CartPole-v1 has no scripted expert"):
        rollout_worlds("expert", ["CartPole-v1"], 3, parallel=1, make=open_gym, progress=False)


def test_our_policy_in_gymnasiums_own_loop():
    import torch

    from lamina import methods
    from lamina.models.heads import Translator
    from lamina.models.hub import LatentActionModel
    from lamina.policies.token_model import TokenConfig, TokenModel
    from lamina.policies.token_policy import TokenPolicy

    open_cartpole().close()  # or a skip
    torch.manual_seed(0)
    method = methods.load("flexlam")
    model = LatentActionModel(method.build(method.Config(size="debug", image=(16, 16), slots=3)))
    tokens = TokenModel(TokenConfig(size="debug"), (3, 16, 16), 3, model.lam.bottleneck.codebook_size)
    spec = gym.action_spec(spaces.Discrete(2), "CartPole-v1")
    policy = TokenPolicy(model, tokens, Translator(3 * model.lam.dim, spec), k=2)

    env = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    chosen: list[list[int]] = []
    for _ in range(2):
        env.reset(seed=0)
        policy.reset()
        done = False
        chosen.append([])
        while not done:
            action = policy.act(env.render())
            _, _, terminated, truncated, _ = env.step(action[0])
            done = terminated or truncated
            chosen[-1].append(int(action[0]))
    env.close()
    assert chosen[0] == chosen[1] and len(chosen[0]) > 5 and set(chosen[0]) <= {0, 1}
