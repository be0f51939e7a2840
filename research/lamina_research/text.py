"""Numbers and lists in the sentences of a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan

from lamina.intervals import Estimate
from lamina_research.seeds import column, interval


def means(values: Mapping[str, Sequence[float]], digits: int = 3) -> str:
    """The mean over seeds of each: "A 1.234, B 1.345"."""
    return listed(f"{name} {interval(v).mean:.{digits}f}" for name, v in values.items())


def means_of(metrics: Mapping[str, Mapping[str, Sequence[float]]], metric: str, digits: int = 3) -> str:
    """:func:`means` of one metric, for all methods that have it."""
    return means(column(metrics, metric), digits)


def signed(difference: Estimate) -> str:
    """A difference with its interval: "+1.20 (+1.10 to +1.30)"."""
    bounds = "" if isnan(difference.low) else f" ({difference.low:+.2f} to {difference.high:+.2f})"
    return f"{difference.mean:+.2f}{bounds}"


def listed(names: Iterable[object]) -> str:
    """ "A, B"; "none" for an empty list."""
    return ", ".join(map(str, names)) or "none"


def yes_no(value: bool) -> str:
    return "yes" if value else "no"
