"""Whitening of the code before it is quantised."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina import collective
from lamina.errors import LaminaError
from lamina.models.layers import BatchNorm

Whitening = Literal["none", "first", "batch"]


class FirstBatchNorm(nn.Module):
    """Each channel minus its mean, divided by its deviation, both of the first training batch and fixed from then on.

    Data-dependent initialisation (Salimans & Kingma 2016): latents of different transitions are apart at the start, and their scale is
    free afterwards.
    """

    ready: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        if self.training and not bool(self.ready):
            batch = collective.whole(x.detach())
            statistics = torch.stack([batch.mean(0), batch.std(0, correction=0).clamp_min(1e-6)]).float()
            self.mean, self.deviation, self.ready = *statistics, torch.ones_like(self.ready)
        return (x - self.mean) / self.deviation


def whitening(kind: Whitening, width: int) -> nn.Module:
    """The layer between encoder and bottleneck: none, FirstBatchNorm, or BatchNorm without affine part.

    At initialisation encoder outputs differ between transitions by a few percent of their norm, so a quantiser maps all to one code and
    the decoder learns to ignore the latent. ``first`` scales by the first batch; ``batch`` by every batch, so latents cannot shrink.
    """
    match kind:
        case "none":
            return nn.Identity()
        case "first":
            return FirstBatchNorm(width)
        case "batch":
            return BatchNorm(width)
    raise LaminaError(f"unknown whitening {kind!r}: choose none, first or batch")
