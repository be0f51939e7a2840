"""LAPO: Learning to Act without Actions (Schmidt & Jiang, ICLR 2024; arXiv 2312.10812, §4).

    lamina train lapo --data DATASET --out RUN

Convolutional inverse dynamics, VQ with EMA (eight tokens of one codebook here), U-Net forward dynamics, squared error in pixels.

`--quantiser none --slots 1 --code-dim 8` is the narrow latent without quantiser of *Why Latent Actions Fail* (App. D); `--space ema` and
`--space features` are its LAMs on learned and on frozen features.

Deviations: the encoder embeds each frame once and compares feature maps, where LAPO stacks the frames at the input; one earlier
frame of context is not given; one codebook is shared by the slots; the U-Net also moves the source before it repaints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lamina.methods.base import DecoderName, EncoderName, MethodConfig, MethodLosses, pair_losses
from lamina.models.bottlenecks.base import Identity
from lamina.models.bottlenecks.vq import VQ
from lamina.models.config import LAMConfig


@dataclass(frozen=True)
class Config(MethodConfig):
    encoder: EncoderName = "conv"
    decoder: DecoderName = "unet"
    slots: int = 8
    codebook_size: int = 64
    code_dim: int = 16
    commitment: float = 0.05
    quantiser: Literal["vq", "none"] = "vq"


def build(config: Config) -> LAMConfig:
    quantised = VQ.Config(config.codebook_size, config.code_dim)
    bottleneck = quantised if config.quantiser == "vq" else Identity.Config(config.code_dim)
    return LAMConfig(**config.parts(), bottleneck=bottleneck)


def weights(config: Config) -> dict[str, float]:
    return {"reconstruction": 1.0} | ({"commitment": config.commitment} if config.quantiser == "vq" else {})


def losses(config: Config) -> MethodLosses:
    return pair_losses
