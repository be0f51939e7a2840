"""From the record of an evaluation to one HTML page that a person can read without knowing this project.

The page holds its pictures and its style and asks for nothing else, so it can be mailed or archived as it is.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lamina.errors import LaminaError
from lamina.evaluation.record import (
    Curve,
    Data,
    Evaluation,
    Horizon,
    Picture,
    Structure,
    StructureRecord,
    TrainingCurve,
    Trajectory,
    TranslatorCurve,
)
from lamina.evaluation.report.charts import Chart, Line, line_chart
from lamina.evaluation.report.tables import Metric, curve, estimate, over_k, table
from lamina.files import read_json, write_text

MISSING = "not available"
LEVELS = {"bad": "failed", "warn": "take care", "good": "passed", "note": "note"}
HEADLINES = {
    "bad": "These latent actions can't be trusted yet",
    "warn": "These latent actions are usable, with care",
    "good": "These latent actions passed every check",
    "note": "No check was recorded",
}
#: What each control and reference is, by a part of its name.
GLOSSARY = {
    "plain features": "Reads a pretrained encoder's features of the two frames, without a LAM.",
    "copy-frame": "Predicts that nothing changes: the first frame again.",
    "observation": "Sees the first frame, and nothing of what happened next.",
    "shuffled": "Reads the latent of another, random transition: what is left when the latent means nothing.",
    "random": "Reads the latents of an encoder that was never trained; one pass over unlabelled data has filled its codebook.",
    "mean latent": "Reads one and the same average latent for every transition.",
    "inverse dynamics": "Is trained on the same labels, from both frames directly, without a latent. It shows what the "
    "labels alone can give.",
    "pixel": "Reads the pixels of the two frames, without any model.",
    "majority": "Always answers with the most common action.",
    "previous action": "Sees only the action before this one.",
}
LOSS = Metric("loss", "loss", "lower is better")
ACCURACY = Metric("accuracy", "accuracy", "higher is better", percent=True)
NMSE = Metric("nmse", "NMSE", "lower is better")
PSNR = Metric("psnr", "PSNR, dB", "higher is better")
SSIM = Metric("ssim", "SSIM", "higher is better")
LPIPS = Metric("lpips", "LPIPS", "lower is better")
CHANGE = Metric("change", "change of the latent over chance", "lower is better")
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
READINGS = (
    Metric("offset", "offset's share", "depends on the method", percent=True),
    Metric("composition_centred", "composition, no offset", "lower is better"),
    Metric("identity_centred", "identity, no offset", "lower is better"),
    Metric("inverse_centred", "inverse, no offset", "lower is better"),
    Metric("composition_read", "composition, as read", "lower is better"),
    Metric("identity_read", "identity, as read", "lower is better"),
    Metric("inverse_read", "inverse, as read", "lower is better"),
)
HORIZONS = (
    Metric("addition", "sum of short latents", "lower is better"),
    Metric("reversal", "way back", "lower is better"),
    Metric("addition_read", "sum, as read", "lower is better"),
    Metric("reversal_read", "way back, as read", "lower is better"),
    Metric("addition_raw", "sum of short latents, raw", "depends on scale"),
    Metric("reversal_raw", "way back, raw", "depends on scale"),
    Metric("direct", "PSNR of the long latent, dB", "higher is better"),
    Metric("cumulative", "PSNR of the sum, dB", "higher is better"),
)
LEAKAGE = (
    Metric("leak", "a random fifth", "lower is better", percent=True),
    Metric("leak_unseen", "episodes never seen", "lower is better", percent=True),
)


def write_report(run: Path) -> Path:
    """Writes RUN/report.html from RUN/evaluation.json and returns its path.

    What the record lacks is shown as "not available". Raises LaminaError, naming the file, when there is no record,
    when it is not one, or when the page can't be written.
    """
    source = run / "evaluation.json"
    again = f"run `lamina evaluate {run}` again"
    if not source.exists():
        raise LaminaError(f"{source}: no evaluation is there; run `lamina evaluate {run} --data DATASET`")
    values = read_json(source, again)
    if values.get("format") != 1:
        raise LaminaError(f"{source}: not an evaluation record of format 1, which this version reads; {again}")
    try:
        page = render(Evaluation.from_dict(values), run)
    except LaminaError as error:
        raise LaminaError(f"{source}: damaged record: {error}; {again}") from error
    return write_text(run / "report.html", page)


def render(record: Evaluation, run: Path) -> str:
    """The whole page. Raises LaminaError for a picture that is none, or lies outside ``run``."""
    package = "lamina.evaluation.report"
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        record=record,
        style=Markup(resources.files(package).joinpath("page.css").read_text(encoding="utf-8")),
        missing=MISSING,
        created=day(record.created),
        levels=LEVELS,
        headlines=HEADLINES,
        worst=next((level for level in LEVELS if any(f.level == level for f in record.verdict or ())), "note"),
        facts=facts(record),
        glossary=glossary(record),
        pictures=[picture(p, run) for p in record.pictures or ()],
        structure_pictures=[picture(p, run) for p in record.structure_pictures or ()],
        action_charts=over_k(record.translator, (LOSS, ACCURACY, NMSE)),
        actions=table(record.translator, (LOSS, ACCURACY, NMSE), "Translator, with controls"),
        frame_charts=over_k(record.reconstruction, frame_metrics(record)),
        frames=table(record.reconstruction, frame_metrics(record), "Reconstruction, with controls"),
        linear=table(record.linear, (NMSE, ACCURACY), "Linear probe, with controls"),
        leakage=table(record.leakage, LEAKAGE, "Accuracy of the environment, with controls"),
        exogenous=[
            table([row for row in record.exogenous or () if getattr(row, m.key)], (m,), f"Exogenous state, {m.name}")
            for m in (PSNR, CHANGE)
        ],
        training_charts=training(record),
        **structure(record.structure),
    )


def day(created: str | None) -> str:
    """2026-01-15T12:34:56+00:00 as "15 January 2026, 12:34"; anything else as it is."""
    try:
        return f"{datetime.fromisoformat(created or ''):%d %B %Y, %H:%M}".lstrip("0")
    except ValueError:
        return created or MISSING


def facts(record: Evaluation) -> dict[str, str]:
    """Data, gap and labels by their titles."""
    data, gap = record.data or Data(), record.gap_seconds

    def text(value: float | str | None, pattern: str = "{}") -> str | None:
        return None if value is None else pattern.format(f"{value:g}" if isinstance(value, float) else value)

    def joined(*parts: str | None) -> str:
        return ", ".join(part for part in parts if part) or MISSING

    return {
        "Method": joined(record.method),
        "Trained on": joined(*(data.trained_on or ())),
        "Tested on": joined(data.path),
        "Held-out part": joined(
            text(data.split, "{} split"), text(data.episodes, "{} episodes"),
            text(data.transitions, "{} transitions"),
        ),
        "Time between frames": joined(
            f"{sum(gap) / len(gap):g} s (trained on {gap[0]:g} to {gap[-1]:g} s)" if gap else None,
            text(data.fps, "video at {} frames/s"),
        ),
        "Latent slots": joined(text(record.slots)),
        "Action labels used": joined(text(record.labels), text(record.label_episodes, "from {} episodes")),
    }  # fmt: skip


def frame_metrics(record: Evaluation) -> tuple[Metric, ...]:
    """The metrics of predicted pictures; the distance of a pretrained encoder, where there is one, has that encoder's name."""
    if record.pretrained is None:
        return (PSNR, SSIM, LPIPS)
    return (PSNR, SSIM, LPIPS, Metric("perceptual", f"{record.pretrained} distance", "lower is better"))


