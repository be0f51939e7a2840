"""From the record of an evaluation to one HTML page that a person can read without knowing this project.

The page holds its pictures and its style and asks for nothing else, so it can be mailed or archived as it is.
"""

from __future__ import annotations

import base64
import json
import math
import statistics
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from lamina.chart import Html, Line, bar, interval_mark, join, line_chart, tag
from lamina.errors import LaminaError
from lamina.files import write_text

MISSING = "not available"
ROLES = ("model", "reference", "control")
LEVELS = {"good": "passed", "warn": "take care", "bad": "failed", "note": "note"}
HEADLINES = {
    "bad": "These latent actions can't be trusted yet",
    "warn": "These latent actions are usable, with care",
    "good": "These latent actions passed every check",
    "note": "No check was recorded",
}
GLOSSARY = {
    "copy-frame": "Predicts that nothing changes: the first frame again.",
    "observation": "Sees the first frame, and nothing of what happened next.",
    "shuffled": "Reads the latent of another, random transition: what is left when the latent means nothing.",
    "random": "Reads the latents of an encoder that was never trained.",
    "mean latent": "Reads one and the same average latent for every transition.",
    "inverse dynamics": "Is trained on the same labels, from both frames directly, without a latent. It shows what the "
    "labels alone can give.",
    "pixel": "Reads the pixels of the two frames, without any model.",
    "majority": "Always answers with the most common action.",
    "previous action": "Sees only the action before this one.",
}


@dataclass(frozen=True)
class Metric:
    """A column of a table: its key in the record, its heading, and which way is better."""

    key: str
    name: str
    better: str
    percent: bool = False


LOSS = Metric("loss", "loss", "lower is better")
ACCURACY = Metric("accuracy", "accuracy", "higher is better", percent=True)
NMSE = Metric("nmse", "NMSE", "lower is better")
PSNR = Metric("psnr", "PSNR, dB", "higher is better")
SSIM = Metric("ssim", "SSIM", "higher is better")
SHARE = Metric("share", "Share of the latent's variance", "lower is better", percent=True)
LPIPS = Metric("lpips", "LPIPS", "lower is better")


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


class _Malformed(Exception):
    """Where a record differs from what it should hold."""


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One method, at one budget k (None: the budget does not matter), with what was measured of it."""

    name: str
    role: str
    k: int | None
    values: dict[str, Estimate | None]


# Reading the record


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _get(record: dict[str, Any], key: str, kind: type, where: str = "") -> Any:
    """``record[key]``, or an empty value of ``kind`` where it is absent or null."""
    value = record.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise _Malformed(f"{where}{key} is not a {kind.__name__}")
    return value


def _numbers(record: dict[str, Any], key: str, where: str) -> list[float]:
    values = _get(record, key, list, where)
    if not all(v is None or _is_number(v) for v in values):
        raise _Malformed(f"{where}{key} holds something that is not a number")
    return [math.nan if v is None else float(v) for v in values]


def _objects(record: dict[str, Any], key: str, where: str = "") -> list[dict[str, Any]]:
    values = _get(record, key, list, where)
    if not all(isinstance(v, dict) for v in values):
        raise _Malformed(f"{where}{key} holds something that is not an object")
    return values


def _estimate(value: Any, where: str) -> Estimate | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(_is_number(value.get(part)) for part in ("mean", "low", "high")):
        raise _Malformed(f"{where} is not an estimate (mean, low and high) or null")
    return Estimate(float(value["mean"]), float(value["low"]), float(value["high"]))


def _rows(record: dict[str, Any], section: str, metrics: Sequence[Metric]) -> list[Row]:
    """The rows of a section: the model first, then references, then controls; each method's budgets ascending."""
    rows = []
    for number, raw in enumerate(_objects(record, section)):
        where = f"{section}[{number}]"
        name, role, k = raw.get("name"), raw.get("role"), raw.get("k")
        if not isinstance(name, str) or role not in ROLES:
            raise _Malformed(f"{where} needs a name, and one of the roles {', '.join(ROLES)}")
        if k is not None and not (isinstance(k, int) and not isinstance(k, bool)):
            raise _Malformed(f"{where}.k is not a whole number or null")
        values = {m.key: _estimate(raw.get(m.key), f"{where}.{m.key}") for m in metrics}
        rows.append(Row(name, role, k, values))
    first = {name: number for number, name in reversed(list(enumerate(row.name for row in rows)))}
    return sorted(rows, key=lambda row: (ROLES.index(row.role), first[row.name], -1 if row.k is None else row.k))


