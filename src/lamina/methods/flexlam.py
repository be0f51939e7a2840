"""FlexLAM: variable-length latent actions by retained-prefix training (arXiv 2606.19408, §4.1, App. A).

    lamina train flexlam --data DATASET --out RUN

One model whose every prefix is a valid latent action: k ~ Unif{0..K} for each sample, the suffix replaced by one learned null latent,
rectified-flow decoder (`--decoder flow`, which is the default on CUDA).

Deviations from the paper, whose tables of hyperparameters are not in our copy:
- K = 16 slots by default (the paper: 64), FSQ levels 7-5-5-5-5 (4,375 codes); one option, `--size`, sets all widths and depths.
- Up to 64 pixels the encoder is convolutional; above, a transformer that embeds each frame once.
- Without CUDA the default decoder is a U-Net that moves the picture before it repaints it (`--decoder auto`): a rectified flow needs more
  steps than a processor gives in an hour.
- The flow decoder predicts the clean frame as a change of o_t and regresses the velocity that this implies.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamina.methods.base import MethodConfig, MethodLosses, pair_losses
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.bottlenecks.prefix import PrefixDistribution
from lamina.models.config import LAMConfig


@dataclass(frozen=True)
class Config(MethodConfig):
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    """FSQ levels of one slot's channels"""
    prefix: PrefixDistribution = "uniform"
    """p(k) of the retained prefix"""


def build(config: Config) -> LAMConfig:
    return LAMConfig(**config.parts(), bottleneck=FSQ.Config(config.levels), prefix=config.prefix)


def weights(config: Config) -> dict[str, float]:
    return {"reconstruction": 1.0}


def losses(config: Config) -> MethodLosses:
    return pair_losses
