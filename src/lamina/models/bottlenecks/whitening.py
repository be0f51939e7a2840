"""Whitening of the code before it is quantised."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from lamina.errors import LaminaError

Whitening = Literal["none", "first", "batch"]


class FirstBatchNorm(nn.Module):
    """Each channel minus its mean over its deviation, both of the first training batch and fixed from then on (data-dependent
    initialisation, Salimans & Kingma 2016): latents begin apart from one another, and may grow and shrink as they like.
    """

    ready: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        if self.training and not bool(self.ready):
            statistics = torch.stack([x.detach().mean(0), x.detach().std(0, correction=0).clamp_min(1e-6)]).float()
            if dist.is_initialized():
                dist.broadcast(statistics, src=0)
            self.mean, self.deviation, self.ready = *statistics, torch.ones_like(self.ready)
        return (x - self.mean) / self.deviation


def whitener(law: Whitening, width: int) -> nn.Module:
    """What stands between encoder and bottleneck. An untrained encoder tells transitions apart by a few percent of its output's
    length, so that a quantiser sees one point and a decoder learns to do without. ``batch``: mean 0 and variance 1 over every batch
    (no affine part), so that latents can't shrink either; ``first``: over the first batch only.
    """
    match law:
        case "none":
            return nn.Identity()
        case "first":
            return FirstBatchNorm(width)
        case "batch":
            return nn.BatchNorm1d(width, affine=False)
    raise LaminaError(f"unknown whitening {law!r}: choose none, first or batch")