def glossary(record: Evaluation) -> dict[str, str]:
    """What each control and reference that occurs in the record is."""
    rows = [*(record.translator or ()), *(record.linear or ()), *(record.reconstruction or ())]
    names = dict.fromkeys(row.name for row in rows if row.role != "model")
    found = {name: next((text for key, text in GLOSSARY.items() if key in name.lower()), "") for name in names}
    return {name: text for name, text in found.items() if text}


def training(record: Evaluation) -> list[Chart]:
    """The curves of the model and of its translator."""
    fitted, translator = record.training or TrainingCurve(), record.translator_curve or TranslatorCurve()
    held = fitted.validation or Curve()
    curves = (
        curve("Latent action model", {"training": (fitted.steps, fitted.loss), "held-out episodes": (held.steps, held.loss)}),
        curve("Translator", {
            "training": (translator.steps, translator.train), "validation": (translator.steps, translator.validation),
        }),
    )  # fmt: skip
    return [chart for chart in curves if chart]


def structure(found: Structure | None) -> dict[str, Any]:
    """What the section on the latent's structure shows: charts, tables, and why scores are invalid."""
    found = found or Structure()
    records = [r for r in found.records or () if r.role == "model"]
    charts = [
        over_horizons(records, "Sums of short latents, and the way back", "error over the latent's length (lower is better)",
                      {"addition": "sum", "reversal": "way back"}, "relative"),
        over_horizons(records, "Prediction over growing horizons", "PSNR, dB (higher is better)",
                      {"direct": "one latent", "cumulative": "sum of latents", "copy": "copy-frame"}, "psnr"),
    ]  # fmt: skip
    charts += [trajectory(n, path) for n, path in enumerate(found.trajectories or (), 1)]
    return {
        "invalid": [(r.name, r.void) for r in records if r.void],
        "structure_charts": [chart for chart in charts if chart],
        "structure": table(found.rows, STRUCTURE, "Structure of the latent, with controls"),
        "readings": table(found.rows, READINGS, "The same errors in two other readings"),
        "horizons": table(
            found.over_horizons, HORIZONS, "Errors and predictions over horizons, with controls", "strides"
        ),
    }


