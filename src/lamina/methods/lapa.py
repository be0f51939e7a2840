"""LAPA: Latent Action Pretraining from Videos (Ye et al., ICLR 2025; arXiv 2410.11758, §3.1).

    lamina train lapa --data DATASET --out RUN

Transformer encoder, four tokens of a codebook of eight (NSVQ), pixel transformer decoder that reads o_t and the tokens.

Deviations: frames are embedded once and meet in query slots, where LAPA's C-ViViT attends over both frames; the tokens enter the
decoder's sequence, where LAPA cross-attends; a small commitment term keeps the encoder near its codes; codes are moved by EMA.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamina.methods.base import DecoderName, EncoderName, MethodConfig, MethodLosses, pair_losses
from lamina.models.bottlenecks.vq import VQ
from lamina.models.config import LAMConfig


@dataclass(frozen=True)
class Config(MethodConfig):
    encoder: EncoderName = "transformer"
    decoder: DecoderName = "pixel"
    slots: int = 4
    codebook_size: int = 8
    code_dim: int = 32
    commitment: float = 0.05


def build(config: Config) -> LAMConfig:
    bottleneck = VQ.Config(config.codebook_size, config.code_dim, gradient="noise")
    return LAMConfig(**config.parts(), bottleneck=bottleneck)


def weights(config: Config) -> dict[str, float]:
    return {"reconstruction": 1.0, "commitment": config.commitment}


def losses(config: Config) -> MethodLosses:
    return pair_losses
