"""Episodes of scripted experts, recorded as a LeRobotDataset v3.0."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from lamina.data.episodes import HELD_OUT, SPLITS
from lamina.data.lerobot.writer import (
    CAMERA_PREFIX,
    SMALL_PICTURES,
    LeRobotWriter,
    action_feature,
    camera_feature,
    check_new,
)
from lamina.envs.base import Action, ActionFunction, Observation, World, play, rollout
from lamina.envs.registry import SUITES, make, members
from lamina.errors import LaminaError
from lamina.files import locked
from lamina.progress import progress_bar
from lamina.types import ImageSize
from lamina.version import __version__

FRAMES = 3000
TRIES = 3  # of an episode whose process is killed
PATIENCE = 50  # failures of an expert in a row, after which it is given up


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
    max_steps: int | None = None,
    successes: bool = False,
    parallel: int = 1,
    progress: bool = True,
) -> Path:
    """Runs the expert of ``world`` and writes what it sees and does to ``out``, which must not exist yet.

    ``world`` is a world or a suite of them (``lamina.envs.SUITES``), whose worlds are then the tasks of one dataset.

    A share of ``noise`` of the actions is random: without that, what follows a frame is a function of the frame. Each
    random action is held for ``hold`` steps: where steps are short, single ones average out before anything moves.
    ``action`` is what was done; beside it, where some but not all is noise, ``expert_action`` is what the expert would have done.
    Whole episodes are recorded, as many as asked for or until there are ``frames`` (3,000 if neither is given). Of ten
    episodes, eight are for training and one each for validation and test. ``size`` is (height, width); ``task``
    replaces the world's own description of what is done; ``max_steps`` the suite's or world's own bound on the steps of an
    episode. With ``successes``, episodes in which the expert failed are left out, and counted in meta/info.json. Episodes are played
    in ``parallel`` processes, if that is more than one; where one is killed, its episode is played again. The same other arguments give
    the same data.

    Each world of a suite has its share of ``frames`` or, where those are given, ``episodes`` of its own, and three
    episodes at least, so that it occurs in every split. Its episodes are those that it would have had alone; they take
    turns with those of the others.

    Raises LaminaError for an unknown world, a missing simulator, numbers out of range, an ``out`` that exists, a ``task`` for a suite,
    processes that are killed three times before an episode is finished, and, with ``successes``, for a world that does not judge success
    or an expert that fails fifty times in a row.
    """
    if frames is not None and episodes is not None:
        raise LaminaError("say how many frames or how many episodes to collect, not both")
    for name, value in (
        ("frames", frames),
        ("episodes", episodes),
        ("steps of a random action", hold),
        ("steps of an episode", max_steps),
        ("parallel processes", parallel),
        *zip(("height", "width"), size or (), strict=False),
    ):
        if value is not None and value < 1:
            raise LaminaError(f"the number of {name} must be at least 1, got {value}")
    if not 0 <= noise <= 1:
        raise LaminaError(f"noise is a share of the actions: it must be between 0 and 1, got {noise}")
    suite = members(world)
    names = suite.worlds
    if task is not None and world in SUITES:
        raise LaminaError(f"'{world}' is a suite, and its worlds are distinguished by their tasks: leave out the task")
    check_new(Path(out))
    if frames is None and episodes is None:
        frames = FRAMES

    manner = Manner(seed, noise, hold, max_steps or suite.max_steps, successes)
    with _unwound_when_killed(), locked(Path(out)), ExitStack() as stack:
        places = [stack.enter_context(make(name, size)) for name in names]
        start = _player(stack, parallel, dict(zip(names, places, strict=True)), size, manner)
        ahead = -(-parallel // len(names))
        turns = [
            _Recording(partial(start, name), ahead, task or place.task)
            for name, place in zip(names, places, strict=True)
        ]
        if len({turn.task for turn in turns}) < len(turns) or len({_kind(place) for place in places}) > 1:
            raise LaminaError(f"the worlds of '{world}' need the same actions, cameras and frame rate, and a task each")
        provenance = {"version": __version__, "world": world, "expert": "scripted", "noise": noise, "seed": seed}
        provenance |= {"hold": hold, "max_steps": manner.max_steps}
        provenance |= {"tasks": {turn.task: name for turn, name in zip(turns, names, strict=True)}}
        places[0].reset(0)
        features = _features(places[0], places[0].observe(), manner.labelled)
        writer = stack.enter_context(
            LeRobotWriter(Path(out), places[0].fps, features, world, SMALL_PICTURES, {"lamina": provenance})
        )
        least = 1 if len(turns) == 1 else len(SPLITS)
        wanted = None if frames is None else -(-frames // len(turns))
        with progress_bar(frames, f"collecting {world}", " frames", disable=not progress) as bar:
            for turn in turns if parallel > 1 else ():
                turn.begin()
            while left := [turn for turn in turns if turn.lacks(wanted, episodes, least)]:
                min(left, key=lambda turn: turn.progress(wanted, episodes)).record(writer, bar)
                done, recorded = sum(turn.frames for turn in turns), sum(turn.episodes for turn in turns)
                bar.total = max(done, frames or round(done / max(1, recorded) * (episodes or 0) * len(turns)))
            bar.total = done
        if successes:
            provenance |= {"failed": {turn.task: turn.failed for turn in turns}}
        return writer.finish()


@dataclass(frozen=True)
class Manner:
    """How episodes are played: see :func:`collect`."""

    seed: int
    noise: float
    hold: int
    max_steps: int | None = None
    successes: bool = False

    @property
    def labelled(self) -> bool:
        """Whether what the expert would have done is recorded. Else all actions are the expert's, or none."""
        return 0 < self.noise < 1


