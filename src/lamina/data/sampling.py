"""Sampling: the configuration of the data, the samples that an episode holds, and the segments of a split."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lamina.data.dataset import Data, Dataset, check_name, name_of
from lamina.data.episodes import SPLITS
from lamina.data.lerobot.reader import open_lerobot
from lamina.data.paths import is_dataset
from lamina.data.shots import Detector, Shots, detector
from lamina.data.video import open_folder
from lamina.errors import LaminaError, warn
from lamina.options import check_options
from lamina.types import ActionSpec

TIE = 1e-4  # seconds by which rounding may move the times of frames
PAIR_TOLERANCE = 1.002  # frames by which the gap of a pair may miss what was wanted: one, beside a hole in the video
SEGMENT = 64  # frames of a segment, at least
LONGEST_SEGMENT = 320  # frames of a segment, at most, where key frames are far apart


ActionsOf = Literal["first", "mean", "chunk"]


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes samples."""

    data: tuple[Data, ...]
    """Video folder or file, or LeRobot dataset: PATH, or PATH:weight for its share of the samples; or a Dataset."""
    size: tuple[int, int] = (64, 64)
    """Height and width that frames are resized to."""
    frames: int = 2
    """Frames of a sample: 2 = pairs, 3 = triplets, more = windows."""
    gap: tuple[float, float] = (0.1, 0.2)
    """Seconds between neighbouring frames of a sample, uniform over this range (nearest frame, at least one)."""
    camera: str | None = None
    """Camera of a LeRobot dataset; default: its first. "all": each camera is a view of its own."""
    paired: str | None = None
    """Camera that shows the same states under another exogenous state."""
    action: str | None = "action"
    """Feature that holds the actions, where there is one."""
    actions: ActionsOf = "first"
    """Action of a gap that spans several: the first, their mean, or all of them (a chunk of round(gap * fps) actions as one). For mean and
    chunk the gap must not be a range."""
    span: float | None = None
    """Longest time from the first frame of a sample to its last, seconds; None: as the gaps allow."""
    proprio: str | None = None
    """Feature that holds the proprioception."""
    tasks: tuple[str, ...] = ()
    """Tasks whose episodes are drawn from, in the words of the dataset; empty: all."""
    targets: tuple[str, ...] = ()
    """Features that a head can be trained to predict."""
    shots: Shots = "auto"
    """How cuts are found, which no sample crosses: classical, transnetv2 or none; auto: classical in plain video, none elsewhere."""
    shuffle: int = 2048
    """Samples of the shuffle buffer."""
    workers: int = 1
    """Processes that decode ahead, per shard; 0 decodes in the training process."""
    max_bad: int = 8
    """Segments of video that may fail to decode, each with a warning, before it is an error."""

    @property
    def names(self) -> tuple[str, ...]:
        """What messages and records call the data: its paths as given, and the names of Datasets."""
        return tuple(name_of(source) for source in self.data)

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON, with :attr:`names` for the data."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"data": self.names}

    def __post_init__(self) -> None:
        check_options(self)
        if not self.data:
            raise LaminaError("no data: give at least one --data PATH")
        if self.frames < 2:
            raise LaminaError(f"a sample needs at least 2 frames, not {self.frames}")
        if not self.gap[0] <= self.gap[1]:
            raise LaminaError(f"gap must be shortest <= longest, in seconds, not {self.gap}")
        if self.actions not in ("first", "mean", "chunk"):
            raise LaminaError(f"actions must be first, mean or chunk, not {self.actions}")
        if self.actions != "first" and self.gap[0] != self.gap[1]:
            raise LaminaError(f"the {self.actions} of a gap's actions needs gaps of one length, not {self.gap}")
        if self.span is not None and not self.span >= self.gap[0] * (self.frames - 1):
            raise LaminaError(
                f"{self.frames} frames at least {self.gap[0]:g} s apart do not fit into a span of {self.span:g} s"
            )


def parse_data(argument: Data) -> tuple[Data, float | None]:
    """("PATH", weight) of "PATH:weight", ("PATH", None) of "PATH"; a Dataset has no weight."""
    if isinstance(argument, Dataset):
        return argument, None
    path, colon, weight = str(argument).rpartition(":")
    if not colon or os.path.exists(argument):
        return argument, None
    try:
        value = float(weight)
    except ValueError:
        return argument, None
    if not 0 < value < math.inf:
        raise LaminaError(f"--data {argument}: the weight must be a number above 0")
    return path, value


