"""Means with 95% bootstrap intervals over episodes: transitions of one episode are not independent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def bootstrap_ratio(
    above: Float[np.ndarray, "n"], below: Float[np.ndarray, "n"], episode: Int[np.ndarray, "n"], seed: int = 0
) -> Estimate:
    """sum(above) / sum(below) with a percentile interval; whole episodes are drawn with replacement.

    With fewer than five episodes transitions are drawn instead, which makes the interval too narrow.
    """
    _, group = np.unique(episode, return_inverse=True)
    if group.max() < 4:
        group = np.arange(len(episode))
    n = group.max() + 1
    tops, bottoms = np.bincount(group, above, n), np.bincount(group, below, n)
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    low, high = np.quantile(tops[drawn].sum(1) / bottoms[drawn].sum(1), [0.025, 0.975])
    return Estimate(float(above.sum() / below.sum()), float(low), float(high))


def bootstrap_mean(values: Any, episode: Any, seed: int = 0) -> Estimate:
    """The mean of ``values`` [n] with its interval."""
    values = np.asarray(values, np.float64)
    return bootstrap_ratio(values, np.ones_like(values), np.asarray(episode), seed)
