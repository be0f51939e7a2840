"""Data of the policies that decide once a transition: each frame and the latent action after it, encoded once, and windows of codes.

RUN/policy/tokens/index.json              what they were made from; written with the rest, whole or not at all
RUN/policy/tokens/SPLIT.frames.npy        uint8 [n h w 3], step after step, episode after episode
RUN/policy/tokens/SPLIT.codes.npy         int [n k]; or, of continuous latents, SPLIT.latents.npy, float32 [n k*d]

An episode ends at a cut of edited video, as at its last frame: no transition and no window crosses one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from lamina.data.dataset import Dataset
from lamina.data.sampling import source_camera
from lamina.data.shots import Detector, detector_name
from lamina.data.stream import evenly_spaced
from lamina.device import autocast
from lamina.errors import LaminaError
from lamina.files import whole_folder
from lamina.inference.encode import frame_pairs
from lamina.models.config import Side
from lamina.models.hub import LatentActionModel
from lamina.policies.encoded import ENCODED_SPLITS, encode_stretch, index_of, keep_rows, open_arrays, reserve
from lamina.progress import progress_bar
from lamina.records import non_negative

FORMAT = 3
CODES, LATENTS = "codes", "latents"


def strided_sequences(times: Float[np.ndarray, "t"], gap: float) -> list[Int[np.ndarray, "n"]]:
    """The frames of an episode as sequences of decisions ``gap`` seconds apart; each frame that has a partner is in exactly one.

    If the gap is g frames long there are g sequences, which begin at frames 0 .. g-1. The last frame of a sequence is left out, since
    no transition begins there.
    """
    partner, valid = frame_pairs(times, gap)
    left, found = valid.copy(), []
    for start in range(len(times)):
        sequence, at = [], start
        while left[at]:
            left[at] = False
            sequence.append(at)
            at = int(partner[at])
        if sequence:
            found.append(np.array(sequence))
    return found


@dataclass(frozen=True)
class Steps:
    """Frames and latent actions of all steps of a split: codes [n k], or the latents' numbers [n k*d].

    Episode e (a strided sequence of decisions within a shot) is steps bounds[e] .. bounds[e+1]-1.
    """

    frames: UInt8[np.ndarray, "n h w 3"]
    actions: Shaped[np.ndarray, "n k"]
    bounds: Int[np.ndarray, "m"]

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Window:
    """Steps of several episodes side by side. Those after an episode's end are not ``valid``, and black."""

    frames: UInt8[Tensor, "b t h w 3"]
    codes: Int[Tensor, "b t k"]
    valid: Bool[Tensor, "b t"]

    def __len__(self) -> int:
        return len(self.codes)

    def to(self, device: torch.device | str) -> Window:
        return Window(*(x.to(device, non_blocking=True) for x in (self.frames, self.codes, self.valid)))


def windows_at(steps: Steps, starts: Sequence[tuple[int, int]], length: int) -> Window:
    """The windows that begin at (episode, step)."""
    b = len(starts)
    frames = np.zeros((b, length, *steps.frames.shape[1:]), np.uint8)
    codes = np.zeros((b, length, steps.actions.shape[1]), np.int64)
    valid = np.zeros((b, length), bool)
    for row, (episode, start) in enumerate(starts):
        first = int(steps.bounds[episode]) + start
        n = min(length, int(steps.bounds[episode + 1]) - first)
        frames[row, :n], codes[row, :n], valid[row, :n] = (
            steps.frames[first : first + n],
            steps.actions[first : first + n],
            1,
        )
    return Window(torch.from_numpy(frames), torch.from_numpy(codes), torch.from_numpy(valid))


