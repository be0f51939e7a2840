"""What an observation is to a LAM: the picture itself, or features of it that the decoder predicts in its place.

Features here keep the picture's height and width, so that every encoder and decoder reads them as it reads pixels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SpaceName = Literal["pixels", "features"]


class Pixels(nn.Module):
    """The picture as it is."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return frames


class RandomFeatures(nn.Module):
    """Two convolutions with frozen random weights: a declared stand-in for a pretrained network (UniVLA reads DINOv2's patches).

    They hold no knowledge of objects; they are local, not linear in the pixels, and never trained. Values lie in [-1, 1].
    """

    def __init__(self, channels: int, features: int = 8):
        super().__init__()
        self.channels = features
        generator = torch.Generator().manual_seed(0)
        for name, (outputs, inputs) in {"first": (16, channels), "second": (features, 16)}.items():
            weight = torch.randn(outputs, inputs, 5, 5, generator=generator) * math.sqrt(2 / (inputs * 25))
            # Filters that sum to zero see edges and motion, and not how bright the picture is.
            self.register_buffer(name, weight - weight.mean(dim=(1, 2, 3), keepdim=True))

    def forward(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        x = F.gelu(2 * F.conv2d(frames, self.first, padding=2))  # type: ignore[arg-type]
        return torch.tanh(2 * F.conv2d(x, self.second, padding=2))  # type: ignore[arg-type]


SPACES: dict[str, type[nn.Module]] = {"pixels": Pixels, "features": RandomFeatures}
