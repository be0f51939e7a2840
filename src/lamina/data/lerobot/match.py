"""Aligns table rows with video frames when their clocks differ.

Rows and frames have times of their own. A camera of 30000/1001 frames a second with a table of 30, or a hardware clock in the table, moves
the rows by a frame after half a minute, and by more later. Timestamps are used while the match is unambiguous; otherwise rows and frames
are paired by index, if the file has as many frames as its episodes have rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lamina.data.video import FrameClock

MAX_OFFSET = 0.4  # of the distance between pictures, by which a row may miss its picture

Numbers = range | np.ndarray  # picture of each row of an episode, ascending


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's table says that its pictures are in a file."""

    number: int  # of the episode
    begin: float  # seconds: where its stretch of video begins and ends; NaN: not said
    end: float
    times: Float[np.ndarray, "t"]  # seconds on the file's clock: when each row's picture shows
    fps: float  # rows per second, as :func:`rate_of` has it
    rate: float  # frames per second that the dataset states


@dataclass(frozen=True)
class RowAlignment:
    """The pictures of one file, by episode."""

    pictures: dict[int, Numbers]
    refused: dict[int, str]  # episodes whose pictures are not known, with a description of the two clocks
    counted: tuple[int, ...] = ()  # episodes whose pictures were counted, because the clocks disagree


def rate_of(times: Float[np.ndarray, "t"], fps: float) -> float:
    """Rows per second: 1 / the median distance of neighbouring rows, which gaps do not change; ``fps`` for a single row."""
    return float(1.0 / np.median(np.diff(times))) if len(times) > 1 else fps


def align_rows(clock: FrameClock, count: int, spans: Sequence[VideoSpan]) -> RowAlignment:
    """The numbers, in a file of ``count`` pictures, of those that belong to each row of the episodes in it.

    By time, where every row has a picture of its own close by, within the episode's stretch, and no two episodes share one. Else by count,
    where there are as many pictures as rows and every episode begins near its place. Else none, from the first episode in doubt on.
    """
    spans = sorted(spans, key=lambda s: (s.begin, s.number))
    shown = clock.at(np.arange(count))
    found: dict[int, Numbers] = {}
    doubted: list[VideoSpan] = []
    last = -1
    for n, span in enumerate(spans):
        numbers = _by_time(clock, shown, span)
        if numbers is None or numbers[0] <= last:
            # The clock of a file that goes wrong stays wrong, and an episode that reaches into this one is wrong itself.
            doubted = spans[n if numbers is None else n - 1 :]
            found = {s.number: found[s.number] for s in spans if s.number in found and s not in doubted}
            break
        last = int(numbers[-1])
        found[span.number] = numbers
    if not doubted:
        return RowAlignment(found, {})
    starts = np.cumsum([0] + [len(s.times) for s in spans])
    if starts[-1] == count and _in_place(clock, spans, starts[:-1]):
        counted: dict[int, Numbers] = {
            s.number: range(a, a + len(s.times)) for s, a in zip(spans, starts[:-1].tolist(), strict=True)
        }
        return RowAlignment(counted, {}, tuple(s.number for s in doubted))
    pictures = f"{count} pictures at {clock.fps:.5g} a second for {starts[-1]} rows in {len(spans)} episode(s)"
    refused = {
        s.number: f"{len(s.times)} rows at {s.fps:.5g} a second from {s.begin:.3f} s on, but {pictures}"
        for s in doubted
    }
    return RowAlignment(found, refused)


def _by_time(clock: FrameClock, shown: Float[np.ndarray, "n"], span: VideoSpan) -> Numbers | None:
    """The picture nearest to the time of each row; None where one is in doubt."""
    times = span.times
    right = np.searchsorted(shown, times).clip(1, max(1, len(shown) - 1))
    after = np.minimum(right, len(shown) - 1)
    nearest = np.where(times - shown[right - 1] <= np.abs(shown[after] - times), right - 1, after)
    gaps = np.diff(shown, prepend=-np.inf, append=np.inf)
    apart = np.minimum(np.minimum(gaps[:-1], gaps[1:]), 1.0 / min(clock.fps, span.fps))[nearest]
    close = (np.abs(shown[nearest] - times) <= MAX_OFFSET * apart).all()
    own = (np.diff(nearest) > 0).all()
    within = np.isnan(span.end) or shown[nearest[-1]] < span.end - 0.25 * apart[-1]
    # Clocks that differ a little are a whole picture apart at times, and then nothing seems to be wrong.
    ratio = clock.fps / span.fps
    drift = abs(ratio / max(1, round(ratio)) - 1) * abs(times[-1]) * span.fps
    if not (close and own and within and drift <= MAX_OFFSET):
        return None
    first, last = int(nearest[0]), int(nearest[-1])
    return range(first, last + 1) if last - first + 1 == len(nearest) else nearest.astype(np.int32)


def _in_place(clock: FrameClock, spans: Sequence[VideoSpan], starts: np.ndarray) -> bool:
    """Whether every episode begins nearest to its own place, on the clock of the video, of the table or of its rows."""
    begins = np.array([s.begin for s in spans])
    if not np.isfinite(begins).all() or (np.diff(begins) <= 0).any():
        return False
    middles = (starts[:-1] + starts[1:]) / 2
    for rates in ([clock.fps] * len(spans), [s.rate for s in spans], [s.fps for s in spans]):
        places = begins * np.array(rates)
        if (places[1:] > middles).all() and (places[:-1] < middles).all():
            return True
    return False
