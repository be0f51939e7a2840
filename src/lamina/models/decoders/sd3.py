"""Stable Diffusion 3's transformer as forward dynamics: the decoder of FlexLAM's real-video model (arXiv 2606.19408, §5.4, App. E).

A rectified flow in the latents of a frozen autoencoder (Esser et al. 2024). Where the published model reads a text, this one reads the
null-filled prefix: its slots are the context of the joint attention, and all of them together the pooled projection. The latent of o_t is
stacked onto the noisy one, so the first layer has twice the input channels; with published weights the new half starts at zero, and step 0
is the published model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.losses.flow_matching import data_of_velocity, integrate, interpolate, sample_time, velocity
from lamina.losses.reconstruction import squared_error
from lamina.models.decoders.autoencoder import Autoencoder
from lamina.models.decoders.base import Decoder
from lamina.models.layers import position_embedding
from lamina.models.published import Pretrained, fill, library
from lamina.records import Count, CountOrZero, Layers
from lamina.rng import Rng

TIMES = 1000  # that the published model counts from data to noise


class SD3Decoder(Decoder):
    """Raises LaminaError where diffusers is missing, and for pictures that autoencoder and patches do not divide."""

    @dataclass(frozen=True)
    class Config:
        """The defaults are those of Stable Diffusion 3.5 medium."""

        patch: Count = 2  # latents of a side
        layers: Layers = 24
        heads: Count = 24
        head: Count = 64  # channels of one
        context: Count = 4096  # channels of what the joint attention reads
        pooled: Count = 2048  # channels of the pooled projection
        dual: CountOrZero = 13  # first layers with a second attention over the picture alone
        qk_norm: bool = True
        shift: float = 3.0
        steps: Layers = 28  # Euler steps of one sample
        autoencoder: Autoencoder.Config = field(default_factory=Autoencoder.Config)

        @property
        def width(self) -> int:
            return self.heads * self.head

    def __init__(self, config: Config, image: tuple[int, int, int], slots: int, dim: int):
        super().__init__(config, image, slots, dim)
        with library("--decoder sd3", "diffusers"):
            from diffusers import SD3Transformer2DModel
        channels, height, width = image
        if channels != 3:
            raise LaminaError(f"--decoder sd3 predicts RGB frames, these have {channels} channels")
        side = config.autoencoder.stride * config.patch
        if height % side or width % side:
            raise LaminaError(
                f"image {height}x{width} is not a multiple of {side}, which the decoder's autoencoder ({config.autoencoder.stride}) "
                f"times its patch ({config.patch}) needs; set --image"
            )
        grid = (height // side, width // side)
        d = config.autoencoder.channels
        self.config, self.shape = config, (d, grid[0] * config.patch, grid[1] * config.patch)
        self.autoencoder = Autoencoder(config.autoencoder)
        transformer: Any = SD3Transformer2DModel  # untyped there
        self.transformer: Any = transformer(
            sample_size=max(self.shape[1:]), patch_size=config.patch, in_channels=2 * d, out_channels=d, num_layers=config.layers,
            attention_head_dim=config.head, num_attention_heads=config.heads, joint_attention_dim=config.context,
            caption_projection_dim=config.width, pooled_projection_dim=config.pooled, pos_embed_max_size=max(grid),
            dual_attention_layers=tuple(range(config.dual)), qk_norm="rms_norm" if config.qk_norm else None,
        )  # fmt: skip
        self.latent = nn.Linear(dim, config.context)
        self.position = position_embedding(slots, config.context)
        self.pooled = nn.Sequential(nn.Flatten(), nn.Linear(slots * dim, config.pooled))
        # The last layer has no use for what its context asks, and AdaLN-zero is how such a transformer is begun (Peebles & Xie 2023).
        last = self.transformer.transformer_blocks[-1].attn
        for part in (last.add_q_proj, last.norm_added_q):
            if part is not None:
                part.requires_grad_(False)
        for name, value in self.transformer.named_parameters():
            if (
                ".norm1.linear." in name
                or ".norm1_context.linear." in name
                or name.startswith(("norm_out.", "proj_out."))
            ):
                nn.init.zeros_(value)

    @property
    def units(self) -> list[nn.Module]:
        """The repeated layers (:func:`lamina.models.layers.repeated`)."""
        return list(self.transformer.transformer_blocks)

    def forward(
        self,
        x_t: Float[Tensor, "b d y x"],
        t: Float[Tensor, "b"],
        src: Float[Tensor, "b d y x"],
        z: Float[Tensor, "b k e"],
    ) -> Float[Tensor, "b d y x"]:
        """The velocity at (x_t, t), latents of the autoencoder; ``src``: that of o_t."""
        return self.transformer(
            hidden_states=torch.cat([x_t, src], dim=1),
            encoder_hidden_states=self.latent(z) + self.position,
            pooled_projections=self.pooled(z),
            timestep=TIMES * t,
            return_dict=False,
        )[0].float()

    def _flow(
        self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k e"], dst: Float[Tensor, "b c h w"], rng: Rng
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b d y x"]]:
        """The velocity's error of each sample, and the clean latent that the predicted velocity implies."""
        before, after = self.autoencoder(torch.cat([src, dst])).chunk(2)
        t = sample_time(rng, len(src), self.config.shift)
        noise = rng.normal(len(src), *self.shape)
        x_t = interpolate(after, noise, t)
        v = self(x_t, t, before, z)
        return squared_error(v, velocity(after, noise)), data_of_velocity(x_t, v, t)

    def loss(
        self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k e"], dst: Float[Tensor, "b c h w"], rng: Rng
    ) -> Float[Tensor, "b"]:
        """The loss alone, without drawing a picture."""
        return self._flow(src, z, dst, rng)[0]

    def predict_and_loss(
        self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k e"], dst: Float[Tensor, "b c h w"], rng: Rng
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b c h w"]]:
        loss, clean = self._flow(src, z, dst, rng)
        return loss, self.autoencoder.decode(clean)

    def sample(self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k e"], rng: Rng) -> Float[Tensor, "b c h w"]:
        before = self.autoencoder(src)

        def at(x_t: Tensor, t: Tensor) -> Tensor:
            return self(x_t, t, before, z)

        latent = integrate(at, rng.normal(len(src), *self.shape), self.config.steps, self.config.shift)
        return self.autoencoder.decode(latent)


# ------------------------------------------------------------------------------------------------- pretrained weights


def read_config(source: Pretrained) -> SD3Decoder.Config:
    """The config of a published SD3Transformer2DModel, without its autoencoder. Raises LaminaError for a model of another kind."""
    found = source.config()
    if found.get("_class_name") != "SD3Transformer2DModel":
        raise source.wrong(
            f"a {found.get('_class_name') or found.get('model_type')!s:.40}, not an SD3Transformer2DModel"
        )
    dual = tuple(found.get("dual_attention_layers") or ())
    heads, head = found.get("num_attention_heads", 18), found.get("attention_head_dim", 64)
    channels = {
        found.get("in_channels", 16),
        found.get("out_channels", 16),
        found.get("caption_projection_dim", 1152) // head,
    }
    if (
        dual != tuple(range(len(dual)))
        or found.get("qk_norm") not in (None, "rms_norm")
        or len(channels - {heads}) != 1
    ):
        raise source.wrong(
            "an SD3Transformer2DModel of other channels, norms or attention than Stable Diffusion 3 and 3.5"
        )
    return SD3Decoder.Config(
        patch=found.get("patch_size", 2), layers=found.get("num_layers", 18), heads=heads, head=head,
        context=found.get("joint_attention_dim", 4096), pooled=found.get("pooled_projection_dim", 2048), dual=len(dual),
        qk_norm=found.get("qk_norm") is not None,
    )  # fmt: skip


def load(decoder: SD3Decoder, source: Pretrained) -> None:
    """Fill the transformer with published weights. The input channels of o_t's latent, which those lack, are zero.

    Raises LaminaError for weights of another architecture.
    """
    fill(decoder.transformer, widened(source, decoder), source)


def widened(source: Pretrained, decoder: SD3Decoder) -> Mapping[str, Tensor]:
    """The published tensors with twice the input channels, and the middle of the table of positions that pictures of this size use."""
    tensors = source.tensors()
    weight, table = tensors.get("pos_embed.proj.weight"), tensors.get("pos_embed.pos_embed")
    if weight is None or table is None:
        raise source.wrong("weights of another architecture: no pos_embed")
    d = decoder.shape[0]
    if weight.shape[1] != d:
        raise source.wrong(
            f"reads latents of {weight.shape[1]} channels, and the autoencoder has {d}; give the --vae that it was trained with"
        )
    grid = [side // decoder.config.patch for side in decoder.shape[1:]]
    most, own = round(table.shape[1] ** 0.5), max(grid)
    if most < own:
        raise source.wrong(
            f"has positions for {most}x{most} patches, and pictures of this --image have {grid[0]}x{grid[1]}"
        )
    # As the library crops both tables, the published one and ours, to the middle of the picture's grid.
    top, left = ((most - side) // 2 - (own - side) // 2 for side in grid)
    square = table.view(most, most, -1)[top : top + own, left : left + own]
    return tensors | {
        "pos_embed.proj.weight": torch.cat([weight, torch.zeros_like(weight)], dim=1),
        "pos_embed.pos_embed": square.reshape(1, own * own, -1),
    }
