"""Augmentation: random crops of training samples, the same for every frame of a sample.

With few frames that are seen many times, the model memorises them: the latent then identifies the next frame instead of describing the
change. Random crops prevent this.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.images import to_float, to_uint8
from lamina.rng import Rng
from lamina.types import Clip

#: Training that sees each sample more often than this is augmented, unless ``--augment`` is set.
MAX_REPEATS = 50
#: The strength that is used then.
DEFAULT_CROP = 0.5


def augmented(clip: Clip, strength: float, draws: Rng, mirror: bool) -> Clip:
    """Crops each sample to a random window with sides of ``1 - strength`` to 1 of the picture's, enlarged to its size; ``mirror``: also
    mirrors half of the samples. All frames of a sample, and its paired view, have the same window."""
    b = len(clip)
    size, x, y, side = draws.uniform(b, 4).unbind(1)
    scale = 1 - strength * size
    transform = torch.zeros(b, 2, 3, device=clip.frames.device)
    transform[:, 0, 0] = scale * torch.where(side < 0.5, -1.0, 1.0) if mirror else scale
    transform[:, 1, 1] = scale
    transform[:, 0, 2], transform[:, 1, 2] = ((2 * position - 1) * (1 - scale) for position in (x, y))
    paired = None if clip.paired is None else _through(clip.paired, transform)
    return replace(clip, frames=_through(clip.frames, transform), paired=paired)


def _through(frames: UInt8[Tensor, "b t c h w"], transform: Float[Tensor, "b 2 3"]) -> UInt8[Tensor, "b t c h w"]:
    pictures = to_float(frames.flatten(1, 2))
    grid = F.affine_grid(transform, list(pictures.shape), align_corners=False)
    shown = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    return to_uint8(shown).view_as(frames)


def shifted(frames: UInt8[Tensor, "b v t c h w"], share: float, draws: Rng) -> UInt8[Tensor, "b v t c h w"]:
    """Every view of every sample moved by a whole number of pixels, each way at most ``share`` of the longer side (DrQ, Kostrikov et al.
    2021); the border is repeated. The frames of a view's history move together."""
    b, v, _, _, height, width = frames.shape
    most = round(share * max(height, width))
    rows, columns = (
        torch.arange(-most, side + most, device=frames.device).clamp(0, side - 1) for side in (height, width)
    )
    places = frames[..., rows, :][..., columns].unfold(-2, height, 1).unfold(-2, width, 1)  # [b v t c y x h w]
    y, x = (draws.uniform(b, v, 2) * (2 * most + 1)).long().unbind(-1)
    sample, view = torch.arange(b, device=frames.device)[:, None], torch.arange(v, device=frames.device)
    return places[sample, view, :, :, y, x]
