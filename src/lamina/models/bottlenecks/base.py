"""The bottleneck without quantisation."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from lamina.records import Count
from lamina.types import Latent


class Identity(nn.Module):
    """No bottleneck but the width: post = pre."""

    @dataclass(frozen=True)
    class Config:
        dim: Count = 32

    codebook_size: int | None = None

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Float[Tensor, "b k d"]) -> Latent:
        return Latent(pre=x, post=x)
