"""The sections on the structure of the latents: do they add up, and do they say where they were taken?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamina.evaluation.report.chart import Html, Line, line_chart, tag
from lamina.evaluation.report.parts import MISSING, missing, picture, section, table
from lamina.evaluation.report.record import Malformed, Metric, estimate, get, is_number, numbers, objects, read_rows

STRUCTURE = (
    Metric("composition", "composition residual", "lower is better"),
    Metric("identity", "identity error", "lower is better"),
    Metric("inverse", "inverse error", "lower is better"),
    Metric("displacement", "r(length, displacement)", "higher is better"),
    Metric("composition_raw", "composition residual, raw", "depends on scale"),
    Metric("identity_raw", "identity error, raw", "depends on scale"),
    Metric("inverse_raw", "inverse error, raw", "depends on scale"),
    Metric("gain_another", "right latent above another's, dB", "higher is better"),
    Metric("gain_mean", "... above the mean latent, dB", "higher is better"),
    Metric("margin", "composed transfer above chance, dB", "higher is better"),
)
HORIZONS = (
    Metric("addition", "sum of short latents", "lower is better"),
    Metric("reversal", "way back", "lower is better"),
    Metric("addition_raw", "sum of short latents, raw", "depends on scale"),
    Metric("reversal_raw", "way back, raw", "depends on scale"),
    Metric("direct", "PSNR of the long latent, dB", "higher is better"),
    Metric("cumulative", "PSNR of the sum, dB", "higher is better"),
)
LEAKAGE = (
    Metric("leak", "a random fifth", "lower is better", percent=True),
    Metric("leak_unseen", "episodes never seen", "lower is better", percent=True),
)


def structure(record: dict[str, Any], run: Path) -> Html | None:
    """Where latents were asked whether they add up; nothing elsewhere."""
    found = get(record, "structure", dict)
    if not found:
        return None
    rows, over = read_rows(found, "rows", STRUCTURE), read_rows(found, "over_horizons", HORIZONS)
    measured = [r for r in objects(found, "records", "structure.") if r.get("role") == "model"]
    invalid_entries = [tag("li", f"{r.get('name')}: void, {r['void']}.") for r in measured if r.get("void")]
    pictures = [picture(raw, run) for raw in objects(record, "structure_pictures")]
    charts = [
        _over_horizons(measured, "Sums of short latents, and the way back", "error over the latent's length (lower is better)",
                       {"addition": "sum", "reversal": "way back"}, "relative"),
        _over_horizons(measured, "Prediction over growing horizons", "PSNR, dB (higher is better)",
                       {"direct": "one latent", "cumulative": "sum of latents", "copy": "copy-frame"}, "psnr"),
    ]  # fmt: skip
    charts += [_trajectory(n, raw) for n, raw in enumerate(objects(found, "trajectories", "structure."), 1)]
    drawn = [chart for chart in charts if chart]
    stride, seen = found.get("stride_seconds"), found.get("seen")
    told = f"{stride:g}" if is_number(stride) else MISSING
    return section(
        "structure",
        "Do the latents add up?",
        tag(
            "p",
            "Two short latents in a row should add up to the long one (composition), no change should be zero (identity), the way back "
            "should undo the way there (inverse), and a latent's length should follow how far things moved. Errors are divided by the "
            "latent's length, so that an encoder which shrinks every latent does not win. Few methods ask for this structure; without "
            "it latents can be good, but not be added.",
        ),
        tag("p", f"One stride is {told} s; training has met horizons of up to {seen} strides.", class_="soft"),
        tag("ul", *invalid_entries, class_="warnings") if invalid_entries else None,
        *pictures,
        tag("div", *drawn, class_="charts") if drawn else None,
        table(rows, STRUCTURE, "Structure of the latent, with controls") if rows else missing(),
        table(over, HORIZONS, "Errors and predictions over horizons, with controls", "strides") if over else None,
    )


def _over_horizons(
    records: Sequence[dict[str, Any]], title: str, y_label: str, kinds: dict[str, str], key: str
) -> Html | None:
    """A line for each record and kind, over the horizon in strides."""
    lines, marks = [], []
    for number, record in enumerate(records):
        steps = objects(record, "horizons", "structure.records.")
        for kind, words in kinds.items():
            if kind == "copy" and number:
                continue  # the same for every place that latents are read at
            found = [
                (s["t"], e) for s in steps if (e := estimate(get(s, kind, dict).get(key), f"horizons.{kind}.{key}"))
            ]
            name = words if len(records) == 1 or kind == "copy" else f"{words}, {record.get('name')}"
            if found:
                values = [e for _, e in found]
                low, high = [e.low for e in values], [e.high for e in values]
                lines.append(Line(name, [t for t, _ in found], [e.mean for e in values], low, high))
                marks = [float(t) for t, _ in found]
    return line_chart(lines, title, "horizon, strides", y_label, marks) if lines else None


def _trajectory(number: int, raw: dict[str, Any]) -> Html | None:
    """The latent's length along one held-out episode, beside how far its state has gone."""
    where = "structure.trajectories."
    seconds = numbers(raw, "seconds", where)
    lines = [
        Line(words, seconds, values, marks=False)
        for words, key in (("length of the latent", "length"), ("displacement", "displacement"))
        if (values := numbers(raw, key, where))
    ]
    if any(len(line.values) != len(seconds) for line in lines):
        raise Malformed(f"{where}{number}: its lines have other lengths than its seconds")
    r = raw.get("r")
    title = f"Episode {number}: how far from its first frame" + (f" (r = {r:.2f})" if is_number(r) else "")
    return line_chart(lines, title, "seconds", "share of the largest value")


def leakage(record: dict[str, Any]) -> Html | None:
    """Where other environments were named; nothing elsewhere."""
    rows = read_rows(record, "leakage", LEAKAGE)
    if not rows:
        return None
    return section(
        "leakage",
        "Does the latent say where it was taken?",
        tag(
            "p",
            "A classifier (XGBoost) is asked for the environment, given the latent. A latent of motion alone says what motion says of the "
            "place; how much there is to be known, the first frame's pixels show. Only episodes that the classifier never saw tell "
            "environments from episodes.",
        ),
        table(rows, LEAKAGE, "Accuracy of the environment, with controls"),
    )