class WindowStream:
    """Endless batches of windows; each window is a function of (seed, batch number, shard).

    A step and its position in the window are drawn uniformly; the window is then moved inside the episode where the episode is long
    enough. So batches are as full as the episodes allow, short episodes are used whole, and an episode's first steps, which would be in
    few windows otherwise, are about as frequent as the rest. Windows begin at a multiple of ``stride``: then all have their
    retained observations at the same places, and one mask serves them all.
    """

    def __init__(
        self,
        steps: Steps,
        length: int,
        stride: int,
        batch: int,
        seed: int,
        shards: int = 1,
        own: Sequence[int] | None = None,
    ):
        self.steps, self.length, self.stride, self.seed = steps, length, stride, seed
        self.each, self.mine = batch // shards, range(shards) if own is None else own
        self.drawn = 0

    def starts(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """(episode, step) of each window of one shard."""
        bounds, stride = self.steps.bounds, self.stride
        picked, place = rng.integers(0, len(self.steps), self.each), rng.integers(0, self.length, self.each)
        episode = np.searchsorted(bounds, picked, side="right") - 1
        room = np.maximum(np.diff(bounds)[episode] - self.length, 0)
        latest = -(-room // stride) * stride  # rounded up, so that the last steps belong to a window too
        step = picked - bounds[episode]
        # To a multiple of the stride, up or down at random, where the window still holds the step.
        start = (step - place + rng.integers(0, stride, self.each)) // stride * stride
        start = np.maximum(start, -((self.length - 1 - step) // stride) * stride)
        start = np.clip(np.minimum(start, step // stride * stride), 0, latest)
        return list(zip(episode.tolist(), start.tolist(), strict=True))

    def __iter__(self) -> Iterator[Window]:
        while True:
            rngs = [np.random.default_rng([self.seed, self.drawn, shard]) for shard in self.mine]
            self.drawn += 1
            yield windows_at(self.steps, [start for rng in rngs for start in self.starts(rng)], self.length)

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = non_negative(state, "drawn")

    def close(self) -> None:
        """Nothing is open but memory maps."""


def mean_valid_steps(steps: Steps, length: int, stride: int) -> float:
    """The mean number of valid steps in a window of :class:`WindowStream`, over 10,000 windows."""
    bounds, stream = steps.bounds, WindowStream(steps, length, stride, 10_000, 0)
    starts = stream.starts(np.random.default_rng(0))
    return float(np.mean([min(length, bounds[episode + 1] - bounds[episode] - start) for episode, start in starts]))


def fixed_windows(steps: Steps, length: int, stride: int, limit: int = 64) -> Window:
    """At most ``limit`` windows side by side, evenly spread over a split."""
    hop = -(-length // stride) * stride
    starts = [(e, s) for e, n in enumerate(np.diff(steps.bounds).tolist()) for s in range(0, n, hop)]
    return windows_at(steps, [starts[n] for n in evenly_spaced(len(starts), limit)], length)


# ------------------------------------------------------------------------------------------------------ tokenizing


@dataclass(frozen=True)
class _Stretch:
    """Frames first .. stop-1 of an episode, and for each of them its step in the split (-1: none begins there)."""

    episode: int
    first: int
    stop: int
    place: Int[np.ndarray, "t"]


def _plan(source: Dataset, camera: str, split: str, gap: float) -> tuple[list[_Stretch], list[int], list[float]]:
    """The frames to encode in a split, the lengths of its sequences, and the seconds between decisions."""
    stretches, lengths, seconds, total = [], [], [], 0
    missing = source.missing_episodes(camera)
    for number, episode in enumerate(source.episodes):
        for name, first, stop in episode.splits:
            if name != split or episode.number in missing:
                continue
            times = episode.times[first:stop]
            place = np.full(stop - first, -1)
            for sequence in strided_sequences(times, gap):
                place[sequence] = total + np.arange(len(sequence))
                total += len(sequence)
                lengths.append(len(sequence))
                seconds.extend(np.diff(times[sequence]).tolist())
            stretches.append(_Stretch(number, first, stop, place))
    return stretches, lengths, seconds


def encode_windows(
    model: LatentActionModel,
    source: Dataset,
    folder: Path,
    fingerprint: str,
    camera: str | None = None,
    precision: str = "fp32",
    side: Side | None = None,
    find: Detector | None = None,
    wait: bool = False,
) -> dict[str, Any]:
    """Encode the training and the validation split of ``source`` once into ``folder``; returns its index.

    ``side``: the latents themselves, on this side of the quantiser; None: their codes. ``find``: finds the cuts, if there are any.
    ``wait``: another process encodes; until it has.
    What is there already is used again if it was made by the same encoder, from the same data. Decisions are as far apart as the
    model's label gap: longer than a frame, each episode gives several sequences. Raises LaminaError for a camera that is not there, a split
    without a single transition, video that cannot be decoded, a disk that refuses.
    """
    gap = model.provenance.label_gap
    camera = source_camera(source, camera)
    made_from = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "data": source.fingerprint(),
        "camera": camera,
        "gap_seconds": gap,
        "image": list(model.config.image),
        "precision": precision,
        "side": side,
        "shots": detector_name(find),
    }
    if (before := index_of(folder, made_from, wait)) is not None:
        return before
    plans = {split: _plan(source, camera, split, gap) for split in ENCODED_SPLITS}
    for split, (_, lengths, _) in plans.items():
        _check_some(source, split, gap, lengths)
    size, slots = model.config.image[1:], model.config.action_length
    if side:
        name, width, dtype = LATENTS, slots * model.lam.dim, "float32"
    else:
        most = model.lam.bottleneck.codebook_size
        assert most is not None
        name, width, dtype = CODES, slots, "int16" if most <= 2**15 else "int32"
    frames_total = sum(s.stop - s.first for stretches, _, _ in plans.values() for s in stretches)
    seconds = float(np.median([s for _, _, every in plans.values() for s in every] or [gap]))
    index: dict[str, Any] = made_from | {"slots": slots, "decision_seconds": seconds, "episodes": {}}
    with (
        whole_folder(folder) as partial,
        progress_bar(frames_total, "tokenize", "frame") as bar,
    ):
        for split, (stretches, lengths, _) in plans.items():
            frames = reserve(partial / f"{split}.frames.npy", (sum(lengths), *size, 3), np.uint8)
            actions = reserve(partial / f"{split}.{name}.npy", (sum(lengths), width), dtype)
            kept = np.ones(sum(lengths), bool)
            for stretch in stretches:
                with autocast(model.device, precision):
                    _encode(model, source, camera, stretch, gap, side, find, frames, actions, kept)
                bar.update(stretch.stop - stretch.first)
            frames.flush()
            actions.flush()
            if not kept.all():
                keep_rows(partial / f"{split}.frames.npy", kept)
                keep_rows(partial / f"{split}.{name}.npy", kept)
            index["episodes"][split] = _lengths_of_runs(np.cumsum([0, *lengths]), kept)
            _check_some(source, split, gap, index["episodes"][split])
        (partial / "index.json").write_text(json.dumps(index))
    return index


def _check_some(source: Dataset, split: str, gap: float, lengths: Sequence[int]) -> None:
    if not lengths:
        raise LaminaError(f"{source.name}: no {split} episode has two frames {gap:g} s apart; use longer episodes")


def _lengths_of_runs(bounds: Int[np.ndarray, "m"], kept: Bool[np.ndarray, "n"]) -> list[int]:
    """How many of the steps are ``kept`` in a row, within the sequences that begin at ``bounds``."""
    starts = kept & ~np.concatenate([[False], kept[:-1]])
    starts[bounds[:-1]] = kept[bounds[:-1]]
    return np.bincount(np.cumsum(starts)[kept] - 1).tolist()


def _encode(
    model: LatentActionModel,
    source: Dataset,
    camera: str,
    stretch: _Stretch,
    gap: float,
    side: Side | None,
    find: Detector | None,
    frames: np.ndarray,
    actions: np.ndarray,
    kept: Bool[np.ndarray, "n"],
) -> None:
    """Fill the rows of one stretch. ``kept`` becomes False for the steps whose next frame is behind a cut."""
    place = stretch.place

    def keep(start: int, chunk: UInt8[np.ndarray, "n h w 3"]) -> None:
        here = place[start : start + len(chunk)]
        frames[here[here >= 0]] = chunk[here >= 0]

    episode = source.episodes[stretch.episode]
    encoded = encode_stretch(model, source, camera, episode, stretch.first, stretch.stop, gap, keep, find)
    latent = encoded.latent
    found = model.lam.action(latent, side).flatten(1) if side else model.lam.action_index(latent)
    assert found is not None
    actions[place[place >= 0]] = found.numpy()[place >= 0]
    kept[place[place >= 0]] = encoded.valid[place >= 0]


def open_steps(folder: Path, split: str, name: str = CODES) -> Steps:
    """The steps of an encoded split, with their ``codes`` or ``latents``, as memory maps. Raises LaminaError if they are damaged."""
    index, frames, actions = open_arrays(folder, split, ("frames", name), lambda index: sum(index["episodes"][split]))
    return Steps(frames, actions, np.concatenate([[0], np.cumsum(index["episodes"][split])]))
