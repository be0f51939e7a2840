"""Finite scalar quantisation (Mentzer et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from lamina.errors import LaminaError
from lamina.models.bottlenecks.base import Bottleneck
from lamina.records import LARGEST_CODEBOOK
from lamina.types import Latent


class FSQ(Bottleneck):
    """Finite scalar quantisation (Mentzer et al. 2024): each channel is bounded by tanh and rounded to one of its levels.

    ``levels``: number of values of each channel, at least 2; d = len(levels). Gradients pass straight through the rounding.
    Codes lie in [-1, 1]; ``index`` is the mixed-radix number of the level digits, first channel fastest.
    """

    levels: Tensor
    basis: Tensor

    @dataclass(frozen=True)
    class Config:
        levels: Annotated[tuple[Annotated[int, Field(ge=2, le=1024)], ...], Field(min_length=1, max_length=20)] = (
            7, 5, 5, 5, 5
        )  # fmt: skip

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        if not levels or any(int(n) != n or n < 2 for n in levels):
            raise LaminaError(f"FSQ levels must be whole numbers of at least 2, got {tuple(levels)}")
        if math.prod(levels) > LARGEST_CODEBOOK:
            raise LaminaError(f"FSQ levels {tuple(levels)} make more than {LARGEST_CODEBOOK} codes")
        self.dim = len(levels)
        self.codebook_size = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.cumprod(torch.tensor([1, *levels[:-1]]), 0), persistent=False)

    def forward(self, x: Float[Tensor, "b k d"]) -> Latent:
        # float32 always: under bf16 autocast tanh near a rounding edge would pick other codes than at evaluation.
        z = x.float()
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        post = (bounded + (bounded.round() - bounded).detach()) / (self.levels // 2)
        return Latent(pre=x, post=post, index=self.codes_to_index(post.detach()))

    def codes_to_index(self, codes: Float[Tensor, "b k d"]) -> Int[Tensor, "b k"]:
        """Codebook entry of each quantised vector."""
        half_width = self.levels // 2
        return ((codes * half_width + half_width).round().long() * self.basis).sum(-1)

    def index_to_codes(self, index: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """The inverse of :meth:`codes_to_index`."""
        half_width = self.levels // 2
        return ((index.unsqueeze(-1) // self.basis) % self.levels - half_width) / half_width
