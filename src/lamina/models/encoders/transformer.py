"""Transformer encoder: each frame is embedded once, pairs are compared by cross-attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamina.models.layers import CrossAttentionBlock, TransformerBlock, patch_count, patchify, position_embedding
from lamina.records import Count, Layers


class TransformerEncoder(nn.Module):
    """ViT blocks over each frame, then K learned query slots that attend to the pair.

    The frames are combined patch by patch before the slots attend: u_p = GELU(A x_p + B y_p). A and B are applied once per frame, so a pair
    costs one addition per patch, and the slots need not match positions themselves.
    """

    @dataclass(frozen=True)
    class Config:
        patch: Count = 8
        width: Count = 384
        heads: Count = 6
        frame_layers: Layers = 3
        pair_layers: Layers = 3

    def __init__(self, config: Config, observation: tuple[int, int, int], slots: int, dim: int):
        super().__init__()
        tokens = patch_count(observation, config.patch, config.width, config.heads)
        self.config = config
        self.patch = nn.Linear(observation[0] * config.patch**2, config.width)
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

    def embed(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p f"]:
        """Features of single frames: both roles (first and second of a pair) side by side in the last axis."""
        x = self.patch(patchify(frames, self.config.patch)) + self.position
        for block in self.frame_blocks:
            x = block(x)
        return self.roles(self.norm(x))

    def compare(self, first: Float[Tensor, "n p f"], second: Float[Tensor, "n p f"]) -> Float[Tensor, "n k d"]:
        """Slots of pairs, from the features of their frames."""
        width = self.config.width
        context = F.gelu(first[..., :width] + second[..., width:], approximate="tanh")
        x = self.slots.unsqueeze(0)
        for block in self.pair_blocks:
            x = block(x, context)
        return self.head(self.pair_norm(x))
