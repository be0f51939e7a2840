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


def _groups(episode: Int[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "n"], int]:
    """What is drawn as a whole: the number of each sample's episode, and how many there are. Fewer than five: each sample by itself."""
    _, group = np.unique(episode, return_inverse=True)
    if group.max() < 4:
        group = np.arange(len(episode))
    return group, int(group.max()) + 1


def bootstrap_ratio(
    above: Float[np.ndarray, "n"], below: Float[np.ndarray, "n"], episode: Int[np.ndarray, "n"], seed: int = 0
) -> Estimate:
    """sum(above) / sum(below) with a percentile interval; whole episodes are drawn with replacement.

    With fewer than five episodes transitions are drawn instead, which makes the interval too narrow.
    """
    group, n = _groups(episode)
    tops, bottoms = np.bincount(group, above, n), np.bincount(group, below, n)
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    if not np.any(below):  # an all-zero latent has no scale
        return Estimate(np.nan, np.nan, np.nan)
    low, high = np.quantile(tops[drawn].sum(1) / bottoms[drawn].sum(1), [0.025, 0.975])
    return Estimate(float(above.sum() / below.sum()), float(low), float(high))


def bootstrap_mean(values: Any, episode: Any, seed: int = 0) -> Estimate:
    """The mean of ``values`` [n] with its interval."""
    values = np.asarray(values, np.float64)
    return bootstrap_ratio(values, np.ones_like(values), np.asarray(episode), seed)


def bootstrap_correlation(
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
    weight: Float[np.ndarray, "n"],
    episode: Int[np.ndarray, "n"],
    seed: int = 0,
) -> Estimate:
    """Pearson's r of weighted samples with a percentile interval; whole episodes are drawn. NaN where x or y never varies.

    With fewer than five episodes samples are drawn instead, which makes the interval too narrow.
    """
    group, n = _groups(episode)
    x, y = x - x.mean(), y - y.mean()
    moments = np.stack(
        [np.bincount(group, weight * v, n) for v in (np.ones_like(x), x, y, x * x, y * y, x * y)], axis=1
    )

    def r(total: Float[np.ndarray, "... 6"]) -> Float[np.ndarray, "..."]:
        w, mx, my, xx, yy, xy = np.moveaxis(total, -1, 0)
        mx, my = mx / w, my / w
        with np.errstate(invalid="ignore", divide="ignore"):
            varies = (xx / w - mx**2 > 1e-12 * np.abs(x).max() ** 2) & (yy / w - my**2 > 1e-12 * np.abs(y).max() ** 2)
            return np.where(varies, (xy / w - mx * my) / np.sqrt((xx / w - mx**2) * (yy / w - my**2)), np.nan)

    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    found = r(moments[drawn].sum(1))
    centre = float(r(moments.sum(0)))
    if np.isnan(centre) or np.isnan(found).all():
        return Estimate(np.nan, np.nan, np.nan)
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Estimate(centre, float(low), float(high))
