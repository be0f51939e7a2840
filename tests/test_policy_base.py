"""What every policy has in common: observations, batches of one, and the kind that a run folder names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fake_worlds
import lamina.policies.base
from lamina.errors import LaminaError
from lamina.policies.base import Observations, Policy, PolicyKind
from lamina.policies.cloning import FramePolicy
from lamina.policies.rollout import rollout_worlds
from lamina.policies.token_policy import TokenPolicy
from lamina.types import ActionSpec

pytestmark = pytest.mark.typed
FRAMES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


ONE = ActionSpec(continuous=1)


class Mean(Policy):
    """Acts by the mean of each frame."""

    def __init__(self, batch: int = 1, image: tuple[int, int, int] = (3, 4, 4), action: ActionSpec = ONE):
        self.batch, self.image, self.spec = batch, image, action
        self.seen: list[Observations | np.ndarray] = []
        self.begun: list[list[int] | None] = []

    def reset(self, rows=None):
        self.begun.append(rows)

    def act_batch(self, observations):
        self.seen.append(observations)
        return self.first_camera(observations).mean((1, 2, 3), keepdims=True)[:, 0, 0]

    @classmethod
    def from_run(cls, run, **options):
        policy = cls(options["batch"])
        policy.options = options
        return policy


KIND = PolicyKind("acts by the mean", dict, {}, lambda run, *_: run, Mean)


def test_frames_alone_are_those_of_the_one_camera() -> None:
    policy = Mean(2)
    expected = FRAMES.mean((1, 2, 3))[:, None]
    np.testing.assert_array_equal(policy.act_batch(FRAMES), expected)
    np.testing.assert_array_equal(policy.act_batch(Observations({"a": FRAMES, "b": FRAMES * 0})), expected)


def test_a_policy_reads_the_camera_that_it_names() -> None:
    policy, dark = Mean(2), FRAMES * 0
    for policy.cameras in (("b",), ("observation.images.b",)):
        for name in ("b", "observation.images.b"):
            seen = policy.act_batch(Observations({"a": dark, name: FRAMES}))
            np.testing.assert_array_equal(seen, FRAMES.mean((1, 2, 3))[:, None])
    np.testing.assert_array_equal(policy.act_batch(Observations({"other": FRAMES})), seen)  # there is only one
    with pytest.raises(LaminaError, match=r"this policy sees observation.images.b; there is no .*b among a, c"):
        policy.act_batch(Observations({"a": dark, "c": FRAMES}))


def test_act_is_a_batch_of_one() -> None:
    policy, observations = Mean(), Observations({"a": FRAMES[:1]}, task=("walk",))
    np.testing.assert_array_equal(policy.act(FRAMES[0]), [FRAMES[0].mean()])
    np.testing.assert_array_equal(policy.act(observations), [FRAMES[0].mean()])
    assert policy.seen[1] is observations
    with pytest.raises(LaminaError, match="act is for one episode, this policy was made for 2 at once"):
        Mean(2).act(FRAMES[0])


@pytest.mark.typed(False)
@pytest.mark.parametrize("wrong", [FRAMES[:1], FRAMES[0], FRAMES.astype(np.float32), FRAMES[..., :2]])
def test_frames_of_another_kind_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(
        LaminaError, match=r"a policy for 2 episode\(s\) reads uint8 frames of shape \(2, height, width, 3\)"
    ):
        Mean(2).act_batch(Observations({"a": wrong}))


def test_observations_without_frames_are_refused() -> None:
    with pytest.raises(LaminaError, match="no camera"):
        Mean().act_batch(Observations({}))
    with pytest.raises(LaminaError, match="a frame of 0x4 pixels shows nothing"):
        Mean().act_batch(np.zeros((1, 0, 4, 3), np.uint8))


# ----------------------------------------------------------------------------------------------------- a run's policy


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(lamina.policies.base.KINDS, "mean", __name__)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/config.json").write_text(json.dumps({"kind": "mean"}))
    return tmp_path


def test_the_kind_of_a_run_decides(run: Path) -> None:
    policy = Policy.from_run(run, batch=3, seed=4)
    assert isinstance(policy, Mean) and policy.batch == 3
    assert policy.options == {
        "k": None,
        "batch": 3,
        "temperature": 0.0,
        "seed": 4,
        "device": "auto",
        "precision": "fp32",
    }
    with pytest.raises(LaminaError, match=r"policy/config.json: is a Mean \(kind 'mean'\), no FramePolicy"):
        FramePolicy.from_run(run)


@pytest.mark.parametrize("kind", ["telepathy", 3, ["tokens"]])
def test_an_unknown_kind_is_named(run: Path, kind: object) -> None:
    (run / "policy/config.json").write_text(json.dumps({"kind": kind}))
    with pytest.raises(
        LaminaError,
        match=r"policy/config.json: there is no policy of kind .*; this version of lamina knows tokens,.* mean",
    ):
        Policy.from_run(run)


@pytest.mark.parametrize("content", ["{}", "{", "[]", None])
def test_tokens_where_no_kind_is_named(run: Path, content: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "policy/config.json").unlink() if content is None else (run / "policy/config.json").write_text(content)
    monkeypatch.setattr(TokenPolicy, "from_run", lambda run, **options: (run, options["k"]))
    assert Policy.from_run(run, k=2) == (run, 2)


# ------------------------------------------------------------------------------------------------------------ in worlds


def test_rollout_sends_observations_to_a_policy_and_frames_to_a_plain_one() -> None:
    worlds, size = ["Fake", "Slow"], (2, 3)
    policy = Mean(2, (3, *size), fake_worlds.make("Fake", size).action)
    options = {"episodes": 3, "parallel": 2, "size": size, "make": fake_worlds.make, "progress": False}
    policy.act_batch = lambda o: (policy.seen.append(o), np.zeros((2, policy.spec.dim)))[1]  # type: ignore[method-assign]

    shown: list[np.ndarray] = []

    class Plain:
        def reset(self, rows):
            pass

        def act_batch(self, frames):
            shown.append(frames)
            return np.zeros((2, policy.spec.dim))

    record = rollout_worlds(policy, worlds, **options)
    assert rollout_worlds(Plain(), worlds, **options).worlds == record.worlds
    assert len(policy.seen) == len(shown)
    for observed, frames in zip(policy.seen, shown, strict=True):
        assert list(observed.frames) == ["image"] and observed.proprio is None and len(observed.task) == 2
        np.testing.assert_array_equal(observed.frames["image"], frames)
    task = fake_worlds.make("Fake", size).task
    assert {text for observed in policy.seen for text in observed.task} <= {
        task,
        fake_worlds.make("Slow", size).task,
        "",
    }
    assert policy.seen[0].task[0] == task and policy.begun[0] == [0, 1]
