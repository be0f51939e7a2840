"""Tables and charts of the report from rows of the record: methods and budgets down, metrics across."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lamina.evaluation.record import Role, Row, Value
from lamina.evaluation.report.charts import Chart, Line, line_chart
from lamina.intervals import Estimate

ROLES: tuple[Role, ...] = ("model", "reference", "control")


@dataclass(frozen=True)
class Metric:
    """A column of a table: its field in the rows, its heading, and which way is better."""

    key: str
    name: str
    better: str
    percent: bool = False

    def of(self, row: Row) -> Estimate | None:
        """A row's value in the unit that the page shows; None where it was not measured or is not a number."""
        value = estimate(getattr(row, self.key))
        scale = 100.0 if self.percent else 1.0
        return value and Estimate(value.mean * scale, value.low * scale, value.high * scale)


@dataclass(frozen=True)
class Cell:
    """A value and its interval as text; the text is None where there is no value."""

    text: str | None
    interval: str | None = None


@dataclass(frozen=True)
class TableRow:
    """``span``: rows of this name and role, of which this is the first; 0 for the others. ``mark``: left end of the interval, its width,
    and the mean, in percent of the width of the mark."""

    name: str
    role: str
    span: int
    k: str
    cells: tuple[Cell, ...]
    mark: tuple[float, float, float] | None


@dataclass(frozen=True)
class Table:
    """``absent``: names of the metrics that no row has, which have no column."""

    label: str
    budget: str
    metrics: tuple[Metric, ...]
    rows: tuple[TableRow, ...]
    absent: tuple[str, ...]


def estimate(value: Value | None) -> Estimate | None:
    """A measured value; None for one that is absent or has a null in it."""
    if value is None or value.mean is None or value.low is None or value.high is None:
        return None
    return Estimate(value.mean, value.low, value.high)


def in_order(rows: Iterable[Row] | None) -> list[Any]:
    """The model first, then references, then controls; each method's budgets ascending."""
    rows = list(rows or ())
    first = {row.name: n for n, row in reversed(list(enumerate(rows)))}
    return sorted(rows, key=lambda row: (ROLES.index(row.role), first[row.name], -1 if row.k is None else row.k))


def decimals(estimates: Sequence[Estimate]) -> int:
    """Decimals that show two digits of a typical interval's half width, or three digits of the mean without one."""
    halves = [(e.high - e.low) / 2 for e in estimates if math.isfinite(e.high - e.low) and e.high > e.low]
    sizes = halves or [abs(e.mean) for e in estimates if math.isfinite(e.mean) and e.mean]
    digits = 1 if halves else 2
    return min(max(digits - math.floor(math.log10(statistics.median(sizes))), 0), 8) if sizes else 2


def table(rows: Iterable[Row] | None, metrics: Sequence[Metric], label: str, budget: str = "k") -> Table | None:
    """The table of ``rows``; None where nothing was measured. ``budget``: the heading of ``k``."""
    ordered = in_order(rows)
    columns = {m: column for m in metrics if any(column := [m.of(row) for row in ordered])}
    if not columns:
        return None
    places = {m: decimals([e for e in column if e]) for m, column in columns.items()}
    ends = [v for e in next(iter(columns.values())) if e for v in (e.mean, e.low, e.high) if math.isfinite(v)]

    def cell(metric: Metric, value: Estimate | None) -> Cell:
        if value is None:
            return Cell(None)
        mean, low, high = (
            f"{v:.{places[metric]}f}" if math.isfinite(v) else None for v in (value.mean, value.low, value.high)
        )
        text = f"{mean}{'%' if metric.percent else ''}" if mean else "not a number"
        return Cell(text, f"{low} to {high}" if low and high else None)

    def mark(value: Estimate | None) -> tuple[float, float, float] | None:
        if value is None or not all(map(math.isfinite, (value.mean, value.low, value.high))):
            return None
        width = (max(ends) - min(ends)) or 1
        left, mean, right = (round(100 * (v - min(ends)) / width, 1) for v in (value.low, value.mean, value.high))
        return left, round(right - left, 1), mean

    found: list[TableRow] = []
    for n, row in enumerate(ordered):
        same = [(other.name, other.role) == (row.name, row.role) for other in ordered]
        span = 0 if n and same[n - 1] else sum(same)
        values = [column[n] for column in columns.values()]
        cells = tuple(cell(m, v) for m, v in zip(columns, values, strict=True))
        found.append(TableRow(row.name, row.role, span, "any" if row.k is None else str(row.k), cells, mark(values[0])))
    return Table(label, budget, tuple(columns), tuple(found), tuple(m.name for m in metrics if m not in columns))


def over_k(rows: Iterable[Row] | None, metrics: Sequence[Metric]) -> list[Chart]:
    """A chart over k for each of ``metrics``: a line for each method with several budgets, a level across for any other."""
    ordered = in_order(rows)
    marks = sorted({row.k for row in ordered if row.k is not None})
    charts = []
    for metric in metrics if marks else ():
        lines = []
        for name, role in dict.fromkeys((row.name, row.role) for row in ordered):
            own = [(row.k, e) for row in ordered if (row.name, row.role) == (name, role) and (e := metric.of(row))]
            if len(own) > 1 and all(k is not None for k, _ in own):
                line = Line(name, [float(k) for k, _ in own if k is not None], [e.mean for _, e in own])
                low, high = [e.low for _, e in own], [e.high for _, e in own]
                lines.append(replace(line, low=low, high=high) if role == "model" else line)
            elif own:
                k, value = own[-1]
                lines.append(Line(name if k is None else f"{name} (k = {k})", [0.0], [value.mean], level=True))
        title = f"{metric.name[0].upper()}{metric.name[1:].partition(',')[0]} over the budget k"
        unit = f"{metric.name}, %" if metric.percent else metric.name
        charts.append(line_chart(lines, title, "k, slots kept", f"{unit} ({metric.better})", [float(k) for k in marks]))
    return [chart for chart in charts if chart]


def curve(
    title: str, curves: Mapping[str, tuple[Sequence[float] | None, Sequence[float | None] | None]]
) -> Chart | None:
    """Loss over training steps, by the name of each line. The scale is logarithmic where the largest value is over ten times the
    smallest."""
    lines = []
    for name, (steps, losses) in curves.items():
        x, y = _thinned(list(steps or ()), [math.nan if v is None else v for v in losses or ()])
        lines.append(Line(name, x, y, marks=len(x) <= 12))
    values = [v for line in lines for v in line.values]
    log_y = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    return line_chart(lines, title, "training step", "loss (log scale)" if log_y else "loss", log_y=log_y)


def _thinned(x: list[float], y: list[float], points: int = 240) -> tuple[list[float], list[float]]:
    """A long curve as the means of ``points`` stretches of equal length."""
    size = max(1, math.ceil(len(x) / points))
    starts = range(0, len(x), size)
    return [statistics.fmean(x[i : i + size]) for i in starts], [statistics.fmean(y[i : i + size]) for i in starts]
