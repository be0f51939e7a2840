"""Convolutional encoder for pictures of up to 64 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.models.layers import ConvBlock
from lamina.records import Count


class ConvEncoder(nn.Module):
    """A convolutional encoder for small images: a stem per frame, residual blocks on the pair, one linear layer to the slots.

    The stem goes straight to a quarter of the resolution. At half the resolution the same block costs four times as much and was not
    better in our trials.
    """

    @dataclass(frozen=True)
    class Config:
        channels: Count = 32
        pair: Annotated[tuple[Count, ...], Field(max_length=8)] = (2,)  # channel multiples of the strided stages
        width: Count = 256

    def __init__(self, config: Config, observation: tuple[int, int, int], slots: int, dim: int):
        super().__init__()
        channels, height, width = observation
        stride = 4 * 2 ** len(config.pair)
        if height % stride or width % stride:
            raise LaminaError(
                f"image {height}x{width} is not a multiple of the convolutional encoder's stride {stride}; set --image or --encoder "
                "transformer"
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

    def embed(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f y x"]:
        """Feature maps of single frames."""
        return self.stem(frames)

    def compare(self, first: Float[Tensor, "n f y x"], second: Float[Tensor, "n f y x"]) -> Float[Tensor, "n k d"]:
        """Slots of pairs, from the feature maps of their frames."""
        # The difference shows the motion from the first step on.
        features = torch.cat([first, second, second - first], dim=1)
        return self.head(self.pair(features)).view(len(first), self.slots, self.dim)