@dataclass(frozen=True)
class Recorded:
    """An episode: values of the numeric features [t] or [t, d], and pictures of the cameras."""

    columns: dict[str, np.ndarray]
    videos: dict[str, list[UInt8[np.ndarray, "h w 3"]]]

    def __len__(self) -> int:
        return len(self.columns["action"])


def record(world: World, manner: Manner, number: int) -> Recorded | None:
    """Episode ``number`` of the expert of ``world``; None where it failed and only successes are wanted.

    Raises LaminaError where they are wanted of a world that does not judge success.
    """
    if manner.successes:  # played unseen first, which costs next to nothing
        for _ in play(world, noisy(world, manner.noise, manner.hold), manner.seed, number, manner.max_steps):
            pass
        if world.success is None:
            raise LaminaError(f"the world of '{world.task}' does not judge success: collect all of its episodes")
        if not world.success:
            return None
    wanted: list[Action] = []
    policy = noisy(world, manner.noise, manner.hold, wanted)
    steps = list(rollout(world, policy, manner.seed, number, manner.max_steps))
    columns = {
        "action": np.stack([step.action for step in steps]),
        "next.reward": np.array([step.reward for step in steps], dtype=np.float32),
        "next.done": np.array([step.done for step in steps]),
    }
    if manner.labelled:
        columns["expert_action"] = np.stack(wanted)
    if world.proprio:
        columns["observation.state"] = np.array([step.observation.proprio for step in steps])
    videos = {CAMERA_PREFIX + c: [step.observation.frames[c] for step in steps] for c in world.cameras}
    return Recorded(columns, videos)


Episode = Callable[[], Recorded | None]  # that has been begun: the call waits for its end


def _player(
    stack: ExitStack, parallel: int, worlds: dict[str, World], size: ImageSize | None, manner: Manner
) -> Callable[[str, int], Episode]:
    """Begins episodes (of a world, by number): of these ``worlds`` when they are asked for, or at once in processes of their own."""
    if parallel == 1:
        return lambda name, number: partial(record, worlds[name], manner, number)
    pool = _Pool(parallel, size, manner)
    stack.callback(pool.close)
    return pool.begin


