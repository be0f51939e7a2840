"""Latents of whole episodes and of clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lamina.data.sampling import PAIR_TOLERANCE, TIE, nearest_frames
from lamina.data.shots import Detector, ShotReader
from lamina.models.config import Side
from lamina.models.hub import LatentActionModel
from lamina.models.lam import LAM, FrameFeatures
from lamina.types import Clip, Latent

CHUNK = 64  # frames that are embedded at once


def in_batches(function: Callable[..., Tensor], *tensors: Tensor, size: int) -> Tensor:
    """``function`` of ``size`` rows of every tensor at a time, its results one after the other."""
    return torch.cat([function(*rows) for rows in zip(*(x.split(size) for x in tensors), strict=True)])


def frame_pairs(times: Float[np.ndarray, "t"], gap: float) -> tuple[Int[np.ndarray, "t"], Bool[np.ndarray, "t"]]:
    """The second frame of each frame's pair: the one nearest to ``gap`` seconds later (at least one frame), and whether there is one.

    Where the episode ends before, or has a hole there, it is the frame itself, whose latent is that of no change, and the pair is marked
    as not valid. The valid pairs are those that :func:`lamina.data.sampling.draw_samples` draws for this gap.
    """
    own = np.arange(len(times))
    wanted = times + gap
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    found = np.maximum(nearest_frames(times, wanted), own + 1)
    missed = np.abs(times[np.minimum(found, len(times) - 1)] - wanted)
    valid = (found < len(times)) & (wanted <= times[-1] + step / 2 + TIE) & (missed <= PAIR_TOLERANCE * step)
    return np.where(valid, found, own), valid


@torch.inference_mode()
def encode_episode(
    model: LatentActionModel,
    chunks: Iterable[UInt8[np.ndarray, "n h w 3"]],
    partner: Int[np.ndarray, "t"],
    shots: ShotReader | None = None,
) -> Latent:
    """Latents of every frame and its ``partner``, the number of the second frame of its pair; t of them, on the CPU.

    ``chunks``: the episode's frames in order. Features of a frame are dropped after its last pair. ``shots``: the reader that the chunks
    come from, if cuts are looked for; a frame whose partner is behind a cut is paired with itself.
    """
    total, done, start = len(partner), 0, 0
    kept: FrameFeatures | None = None  # frames start, start + 1, ...
    parts: list[Latent] = []
    for chunk in chunks:
        features = model.lam.embed(model.read(torch.from_numpy(chunk).permute(0, 3, 1, 2)))
        kept = features if kept is None else FrameFeatures.cat([kept, features])
        arrived = start + len(kept)
        ready = done
        while ready < total and partner[ready] < arrived and ready < arrived:
            ready += 1
        if ready > done:
            rows = np.arange(done, ready)
            chosen = partner[rows] if shots is None else np.where(shots.same(rows, partner[rows]), partner[rows], rows)
            second = torch.from_numpy(chosen - start).to(model.device)
            parts.append(model.lam.pair(kept[done - start : ready - start], kept[second]).to("cpu"))
            kept, start, done = kept[ready - start :], ready, ready
    return Latent.cat(parts)


@dataclass(frozen=True)
class EncodedPairs:
    """The latent of every frame of a stretch of video and its ``partner``, as :func:`frame_pairs` chooses it.

    ``valid``: the stretch, and the shot, last until the partner. ``shot``: the number of each frame's shot, from 0; None where cuts were
    not looked for.
    """

    latent: Latent
    partner: Int[np.ndarray, "t"]
    valid: Bool[np.ndarray, "t"]
    shot: Int[np.ndarray, "t"] | None


def encode_pairs(
    model: LatentActionModel,
    chunks: Iterator[UInt8[np.ndarray, "n h w 3"]],
    times: Float[np.ndarray, "t"],
    gap: float,
    find: Detector | None = None,
) -> EncodedPairs:
    """The latents of a stretch of video from its frames in order, each with the frame ``gap`` seconds later in the same shot.

    ``find``: finds the cuts; None: the stretch is one shot.
    """
    partner, valid = frame_pairs(times, gap)
    if find is None:
        return EncodedPairs(encode_episode(model, chunks, partner), partner, valid, None)
    shots = ShotReader(find, chunks)
    latent = encode_episode(model, shots, partner, shots)
    return EncodedPairs(latent, partner, valid & shots.same(np.arange(len(partner)), partner), shots.shot)


@torch.no_grad()
def encode_clip(lam: LAM, clip: Clip, side: Side | None = None, batch: int = 256) -> Float[Tensor, "n k d"]:
    """The latent action of each clip's first pair, on the CPU. ``side`` of the quantiser: the model's own, if None."""
    device = next(lam.parameters()).device
    lam.eval()

    def actions(rows: Int[Tensor, "b"]) -> Float[Tensor, "b k d"]:
        latent = lam.encode(lam.view(clip[rows].to(device)), [(0, 1)]).own[0, 1]
        return lam.action(latent, side).float().cpu()

    return in_batches(actions, torch.arange(len(clip)), size=batch)


@torch.no_grad()
def observe(lam: LAM, clip: Clip, side: Side | None = None) -> Float[Tensor, "n o"]:
    """The latent action of o_t paired with itself, which depends on the observation alone."""
    return encode_clip(lam, still(clip), side).flatten(1)


def still(clip: Clip) -> Clip:
    """The clips with their first frame in the place of the second."""
    return dataclasses.replace(clip, frames=clip.frames[:, :1].expand(-1, 2, -1, -1, -1))
