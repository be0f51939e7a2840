"""The page of a comparison: one HTML file that holds its pictures and its style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ConfigDict

from lamina.comparison.table import METRICS, CompareRow, Comparison
from lamina.evaluation.record import Picture, Row, Value
from lamina.evaluation.report import page, tables
from lamina.evaluation.report.charts import Chart, Line, line_chart
from lamina.files import write_text
from lamina.intervals import t_interval

#: The tables of the page: a title and the metrics, the first of which is drawn.
TABLES = {
    "Actions": ("loss", "accuracy", "nmse", "gain", "linear"),
    "Next frame": ("psnr", "ssim", "lpips", "used"),
    "Structure, exogenous state and codes": ("addition", "reversal", "exogenous", "leak", "perplexity"),
    "Use and cost": ("success", "return", "latency", "cost"),
}


class _Shown(Row):
    """A row with its metrics as fields."""

    model_config = ConfigDict(strict=False, extra="allow", frozen=True)


def shown(row: CompareRow) -> _Shown:
    """A row as the report's tables read it. One seed has no interval."""
    values: dict[str, Value | None] = dict.fromkeys(METRICS)
    for metric in row.values:
        over = row.of(metric)
        if math.isfinite(over.mean):
            values[metric] = Value(mean=over.mean, low=over.low, high=over.high)
    k = max((k for budgets in row.over_k.values() for k in budgets), default=None)
    return _Shown.model_validate({"name": row.name, "role": row.role, "k": k, **values})


def metric_of(key: str) -> tables.Metric:
    """A metric as the report's tables know it."""
    kind = METRICS[key]
    return tables.Metric(key, kind.name, f"{'higher' if kind.higher else 'lower'} is better", kind.percent)


def over(rows: Sequence[CompareRow], axis: str, metric: str, title: str, x: str) -> Chart | None:
    """A line for each model over prefix lengths or horizons, with its interval over seeds. A model looks the same in every chart."""
    lines, marks = [], set()
    for row in rows:
        points = getattr(row, axis).get(metric, {})
        found = {at: t_interval(kept) for at, v in points.items() if (kept := [n for n in v if math.isfinite(n)])}
        if len(found) > 1 or (axis == "over_k" and found):
            marks |= set(found)
            mean, low, high = zip(*((e.mean, e.low, e.high) for e in found.values()), strict=True)
            lines.append(Line(row.name, [float(at) for at in found], mean, low, high))
        else:
            lines.append(Line(row.name, (), ()))
    label = f"{METRICS[metric].name} ({'higher' if METRICS[metric].higher else 'lower'} is better)"
    return line_chart(lines, title, x, label, sorted(map(float, marks)))


def write_page(result: Comparison) -> Path:
    """OUT/comparison.html."""
    models = [row for row in result.rows if row.role == "model"]
    sound = [row for row in models if row.values]
    charts = [
        over(sound, "over_k", "loss", "Actions over the budget k", "k, slots kept"),
        over(sound, "over_k", "psnr", "Next frame over the budget k", "k, slots kept"),
        over(sound, "over_t", "addition", "Sums of short latents", "horizon, strides"),
        over(sound, "over_t", "reversal", "The way back", "horizon, strides"),
        tables.curve(
            "Held-out reconstruction while training",
            {row.name: ([s for s, _ in row.curve], [v for _, v in row.curve]) for row in sound},
        ),
    ]
    rows = [shown(row) for row in result.rows if row.values]
    found = {}
    for title, keys in TABLES.items():
        there = [row for row in rows if any(getattr(row, key) for key in keys)]
        found[title] = tables.table(there, [metric_of(key) for key in keys], title)
    drawn = Picture(
        file=str(result.facts["picture"] or ""),
        title="The same transitions, predicted by every method",
        caption="Held-out transitions: the frame, what came next, and each method's prediction from its whole latent (first seed).",
    )
    package = "lamina.evaluation.report"
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("lamina.comparison", ""), PackageLoader(package, "")]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("comparison.html.j2").render(
        style=Markup(resources.files(package).joinpath("page.css").read_text(encoding="utf-8")),
        missing=page.MISSING, levels=page.LEVELS, facts=result.facts, words=result.words,
        created=page.day(result.facts["created"]), models=models, tables=found, charts_found=[c for c in charts if c],
        pictures=[page.picture(drawn, result.path)] if result.facts["picture"] else [],
        glossary={r.name: text for r in result.rows if r.role != "model"
                  for key, text in page.GLOSSARY.items() if key in r.name.lower()},
    )  # fmt: skip
    return write_text(result.path / "comparison.html", html)
