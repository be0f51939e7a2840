"""Metrics of several seeds: their table, mean and 95% confidence interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import ttest_1samp

Metrics = dict[str, dict[str, list[float]]]  # metrics[method][metric]: one value per seed, in the order of the seeds


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided 95% confidence interval; its bounds are None for a single seed."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95% interval of one value per seed, by Student's t with n - 1 degrees of freedom.

    A diverged seed (NaN, infinity) makes the mean NaN and the bounds None. Raises ValueError without any value.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one value")
    if not all(math.isfinite(v) for v in values):
        return Interval(math.nan, None, None)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, None, None)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # all seeds have the same value
        low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    return Interval(mean, float(low), float(high))


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


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Interval of ``ours - theirs``, seed by seed: variation that both share (data, split, seed) cancels.

    Raises ValueError when the two have different numbers of seeds.
    """
    return interval([a - b for a, b in zip(ours, theirs, strict=True)])


def below(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether ours is significantly lower: the 95% interval of the difference, paired over seeds, is below 0."""
    high = paired_difference(ours, theirs).high
    return high is not None and high < 0
