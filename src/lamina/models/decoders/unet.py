"""A U-Net conditioned on the flattened latent by a shift and a scale in every block (LAPO's forward model, with FiLM).

It displaces the source before it changes pixels: for each cell it predicts weights over displacements. Camera motion of many pixels is out
of reach of a few 3x3 convolutions; without displacement the latent learns average appearance instead of motion.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.models.decoders.advection import advect, displacements
from lamina.models.decoders.base import DirectDecoder
from lamina.models.layers import group_norm
from lamina.records import Count


class FiLMBlock(nn.Module):
    """Residual block whose second half is shifted and scaled by a condition."""

    def __init__(self, inputs: int, outputs: int, condition: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(inputs), group_norm(outputs, affine=False)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.film = nn.Linear(condition, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b e h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        shift, scale = self.film(condition)[..., None, None].chunk(2, dim=1)
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        return self.skip(x) + y


class UNetDecoder(DirectDecoder):
    @dataclass(frozen=True)
    class Config:
        channels: Count = 32
        multiples: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (1, 2)
        condition: Count = 256
        linear: bool = False
        """the condition is a linear map of the latent, without a bias: that of a sum is the sum of those of its terms"""

    def __init__(self, config: Config, image: tuple[int, int, int], slots: int, dim: int):
        super().__init__(config, image, slots, dim)
        channels, height, width = image
        stride = 4 * 2 ** (len(config.multiples) - 1)
        if height % stride or width % stride:
            raise LaminaError(
                f"image {height}x{width} is not a multiple of the U-Net's stride {stride}; set --image or --decoder pixel"
            )
        widths = [config.channels * m for m in config.multiples]
        cond = config.condition
        layers: list[nn.Module] = [nn.Linear(slots * dim, cond, bias=not config.linear)]
        if not config.linear:
            layers += [nn.SiLU(), nn.Linear(cond, cond)]
        self.condition = nn.Sequential(nn.Flatten(), *layers)
        # The finest level is a quarter of the resolution: full-resolution convolutions would cost more than all the rest.
        self.inputs = nn.Conv2d(channels, widths[0], 8, stride=4, padding=2)
        self.down = nn.ModuleList([FiLMBlock(c, c, cond) for c in widths])
        self.shrink = nn.ModuleList([nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(widths)])
        self.middle = FiLMBlock(widths[-1], widths[-1], cond)
        self.up = nn.ModuleList([FiLMBlock(2 * c, c, cond) for c in reversed(widths)])
        pairs = list(itertools.pairwise(widths))
        self.grow = nn.ModuleList([nn.ConvTranspose2d(b, a, 4, stride=2, padding=1) for a, b in reversed(pairs)])
        self.moves = displacements(height, width)
        # Per 4x4 cell: the change of its 16 pixels, and a weight for each displacement.
        self.outputs = nn.Conv2d(widths[0], channels * 16 + len(self.moves), 3, padding=1)
        nn.init.zeros_(self.outputs.weight)
        assert self.outputs.bias is not None
        nn.init.zeros_(self.outputs.bias)
        # Initialise the displacement weights to the identity: the first prediction is close to a copy of the source.
        nn.init.constant_(self.outputs.bias[channels * 16 + self.moves.index((0, 0))], 4.0)
        # Global displacement logits directly from the latent, for camera motion.
        self.camera = nn.Linear(cond, len(self.moves), bias=False)
        nn.init.zeros_(self.camera.weight)

    def forward(self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k d"]) -> Float[Tensor, "b c h w"]:
        condition = self.condition(z)
        x = self.inputs(src)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x, condition)
            skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        x = self.middle(x, condition)
        for level, block in enumerate(self.up):
            x = block(torch.cat([x, skips.pop()], dim=1), condition)
            if level < len(self.grow):
                x = self.grow[level](x)
        output = self.outputs(x)
        n = len(self.moves)
        logits = output[:, -n:] + self.camera(condition)[..., None, None]
        return advect(src, logits, self.moves) + F.pixel_shuffle(output[:, :-n], 4)
