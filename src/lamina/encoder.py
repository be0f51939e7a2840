"""Inverse dynamics: two frames -> K slots. Each frame is embedded once, however many pairs it belongs to.

Both encoders split the work in two:

    embed(frames [n c h w]) -> features [n ...]                     once a frame
    compare(features, features) -> slots [b k d]                    once a pair
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.layers import Block, ConvBlock, CrossBlock, patch_count, patchify, position_embedding
from lamina.strict import Count, Layers


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
        self.frame_blocks = nn.ModuleList([Block(config.width, config.heads) for _ in range(config.frame_layers)])
        self.norm = nn.LayerNorm(config.width)
        self.roles = nn.Linear(config.width, 2 * config.width)
        self.slots = position_embedding(slots, config.width)
        self.pair_blocks = nn.ModuleList([CrossBlock(config.width, config.heads) for _ in range(config.pair_layers)])
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


class ConvEncoder(nn.Module):
    """A convolutional encoder for small images: a stem a frame, residual blocks on the pair, one linear layer to the slots.

    The stem goes straight to a quarter of the resolution, where one channel is enough for every pixel of a 4x4 cell and its
    neighbours: at half the resolution the same block costs four times as much and saw no more in our trials.
    """

    @dataclass(frozen=True)
    class Config:
        channels: Count = 32
        pair: Annotated[tuple[Count, ...], Field(max_length=8)] = (2,)  # channel multiples of the strided stages
        width: Count = 256

    def __init__(self, config: Config, image: tuple[int, int, int], slots: int, dim: int):
        super().__init__()
        channels, height, width = image
        stride = 4 * 2 ** len(config.pair)
        if height % stride or width % stride:
            raise LaminaError(
                f"image {height}x{width} is not a multiple of the convolutional encoder's stride {stride}"
            )
        self.slots, self.dim = slots, dim
        self.stem = nn.Sequential(
            nn.Conv2d(channels, config.channels, 8, stride=4, padding=2), ConvBlock(config.channels)
        )
        pair: list[nn.Module] = []
        channels = 3 * config.channels
        for multiple in config.pair:
            out = config.channels * multiple
            pair += [nn.Conv2d(channels, out, 4, stride=2, padding=1), ConvBlock(out)]
            channels = out
        self.pair = nn.Sequential(*pair)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * (height // stride) * (width // stride), config.width),
            nn.LayerNorm(config.width),
            nn.SiLU(),
            nn.Linear(config.width, slots * dim),
        )

    def embed(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
        """Feature maps of single frames."""
        return self.stem(frames)

    def compare(self, first: Float[Tensor, "b d y x"], second: Float[Tensor, "b d y x"]) -> Float[Tensor, "b k d"]:
        """Slots of pairs, from the feature maps of their frames."""
        # The difference is given, not learned: at the start of training it is where the motion is.
        features = torch.cat([first, second, second - first], dim=1)
        return self.head(self.pair(features)).view(len(first), self.slots, self.dim)


ENCODERS: dict[str, type[nn.Module]] = {"transformer": TransformerEncoder, "conv": ConvEncoder}
