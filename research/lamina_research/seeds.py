"""Metrics of several seeds: their table, mean and 95% confidence interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence

from scipy.stats import ttest_1samp

from lamina.intervals import UNDEFINED, Estimate

Metrics = dict[str, dict[str, list[float]]]  # metrics[method][metric]: one value per seed, in the order of the seeds


def interval(values: Sequence[float]) -> Estimate:
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
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # all seeds have the same value
        low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    return Estimate(mean, float(low), float(high))


def over_seeds(scores: Iterable[Mapping[str, Mapping[str, float]]]) -> Metrics:
    """The scores of each seed, ``scores[method][metric]``, as metrics with one value per seed."""
    metrics: Metrics = {}
    for of_seed in scores:
        for method, row in of_seed.items():
            for name, value in row.items():
                metrics.setdefault(method, {}).setdefault(name, []).append(value)
    return metrics


def column(metrics: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> dict[str, Sequence[float]]:
    """One metric of all methods that have it."""
    return {method: row[name] for method, row in metrics.items() if name in row}


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Interval of ``ours - theirs``, seed by seed: variation that both share (data, split, seed) cancels.

    Raises ValueError when the two have different numbers of seeds.
    """
    return interval([a - b for a, b in zip(ours, theirs, strict=True)])


def below(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether ours is significantly lower: the 95% interval of the difference, paired over seeds, is below 0."""
    return paired_difference(ours, theirs).high < 0