# Numbers in tables


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


def _scroll(content: Html, label: str) -> Html:
    """A box of its own that scrolls sideways, with the keyboard too, so that the page never does."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def _percent(row: Row, metric: Metric) -> Estimate | None:
    value, scale = row.values[metric.key], 100.0 if metric.percent else 1.0
    return None if value is None else Estimate(value.mean * scale, value.low * scale, value.high * scale)


def _table(rows: Sequence[Row], metrics: Sequence[Metric], label: str, budget: str = "k") -> Html:
    """Methods and budgets (or what else ``k`` counts) down, metrics across; a metric that nothing has is named below instead."""
    shown = [m for m in metrics if any(row.values[m.key] for row in rows)]
    absent = [m.name for m in metrics if m not in shown]
    if not shown:
        return _missing()
    columns = {m.key: [_percent(row, m) for row in rows] for m in shown}
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
    table = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", tag("tr", *head)),
        tag("tbody", *body),
    )
    return _scroll(table, label)


# Charts


def _over_k(rows: Sequence[Row], metrics: Sequence[Metric]) -> Html | None:
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
            if (row.name, row.role) == (name, role) and (value := _percent(row, metric)) is not None
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


def _curve(title: str, curves: dict[str, tuple[Sequence[float], Sequence[float]]]) -> Html | None:
    """Loss over training steps. The scale is logarithmic where the largest value is over ten times the smallest."""
    lines = []
    for name, (steps, values) in curves.items():
        if len(steps) != len(values):
            raise _Malformed(f"{title}: {name} has {len(values)} values for {len(steps)} steps")
        lines.append(Line(name, *_thin(steps, values), marks=len(steps) <= 12))
    values = [v for line in lines for v in line.values]
    log_y = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    return line_chart(lines, title, "training step", "loss (log scale)" if log_y else "loss", log_y=log_y)


# Sections


def _missing() -> Html:
    return tag("p", f"{MISSING.capitalize()}.", class_="soft")


def _section(anchor: str, title: str, *content: Html | None) -> Html:
    return tag("section", tag("h2", title), *content, id=anchor)


def _verdict(record: dict[str, Any]) -> Html:
    lines = _objects(record, "verdict")
    for line in lines:
        if line.get("level") not in LEVELS or not isinstance(line.get("text"), str):
            raise _Malformed(f"verdict holds a line without a text or a level ({', '.join(LEVELS)})")
    levels = {line["level"] for line in lines}
    worst = next((level for level in ("bad", "warn", "good") if level in levels), "note")
    items = [
        tag("li", tag("span", LEVELS[line["level"]], class_=f"chip {line['level']}"), tag("span", line["text"]))
        for line in lines
    ]
    return tag(
        "section",
        tag("h2", HEADLINES[worst]),
        tag("ul", *items) if items else _missing(),
        class_=f"verdict {worst}",
        id="verdict",
        aria_label="Verdict",
    )


def _how_to_read(record: dict[str, Any]) -> Html:
    slots = record.get("slots")
    size = f", in {slots} slots" if isinstance(slots, int) else ""
    return _section(
        "reading",
        "How to read this",
        tag(
            "p",
            f"A latent action is what the model writes down about the change from one frame to the next{size}, having "
            "seen video only. Keeping the first k slots and blanking the rest gives a shorter code; k is its budget.",
        ),
        tag(
            "p",
            "Everything here is measured on held-out data, which no part of the model was trained on. The range under "
            "a number is its 95% interval (bootstrap over the test data): how far it could move with other test episodes.",
        ),
        tag(
            "p",
            tag("strong", "Compare with the controls. "),
            "A control is a score that a latent without any information also gets, by the same measurement. The model has "
            "shown something only where its interval is clear of the controls. A reference is another way to solve the "
            "same problem, for scale.",
        ),
    )


def _facts(record: dict[str, Any]) -> Html:
    data = _get(record, "data", dict)
    gap = _numbers(record, "gap_seconds", "")
    trained_on = _get(data, "trained_on", list, "data.")

    def text(value: Any, pattern: str = "{}") -> str | None:
        return None if value is None else pattern.format(f"{value:g}" if isinstance(value, float) else value)

    def both(first: str | None, second: str | None) -> str:
        return ", ".join(part for part in (first, second) if part) or MISSING

    held_out = both(text(data.get("episodes"), "{} episodes"), text(data.get("transitions"), "{} transitions"))
    facts = {
        "Method": text(record.get("method")),
        "Trained on": ", ".join(map(str, trained_on)) or None,
        "Tested on": text(data.get("path")),
        "Held-out part": both(text(data.get("split"), "{} split"), held_out),
        "Time between frames": both(
            f"{gap[0]:g} to {gap[-1]:g} s" if gap else None, text(data.get("fps"), "video at {} frames/s")
        ),
        "Latent slots": text(record.get("slots")),
        "Action labels used": both(text(record.get("labels")), text(record.get("label_episodes"), "from {} episodes")),
    }
    return tag("dl", *[part for name, value in facts.items() for part in _fact(name, value)])


def _fact(name: str, value: str | None) -> tuple[Html, Html]:
    return tag("dt", name), tag("dd", MISSING if value is None else value)


def _actions(record: dict[str, Any]) -> Html:
    metrics = (LOSS, ACCURACY, NMSE)
    rows = _rows(record, "translator", metrics)
    return _section(
        "actions",
        "Can actions be read from the latents?",
        tag(
            "p",
            "A translator, a small network, learns from a few labelled transitions to turn a latent into the action that "
            "was taken. Its loss is the cross-entropy of discrete actions and the squared error of continuous ones.",
        ),
        _over_k(rows, metrics),
        _table(rows, metrics, "Translator, with controls") if rows else _missing(),
    )


def _linear(record: dict[str, Any]) -> Html:
    metrics = (NMSE, ACCURACY)
    rows = _rows(record, "linear", metrics)
    return _section(
        "linear",
        "How much can a linear probe read?",
        tag(
            "p",
            "A linear map from the latent to the action: what it finds lies in the latent openly, not hidden behind a "
            "network's work. NMSE is the squared error divided by the variance of the actions: 1 is no better than "
            "always guessing the average, 0 is perfect.",
        ),
        _table(rows, metrics, "Linear probe, with controls") if rows else _missing(),
    )


def _reconstruction(record: dict[str, Any], run: Path) -> Html:
    metrics = (PSNR, SSIM, LPIPS)
    rows = _rows(record, "reconstruction", metrics)
    pictures = [_picture(raw, run) for raw in _objects(record, "pictures")]
    return _section(
        "reconstruction",
        "Does the latent say what happens next?",
        tag(
            "p",
            "From the first frame and the latent, the decoder draws the next frame. PSNR and SSIM measure how close it "
            "comes, pixel by pixel and in structure; LPIPS, how different it looks to a vision network. Copy-frame is the "
            "one to beat: it draws the first frame again.",
        ),
        *pictures,
        _over_k(rows, metrics),
        _table(rows, metrics, "Reconstruction, with controls") if rows else _missing(),
    )


def _exogenous(record: dict[str, Any]) -> Html | None:
    """Where the data has paired views; nothing elsewhere."""
    metrics = (PSNR, SHARE)
    rows = _rows(record, "exogenous", metrics)
    if not rows:
        return None
    with_metric = [(m, [row for row in rows if row.values[m.key]]) for m in metrics]
    tables = [_table(rows, (m,), f"Exogenous state, {m.name}") for m, rows in with_metric if rows]
    return _section(
        "exogenous",
        "Does the latent hold what the agent did not do?",
        tag(
            "p",
            "Paired views show the same states under two exogenous states: other colours, another background, another camera. The swap "
            "takes the latent from the frame and the paired next frame. A latent of the agent's doing alone predicts the same "
            "next frame as before; one that copies the future predicts the paired one.",
        ),
        *tables,
    )


def _picture(raw: dict[str, Any], run: Path) -> Html:
    """A PNG of the run as a data URI; the page says so where the file is gone."""
    name, title, caption = (_get(raw, key, str, "pictures: ") for key in ("file", "title", "caption"))
    path = run / name
    if not name or not path.resolve().is_relative_to(run.resolve()):
        raise _Malformed(f"the picture {name!r} lies outside the run's folder")
    words = tag("figcaption", title, tag("p", caption) if caption else None)
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = f"{name}: {MISSING} ({error.strerror})."
        return tag("figure", words, tag("p", reason, class_="missing"), class_="picture")
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise _Malformed(f"the picture {name!r} is not a PNG file")
    width, height = struct.unpack(">II", content[16:24])
    image = tag(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(content).decode()}",
        alt=f"{title}. {caption}",
        width=width,
        height=height,
    )
    return tag("figure", words, _scroll(image, title), class_="picture wide" if width > 640 else "picture")


def _structure(record: dict[str, Any], run: Path) -> Html | None:
    structure = _get(record, "structure", dict)
    if not structure:
        return None
    rows, over = _rows(structure, "rows", STRUCTURE), _rows(structure, "over_horizons", HORIZONS)
    measured = [r for r in _objects(structure, "records", "structure.") if r.get("role") == "model"]
    voids = [tag("li", f"{r.get('name')}: void, {r['void']}.") for r in measured if r.get("void")]
    pictures = [_picture(raw, run) for raw in _objects(record, "structure_pictures")]
    charts = [
        _over_horizons(measured, "Sums of short latents, and the way back", "error over the latent's length (lower is better)",
                       {"addition": "sum", "reversal": "way back"}, "relative"),
        _over_horizons(measured, "Prediction over growing horizons", "PSNR, dB (higher is better)",
                       {"direct": "one latent", "cumulative": "sum of latents", "copy": "copy-frame"}, "psnr"),
    ]  # fmt: skip
    charts += [_trajectory(n, raw) for n, raw in enumerate(_objects(structure, "trajectories", "structure."), 1)]
    drawn = [chart for chart in charts if chart]
    stride, seen = structure.get("stride_seconds"), structure.get("seen")
    told = f"{stride:g}" if _is_number(stride) else MISSING
    return _section(
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
        tag("ul", *voids, class_="warnings") if voids else None,
        *pictures,
        tag("div", *drawn, class_="charts") if drawn else None,
        _table(rows, STRUCTURE, "Structure of the latent, with controls") if rows else _missing(),
        _table(over, HORIZONS, "Errors and predictions over horizons, with controls", "strides") if over else None,
    )


def _over_horizons(
    records: Sequence[dict[str, Any]], title: str, y_label: str, kinds: dict[str, str], key: str
) -> Html | None:
    """A line for each record and kind, over the horizon in strides."""
    lines, marks = [], []
    for record in records:
        steps = _objects(record, "horizons", "structure.records.")
        for kind, words in kinds.items():
            found = [
                (s["t"], e) for s in steps if (e := _estimate(_get(s, kind, dict).get(key), f"horizons.{kind}.{key}"))
            ]
            name = words if len(records) == 1 else f"{words}, {record.get('name')}"
            if found:
                values = [e for _, e in found]
                low, high = [e.low for e in values], [e.high for e in values]
                lines.append(Line(name, [t for t, _ in found], [e.mean for e in values], low, high))
                marks = [float(t) for t, _ in found]
    return line_chart(lines, title, "horizon, strides", y_label, marks) if lines else None


def _trajectory(number: int, raw: dict[str, Any]) -> Html | None:
    """The latent's length along one held-out episode, beside how far its state has gone."""
    where = "structure.trajectories."
    seconds = _numbers(raw, "seconds", where)
    lines = [
        Line(words, seconds, values, marks=False)
        for words, key in (("length of the latent", "length"), ("displacement", "displacement"))
        if (values := _numbers(raw, key, where))
    ]
    if any(len(line.values) != len(seconds) for line in lines):
        raise _Malformed(f"{where}{number}: its lines have other lengths than its seconds")
    r = raw.get("r")
    title = f"Episode {number}: how far from its first frame" + (f" (r = {r:.2f})" if _is_number(r) else "")
    return line_chart(lines, title, "seconds", "share of the largest value")