def open_source(data: Data, max_bad: int = 8) -> Dataset:
    """A Dataset as it is; else the one at a path: a LeRobot dataset if it has meta/info.json, else a video file or a folder of them (links
    are followed).

    Raises LaminaError if there is nothing to read, or a Dataset's episodes are not numbered in order or have no split. Up to ``max_bad``
    unreadable files of a folder are left out, each with a LaminaWarning.
    """
    if isinstance(data, Dataset):
        return _checked(data)
    root = Path(data)
    try:
        if not os.path.exists(root):
            raise LaminaError(f"{root}: no such file or folder; check the path")
        if is_dataset(root):
            return open_lerobot(root)
        return open_folder(root, max_bad)
    except OSError as error:
        raise LaminaError(
            f"{error.filename or root}: may not be read ({error.strerror}); check its permissions"
        ) from error


def open_sources(config: DataConfig) -> list[tuple[Dataset, float | None]]:
    """Every source of a configuration, with its weight. Raises what :func:`open_source` raises."""
    return [(open_source(source, config.max_bad), weight) for source, weight in map(parse_data, config.data)]


def _checked(dataset: Dataset) -> Dataset:
    episodes = dataset.episodes
    if not episodes:
        raise LaminaError(f"{dataset.name}: has no episode")
    for number, episode in enumerate(episodes):
        if episode.number != number:
            raise LaminaError(f"{dataset.name}: episode {number} has the number {episode.number}; number them in order")
        if episode.length < 1 or not episode.fps > 0:
            raise LaminaError(
                f"{episode.name}: {episode.length} frames at {episode.fps} a second; both must be above 0"
            )
    if not any(episode.splits for episode in episodes):
        raise LaminaError(
            f"{dataset.name}: no episode belongs to a split; give Episode.splits, or let lamina.data.split_episodes divide them"
        )
    return dataset


# ---------------------------------------------------------------------------------------------------------- samples


