"""DiT with rectified flow (Peebles & Xie 2023; FlexLAM App. A.4-A.5): x_t conditioned on o_t patch by patch, AdaLN-zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.losses.flow_matching import integrate, interpolate, sample_time, velocity, velocity_of_data
from lamina.losses.reconstruction import squared_error
from lamina.models.decoders.base import Decoder
from lamina.models.layers import MLP, AdaLNBlock, patch_count, patchify, position_embedding, unpatchify
from lamina.records import Count, Layers
from lamina.rng import Rng


def timestep_embedding(t: Float[Tensor, "b"], width: int) -> Float[Tensor, "b d"]:
    """Sines and cosines of 1000 t at geometric frequencies (the DDPM embedding)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = 1000 * t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class FlowDecoder(Decoder):
    """The network predicts the clean frame as a change of o_t, and the loss is that of the velocity this implies.

    Predicting data and regressing velocity keeps large patches learnable (Li & He 2025); the change form starts at copy-frame.
    """

    @dataclass(frozen=True)
    class Config:
        patch: Count = 8
        width: Count = 384
        heads: Count = 6
        layers: Layers = 3
        steps: Layers = 8  # Euler steps of one sample

    def __init__(self, config: Config, image: tuple[int, int, int], slots: int, dim: int):
        super().__init__(config, image, slots, dim)
        tokens = patch_count(image, config.patch, config.width, config.heads)
        if config.width % 2:
            raise LaminaError(f"the flow decoder's width must be even, got {config.width}")
        self.config, self.height, self.slots = config, image[1], slots
        pixels = image[0] * config.patch**2
        self.patch = nn.Linear(2 * pixels, config.width)
        self.latent = nn.Linear(dim, config.width)
        self.position = position_embedding(slots + tokens, config.width)
        self.time = MLP(config.width, config.width)
        self.summary = nn.Sequential(nn.Flatten(), nn.Linear(slots * dim, config.width))
        self.blocks = nn.ModuleList([AdaLNBlock(config.width, config.heads) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.head = nn.Linear(config.width, pixels)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        t: Float[Tensor, "b"],
        src: Float[Tensor, "b c h w"],
        z: Float[Tensor, "b k d"],
    ) -> Float[Tensor, "b c h w"]:
        """The clean frame expected at (x_t, t)."""
        patches = self.patch(patchify(torch.cat([x_t, src], dim=1), self.config.patch))
        tokens = torch.cat([self.latent(z), patches], dim=1) + self.position
        condition = self.time(timestep_embedding(t, self.config.width)) + self.summary(z)
        *blocks, last = self.blocks
        for block in blocks:
            tokens = block(tokens, condition)
        patches = last(tokens, condition, self.slots)
        shift, scale = self.modulation(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
        change = self.head(self.norm(patches) * (1 + scale) + shift)
        return src + unpatchify(change, self.config.patch, self.height)

    def predict_and_loss(
        self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k d"], dst: Float[Tensor, "b c h w"], rng: Rng
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b c h w"]]:
        t = sample_time(rng, len(src))
        noise = rng.normal(len(src), *src.shape[1:])
        x_t = interpolate(dst, noise, t)
        clean = self(x_t, t, src, z).float()
        return squared_error(velocity_of_data(x_t, clean, t), velocity(dst, noise)), clean

    def sample(self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k d"], rng: Rng) -> Float[Tensor, "b c h w"]:
        def field(x_t: Tensor, t: Tensor) -> Tensor:
            return velocity_of_data(x_t, self(x_t, t, src, z).float(), t, smallest=0.0)

        return integrate(field, rng.normal(len(src), *src.shape[1:]), self.config.steps)
