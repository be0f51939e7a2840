"""Pixel transformer: source patches and latent slots in one sequence, the patches' change in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina.models.decoders.base import DirectDecoder
from lamina.models.layers import TransformerBlock, patch_count, patchify, position_embedding, unpatchify
from lamina.records import Count, Layers


class PixelDecoder(DirectDecoder):
    @dataclass(frozen=True)
    class Config:
        patch: Count = 8
        width: Count = 384
        heads: Count = 6
        layers: Layers = 3

    def __init__(self, config: Config, image: tuple[int, int, int], slots: int, dim: int):
        super().__init__(config, image, slots, dim)
        tokens = patch_count(image, config.patch, config.width, config.heads)
        self.config, self.height, self.slots = config, image[1], slots
        pixels = image[0] * config.patch**2
        self.patch = nn.Linear(pixels, config.width)
        self.latent = nn.Linear(dim, config.width)
        self.position = position_embedding(slots + tokens, config.width)
        self.blocks = nn.ModuleList([TransformerBlock(config.width, config.heads) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, pixels)
        # Zero: the first prediction is a copy of the source, so the loss starts at copy-frame and not above it.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k d"]) -> Float[Tensor, "b c h w"]:
        tokens = torch.cat([self.latent(z), self.patch(patchify(src, self.config.patch))], dim=1) + self.position
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens)
        change = self.head(self.norm(last(tokens, self.slots)))
        return src + unpatchify(change, self.config.patch, self.height)
