"""Training stream: decodes video in worker processes and yields shuffled batches.

Every frame that leaves room for a sample begins exactly one sample an epoch. Episodes are cut into short segments, each
decoded forward in one go. Segments come in a seeded random order, from the source that is furthest behind its share.
Their samples, numbered j = 0, 1, 2, ... in that order, are delivered in the order of j + U{0..shuffle-1}: a shuffle
buffer whose content is a function of the numbers. So a few integers are enough to resume a stream at the exact sample, with
any number of workers, and it holds about ``shuffle`` samples in memory, however much video there is.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from lamina.data.dataset import Dataset
from lamina.data.decoding import DecodingDied, InProcesses
from lamina.data.episodes import DecodeError, Episode, check_classes, task_vector
from lamina.data.sampling import DataConfig, SampleIndex, Segment, draw_samples
from lamina.data.shots import Detector
from lamina.errors import LaminaError, warn
from lamina.records import Malformed, NonNegative, validated
from lamina.types import Clip

SAMPLES_PER_SEGMENT = 4  # samples that gather takes from one stretch of video


class DecodedSegment(NamedTuple):
    """The frames of a segment's samples, each decoded once, and the samples as rows of them."""

    frames: UInt8[np.ndarray, "n c h w"]
    paired: UInt8[np.ndarray, "n c h w"] | None
    columns: dict[str, Float[np.ndarray, "n d"]]  # time, index, and whichever of action, previous_action, ... there are
    episode: int
    task: Float[np.ndarray, "e"]
    samples: Int[np.ndarray, "m t"]  # rows of the above
    cuts: int = 0  # before the frames that begin its samples; samples that cross a cut are left out


def decode_segment(
    plan: SampleIndex, segment: Segment, rng: np.random.Generator, picks: Int[np.ndarray, "n"] | None = None
) -> DecodedSegment:
    """Draw a segment's samples (or only the ones with the numbers ``picks``) and decode the frames that they need.

    Raises DecodeError for damaged video and LaminaError for invalid values of a feature: NaN, infinity, unknown classes.
    """
    config, source = plan.config, plan.sources[segment.source]
    episode = source.episodes[segment.episode]
    times = episode.times[segment.first : segment.end]
    starts = np.arange(segment.start, segment.stop) - segment.first
    starts = starts if picks is None else starts[picks]
    samples = segment.first + draw_samples(times, episode.fps, starts, config.frames, config.gap, rng, config.span)
    camera = plan.cameras[segment.source][segment.camera]
    find, read, cuts = plan.detectors[segment.source], None, 0
    if find is not None and len(samples):
        read = _with_neighbours(find, source, episode, camera, segment, samples, config.size)
        cuts, samples = read.cuts(segment), read.within_shots(samples)
    numbers, rows = np.unique(samples, return_inverse=True)
    columns = {"time": episode.times[numbers].astype(np.float32), "index": numbers.astype(np.int64)}
    if plan.action is not None:
        assert config.action is not None
        action = source.column(episode, config.action)
        assert plan.step is not None
        check_classes(action, plan.step, config.action, episode)
        columns["action"] = plan.over_the_gap(action, numbers)
        columns["previous_action"] = np.where(numbers[:, None] > 0, action[numbers - 1], 0).astype(np.float32)
    if config.proprio is not None:
        columns["proprio"] = source.column(episode, config.proprio)[numbers]
    columns |= {f"target {name}": source.column(episode, name)[numbers] for name in config.targets}
    return DecodedSegment(
        _read(source, episode, camera, numbers, config.size) if read is None else read.of(numbers),
        None if config.paired is None else _read(source, episode, config.paired, numbers, config.size),
        columns,
        plan.offsets[segment.source] + segment.episode,
        task_vector(episode.task),
        rows.reshape(samples.shape),
        cuts,
    )


