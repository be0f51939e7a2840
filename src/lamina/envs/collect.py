"""Episodes of scripted experts, recorded as a LeRobotDataset v3.0."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lamina.data.episodes import HELD_OUT, SPLITS
from lamina.data.lerobot.writer import SMALL_PICTURES, LeRobotWriter, action_feature, camera_feature, check_new
from lamina.envs.base import Action, ActionFunction, Observation, Step, World, rollout
from lamina.envs.registry import SUITES, make
from lamina.errors import LaminaError
from lamina.files import locked
from lamina.types import ImageSize
from lamina.version import __version__

FRAMES = 3000


def collect(
    world: str,
    out: str | Path,
    frames: int | None = None,
    episodes: int | None = None,
    seed: int = 0,
    noise: float = 0.15,
    size: ImageSize | None = (64, 64),
    hold: int = 1,
    task: str | None = None,
    progress: bool = True,
) -> Path:
    """Runs the expert of ``world`` and writes what it sees and does to ``out``, which must not exist yet.

    ``world`` is a world or a suite of them (``lamina.envs.SUITES``), whose worlds are then the tasks of one dataset.

    A share of ``noise`` of the actions is random: without that, what follows a frame is a function of the frame. Each
    random action is held for ``hold`` steps: where steps are short, single ones average out before anything moves.
    Whole episodes are recorded, as many as asked for or until there are ``frames`` (3,000 if neither is given). Of ten
    episodes, eight are for training and one each for validation and test. ``size`` is (height, width); ``task``
    replaces the world's own description of what is done. The same arguments give the same data.

    Each world of a suite has its share of ``frames`` or, where those are given, ``episodes`` of its own, and three
    episodes at least, so that it occurs in every split. Its episodes are those that it would have had alone; they take
    turns with those of the others.

    Raises LaminaError for an unknown world, a missing simulator, numbers out of range, an ``out`` that exists, and a
    ``task`` for a suite.
    """
    if frames is not None and episodes is not None:
        raise LaminaError("say how many frames or how many episodes to collect, not both")
    for name, value in (
        ("frames", frames),
        ("episodes", episodes),
        ("steps of a random action", hold),
        *zip(("height", "width"), size or (), strict=False),
    ):
        if value is not None and value < 1:
            raise LaminaError(f"the number of {name} must be at least 1, got {value}")
    if not 0 <= noise <= 1:
        raise LaminaError(f"noise is a share of the actions: it must be between 0 and 1, got {noise}")
    names = SUITES.get(world, (world,))
    if task is not None and world in SUITES:
        raise LaminaError(f"'{world}' is a suite, and its worlds are distinguished by their tasks: leave out the task")
    check_new(Path(out))
    if frames is None and episodes is None:
        frames = FRAMES

    with _unwound_when_killed(), locked(Path(out)), ExitStack() as stack:
        places = [stack.enter_context(make(name, size)) for name in names]
        turns = [_Recording(place, task or place.task, seed, noise, hold) for place in places]
        if len({turn.task for turn in turns}) < len(turns) or len({_kind(place) for place in places}) > 1:
            raise LaminaError(f"the worlds of '{world}' need the same actions, cameras and frame rate, and a task each")
        provenance = {"version": __version__, "world": world, "expert": "scripted", "noise": noise, "seed": seed}
        provenance |= {"hold": hold}
        provenance |= {"tasks": {turn.task: name for turn, name in zip(turns, names, strict=True)}}
        features = _features(places[0], places[0].reset(0))
        writer = stack.enter_context(
            LeRobotWriter(Path(out), places[0].fps, features, world, SMALL_PICTURES, {"lamina": provenance})
        )
        least = 1 if len(turns) == 1 else len(SPLITS)
        wanted = None if frames is None else -(-frames // len(turns))
        with tqdm(total=frames, unit=" frames", desc=f"collecting {world}", disable=not progress) as bar:
            while left := [turn for turn in turns if turn.lacks(wanted, episodes, least)]:
                min(left, key=lambda turn: turn.progress(wanted, episodes)).record(writer, bar)
                done, recorded = sum(turn.frames for turn in turns), sum(turn.episodes for turn in turns)
                bar.total = max(done, frames or round(done / recorded * (episodes or 0) * len(turns)))
            bar.total = done
        return writer.finish()


class _Recording:
    """One world's part of a dataset."""

    def __init__(self, place: World, task: str, seed: int, noise: float, hold: int):
        self.task, self.frames = task, 0
        self._place, self._seed, self._noise, self._hold = place, seed, noise, hold
        self._counts = dict.fromkeys(SPLITS, 0)

    @property
    def episodes(self) -> int:
        return sum(self._counts.values())

    def progress(self, frames: int | None, episodes: int | None) -> float:
        """What part of its frames, or of its episodes, has been recorded."""
        return self.frames / frames if frames else self.episodes / (episodes or 1)

    def lacks(self, frames: int | None, episodes: int | None, least: int) -> bool:
        """Whether ``frames`` or ``episodes`` have not been reached yet, or less than ``least`` episodes."""
        return self.progress(frames, episodes) < 1 or self.episodes < least

    def record(self, writer: LeRobotWriter, bar: tqdm) -> None:
        """Runs the next episode and writes it."""
        place, steps = self._place, []
        for step in rollout(place, noisy(place, self._noise, self._hold), self._seed, self.episodes):
            steps.append(step)
            bar.update()
        split = _next_split(self._counts)
        writer.add_episode(_columns(place, steps), _videos(place, steps), self.task, split)
        self._counts[split] += 1
        self.frames += len(steps)


