"""Perceptual distances between pictures.

``gradient`` is a declared stand-in for LPIPS where its weights are missing: it compares edges on several scales, without any learned
features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError

PerceptualName = Literal["gradient", "lpips"]
Distance = Callable[[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]], Float[Tensor, "b"]]


def gradient(predicted: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Mean absolute difference of the horizontal and vertical differences between neighbouring pixels, over the scales 1, 1/2, 1/4.

    The gradient difference loss of Mathieu et al. (ICLR 2016, Eq. 6, alpha = 1, with signed differences) on a pyramid. Scales at which
    a side has a single place are left out. Raises LaminaError where that is every scale.
    """
    if min(predicted.shape[-2:]) < 2:
        raise LaminaError(
            f"--perceptual gradient: maps of {predicted.shape[-2]}x{predicted.shape[-1]} have no neighbouring places"
        )
    error = predicted.float() - target.float()
    terms = []
    for _ in range(3):
        terms += [error.diff(dim=axis).abs().flatten(1).mean(1) for axis in (2, 3)]
        if min(error.shape[-2:]) < 4:
            break
        error = F.avg_pool2d(error, 2)
    return torch.stack(terms).mean(0)


def lpips_network() -> torch.nn.Module | None:
    """LPIPS on its real AlexNet weights, frozen, for pictures in [-1, 1]; None where they are not on this machine.

    Nothing is downloaded.
    """
    if not list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth")):
        return None
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LearnedPerceptualImagePatchSimilarity("alex").net.eval().requires_grad_(False)
    except (ImportError, RuntimeError, OSError):  # a broken torchvision raises any of these
        return None


@lru_cache(maxsize=1)
def _lpips() -> torch.nn.Module:
    network = lpips_network()
    if network is None:
        raise LaminaError(
            "--perceptual lpips: its AlexNet weights are not on this machine; put alexnet-*.pth into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}, or use --perceptual gradient (a stand-in)"
        )
    return network


def lpips(predicted: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """LPIPS (Zhang et al. 2018). Raises LaminaError where its weights are not on this machine."""
    return _lpips().to(predicted.device)(predicted.clamp(-1, 1), target).reshape(-1)


def feature_distance(predicted: Float[Tensor, "b d y x"], target: Float[Tensor, "b d y x"]) -> Float[Tensor, "b"]:
    """Mean over all places of the squared distance between two pictures' features, each a vector of length 1; 0 to 4.

    The form of LPIPS (Zhang et al. 2018, Eq. 1) for one layer of any encoder, without LPIPS's learned weights: not comparable with it.
    """
    a, b = (F.normalize(features.float(), dim=1) for features in (predicted, target))
    return (a - b).square().sum(1).mean((1, 2))


DISTANCES: dict[str, Distance] = {"gradient": gradient, "lpips": lpips}