def over_horizons(
    records: Sequence[StructureRecord], title: str, y_label: str, kinds: dict[str, str], metric: str
) -> Chart | None:
    """A line for each record and kind, over the horizon in strides."""

    def value(horizon: Horizon, kind: str) -> Any:
        part = getattr(horizon, "copy_frame" if kind == "copy" else kind)
        return estimate(part.get(metric) if isinstance(part, dict) else getattr(part, metric, None))

    lines, marks = [], []
    for n, record in enumerate(records):
        for kind, line in kinds.items():
            found = [(float(h.t), e) for h in record.horizons or () if (e := value(h, kind))]
            if not found or (kind == "copy" and n):  # copy-frame is the same on both sides of the quantiser
                continue
            name = line if len(records) == 1 or kind == "copy" else f"{line}, {record.name}"
            marks, values = [t for t, _ in found], [e for _, e in found]
            lines.append(Line(name, marks, [e.mean for e in values], [e.low for e in values], [e.high for e in values]))
    return line_chart(lines, title, "horizon, strides", y_label, marks) if lines else None


def trajectory(n: int, path: Trajectory) -> Chart | None:
    """The norm of the latent along one held-out episode, beside how far its state has moved."""
    seconds = [0.0 if t is None else t for t in path.seconds or ()]
    lines = [
        Line(name, seconds, [float("nan") if v is None else v for v in values], marks=False)
        for name, values in (("length of the latent", path.length), ("displacement", path.displacement))
        if values
    ]
    title = f"Episode {n}: how far from its first frame" + ("" if path.r is None else f" (r = {path.r:.2f})")
    return line_chart(lines, title, "seconds", "share of the largest value")


@dataclass(frozen=True)
class Shown:
    """A picture of the run as a data URI; without ``src``: the reason why it is missing."""

    title: str
    caption: str
    src: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""


def picture(raw: Picture, run: Path) -> Shown:
    """A PNG of the run. Raises LaminaError for a file outside the run, and for one that is no PNG."""
    path = run / raw.file
    if not raw.file or not path.resolve().is_relative_to(run.resolve()):
        raise LaminaError(f"the picture {raw.file!r} lies outside the run's folder")
    try:
        content = path.read_bytes()
    except OSError as error:
        return Shown(raw.title, raw.caption, reason=f"{raw.file}: {MISSING} ({error.strerror}).")
    if raw.sha256 and hashlib.sha256(content).hexdigest() != raw.sha256:
        return Shown(raw.title, raw.caption, reason=f"{raw.file}: {MISSING} (the file is of another evaluation).")
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise LaminaError(f"the picture {raw.file!r} is not a PNG file")
    width, height = struct.unpack(">II", content[16:24])
    return Shown(raw.title, raw.caption, f"data:image/png;base64,{base64.b64encode(content).decode()}", width, height)