class _Shots(NamedTuple):
    """Frames that were read to find cuts in them, and the cuts."""

    numbers: Int[np.ndarray, "n"]  # of the frames, ascending
    frames: UInt8[np.ndarray, "n h w 3"]
    starts: Bool[np.ndarray, "n"]  # whether a shot begins at the frame

    def cuts(self, segment: Segment) -> int:
        """Cuts between frames of which the first begins a sample of the segment."""
        return int(self.starts[(self.numbers > segment.start) & (self.numbers <= segment.stop)].sum())

    def within_shots(self, samples: Int[np.ndarray, "m t"]) -> Int[np.ndarray, "k t"]:
        """The samples between whose first and last frame there is no cut."""
        first, last = (np.searchsorted(self.numbers, samples[:, k], side="right") for k in (0, -1))
        before = np.concatenate([[0], np.cumsum(self.starts)])  # cuts before and at the frames
        return samples[before[first] == before[last]]

    def of(self, numbers: Int[np.ndarray, "k"]) -> UInt8[np.ndarray, "k c h w"]:
        """The frames with these numbers."""
        return np.ascontiguousarray(self.frames[np.searchsorted(self.numbers, numbers)].transpose(0, 3, 1, 2))


def _with_neighbours(
    find: Detector,
    source: Dataset,
    episode: Episode,
    camera: str,
    segment: Segment,
    samples: Int[np.ndarray, "m t"],
    size: tuple[int, int],
) -> _Shots:
    """Every frame from the first of each sample to its last, and those around it that decide where cuts are."""
    low = np.maximum(samples[:, 0] - find.context, segment.start)  # frames before the segment may take long to get at
    high = np.minimum(samples[:, -1] + 1 + find.context, segment.end)
    numbers = np.unique(np.concatenate([np.arange(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)]))
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    frames = [source.frames(episode, camera, int(run[0]), int(run[-1]) + 1, size) for run in runs]
    return _Shots(numbers, np.concatenate(frames), np.concatenate([find(part) for part in frames]))


def _read(
    source: Dataset, episode: Episode, camera: str, numbers: Int[np.ndarray, "n"], size: tuple[int, int]
) -> UInt8[np.ndarray, "n c h w"]:
    if len(numbers) == 0:
        return np.empty((0, 3, *size), dtype=np.uint8)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    frames = np.concatenate([source.frames(episode, camera, int(r[0]), int(r[-1]) + 1, size) for r in runs])
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2))