def noisy(world: World, noise: float, hold: int) -> ActionFunction:
    """The expert of ``world`` with a share of ``noise`` of random actions, each held for ``hold`` steps."""
    # A random stretch begins at a free step with this probability: hold / (hold + mean stretch of the expert) = noise.
    begins = noise / (noise + hold * (1 - noise))
    held: list[Action] = []

    def act(rng: np.random.Generator) -> Action:
        if not held:
            if rng.random() >= begins:
                return world.expert(rng)
            held.extend([world.random(rng)] * hold)
        return held.pop()

    return act


def _kind(world: World) -> Hashable:
    """What worlds of one dataset must have in common."""
    return world.action, world.cameras, world.fps, world.proprio


def _next_split(counts: dict[str, int]) -> str:
    """The split that lacks most of its share; each gets one of the first three episodes."""
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        return empty[0]
    shares = dict(zip(SPLITS, (1 - 2 * HELD_OUT, HELD_OUT, HELD_OUT), strict=True))
    return max(SPLITS, key=lambda split: shares[split] * (sum(counts.values()) + 1) - counts[split])


def _features(world: World, observation: Observation) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {
        f"observation.images.{camera}": camera_feature(*observation.frames[camera].shape[:2])
        for camera in world.cameras
    }
    if world.proprio:
        features["observation.state"] = {"dtype": "float32", "shape": [world.proprio], "names": None}
    features["action"] = action_feature(world.action) | {"names": list(world.action.names)}
    features["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
    features["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
    return features


def _columns(world: World, steps: list[Step]) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {
        "action": np.stack([step.action for step in steps]),
        "next.reward": np.array([step.reward for step in steps], dtype=np.float32),
        "next.done": np.array([step.done for step in steps]),
    }
    if world.proprio:
        columns["observation.state"] = np.array([step.observation.proprio for step in steps])
    return columns


def _videos(world: World, steps: list[Step]) -> dict[str, Iterable[np.ndarray]]:
    return {f"observation.images.{c}": [step.observation.frames[c] for step in steps] for c in world.cameras}


@contextmanager
def _unwound_when_killed() -> Iterator[None]:
    """Converts SIGTERM to SystemExit so that cleanup runs: worlds end their processes, and a partial dataset is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
