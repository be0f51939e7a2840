"""Means with 95% intervals: bootstrap over episodes, since transitions of one episode are not independent; Student's t over seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value and the bounds of its 95% interval."""

    mean: float
    low: float
    high: float

    def complement(self) -> Estimate:
        """Of a share: that of the rest, 1 - x."""
        return Estimate(1 - self.mean, 1 - self.high, 1 - self.low)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


UNDEFINED = Estimate(np.nan, np.nan, np.nan)


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval of one value per seed, by Student's t with n - 1 degrees of freedom.

    A single seed has no interval (NaN bounds); a diverged seed (NaN, infinity) makes the mean NaN too. Raises ValueError without any value.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one value")
    if not all(math.isfinite(v) for v in values):
        return UNDEFINED
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, math.nan, math.nan)
    from scipy.stats import ttest_1samp  # slow to import

    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # all seeds have the same value
        low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    return Estimate(mean, float(low), float(high))


def _sums(episode: Int[np.ndarray, "n"], *values: Float[np.ndarray, "n"]) -> list[Float[np.ndarray, "g"]]:
    """Sums of ``values`` over each episode; with fewer than five episodes, over each sample by itself."""
    _, group = np.unique(episode, return_inverse=True)
    if group.max() < 4:
        group = np.arange(len(episode))
    return [np.bincount(group, value) for value in values]


def _resampled(statistic: Callable[..., Any], sums: list[Float[np.ndarray, "g"]], seed: int) -> Float[np.ndarray, "r"]:
    """``statistic(*sums, axis=-1)`` of RESAMPLES draws of the groups with replacement; NaN where it is not defined."""
    from scipy.stats import DegenerateDataWarning, bootstrap  # slow to import

    if len(sums[0]) == 1:  # scipy refuses a single group; every draw is that group
        return np.asarray([statistic(*sums, axis=-1)])
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings(action="ignore", category=DegenerateDataWarning):
        result = bootstrap(
            sums, statistic, n_resamples=RESAMPLES, paired=True, vectorized=True, method="percentile", rng=rng
        )
    return result.bootstrap_distribution


def wilson(share: float, count: int) -> Estimate:
    """A share of ``count`` independent trials with Wilson's interval (1927), which is not empty where the share is 0 or 1."""
    z = 1.959964  # 95%
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Estimate(share, float(max(0.0, centre - half)), float(min(1.0, centre + half)))


def bootstrap_ratio(
    above: Float[np.ndarray, "n"], below: Float[np.ndarray, "n"], episode: Int[np.ndarray, "n"], seed: int = 0
) -> Estimate:
    """sum(above) / sum(below) with a percentile interval; whole episodes are drawn with replacement. NaN where ``below`` is all zero.

    With fewer than five episodes transitions are drawn instead, which makes the interval too narrow.
    """
    if not np.any(below):  # an all-zero latent has no scale
        return UNDEFINED
    drawn = _resampled(lambda a, b, axis: a.sum(axis) / b.sum(axis), _sums(episode, above, below), seed)
    low, high = np.quantile(drawn, [0.025, 0.975])
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
    x, y = x - x.mean(), y - y.mean()

    def r(*moments: Float[np.ndarray, "*r g"], axis: int) -> Float[np.ndarray, "*r"]:
        w, mx, my, xx, yy, xy = np.moveaxis(np.stack(moments, axis=-1).sum(axis - 1), -1, 0)
        mx, my = mx / w, my / w
        with np.errstate(invalid="ignore", divide="ignore"):
            varies = (xx / w - mx**2 > 1e-12 * np.abs(x).max() ** 2) & (yy / w - my**2 > 1e-12 * np.abs(y).max() ** 2)
            return np.where(varies, (xy / w - mx * my) / np.sqrt((xx / w - mx**2) * (yy / w - my**2)), np.nan)

    moments = _sums(episode, *(weight * v for v in (np.ones_like(x), x, y, x * x, y * y, x * y)))
    centre, found = float(r(*moments, axis=-1)), _resampled(r, moments, seed)
    if np.isnan(centre) or np.isnan(found).all():
        return UNDEFINED
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Estimate(centre, float(low), float(high))
