"""How well does each prefix predict the next frame, and is the latent used at all?

Controls: copy-frame (predict no change), another transition's latent, the mean latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lamina.images import to_float
from lamina.losses.perceptual import lpips_network
from lamina.models.hub import LatentActionModel
from lamina.types import Clip

Images = UInt8[Tensor, "n c h w"]
Perceptual = Callable[[Images, Images], Float[Tensor, "n"]]


@dataclass(frozen=True)
class ReconstructionScore:
    """Per-transition scores of one predictor. ``k`` None: it does not depend on the prefix."""

    name: str
    role: str
    k: int | None
    psnr: Float[np.ndarray, "n"]  # decibel, peak 255
    ssim: Float[np.ndarray, "n"]
    lpips: Float[np.ndarray, "n"] | None


def psnr(predicted: Images, target: Images) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio of each picture, decibel; at most 60, which is closer than 8-bit rounding can tell."""
    error = (predicted.double() - target.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error.clamp_min(1e-12))).clamp_max(60)


def ssim(predicted: Images, target: Images) -> Float[Tensor, "n"]:
    """Structural similarity of each picture (torchmetrics)."""
    scores = structural_similarity_index_measure(
        predicted.float() / 255, target.float() / 255, data_range=1.0, reduction="none"
    )
    assert isinstance(scores, Tensor)
    return scores.reshape(-1)


def load_lpips() -> Perceptual | None:
    """LPIPS between uint8 pictures, or None where its weights are not on this machine."""
    network = lpips_network()
    if network is None:
        return None

    @torch.no_grad()
    def score(predicted: Images, target: Images) -> Tensor:
        return network(to_float(predicted), to_float(target)).reshape(-1)

    return score


def reconstruct(
    model: LatentActionModel, clip: Clip, prefixes: tuple[int, ...], batch: int = 64
) -> list[ReconstructionScore]:
    """Scores of every prefix and of the controls on the first pair of each sample. Another transition = the one half the set away."""
    lpips = load_lpips()
    src, dst = clip.frames[:, 0], clip.frames[:, 1]
    rows = range(0, len(clip), batch)
    latent = torch.cat([model.encode(src[i : i + batch], dst[i : i + batch]).post for i in rows])

    def score(name: str, role: str, k: int | None, predicted: Images) -> ReconstructionScore:
        perceptual = lpips(predicted, dst).numpy() if lpips else None
        return ReconstructionScore(
            name, role, k, psnr(predicted, dst).numpy(), ssim(predicted, dst).numpy(), perceptual
        )

    def decode(z: Tensor, k: int) -> Images:
        return torch.cat([model.decode(src[i : i + batch], z[i : i + batch], k, seed=i).cpu() for i in rows])

    full = model.config.slots
    name = model.provenance.method
    shuffled, mean = latent.roll(len(latent) // 2, 0), latent.mean(0, keepdim=True).expand_as(latent)
    return [
        *[score(name, "model", k, decode(latent, k)) for k in prefixes],
        score("shuffled latents", "control", full, decode(shuffled, full)),
        score("mean latent", "control", full, decode(mean, full)),
        score("copy-frame", "control", None, src),
    ]