def _leakage(record: dict[str, Any]) -> Html | None:
    """Where other environments were named; nothing elsewhere."""
    rows = _rows(record, "leakage", LEAKAGE)
    if not rows:
        return None
    return _section(
        "leakage",
        "Does the latent say where it was taken?",
        tag(
            "p",
            "A classifier (XGBoost) is asked for the environment, given the latent. A latent of motion alone says what motion says of the "
            "place; how much there is to be known, the first frame's pixels show. Only episodes that the classifier never saw tell "
            "environments from episodes.",
        ),
        _table(rows, LEAKAGE, "Accuracy of the environment, with controls"),
    )


def _codes(record: dict[str, Any]) -> Html:
    codes = _get(record, "codes", dict)
    size = codes.get("codebook")
    slots = _objects(codes, "slots", "codes.")
    body = []
    for slot in slots:
        usage, perplexity, dead = (_share(slot, key) for key in ("usage", "perplexity", "dead"))
        body.append(
            tag(
                "tr",
                tag("th", str(slot.get("slot", MISSING)), scope="row"),
                tag("td", MISSING if usage is None else f"{100 * usage:.0f}%"),
                tag("td", bar(usage) if usage is not None and math.isfinite(usage) else ""),
                tag("td", MISSING if perplexity is None else f"{perplexity:.1f}"),
                tag("td", MISSING if dead is None else f"{100 * dead:.0f}%"),
            )
        )
    heads = ("Slot", "Codes used", "of all", "Perplexity", "Dead codes")
    table = tag(
        "table",
        tag("thead", tag("tr", *[tag("th", head, scope="col") for head in heads])),
        tag("tbody", *body),
    )
    warnings = [tag("li", str(warning)) for warning in _get(codes, "warnings", list, "codes.")]
    of = f" of {size:,}" if isinstance(size, int) else ""
    return _section(
        "codes",
        "Are the codes in use?",
        tag(
            "p",
            f"Each slot holds one code{of}. Perplexity is the number of codes that would be in use if all were equally "
            "common; 1 means that the slot always says the same, and so says nothing. Dead codes are never used.",
        ),
        tag("ul", *warnings, class_="warnings") if warnings else None,
        _scroll(table, "Codes per slot") if body else _missing(),
    )