class _Pool:
    """Processes that play episodes. Where one of them is killed, new ones play again what has not been finished."""

    def __init__(self, parallel: int, size: ImageSize | None, manner: Manner):
        self._parallel, self._size, self._manner = parallel, size, manner
        self._executor = self._new()

    def _new(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("forkserver")  # a process that draws must not be forked
        return ProcessPoolExecutor(self._parallel, context, initializer=_end_with_owner)

    def begin(self, name: str, number: int) -> Episode:
        """Has an episode played at once. Its call raises LaminaError if processes were killed a few times before its end."""
        return partial(self._finish, self._submit(name, number), name, number)

    def _submit(self, name: str, number: int) -> Future[Recorded | None]:
        episode = partial(_record_elsewhere, name, self._size, self._manner, number)
        try:
            return self._executor.submit(episode)
        except BrokenProcessPool:
            self.close()
            self._executor = self._new()
            return self._executor.submit(episode)

    def _finish(self, playing: Future[Recorded | None] | None, name: str, number: int) -> Recorded | None:
        for _ in range(TRIES):
            with suppress(BrokenProcessPool):
                return (playing or self._submit(name, number)).result()
            playing = None
        raise LaminaError(
            f"world '{name}': processes were killed {TRIES} times before episode {number} was finished, perhaps for want of memory; choose "
            "less --parallel"
        )

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)


def _end_with_owner() -> None:
    """In a process of the pool: Ctrl-C is for the owner, whose death would otherwise go unnoticed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owner = multiprocessing.parent_process()
    assert owner is not None

    def follow() -> None:
        owner.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@cache
def _opened(name: str, size: ImageSize | None) -> World:
    world = make(name, size)
    Finalize(None, world.close, exitpriority=1)
    return world


def _record_elsewhere(name: str, size: ImageSize | None, manner: Manner, number: int) -> Recorded | None:
    return record(_opened(name, size), manner, number)


class _Recording:
    """One world's part of a dataset. ``start`` begins an episode, of which ``ahead`` are always under way."""

    def __init__(self, start: Callable[[int], Episode], ahead: int, task: str):
        self.task, self.frames, self.failed = task, 0, 0
        self._start, self._numbers, self._ahead = start, count(), ahead
        self._playing: deque[Episode] = deque()
        self._failed_in_a_row = 0
        self._counts = dict.fromkeys(SPLITS, 0)

    def begin(self) -> None:
        """Has the next episodes played."""
        while len(self._playing) < self._ahead:
            self._playing.append(self._start(next(self._numbers)))

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
        """Writes the next episode, unless it failed and only successes are wanted."""
        self.begin()
        episode = self._playing.popleft()()
        if episode is None:
            self.failed += 1
            self._failed_in_a_row += 1
            bar.set_postfix_str(f"{self.failed} episodes of '{self.task}' failed")
            if self._failed_in_a_row == PATIENCE:
                raise LaminaError(
                    f"'{self.task}': the expert failed {PATIENCE} times in a row; take less noise or more steps, or collect all episodes"
                )
            return
        self._failed_in_a_row = 0
        split = _next_split(self._counts)
        writer.add_episode(episode.columns, episode.videos, self.task, split)
        self._counts[split] += 1
        self.frames += len(episode)
        bar.update(len(episode))


def noisy(world: World, noise: float, hold: int, wanted: list[Action] | None = None) -> ActionFunction:
    """The expert of ``world`` for one episode, with a share of ``noise`` of random actions, each held for ``hold`` steps.

    What the expert would have done in each state is appended to ``wanted``, unless all is noise. It has random numbers of its own: the
    others do not depend on how often it is asked.
    """
    # A random stretch begins at a free step with this probability: hold / (hold + mean stretch of the expert) = noise.
    begins = noise / (noise + hold * (1 - noise))
    held: list[Action] = []
    own: list[np.random.Generator] = []

    def act(rng: np.random.Generator) -> Action:
        if noise < 1:
            own[:] = own or rng.spawn(1)
            expert = world.expert(own[0])
            if wanted is not None:
                wanted.append(expert)
        if not held:
            if rng.random() >= begins:
                return expert
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


def _features(world: World, observation: Observation, labelled: bool) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {
        CAMERA_PREFIX + camera: camera_feature(*observation.frames[camera].shape[:2]) for camera in world.cameras
    }
    if world.proprio:
        features["observation.state"] = {"dtype": "float32", "shape": [world.proprio], "names": None}
    features["action"] = action_feature(world.action) | {"names": list(world.action.names)}
    if labelled:
        features["expert_action"] = features["action"]
    features["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
    features["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
    return features


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
