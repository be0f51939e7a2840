"""Fixed-K: FlexLAM's baseline, one code length for every transition (arXiv 2606.19408, §5.1, App. A.3).

    lamina train fixed_k --slots 4 --data DATASET --out RUN

Everything is FlexLAM's but the bottleneck rule: all K slots always reach the decoder. Deviations: those of flexlam.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamina.methods.base import MethodConfig, MethodLosses, pair_losses
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.config import LAMConfig


@dataclass(frozen=True)
class Config(MethodConfig):
    levels: tuple[int, ...] = (7, 5, 5, 5, 5)
    """FSQ levels of one slot's channels"""


def build(config: Config) -> LAMConfig:
    return LAMConfig(**config.parts(), bottleneck=FSQ.Config(config.levels), prefix="full")


def weights(config: Config) -> dict[str, float]:
    return {"reconstruction": 1.0}


def losses(config: Config) -> MethodLosses:
    return pair_losses