def _share(slot: dict[str, Any], key: str) -> float | None:
    value = slot.get(key)
    if value is not None and not _is_number(value):
        raise _Malformed(f"codes.slots: {key} is not a number")
    return value


def _training(record: dict[str, Any]) -> Html:
    training, translator = _get(record, "training", dict), _get(record, "translator_curve", dict)
    validation = _get(training, "validation", dict, "training.")
    steps = _numbers(translator, "steps", "translator_curve.")
    charts = [
        _curve(
            "Latent action model",
            {
                "training": (_numbers(training, "steps", "training."), _numbers(training, "loss", "training.")),
                "held-out episodes": (
                    _numbers(validation, "steps", "training.validation."),
                    _numbers(validation, "loss", "training.validation."),
                ),
            },
        ),
        _curve(
            "Translator",
            {
                name: (steps, values)
                for name, key in (("training", "train"), ("validation", "validation"))
                if (values := _numbers(translator, key, "translator_curve."))
            },
        ),
    ]
    drawn = [chart for chart in charts if chart]
    return _section(
        "training",
        "How did training go?",
        tag(
            "p",
            "A validation loss that rises while the training loss falls means that the translator learns its few labels by "
            "heart; the checkpoint with the lowest validation loss is the one that was measured.",
        ),
        tag("div", *drawn, class_="charts") if drawn else _missing(),
    )


