"""The parts of a page: tables with methods down and metrics across, charts over the budget and over training, pictures of the run."""

from __future__ import annotations

import base64
import hashlib
import math
import statistics
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamina.evaluation.report.chart import Html, Line, interval_mark, line_chart, tag
from lamina.evaluation.report.record import Estimate, Malformed, Metric, Row, get

MISSING = "not available"


def missing() -> Html:
    """In place of what the record lacks."""
    return tag("p", f"{MISSING.capitalize()}.", class_="soft")


def section(anchor: str, title: str, *content: Html | None) -> Html:
    """A part of the page that its navigation can lead to."""
    return tag("section", tag("h2", title), *content, id=anchor)


def scroll(content: Html, label: str) -> Html:
    """A box of its own that scrolls sideways, with the keyboard too, so that the page never does."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def _decimals(estimates: Sequence[Estimate]) -> int:
    """Decimals that show two digits of a typical interval's half width, or three digits of the mean without one."""
    halves = [(e.high - e.low) / 2 for e in estimates if math.isfinite(e.high - e.low) and e.high > e.low]
    if halves:
        return min(max(1 - math.floor(math.log10(statistics.median(halves))), 0), 8)
    means = [abs(e.mean) for e in estimates if math.isfinite(e.mean) and e.mean]
    return min(max(2 - math.floor(math.log10(statistics.median(means))), 0), 8) if means else 2


def _text(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else "not a number"


def _cell(estimate: Estimate | None, metric: Metric, decimals: int) -> Html:
    if estimate is None:
        return tag("td", tag("small", MISSING))
    unit = "%" if metric.percent else ""
    around = None
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        around = tag("small", f"{_text(estimate.low, decimals)} to {_text(estimate.high, decimals)}")
    return tag("td", _text(estimate.mean, decimals), unit if math.isfinite(estimate.mean) else None, around)


def percent(row: Row, metric: Metric) -> Estimate | None:
    """A row's value of a metric, in the unit that the page shows."""
    value, scale = row.values[metric.key], 100.0 if metric.percent else 1.0
    return None if value is None else Estimate(value.mean * scale, value.low * scale, value.high * scale)


def table(rows: Sequence[Row], metrics: Sequence[Metric], label: str, budget: str = "k") -> Html:
    """Methods and budgets (or what else ``k`` counts) down, metrics across; a metric that nothing has is named below instead."""
    shown = [m for m in metrics if any(row.values[m.key] for row in rows)]
    absent = [m.name for m in metrics if m not in shown]
    if not shown:
        return missing()
    columns = {m.key: [percent(row, m) for row in rows] for m in shown}
    decimals = {key: _decimals([e for e in column if e]) for key, column in columns.items()}
    main = shown[0]
    spread = [v for e in columns[main.key] if e for v in (e.mean, e.low, e.high) if math.isfinite(v)]
    head = [tag("th", "Method", scope="col"), tag("th", budget, scope="col")]
    head += [tag("th", m.name, tag("small", m.better), scope="col") for m in shown]
    head.append(tag("th", "At a glance", tag("small", main.name), scope="col", class_="mark-cell"))
    body = []
    for number, row in enumerate(rows):
        group = sum(other.name == row.name and other.role == row.role for other in rows)
        new = number == 0 or (rows[number - 1].name, rows[number - 1].role) != (row.name, row.role)
        cells = [tag("td", "any" if row.k is None else str(row.k))]
        cells += [_cell(columns[m.key][number], m, decimals[m.key]) for m in shown]
        value = columns[main.key][number]
        drawable = value and all(map(math.isfinite, (value.mean, value.low, value.high)))
        mark = interval_mark(value.mean, value.low, value.high, min(spread), max(spread)) if value and drawable else ""
        cells.append(tag("td", mark, class_="mark-cell"))
        name = tag("th", row.name, tag("small", row.role), scope="rowgroup", rowspan=group) if new else None
        body.append(tag("tr", name, *cells, class_=row.role if new else f"{row.role} same"))
    caption = f"{MISSING.capitalize()}: {', '.join(absent)}." if absent else None
    whole = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
    )
    return scroll(whole, label)


