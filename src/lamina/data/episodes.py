"""Episodes: their frame times, their splits, and the checks that the values of any dataset must pass."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from lamina.errors import LaminaError, warn
from lamina.types import TASK_WIDTH, ActionSpec

SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1  # share of the episodes that validation and test get each
MAX_CLASSES = 1024  # of a discrete action dimension


class DecodeError(LaminaError):
    """A stretch of video that cannot be decoded; streams count it, name it and skip it up to a limit."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One contiguous recording of a dataset.

    Frame times are stored only where the frame rate varies, so that hours of video cost no memory.
    """

    number: int  # number of the episode in its dataset (episode_index of a LeRobot dataset; file number of a folder)
    name: str  # what an error message calls it: a file path, or "ROOT episode 12"
    length: int  # frames
    fps: float  # frames per second (1 / median interval where the rate varies)
    splits: tuple[tuple[str, int, int], ...] = ()  # (split, start, stop) in frames; several if it was cut in time
    stamps: Float[np.ndarray, "t"] | None = None  # seconds from the start; None: exactly i / fps
    keys: np.ndarray | None = None  # frames at which decoding can start (thinned); None: anywhere
    task: str = ""  # what is done in it (LeRobot's task, the first one where it has several); "" = unknown

    @property
    def times(self) -> Float[np.ndarray, "t"]:
        """Seconds from the episode's start, strictly ascending."""
        return np.arange(self.length) / self.fps if self.stamps is None else self.stamps


def exact_rate(fps: float) -> Fraction:
    """A frame rate without the rounding of a float: 30000/1001 for 29.97003; also of a frame an hour."""
    return Fraction(fps).limit_denominator(1001) if fps >= 1 else 1 / Fraction(1 / fps).limit_denominator(1001)


def compact_times(
    times: Float[np.ndarray, "t"], rate: float | None = None, tick: float = 0.0
) -> tuple[float, np.ndarray | None]:
    """(frames per second, None) if ``times`` are i / fps, else (frames per second, times).

    ``tick``: seconds that the times were rounded to by their container; half a tick either way is granted, and 10 microseconds where
    it is none. ``rate``, which the header states, comes first among the rates that fit: what the times say of it depends on their
    number. Else the rate is the mean one, or 1 / median interval where the times stray from it by half a frame and more.
    """
    if len(times) < 2:
        return float(rate or 1.0), None
    mean = (len(times) - 1) / (times[-1] - times[0])
    exact = exact_rate(mean)
    usual = (Fraction(round(mean)), Fraction(1000 * round(mean * 1.001), 1001))
    for fps in map(float, (rate or 0, *(usual if tick else ()), exact)):
        if fps > 0:
            stray = times - np.arange(len(times)) / fps
            if np.abs(stray).max() < 1e-5 or np.ptp(stray) <= tick + 1e-9:
                return fps, None
    stray = times - np.arange(len(times)) / float(exact)
    return (float(exact) if np.abs(stray).max() < 0.5 / exact else float(1.0 / np.median(np.diff(times)))), times


def check_finite(
    values: Shaped[np.ndarray, "t d"], name: str, where: str, episode: str = "", remedy: str = "mend it"
) -> None:
    """Raises LaminaError, with the first row, if a feature of an episode holds NaN or infinity."""
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(bad.any(axis=1).argmax())
        what = "NaN" if np.isnan(values[row]).any() else "infinite"
        raise LaminaError(f"{where}: '{name}' is {what} at {episode}row {row}; {remedy}")


def count_classes(values: Sequence[Shaped[np.ndarray, "t d"]], name: str, where: str) -> tuple[int, ...]:
    """Classes of each dimension of a whole-number feature: the largest number in any episode + 1, at least 2.

    Empty, with a LaminaWarning, where numbers are negative or too large for classes: such a feature is read as continuous.
    """
    lowest, highest = np.min([v.min(0) for v in values], 0), np.max([v.max(0) for v in values], 0)
    if lowest.min() < 0 or highest.max() >= MAX_CLASSES:
        warn(
            f"{where}: '{name}' holds whole numbers from {lowest.min():g} to {highest.max():g}; they are no classes, and are "
            "read as continuous"
        )
        return ()
    return tuple(max(2, int(h) + 1) for h in highest)