def nearest_frames(times: Float[np.ndarray, "t"], wanted: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The frame nearest to each of ``wanted`` seconds; of two (10 frames a second and 0.15 seconds) the earlier one, however the times
    are rounded."""
    after = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
    last = np.minimum(after, len(times) - 1)
    return np.where(wanted - times[after - 1] <= times[last] - wanted + TIE, after - 1, after)


def count_starts(times: Float[np.ndarray, "t"], fps: float, frames: int, shortest: float) -> int:
    """How many of an episode's first frames leave room for a sample: ``frames`` frames, gaps of ``shortest`` seconds."""
    if len(times) < frames:
        return 0
    room = times[-1] + 0.5 / fps + TIE - (frames - 1) * shortest
    return min(int(np.searchsorted(times, room, side="right")), len(times) - frames + 1)


def draw_samples(
    times: Float[np.ndarray, "t"],
    fps: float,
    starts: Int[np.ndarray, "n"],
    frames: int,
    gap: tuple[float, float],
    rng: np.random.Generator,
    span: float | None = None,
) -> Int[np.ndarray, "m frames"]:
    """Frame numbers of one sample for each start: gaps uniform over ``gap``, cut to what the episode, and ``span`` seconds, have left.

    A sample whose gap misses what was drawn by more than a frame's duration (a hole in the video) is left out; frames
    being discrete, windows of four frames and more are granted half a frame for each gap.
    """
    at, columns = starts, [starts]
    keep = np.ones(len(starts), dtype=bool)
    tolerance = PAIR_TOLERANCE * max(1.0, (frames - 1) / 2) / fps
    end = np.full(len(starts), times[-1] + 0.5 / fps if len(times) else 0.0)
    if span is not None:
        end = np.minimum(end, times[starts] + span)
    for later in range(frames - 2, -1, -1):  # gaps still to come after this one
        room = end - times[at] - later * max(gap[0], 1 / fps)
        wanted = times[at] + gap[0] + rng.random(len(starts)) * (np.clip(room, *gap) - gap[0])
        at = np.clip(nearest_frames(times, wanted), at + 1, len(times) - 1 - later)
        keep &= np.abs(times[at] - wanted) <= tolerance
        columns.append(at)
    return np.stack(columns, axis=1)[keep]


def actions_of_gap(fps: float, gap: float) -> int:
    """How many actions are taken from a frame to the one ``gap`` seconds later, at ``fps`` a second; at least one."""
    return max(1, round(gap * fps - 1e-6))


class Segment(NamedTuple):
    """The samples that begin at frames start..stop-1 of an episode; none of them leaves frames first..end-1."""

    source: int
    camera: int  # number of the camera among those that are drawn from
    episode: int
    first: int
    end: int
    start: int
    stop: int


def _cut(start: int, stop: int, keys: np.ndarray | None) -> list[int]:
    """Bounds of the segments of start..stop: about SEGMENT frames, at key frames where those are far apart."""
    bounds = [start]
    while stop - bounds[-1] > SEGMENT * 3 // 2:
        low, high = bounds[-1] + SEGMENT, bounds[-1] + LONGEST_SEGMENT
        if keys is None:
            cut = low
        else:
            following = int(np.searchsorted(keys, low))
            cut = min(int(keys[following]), high) if following < len(keys) else high
        if cut >= stop:
            break
        bounds.append(cut)
    return [*bounds, stop]


class SampleIndex:
    """The segments, features and shares of a split of the sources. No video is decoded here."""

    def __init__(self, config: DataConfig, split: str) -> None:
        if split not in SPLITS:
            raise LaminaError(f"no split '{split}'; there are: {', '.join(SPLITS)}")
        self.config, self.split = config, split
        opened = open_sources(config)
        self.sources: list[Dataset] = [source for source, _ in opened]
        self.offsets: list[int] = np.cumsum([0] + [len(s.episodes) for s in self.sources]).tolist()
        self.cameras: list[tuple[str, ...]] = [self._cameras(s) for s in self.sources]
        self._missing: list[dict[str, set[int]]] = [self._find_missing(n) for n in range(len(self.sources))]
        self._check_paired()
        self.step = self._action()  # what one action holds
        self.steps = self._steps()  # actions that a gap spans
        chunked = self.step is not None and config.actions == "chunk"
        self.action = self.step.chunk(self.steps) if chunked and self.step else self.step
        for source in self.sources:
            for name in (config.proprio, *config.targets):
                check_name(source, "feature", name, source.columns)
        self._check_tasks()
        self.detectors: list[Detector | None] = [detector(config.shots, source) for source in self.sources]
        self.segments: list[Int[np.ndarray, "n 7"]] = [self._segments(n) for n in range(len(self.sources))]
        self.counts: list[int] = [int((s[:, 6] - s[:, 5]).sum()) for s in self.segments]
        weights = [w for _, w in opened]
        if any(w is None for w in weights) and any(w is not None for w in weights):
            raise LaminaError("give a weight to every --data PATH:weight, or to none of them")
        shares = np.array([c if w is None else w for c, w in zip(self.counts, weights, strict=True)], dtype=np.float64)
        self.shares: list[float] = (shares / shares.sum()).tolist()

    def _cameras(self, source: Dataset) -> tuple[str, ...]:
        """The cameras that frames are drawn from."""
        if not source.cameras:
            raise LaminaError(
                f"{source.name}: has no video; Lamina reads features of dtype 'video' and pictures of dtype 'image'"
            )
        wanted, paired = self.config.camera, self.config.paired
        check_name(source, "camera", paired, source.cameras)
        if paired is not None and (wanted == paired or source.cameras == (paired,)):
            raise LaminaError(
                f"{source.name}: camera '{paired}' would be paired with itself; name another by --camera or --paired"
            )
        views = tuple(c for c in source.cameras if c != paired)
        if wanted == "all" or (wanted is None and views):
            return views if wanted == "all" else views[:1]
        check_name(source, "camera", wanted, source.cameras)
        return (wanted or source.cameras[0],)

    def _find_missing(self, number: int) -> dict[str, set[int]]:
        """The episodes that each view leaves out: its camera, or the paired one, does not show them, or their pictures are in doubt.

        Raises LaminaError if there are more than ``max_bad`` of the latter, or no episode is left.
        """
        source = self.sources[number]
        missing: dict[str, set[int]] = {}
        for camera in (*self.cameras[number], *filter(None, [self.config.paired])):
            found = source.missing_episodes(camera)
            missing[camera] = set(found)
            refused = [error for error in found.values() if error is not None]
            absent = len(found) - len(refused)
            if not refused and len(found) == len(source.episodes):
                raise LaminaError(f"{source.name}: '{camera}' shows no episode; name another camera by --camera")
            if refused and (len(refused) > self.config.max_bad or len(found) == len(source.episodes)):
                more = f" ({len(refused)} episodes of {source.name} cannot be used)" if len(refused) > 1 else ""
                raise LaminaError(f"{refused[0]}{more}")
            warned = [f"left out: {error}" for error in dict.fromkeys(refused)]
            if absent:
                warned.append(
                    f"{source.name}: '{camera}' does not show {absent} of {len(source.episodes)} episodes; they are left out"
                )
            for text in warned:
                warn(text)
        return {view: missing[view] | missing.get(self.config.paired or "", set()) for view in self.cameras[number]}

    def _check_paired(self) -> None:
        """Views of the same states are as long as one another."""
        paired = self.config.paired
        if paired is None:
            return
        for source, views, missing in zip(self.sources, self.cameras, self._missing, strict=True):
            for episode in source.episodes:
                shown = [view for view in views if episode.number not in missing[view]]
                if not shown:
                    continue
                lengths = {camera: source.seconds(episode, camera) for camera in (*shown, paired)}
                if max(lengths.values()) - min(lengths.values()) > 1.5 / episode.fps:
                    durations = ", ".join(f"'{camera}' {length:.2f} s" for camera, length in lengths.items())
                    raise LaminaError(f"{episode.name}: paired views must be of one length, but it has {durations}")

    def _action(self) -> ActionSpec | None:
        """What the actions of one step hold; None unless every source has the same ones."""
        name = self.config.action
        if name is None:
            return None
        if name != "action":
            for source in self.sources:
                check_name(source, "feature", name, source.columns)
        specs = [s.action_spec(name) for s in self.sources]
        kinds = {None if spec is None else (spec.discrete, spec.continuous) for spec in specs}
        spec = specs[0] if len(kinds) == 1 else None
        if spec is not None and self.config.actions == "mean" and spec.discrete:
            raise LaminaError(
                f"{self.sources[0].name}: classes have no mean; tie a gap to the first action, or to a chunk"
            )
        return spec

    def _steps(self) -> int:
        """Actions from one frame of a sample to the next: the longest gap's."""
        gap, first = self.config.gap[1], self.config.actions == "first"
        rates = {e.fps for s in self.sources for e in s.episodes} if not first else {s.fps for s in self.sources}
        counts = {actions_of_gap(fps, gap) for fps in rates}
        if len(counts) > 1 and not first:
            roots = ", ".join(source.name for source in self.sources)
            raise LaminaError(
                f"{roots}: at {min(rates):g} to {max(rates):g} frames per second a gap of {gap:g} s spans {min(counts)} to {max(counts)} "
                "actions; take the first of them, or data of one rate"
            )
        return min(counts)

    def over_the_gap(self, action: Float[np.ndarray, "t a"], frames: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n a2"]:
        """The action of the gap that begins at each of ``frames`` (``config.actions``: first, mean or chunk), from an episode's actions;
        the last one is repeated where the gap reaches beyond the episode's end."""
        if self.config.actions == "first" or self.step is None:
            return action[frames]
        every = action[np.minimum(frames[:, None] + np.arange(self.steps), len(action) - 1)]
        return every.mean(1) if self.config.actions == "mean" else self.step.pack(every)

    def _check_tasks(self) -> None:
        there = sorted({e.task for s in self.sources for e in s.episodes if e.task})
        for task in self.config.tasks:
            if task not in there:
                roots = ", ".join(s.name for s in self.sources)
                raise LaminaError(f"{roots}: has no task '{task}'; it has: {'; '.join(there) or 'none'}")

    def _segments(self, number: int) -> Int[np.ndarray, "n 7"]:
        """The segments of one source. Raises LaminaError if no episode of the split has room for a sample."""
        source, config, missing = self.sources[number], self.config, self._missing[number]
        rows: list[Segment] = []
        spans = short = 0
        for n, episode in enumerate(source.episodes):
            if config.tasks and episode.task not in config.tasks:
                continue
            for split, first, end in episode.splits:
                if split != self.split:
                    continue
                views = [c for c, view in enumerate(self.cameras[number]) if episode.number not in missing[view]]
                if not views:
                    continue
                spans += 1
                starts = count_starts(episode.times[first:end], episode.fps, config.frames, config.gap[0])
                short += starts == 0
                bounds = _cut(first, first + starts, episode.keys)
                for camera in views:
                    rows += [Segment(number, camera, n, first, end, a, b) for a, b in pairwise(bounds) if b > a]
        need = f"{config.frames} frames at least {config.gap[0]:g} s apart"
        if not rows:
            where = source.episodes[0].name if len(source.episodes) == 1 else source.name
            of = " of " + "; ".join(map(repr, config.tasks)) if config.tasks else ""
            what = (
                f"no {self.split} episode{of}"
                if spans == 0
                else f"none of its {spans} {self.split} stretch(es) of video"
            )
            raise LaminaError(f"{where}: {what} holds {need}; use longer video or a shorter gap")
        if short:
            warn(f"{source.name}: {short} of {spans} {self.split} episodes are too short for {need} and are left out")
        if 1.0 / source.fps > config.gap[1]:
            warn(
                f"{source.name}: at {source.fps:g} frames per second neighbouring frames are {1 / source.fps:.3g} s apart, "
                f"more than the longest gap, {config.gap[1]:g} s; samples are neighbouring frames"
            )
        return np.array(rows, dtype=np.int32)


def feature_width(config: DataConfig, name: str) -> int | None:
    """Values of feature ``name`` in one frame; None unless every source has it, and as wide.

    Raises LaminaError for data that cannot be read.
    """
    widths = {source.width(name) for source, _ in open_sources(config)}
    return widths.pop() if len(widths) == 1 else None


def count_transitions(config: DataConfig, split: str) -> int:
    """Samples of a split: each frame that leaves room for a sample begins one."""
    return sum(SampleIndex(config, split).counts)


def source_camera(source: Dataset, camera: str | None) -> str:
    """``camera``, or the source's first one for None. Raises LaminaError if the source has no such camera."""
    check_name(source, "camera", camera, source.cameras)
    return camera or source.cameras[0]