def over_k(rows: Sequence[Row], metrics: Sequence[Metric]) -> Html | None:
    """A chart for each of ``metrics`` that was measured."""
    charts = [chart for metric in metrics if (chart := _metric_over_k(rows, metric))]
    return tag("div", *charts, class_="charts") if charts else None


def _metric_over_k(rows: Sequence[Row], metric: Metric) -> Html | None:
    """The metric over k: a line for each method with several budgets, a level across for any other."""
    marks = sorted({row.k for row in rows if row.k is not None})
    lines = []
    for name, role in dict.fromkeys((row.name, row.role) for row in rows):
        found = [
            (row.k, value)
            for row in rows
            if (row.name, row.role) == (name, role) and (value := percent(row, metric)) is not None
        ]
        budgets = [k for k, _ in found if k is not None]
        if len(budgets) == len(found) > 1:
            values = [value for _, value in found]
            low, high = ([v.low for v in values], [v.high for v in values]) if role == "model" else ([], [])
            lines.append(Line(name, budgets, [v.mean for v in values], low, high))
        elif found:
            k, value = found[-1]
            lines.append(Line(name if k is None else f"{name} (k = {k})", [0.0], [value.mean], level=True))
    if not marks:
        return None
    unit = f"{metric.name}, %" if metric.percent else metric.name
    title = f"{metric.name[0].upper()}{metric.name[1:].partition(',')[0]} over the budget k"
    return line_chart(lines, title, "k, slots kept", f"{unit} ({metric.better})", marks)


def _thin(x: Sequence[float], y: Sequence[float], points: int = 240) -> tuple[list[float], list[float]]:
    """A long curve as the means of ``points`` stretches of equal length."""
    size = max(1, math.ceil(len(x) / points))
    if size == 1:
        return list(x), list(y)
    pieces = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    return [sum(a) / len(a) for a, _ in pieces], [sum(b) / len(b) for _, b in pieces]


def curve(title: str, curves: dict[str, tuple[Sequence[float], Sequence[float]]]) -> Html | None:
    """Loss over training steps. The scale is logarithmic where the largest value is over ten times the smallest."""
    lines = []
    for name, (steps, values) in curves.items():
        if len(steps) != len(values):
            raise Malformed(f"{title}: {name} has {len(values)} values for {len(steps)} steps")
        lines.append(Line(name, *_thin(steps, values), marks=len(steps) <= 12))
    values = [v for line in lines for v in line.values]
    log_y = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    return line_chart(lines, title, "training step", "loss (log scale)" if log_y else "loss", log_y=log_y)


def picture(raw: dict[str, Any], run: Path) -> Html:
    """A PNG of the run as a data URI; the page says so where the file is gone."""
    name, title, caption = (get(raw, key, str, "pictures: ") for key in ("file", "title", "caption"))
    path = run / name
    if not name or not path.resolve().is_relative_to(run.resolve()):
        raise Malformed(f"the picture {name!r} lies outside the run's folder")
    words = tag("figcaption", title, tag("p", caption) if caption else None)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = f"{name}: {MISSING} ({error.strerror})."
        return tag("figure", words, tag("p", reason, class_="missing"), class_="picture")
    expected = get(raw, "sha256", str, "pictures: ")
    if expected and hashlib.sha256(content).hexdigest() != expected:
        reason = f"{name}: {MISSING} (the file is of another evaluation)."
        return tag("figure", words, tag("p", reason, class_="missing"), class_="picture")
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise Malformed(f"the picture {name!r} is not a PNG file")
    width, height = struct.unpack(">II", content[16:24])
    image = tag(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(content).decode()}",
        alt=f"{title}. {caption}",
        width=width,
        height=height,
    )
    return tag("figure", words, scroll(image, title), class_="picture wide" if width > 640 else "picture")
