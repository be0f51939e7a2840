"""Transformer encoder: each frame is embedded once, pairs are compared by cross-attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamina.models.layers import CrossAttentionBlock, TransformerBlock, patch_count, patchify, position_embedding
from lamina.records import Count, Layers


class TransformerEncoder(nn.Module):
    """ViT blocks over each frame; then K learned query slots read the pair.

    The two frames meet patch by patch before the slots look: u_p = GELU(A x_p + B y_p). A and B are applied once a frame, so a
    pair costs one addition a patch, and a slot can read motion where it happens instead of having to match positions itself.
    """

    @dataclass(frozen=True)
    class Config:
        patch: Count = 8
        width: Count = 384
        heads: Count = 6
        frame_layers: Layers = 3
        pair_layers: Layers = 3

    def __init__(self, config: Config, image: tuple[int, int, int], slots: int, dim: int):
        super().__init__()
        tokens = patch_count(image, config.patch, config.width, config.heads)
        self.config = config
        self.patch = nn.Linear(image[0] * config.patch**2, config.width)
        self.position = position_embedding(tokens, config.width)
        self.frame_blocks = nn.ModuleList(
            [TransformerBlock(config.width, config.heads) for _ in range(config.frame_layers)]
        )
        self.norm = nn.LayerNorm(config.width)
        self.roles = nn.Linear(config.width, 2 * config.width)
        self.slots = position_embedding(slots, config.width)
        self.pair_blocks = nn.ModuleList(
            [CrossAttentionBlock(config.width, config.heads) for _ in range(config.pair_layers)]
        )
        self.pair_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, dim)

    def embed(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p d"]:
        """Features of single frames: both roles (first and second of a pair) side by side in the last axis."""
        x = self.patch(patchify(frames, self.config.patch)) + self.position
        for block in self.frame_blocks:
            x = block(x)
        return self.roles(self.norm(x))

    def compare(self, first: Float[Tensor, "b p d"], second: Float[Tensor, "b p d"]) -> Float[Tensor, "b k d"]:
        """Slots of pairs, from the features of their frames."""
        width = self.config.width
        context = F.gelu(first[..., :width] + second[..., width:], approximate="tanh")
        x = self.slots.unsqueeze(0)
        for block in self.pair_blocks:
            x = block(x, context)
        return self.head(self.pair_norm(x))
