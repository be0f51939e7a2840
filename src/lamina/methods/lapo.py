"""LAPO: Learning to Act without Actions (Schmidt & Jiang, ICLR 2024; arXiv 2312.10812, §4).

    lamina train lapo --data DATASET --out RUN

Convolutional inverse dynamics, VQ with EMA (eight tokens of one codebook here), U-Net forward dynamics, squared error in pixels.

Deviations: the encoder embeds each frame once and compares feature maps, where LAPO stacks the frames at the input; one earlier
frame of context is not given; one codebook is shared by the slots; the U-Net also moves the source before it repaints it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamina.bottleneck import VQ
from lamina.lam import LAMConfig, pair_losses
from lamina.sizes import Backbone, DecoderName, EncoderName
from lamina.train import Losses


@dataclass(frozen=True)
class Config(Backbone):
    encoder: EncoderName = "conv"
    decoder: DecoderName = "unet"
    slots: int = 8
    codebook_size: int = 64
    code_dim: int = 16
    commitment: float = 0.05


def build(config: Config) -> LAMConfig:
    return LAMConfig(**config.parts(), bottleneck=VQ.Config(config.codebook_size, config.code_dim))


def weights(config: Config) -> dict[str, float]:
    return {"reconstruction": 1.0, "commitment": config.commitment}


def losses(config: Config) -> Losses:
    return pair_losses
