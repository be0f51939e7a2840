"""Metrics of several seeds: their table, mean and 95% confidence interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lamina.intervals import Estimate
from lamina.intervals import t_interval as interval

Metrics = dict[str, dict[str, list[float]]]  # metrics[method][metric]: one value per seed, in the order of the seeds


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
