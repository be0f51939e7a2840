"""The frozen autoencoder that a latent flow works in: diffusers' AutoencoderKL, with its latents kept by the content of the frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from lamina.device import full_precision
from lamina.errors import LaminaError
from lamina.files import reason
from lamina.images import to_float, to_uint8
from lamina.models.feature_cache import FeatureCache
from lamina.models.published import Pretrained, fill, library
from lamina.records import Count
from lamina.weights import digest

AT_ONCE = 32  # pictures: the first layers of a large one take 100 MB each


class Autoencoder(nn.Module):
    """Pictures in [-1, 1] to latents of mean 0 and deviation 1 and back. It is frozen, and saved with the model that it belongs to.

    Raises LaminaError where diffusers is missing.
    """

    @dataclass(frozen=True)
    class Config:
        """The defaults are those of Stable Diffusion 3.5's."""

        widths: Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)] = (128, 256, 512, 512)
        layers: Count = 2  # residual blocks of a resolution
        channels: Count = 16  # of a latent
        groups: Count = 32  # of the group norms
        scale: float = 1.5305
        shift: float = 0.0609
        quant_conv: bool = False  # Stable Diffusion 1 and 2 have two more convolutions around the latent

        @property
        def stride(self) -> int:
            """Pixels of a side of the picture for one of the latent."""
            return 2 ** (len(self.widths) - 1)

    def __init__(self, config: Config):
        super().__init__()
        with library("--decoder sd3", "diffusers"):
            from diffusers import AutoencoderKL
        kind: Any = AutoencoderKL  # untyped there
        stages = len(config.widths)
        self.config = config
        try:
            self.model: Any = kind(
                down_block_types=("DownEncoderBlock2D",) * stages, up_block_types=("UpDecoderBlock2D",) * stages,
                block_out_channels=config.widths, layers_per_block=config.layers, latent_channels=config.channels,
                norm_num_groups=config.groups, use_quant_conv=config.quant_conv, use_post_quant_conv=config.quant_conv,
            )  # fmt: skip
            self.model.requires_grad_(False)
        except ValueError as error:
            raise LaminaError(f"no autoencoder has these sizes: {reason(error)}") from error
        self.cache: FeatureCache | None = None  # where latents are kept, if anywhere

    def forward(self, pictures: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
        """The latents of pictures, from the cache where there is one. Of each distribution they are the mean."""
        if self.cache is None:
            return self.encode(pictures)
        return self.cache.features(to_uint8(pictures), lambda some: self.encode(to_float(some)), chunk=AT_ONCE)

    @torch.no_grad()
    def encode(self, pictures: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
        """The latents of pictures, computed in float32: those in the cache do not depend on who asked for them first."""
        with full_precision(pictures.device):
            means = [self.model.encode(some.float()).latent_dist.mean for some in pictures.split(AT_ONCE)]
        return (torch.cat(means) - self.config.shift) * self.config.scale

    def decode(self, latents: Float[Tensor, "n d y x"]) -> Float[Tensor, "n c h w"]:
        """The pictures of latents, in about [-1, 1]. Gradients pass."""
        scaled = latents / self.config.scale + self.config.shift
        return torch.cat([self.model.decode(some).sample.float() for some in scaled.split(AT_ONCE)])

    def fingerprint(self) -> str:
        """sha256 of its weights and scaling."""
        return digest({n: v.cpu() for n, v in self.model.state_dict().items()}, [self.config.scale, self.config.shift])


# ------------------------------------------------------------------------------------------------- pretrained weights


def read_config(source: Pretrained) -> Autoencoder.Config:
    """The config of a published AutoencoderKL. Raises LaminaError for a model of another kind, or one that does not read RGB."""
    found = source.config()
    if found.get("_class_name") != "AutoencoderKL":
        raise source.wrong(f"a {found.get('_class_name') or found.get('model_type')!s:.40}, not an AutoencoderKL")
    if (found.get("in_channels", 3), found.get("out_channels", 3)) != (3, 3):
        raise source.wrong(f"an autoencoder of {found['in_channels']} channels; frames have 3")
    kinds = {*found.get("down_block_types", ()), *found.get("up_block_types", ())} - {
        "DownEncoderBlock2D",
        "UpDecoderBlock2D",
    }
    if kinds or not found.get("mid_block_add_attention", True) or found.get("latents_mean"):
        raise source.wrong(f"an AutoencoderKL of other parts ({', '.join(sorted(map(str, kinds))) or 'latents_mean'})")
    if found.get("act_fn", "silu") not in ("silu", "swish"):
        raise source.wrong(
            f"an AutoencoderKL with the activation {found['act_fn']!s:.20}, and silu is what is computed here"
        )
    return Autoencoder.Config(
        widths=tuple(found.get("block_out_channels", (64,))), layers=found.get("layers_per_block", 1),
        channels=found.get("latent_channels", 4), groups=found.get("norm_num_groups", 32),
        scale=float(found.get("scaling_factor", 0.18215)), shift=float(found.get("shift_factor") or 0.0),
        quant_conv=bool(found.get("use_quant_conv", True)),
    )  # fmt: skip


def load(autoencoder: Autoencoder, source: Pretrained) -> None:
    """Fill in published weights. Raises LaminaError for weights of another architecture."""
    fill(autoencoder.model, source.tensors(), source)
