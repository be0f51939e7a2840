"""Numbers and lists in the sentences of a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lamina_research.seeds import interval


def means(values: Mapping[str, Sequence[float]], digits: int = 3) -> str:
    """ "A 1.234, B 1.345": the mean over seeds of each."""
    return ", ".join(f"{name} {interval(v).mean:.{digits}f}" for name, v in values.items())


def means_of(metrics: Mapping[str, Mapping[str, Sequence[float]]], metric: str, digits: int = 3) -> str:
    """:func:`means` of one metric, for all that have it."""
    return means({name: values[metric] for name, values in metrics.items() if metric in values}, digits)


def listed(names: Iterable[object]) -> str:
    """ "A, B"; "none" without any."""
    return ", ".join(map(str, names)) or "none"


def yes_no(value: bool) -> str:
    return "yes" if value else "no"
