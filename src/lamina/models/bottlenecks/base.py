"""The interface of a bottleneck, and the one without quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from lamina.records import Count
from lamina.types import Latent


class Bottleneck(nn.Module):
    """Encoder output [b k d] -> :class:`Latent`. A subclass is constructed with the fields of its ``Config``.

    ``dim``: channels d of one slot. ``codebook_size``: number of codes; None without a codebook.
    """

    Config: ClassVar[Any]
    dim: int
    codebook_size: int | None = None

    @property
    def slot_codes(self) -> int | None:
        """Number of codes that one slot can say: all, unless groups of slots have codebooks of their own."""
        return self.codebook_size

    def index_to_codes(self, index: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """The quantised vectors of codebook entries, for a bottleneck that has a codebook."""
        raise NotImplementedError


class Identity(Bottleneck):
    """No quantisation: post = pre. The only bottleneck is the width."""

    @dataclass(frozen=True)
    class Config:
        dim: Count = 32

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, x: Float[Tensor, "b k d"]) -> Latent:
        return Latent(pre=x, post=x)