def _words(record: dict[str, Any]) -> Html | None:
    """What each control and reference that occurs here is."""
    named = {
        row["name"]: next((text for key, text in GLOSSARY.items() if key in str(row["name"]).lower()), None)
        for section in ("translator", "linear", "reconstruction")
        for row in _objects(record, section)
        if row.get("role") != "model"
    }
    parts = [part for name, text in named.items() if text for part in (tag("dt", name), tag("dd", text))]
    return _section("words", "Controls and references", tag("dl", *parts, class_="glossary")) if parts else None


def _notes(record: dict[str, Any]) -> Html | None:
    notes = [tag("li", str(note)) for note in _get(record, "notes", list)]
    return _section("notes", "Notes", tag("ul", *notes)) if notes else None


def _day(created: object) -> str:
    """2026-01-15T12:34:56+00:00 as "15 January 2026, 12:34"; anything else as it is."""
    try:
        return f"{datetime.fromisoformat(str(created)):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return MISSING if created is None else str(created)


def _page(record: dict[str, Any], run: Path) -> str:
    """The whole page. Raises _Malformed where the record is not as it should be."""
    method = record.get("method")
    title = f"Report on {method if isinstance(method, str) else 'a latent action model'}"
    version, checkpoint = record.get("lamina"), record.get("checkpoint")
    sections = (
        ("actions", "Actions", _actions(record)),
        ("reconstruction", "Next frame", _reconstruction(record, run)),
        ("structure", "Structure", _structure(record, run)),
        ("leakage", "Environment", _leakage(record)),
        ("linear", "Linear probe", _linear(record)),
        ("exogenous", "Exogenous state", _exogenous(record)),
        ("codes", "Codes", _codes(record)),
        ("training", "Training", _training(record)),
        ("words", "Controls", _words(record)),
        ("notes", "Notes", _notes(record)),
    )
    links = [tag("a", name, href=f"#{anchor}") for anchor, name, section in sections if section]
    main = tag(
        "main",
        tag(
            "header",
            tag("h1", title),
            tag("p", f"Run {record.get('run', MISSING)}, evaluated {_day(record.get('created'))}"),
        ),
        _verdict(record),
        tag("nav", *links, aria_label="Sections"),
        tag("div", _how_to_read(record), _section("facts", "What was measured", _facts(record)), class_="pair"),
        *(section for _, _, section in sections),
    )
    footer = tag("footer", f"Lamina {version or MISSING}. Checkpoint ", tag("code", str(checkpoint or MISSING)), ".")
    style = resources.files("lamina").joinpath("report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'",
        ),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        Html(f"<style>\n{style}</style>"),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", join(main, footer)), lang="en") + "\n"


def write_report(run: Path) -> Path:
    """Writes RUN/report.html from RUN/evaluation.json and returns its path.

    What the record lacks is shown as "not available". Raises LaminaError, naming the file, when there is no record,
    when it is not one, or when the page can't be written.
    """
    source = run / "evaluation.json"
    again = f"run `lamina evaluate {run}` again"
    try:
        record = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LaminaError(f"{source}: no evaluation is there; run `lamina evaluate {run} --data DATASET`") from error
    except (OSError, ValueError) as error:
        raise LaminaError(f"{source}: not a readable record ({error}); {again}") from error
    if not isinstance(record, dict) or record.get("format") != 1:
        raise LaminaError(f"{source}: not an evaluation record of format 1, which this version reads; {again}")
    try:
        page = _page(record, run)
    except _Malformed as error:
        raise LaminaError(f"{source}: damaged record: {error}; {again}") from error
    return write_text(run / "report.html", page)