def evenly_spaced(total: int, count: int, rng: np.random.Generator | None = None) -> Int[np.ndarray, "count"]:
    """``count`` of the numbers 0..total-1, ascending: the middle of each of ``count`` equal parts, or with ``rng`` any number of it."""
    count = min(total, count)
    if rng is None or not count:
        return (np.arange(count) * total + total // 2) // max(count, 1)
    ends = np.arange(count + 1) * total // count
    return rng.integers(ends[:-1], ends[1:])


def assemble(rows: Sequence[tuple[DecodedSegment, int]]) -> Clip:
    """A batch from single samples: (decoded segment, number of the sample in it)."""
    picks = [(d, d.samples[m]) for d, m in rows]

    def stack(values: Sequence[np.ndarray]) -> torch.Tensor:
        out = np.empty((len(picks), *picks[0][1].shape, *values[0].shape[1:]), values[0].dtype)
        for n, (_, frames) in enumerate(picks):
            np.take(values[n], frames, axis=0, out=out[n], mode="clip")  # "raise" would copy once more
        return torch.from_numpy(out)

    columns = {name: stack([d.columns[name] for d, _ in rows]) for name in rows[0][0].columns}
    paired = [d.paired for d, _ in rows if d.paired is not None]
    return Clip(
        frames=stack([d.frames for d, _ in rows]),
        paired=stack(paired) if paired else None,
        episode=torch.tensor([d.episode for d, _ in rows]),
        task=torch.from_numpy(np.stack([d.task for d, _ in rows])),
        targets={n.removeprefix("target "): columns.pop(n) for n in list(columns) if n.startswith("target ")},
        **columns,
    )


# --------------------------------------------------------------------------------------------------------- the order


class StreamPosition(NamedTuple):
    """A segment's position in the order of segments."""

    serial: int  # segments before it
    segments: tuple[int, ...]  # segments of each source before it
    samples: tuple[int, ...]  # samples of each source before it

    def after(self, segment: Segment) -> StreamPosition:
        """The position of the segment after ``segment``."""
        here = [i == segment.source for i in range(len(self.segments))]
        return StreamPosition(
            self.serial + 1,
            tuple(n + h for n, h in zip(self.segments, here, strict=True)),
            tuple(n + h * (segment.stop - segment.start) for n, h in zip(self.samples, here, strict=True)),
        )


def divide(plan: SampleIndex, seed: int, shards: int) -> list[list[Int[np.ndarray, "n"]]]:
    """For each shard, the numbers of its segments of every source.

    A shard has whole episodes, drawn at random, and about as many samples of a source as any other. Where whole episodes would miss an
    equal share by more than a twentieth of it, the episode at the border is divided between two shards. Only a source with fewer segments
    than shards is read by all of them.
    """
    each = [_divide(segments, shards, [seed, 2, s]) for s, segments in enumerate(plan.segments)]
    return [list(own) for own in zip(*each, strict=True)]


def _divide(segments: Int[np.ndarray, "n 7"], shards: int, seed: list[int]) -> list[Int[np.ndarray, "m"]]:
    if shards == 1 or len(segments) < shards:
        return [np.arange(len(segments))] * shards
    episodes, row = np.unique(segments[:, 2], return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(episodes))[row]
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum((segments[:, 6] - segments[:, 5])[order])  # samples up to each segment
    whole = np.flatnonzero(np.diff(rank[order], append=-1))  # the last segments of the episodes
    share, cuts = ends[-1] / shards, [0]
    for n in range(1, shards):
        nearest = int(whole[np.abs(ends[whole] - n * share).argmin()])
        if abs(ends[nearest] - n * share) > share / 20:
            nearest = int(np.abs(ends - n * share).argmin())
        # At least one segment for this shard, and for each one after it.
        cuts.append(min(max(nearest + 1, cuts[-1] + 1), len(segments) - shards + n))
    return np.split(order, cuts[1:])


def schedule(
    plan: SampleIndex, seed: int, turn: StreamPosition, shard: int = 0, shards: int = 1
) -> Iterator[tuple[StreamPosition, Segment]]:
    """The endless order of a shard's segments (:func:`divide`) from ``turn`` on."""
    own = divide(plan, seed, shards)[shard]
    orders: dict[int, tuple[int, np.ndarray]] = {}
    while True:
        done = sum(turn.samples)
        behind = [share * (done + 1) - n for share, n in zip(plan.shares, turn.samples, strict=True)]
        s = int(np.argmax(behind))
        epoch, position = divmod(turn.segments[s], len(own[s]))
        if s not in orders or orders[s][0] != epoch:
            orders[s] = (epoch, np.random.default_rng(_key(seed, 0, s, epoch, shard)).permutation(own[s]))
        segment = Segment(*plan.segments[s][orders[s][1][position]].tolist())
        yield turn, segment
        turn = turn.after(segment)


def _key(*numbers: int) -> list[int]:
    """The seed of a generator; the last number is the shard, and the first one has the keys of a stream that is not divided."""
    return list(numbers if numbers[-1] else numbers[:-1])


def decoded_segments(
    plan: SampleIndex, seed: int, begin: StreamPosition, shard: int, shards: int, first: int, every: int
) -> Iterator[tuple[StreamPosition, Segment, DecodedSegment | LaminaError, np.ndarray]]:
    """Each ``every``-th segment of :func:`schedule`, from number ``first`` on: its position, itself, decoded, and its samples' delays.

    An error stands in the place of what it concerns, so that the training process reports it in one line.
    """
    for turn, segment in islice(schedule(plan, seed, begin, shard, shards), first, None, every):
        rng = np.random.default_rng(_key(seed, 1, turn.serial, shard))
        try:
            decoded = decode_segment(plan, segment, rng)
        except LaminaError as error:
            yield turn, segment, error, np.empty(0, np.int64)
        else:
            yield turn, segment, decoded, rng.integers(0, plan.config.shuffle, len(decoded.samples))


class _Arrived(NamedTuple):
    """A decoded segment whose samples are in the shuffle buffer."""

    turn: StreamPosition
    first: int  # number of its first sample in the stream
    cuts: int  # found before it
    decoded: DecodedSegment


@dataclass(frozen=True)
class ShardState:
    """Where a shard is in the stream, for checkpoints: its :class:`StreamPosition`, the number of samples that have arrived before that,
    (key, number) of the last sample delivered, the segments that could not be decoded, and the number of cuts found before."""

    serial: NonNegative
    segments: tuple[NonNegative, ...]
    samples: tuple[NonNegative, ...]
    arrived: NonNegative
    last: tuple[int, int]
    bad: tuple[tuple[NonNegative, NonNegative, NonNegative, NonNegative, NonNegative, NonNegative, NonNegative], ...]
    cuts: NonNegative = 0

    def __post_init__(self) -> None:
        if sum(self.segments) != self.serial:
            raise LaminaError(f"{self.segments} segments of the sources are not {self.serial} together")


class _Shard:
    """One stream of samples, over the segments of one shard."""

    def __init__(self, plan: SampleIndex, seed: int, shard: int, shards: int) -> None:
        self.plan, self.seed, self.shard, self.shards = plan, seed, shard, shards
        self.arrivals: Iterator[Any] | None = None
        none = (0,) * len(plan.sources)
        self.restart(ShardState(0, none, none, arrived=0, last=(-1, -1), bad=()))

    def restart(self, state: ShardState) -> None:
        """Go on from ``state``."""
        self.close()
        # The next segment to arrive is this one or a later one. Samples at or below the last one delivered are skipped.
        self.turn = StreamPosition(state.serial, state.segments, state.samples)
        self.arrived, self.last, self.bad = state.arrived, state.last, [Segment(*numbers) for numbers in state.bad]
        self.cuts = state.cuts
        self.empty_segments = 0  # segments without a sample since the last one with any
        self.queue: list[tuple[int, int, _Arrived]] = []  # heap of samples that wait: (key, number, segment)

    def state(self) -> ShardState:
        waiting = [(segment.first, segment.turn, segment.cuts) for _, _, segment in self.queue]
        arrived, turn, cuts = min(waiting, default=(self.arrived, self.turn, self.cuts))
        return ShardState(*turn, arrived, self.last, tuple(self.bad), cuts)

    def draw(self) -> tuple[DecodedSegment, int]:
        """The next sample: (decoded segment, number of the sample in it)."""
        while not self.queue or self.queue[0][0] > self.arrived:
            self._receive()
        key, number, segment = heapq.heappop(self.queue)
        self.last = (key, number)
        return segment.decoded, number - segment.first

    def _receive(self) -> None:
        """Take in the next segment."""
        if self.arrivals is None:
            self.arrivals = self._start()
        try:
            turn, segment, decoded, delays = next(self.arrivals)
        except DecodingDied as error:
            raise LaminaError(
                f"{self.plan.config.names[0]}: a decoding process died ({error}); try workers = 0"
            ) from error
        self.turn = turn.after(segment)
        self.empty_segments += 1
        if isinstance(decoded, LaminaError):
            self._skip(segment, decoded)
        elif len(delays):
            arrived = _Arrived(turn, self.arrived, self.cuts, decoded)
            self.arrived += len(delays)
            self.empty_segments = 0
            for number, delay in enumerate(delays.tolist(), arrived.first):
                if (number + delay, number) > self.last:  # the others were delivered before a resume
                    heapq.heappush(self.queue, (number + delay, number, arrived))
        self.cuts += 0 if isinstance(decoded, LaminaError) else decoded.cuts
        if self.empty_segments > sum(len(s) for s in self.plan.segments):
            raise LaminaError(
                f"{self.plan.config.names[0]}: no sample can be drawn, its frames are too far apart in time"
            )

    def _skip(self, segment: Segment, error: LaminaError) -> None:
        """Count a stretch of video that cannot be decoded; anything else that is wrong is an error at once."""
        if not isinstance(error, DecodeError):
            raise error
        if segment not in self.bad:
            self.bad.append(segment)
            warn(f"skipped frames {segment.start}-{segment.stop - 1}: {error}")
        if len(self.bad) > self.plan.config.max_bad:
            raise LaminaError(f"{error} (more than {self.plan.config.max_bad} stretches of video cannot be decoded)")

    def _start(self) -> Iterator[Any]:
        work = partial(decoded_segments, self.plan, self.seed, self.turn, self.shard, self.shards)
        workers = self.plan.config.workers
        return InProcesses(work, workers) if workers else work(0, 1)

    def close(self) -> None:
        """Stop the worker processes."""
        if isinstance(self.arrivals, InProcesses):
            self.arrivals.close()
        self.arrivals = None


@dataclass(frozen=True)
class _State:
    data: str
    shards: dict[str, ShardState]


class ClipStream:
    """An endless stream of :class:`lamina.types.Clip` batches for training.

    ``shards`` independent streams divide the data among them (:func:`divide`); a batch is ``batch // shards`` samples of each, in their
    order. This process draws those that are its ``own`` (None: all): so one process with ``shards=2`` sees exactly what two processes see
    together. The order depends on the data, the configuration, ``seed`` and ``shards``, not on the number of workers or processes.
    Segments that cannot be decoded are skipped, each with a warning, up to ``max_bad``.

    Raises LaminaError: data that cannot be read, names that are not there, NaN in a feature, too many bad stretches.
    """

    def __init__(
        self,
        config: DataConfig,
        batch: int,
        seed: int,
        split: str = "train",
        shards: int = 1,
        own: Sequence[int] | None = None,
    ) -> None:
        if batch < 1 or batch % shards:
            raise LaminaError(f"a batch of {batch} cannot be shared evenly by {shards} streams; change one of them")
        self.config, self.batch = config, batch
        self.plan = SampleIndex(config, split)
        self._shards = {r: _Shard(self.plan, seed, r, shards) for r in (range(shards) if own is None else own)}
        self._each = batch // shards
        settings = {k: v for k, v in config.to_dict().items() if k not in ("data", "workers", "max_bad", "shots")}
        segments = [len(s) for s in self.plan.segments]
        made_of = [source.fingerprint() for source in self.plan.sources]
        what = [settings, batch, seed, split, shards, self.plan.counts, self.plan.shares, segments, made_of]
        found_by = [find and type(find).__name__ for find in self.plan.detectors]
        what += [found_by] if any(found_by) else []
        what += ["shards of whole episodes"] if shards > 1 else []
        description = json.dumps(what)
        self._fingerprint = hashlib.sha256(description.encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[Clip]:
        return self

    def __next__(self) -> Clip:
        return assemble([s.draw() for s in self._shards.values() for _ in range(self._each)])

    def figures(self) -> dict[str, float]:
        """For the log: the cuts that were found so far, as often as their video was read; nothing where none are looked for."""
        looked = any(find is not None for find in self.plan.detectors)
        return {"cuts": float(sum(shard.cuts for shard in self._shards.values()))} if looked else {}

    def state_dict(self) -> dict[str, Any]:
        """The stream's position: a few integers for each shard, for JSON. States of several processes can be merged."""
        shards = {str(r): asdict(shard.state()) for r, shard in self._shards.items()}
        return json.loads(json.dumps({"data": self._fingerprint, "shards": shards}))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the exact next sample. Raises LaminaError if the state is damaged, or of other data or settings."""
        saved = validated(_State, state)
        states = {str(r): saved.shards.get(str(r)) for r in self._shards}
        if saved.data != self._fingerprint or None in states.values():
            raise LaminaError(
                f"{', '.join(self.config.names)}: the data or its settings are not those of the run to be resumed; "
                "use the same ones, or start a new run from this one's weights with --init"
            )
        sources = len(self.plan.sources)
        if any(s and not len(s.segments) == len(s.samples) == sources for s in states.values()):
            raise Malformed(f"the state of a shard does not fit {sources} source(s)")
        for r, shard in self._shards.items():
            shard.restart(saved.shards[str(r)])

    def close(self) -> None:
        """Stop the worker processes; drawing from the stream again restarts them."""
        for shard in self._shards.values():
            shard.close()


def sample_split(
    config: DataConfig, split: str, limit: int | None, seed: int = 0, require_action: bool = False
) -> Clip:
    """Samples of a split, spread over its episodes and in their order; the same every time.

    ``limit``: how many samples at most (None: every one of the split). Where that is fewer than the split has, every task
    gives equally many, as far as it has them, and about four are taken from each of evenly spread stretches of video,
    which spares decoding. ``seed``: with another one, other samples are chosen (0: the middle of each part).

    Raises LaminaError as :class:`ClipStream` does, and if ``require_action`` and there are no actions.
    """
    plan = SampleIndex(config, split)
    if require_action and plan.action is None:
        raise LaminaError(f"{_lacks_actions(plan)}; actions are needed here")
    segments = np.concatenate(plan.segments)
    rows: list[tuple[DecodedSegment, int]] = []
    bad: list[DecodeError] = []
    for v, here in _choose(plan, segments, limit, np.random.default_rng([seed, 4]) if seed else None):
        try:
            decoded = decode_segment(plan, Segment(*segments[v].tolist()), np.random.default_rng([seed, 3, v]), here)
        except DecodeError as error:
            bad.append(error)
            warn(f"skipped: {error}")
            if len(bad) > config.max_bad:
                raise LaminaError(
                    f"{error} (more than {config.max_bad} stretches of video cannot be decoded)"
                ) from error
            continue
        rows += [(decoded, m) for m in range(len(decoded.samples))]
    if not rows:
        raise (
            bad[0]
            if bad
            else LaminaError(f"{config.names[0]}: no {split} sample can be drawn, its frames are too far apart")
        )
    return assemble(rows)


def _choose(
    plan: SampleIndex, segments: Int[np.ndarray, "n 7"], limit: int | None, rng: np.random.Generator | None
) -> Iterator[tuple[int, Int[np.ndarray, "m"]]]:
    """Which segments :func:`sample_split` visits, and which of their samples it takes there, in the order of ``segments``."""
    sizes = segments[:, 6] - segments[:, 5]
    tasks = [plan.sources[s].episodes[e].task for s, e in segments[:, [0, 2]].tolist()]
    chosen: dict[int, np.ndarray] = {}
    groups = [np.flatnonzero(np.array(tasks) == task) for task in sorted(set(tasks))]
    totals = [int(sizes[group].sum()) for group in groups]
    for group, share in zip(groups, totals if limit is None else divide_evenly(limit, totals), strict=True):
        visited = group
        if share < sizes[group].sum():
            count = -(-share // SAMPLES_PER_SEGMENT)
            while sizes[visited := group[evenly_spaced(len(group), count, rng)]].sum() < share:
                count *= 2
        ends = np.cumsum(sizes[visited])
        picks = evenly_spaced(int(ends[-1]), share, rng) if len(visited) else visited
        for v, end in zip(visited.tolist(), ends.tolist(), strict=True):
            begin = end - sizes[v]
            chosen[v] = picks[np.searchsorted(picks, begin) : np.searchsorted(picks, end)] - begin
    return iter(sorted(chosen.items()))


def divide_evenly(limit: int, totals: Sequence[int]) -> list[int]:
    """``limit`` divided among groups of sizes ``totals``: equal shares, as far as each group has so many."""
    shares = [0] * len(totals)
    left = limit
    for waiting, n in enumerate(sorted(range(len(totals)), key=lambda n: totals[n])):
        shares[n] = min(totals[n], left // (len(totals) - waiting))
        left -= shares[n]
    return shares


def _lacks_actions(plan: SampleIndex) -> str:
    name = plan.config.action
    for source in plan.sources:
        if name is None or source.action_spec(name) is None:
            return f"{source.name}: has no feature '{name}'; it has: {', '.join(source.columns) or 'none'}"
    return f"{', '.join(plan.config.names)}: their actions '{name}' differ in kind or dimension"
