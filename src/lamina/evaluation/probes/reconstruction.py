"""Reconstruction: the quality of the predicted next frame at each prefix length, with controls.

Controls: copy-frame (predict no change), another transition's latent, the mean latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lamina.images import to_float
from lamina.inference.encode import in_batches
from lamina.inference.subject import Images, Subject, Vectors
from lamina.losses.perceptual import feature_distance, lpips_network
from lamina.models.feature_cache import kept_features
from lamina.models.features import PretrainedFeatures
from lamina.types import Clip

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
    perceptual: Float[np.ndarray, "n"] | None = None  # distance of a pretrained encoder's features


def psnr(predicted: Images, target: Images) -> Float[Tensor, "n"]:
    """Peak signal-to-noise ratio of each picture, decibel; at most 60, which is beyond what 8-bit rounding resolves."""
    error = (predicted.double() - target.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error.clamp_min(1e-12))).clamp_max(60)


def ssim(predicted: Images, target: Images) -> Float[Tensor, "n"]:
    """Structural similarity of each picture (torchmetrics)."""
    # Here and not above: with all that torchmetrics imports it takes as long as torch, and much that reads this file needs no SSIM.
    from torchmetrics.functional.image import structural_similarity_index_measure

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


def distance_by(space: PretrainedFeatures) -> Perceptual:
    """The distance of pictures in the features of a pretrained encoder (:func:`lamina.losses.perceptual.feature_distance`)."""

    def features(pictures: Images) -> Tensor:
        return in_batches(space.plain, pictures, size=64)

    def score(predicted: Images, target: Images) -> Tensor:
        with kept_features(False):  # no prediction comes twice
            drawn = features(predicted)
        return feature_distance(drawn, features(target)).cpu()

    return score


def decoded(subject: Subject, src: Images, z: Vectors, batch: int = 64) -> Images:
    """Predicted pictures; each batch of a stochastic decoder draws noise of its own."""
    return in_batches(lambda a, v, row: subject.picture(a, v, int(row[0])), src, z, torch.arange(len(src)), size=batch)


def reconstruct(
    subject: Subject, clip: Clip, prefixes: tuple[int, ...], distance: Perceptual | None = None
) -> list[ReconstructionScore]:
    """Scores of every prefix and of the controls on the first pair of each sample. Another transition: the one half the set away.

    ``distance``: a further perceptual distance (:func:`distance_by`).
    """
    lpips = load_lpips()
    subject = subject.quantised
    src, dst = clip.frames[:, 0], clip.frames[:, 1]
    z, full = subject.latents(src, dst), subject.slots

    def score(name: str, role: str, k: int | None, predicted: Images) -> ReconstructionScore:
        perceptual = lpips(predicted, dst).numpy() if lpips else None
        further = distance(predicted, dst).numpy() if distance else None
        return ReconstructionScore(
            name, role, k, psnr(predicted, dst).numpy(), ssim(predicted, dst).numpy(), perceptual, further
        )

    def decode(latents: Vectors, k: int) -> Images:
        return decoded(subject, src, subject.truncated(latents, k))

    return [
        *[score(subject.name, "model", k, decode(z, k)) for k in prefixes],
        score("shuffled latents", "control", full, decode(z.roll(len(z) // 2, 0), full)),
        score("mean latent", "control", full, decode(z.mean(0, keepdim=True).expand_as(z), full)),
        score("copy-frame", "control", None, src),
    ]