def check_classes(values: Float[np.ndarray, "t a"], spec: ActionSpec, name: str, episode: Episode) -> None:
    """Raises LaminaError if a discrete dimension of an episode's actions holds what is none of its classes."""
    discrete = values[:, : len(spec.discrete)]
    wrong = (discrete % 1 != 0) | (discrete < 0) | (discrete >= np.array(spec.discrete))
    if wrong.any():
        row, dim = (int(i) for i in np.argwhere(wrong)[0])
        raise LaminaError(
            f"{episode.name}: '{name}' is {discrete[row, dim]:g} at row {row}, dimension {dim}, none of its classes "
            f"0 to {spec.discrete[dim] - 1}; mend it or its num_classes"
        )


@lru_cache(maxsize=4096)
def task_vector(text: str) -> Float[np.ndarray, "e"]:
    """The instruction vector of a task: the scaled mean of a fixed random vector for each word; zeros for no words.

    A stand-in for a language model's embedding (UniVLA: T5): it distinguishes tasks, but synonyms have unrelated vectors.
    """
    words = text.lower().split()
    seeds = (int.from_bytes(hashlib.sha256(word.encode()).digest()[:8]) for word in words)
    vectors = [np.random.default_rng(seed).standard_normal(TASK_WIDTH) for seed in seeds]
    return (np.sqrt(max(1, len(words))) * np.mean(vectors or [np.zeros(TASK_WIDTH)], axis=0)).astype(np.float32)


def split_episodes(
    episodes: Sequence[Episode],
    names: Sequence[str] | None = None,
    root: str | Path = "this dataset",
    declared: Mapping[str, Collection[int]] | None = None,
    partly: Collection[int] = (),
) -> tuple[Episode, ...]:
    """The same episodes with their splits: by episode, and independent of any training seed.

    Declared validation and test episodes are kept. Each of the two that is not declared gets 10% of the remaining episodes, in the order
    of a hash of ``names`` (default: the episodes' own), so a dataset that is moved keeps its splits. Beside a declared "train", episodes of
    a split with another name belong to none of the three, with a warning. With fewer than 3 episodes each one
    is cut in time: its first 80% are train, then 10% validation and 10% test. ``root``: what a warning calls the dataset. ``partly``:
    numbers of episodes that some camera does not show; they are for training only and do not count here, so that no camera is left
    without a split.
    """
    declared = declared or {}
    names = [episode.name for episode in episodes] if names is None else names
    others = sorted(declared.keys() - set(SPLITS))
    apart = {number for name in others if "train" in declared for number in declared[name]}
    if others:
        fate = "left out of all three" if apart else "divided anew"
        warn(f"{root}: its splits {', '.join(others)} are none of {', '.join(SPLITS)}; their episodes are {fate}")
    count = len(episodes) - len(apart.union(partly))
    if count < 3 and not (declared.keys() & {"validation", "test"} or apart):
        warn(f"{root}: {count} episode(s) are too few to split by episode; each is cut in time, 80/10/10 percent")
        return tuple(replace(e, splits=_splits_in_time(e.length)) for e in episodes)
    held_out = {number: name for name in ("validation", "test") for number in declared.get(name, ())}
    pool = sorted(
        (n for n in range(len(episodes)) if n not in held_out and n not in partly and n not in apart),
        key=lambda n: hashlib.sha256(os.fsencode(names[n])).digest(),
    )
    count = max(1, round(HELD_OUT * count))
    for name in ("validation", "test"):
        if name not in declared:
            held_out |= dict.fromkeys(pool[:count], name)
            pool = pool[count:]
    return tuple(
        replace(e, splits=() if n in apart else ((held_out.get(n, "train"), 0, e.length),))
        for n, e in enumerate(episodes)
    )


def _splits_in_time(length: int) -> tuple[tuple[str, int, int], ...]:
    bounds = (0, round(0.8 * length), round(0.9 * length), length)
    return tuple((s, a, b) for s, a, b in zip(SPLITS, bounds[:-1], bounds[1:], strict=True) if b > a)
