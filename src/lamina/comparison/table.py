"""The table of a comparison: the figures of each row over seeds, from the records that `lamina evaluate` wrote; and what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lamina.evaluation.record import Evaluation, Row, StructureRecord, Value
from lamina.files import to_json
from lamina.intervals import UNDEFINED, Estimate, t_interval
from lamina.models.code_usage import COLLAPSED
from lamina.version import __version__

Role = Literal["model", "reference", "control"]
Figures = dict[str, float]  # of one seed


@dataclass(frozen=True)
class Metric:
    """A figure of the table. ``percent``: shown in percent."""

    name: str
    higher: bool
    percent: bool = False


SHUFFLED = "shuffled latents"  # the control that sees all that a translator sees, but for the right latent
METRICS = {
    "loss": Metric("translator loss", False),
    "accuracy": Metric("translator accuracy", True, True),
    "nmse": Metric("translator NMSE", False),
    "gain": Metric("loss below that of shuffled latents", True),
    "linear": Metric("linear probe, NMSE", False),
    "psnr": Metric("PSNR, dB", True),
    "ssim": Metric("SSIM", True),
    "lpips": Metric("LPIPS", False),
    "used": Metric("right latent above another's, dB", True),
    "addition": Metric("sum of short latents, error", False),
    "reversal": Metric("way back, error", False),
    "leak": Metric("environment from latent", False, True),
    "exogenous": Metric("exogenous change over chance", False),
    "perplexity": Metric("codes in use of a slot", True),
    "success": Metric("success in the world", True, True),
    "return": Metric("return (random 0, expert 100)", True),
    "latency": Metric("one decision, ms", False),
    "cost": Metric("training, CPU minutes", False),
}


@dataclass(frozen=True)
class CompareRow:
    """A row: ``values[metric]`` has one value per seed, NaN where a seed has none. ``over_k``, ``over_t``: by metric the values at prefix
    lengths k, and at horizons of t strides. ``state``: "ok", or what happened to the training: collapse, explosion, diverged, failed."""

    name: str
    role: Role
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    over_k: Mapping[str, Mapping[int, tuple[float, ...]]] = field(default_factory=dict)
    over_t: Mapping[str, Mapping[int, tuple[float, ...]]] = field(default_factory=dict)
    state: str = "ok"
    reason: str = ""
    steps: int | None = None
    void: str = ""  # why its structure scores are invalid
    warnings: tuple[str, ...] = ()
    curve: tuple[tuple[int, float], ...] = ()  # held-out reconstruction loss over training steps, of the first seed

    def of(self, metric: str) -> Estimate:
        """Mean and interval over the seeds that have a value; undefined without any."""
        values = [v for v in self.values.get(metric, ()) if math.isfinite(v)]
        return t_interval(values) if values else UNDEFINED

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and mean and interval of each metric."""
        return asdict(self) | {"figures": {name: self.of(name).to_dict() for name in self.values}}


@dataclass(frozen=True)
class Comparison:
    """``rows``: methods and given models by translator loss, then references and controls. ``words``: (level, sentence)."""

    path: Path
    rows: tuple[CompareRow, ...]
    words: tuple[tuple[str, str], ...]
    facts: Mapping[str, Any]

    def __getitem__(self, name: str) -> CompareRow:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def to_json(self) -> str:
        """comparison.json; null where a value is not a number."""
        told = [{"level": level, "text": text} for level, text in self.words]
        rows = [row.to_dict() for row in self.rows]
        return to_json({"format": 1, "lamina": __version__, **self.facts, "words": told, "rows": rows}, indent=1)


def mean(value: Value | None) -> float:
    """The mean of a recorded value; NaN where there is none."""
    return math.nan if value is None or value.mean is None else value.mean


def last(rows: Sequence[Row] | None, role: str, name: str = "") -> Any:
    """The row of that role at the largest k (with ``name`` in its name); None without one. Joint translators do not count."""
    found = [r for r in rows or () if r.role == role and name in r.name and not r.name.endswith(", joint")]
    return max(found, key=lambda r: r.k or 0) if found else None


def structure_of(record: Evaluation, side: str | None) -> StructureRecord | None:
    """The structural record of the model on the side of the quantiser that is its latent action."""
    place = {"continuous": "pre", "quantised": "post"}.get(side or "")
    own = [r for r in (record.structure.records if record.structure else None) or () if r.role == "model"]
    return next((r for r in own if r.place == place), own[-1] if own else None)


def figures_of(record: Evaluation, side: str | None = None) -> Figures:
    """The figures of one evaluated model, at all of its slots."""
    translator, probe = last(record.translator, "model"), last(record.linear, "model")
    drawn, other = last(record.reconstruction, "model"), last(record.reconstruction, "control", "shuffled")
    found: Figures = {}
    if translator:
        found |= {name: mean(getattr(translator, name)) for name in ("loss", "accuracy", "nmse")}
        blind = last(record.translator, "control", SHUFFLED)  # of the same width, with the same labels
        found["gain"] = mean(blind.loss if blind else None) - found["loss"]
    if probe:
        found["linear"] = mean(probe.nmse)
    if drawn:
        found |= {name: mean(getattr(drawn, name)) for name in ("psnr", "ssim", "lpips")}
        found["used"] = mean(drawn.psnr) - mean(other.psnr if other else None)
    structure = structure_of(record, side)
    if structure and structure.horizons:
        longest = structure.horizons[-1]
        found["addition"] = mean(longest.addition.relative if longest.addition else None)
        found["reversal"] = mean(longest.reversal.relative if longest.reversal else None)
        if not drawn and structure.use:
            found["used"] = mean(structure.use.get("another"))
    for row in record.leakage or ():
        if row.role == "model":
            found["leak"] = mean(row.leak_unseen or row.leak)
    for changed in record.exogenous or ():
        if changed.change and "next frame" in changed.name:
            found["exogenous"] = mean(changed.change)
    slots = (record.codes.slots if record.codes else None) or ()
    if slots:
        found["perplexity"] = sum(s.perplexity or 0.0 for s in slots) / len(slots)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def model_row(
    name: str,
    records: Sequence[Evaluation | None],
    more: Sequence[Figures],
    side: str | None = None,
    role: Role = "model",
    **told: Any,
) -> CompareRow:
    """The row of a model. ``records``: one a seed, None for a seed that failed; ``more``: figures that are not in the records."""
    every = [figures_of(r, side) | extra if r else {} for r, extra in zip(records, more, strict=True)]
    keys = [key for key in METRICS if any(key in figures for figures in every)]
    there = [r for r in records if r]
    over_k: dict[str, dict[int, tuple[float, ...]]] = {}
    for metric, part in (("loss", "translator"), ("linear", "linear"), ("psnr", "reconstruction")):
        attribute = "nmse" if metric == "linear" else metric
        rows = [
            [r for r in getattr(record, part) or () if r.role == "model" and not r.name.endswith(", joint")]
            for record in there
        ]
        ks = sorted({r.k for own in rows for r in own if r.k is not None})
        by_k = {k: tuple(mean(getattr(r, attribute)) for own in rows for r in own if r.k == k) for k in ks}
        if by_k:
            over_k[metric] = by_k
    structures = [s for record in there if (s := structure_of(record, side))]
    over_t: dict[str, dict[int, tuple[float, ...]]] = {}
    for metric in ("addition", "reversal"):
        pairs = [(h.t, getattr(h, metric)) for s in structures for h in s.horizons or ()]
        by_t = {
            t: tuple(mean(e.relative) for at, e in pairs if at == t and e and e.relative)
            for t in sorted({t for t, _ in pairs})
        }
        if by_t:
            over_t[metric] = by_t
    held = there[0].training.validation if there and there[0].training else None
    curve = tuple(
        (s, v) for s, v in zip((held and held.steps) or (), (held and held.loss) or (), strict=False) if v is not None
    )
    return CompareRow(
        name, role, {key: tuple(f.get(key, math.nan) for f in every) for key in keys}, over_k, over_t, curve=curve,
        void=next((s.void for s in structures if s.void), ""),
        warnings=tuple(dict.fromkeys(w for r in there if r.codes for w in r.codes.warnings or ())), **told,
    )  # fmt: skip


def reference_rows(records: Mapping[str, Sequence[Evaluation | None]]) -> list[CompareRow]:
    """Controls and references that the evaluations hold, by name: seed by seed the best that each did beside any of the methods."""
    found: dict[tuple[str, Role], dict[str, list[list[float]]]] = {}
    seeds = max((len(r) for r in records.values()), default=0)
    for own in records.values():
        for seed, record in enumerate(own):
            for part, names in (
                ("translator", {"loss": "loss", "accuracy": "accuracy", "nmse": "nmse"}),
                ("linear", {"nmse": "linear"}),
                ("reconstruction", {"psnr": "psnr", "ssim": "ssim", "lpips": "lpips"}),
            ):
                for row in (getattr(record, part) or ()) if record else ():
                    if row.role == "model":
                        continue
                    metrics = found.setdefault((row.name, row.role), {})
                    for attribute, metric in names.items():
                        value = mean(getattr(row, attribute))
                        if math.isfinite(value):
                            metrics.setdefault(metric, [[] for _ in range(seeds)])[seed].append(value)
    rows = []
    for (name, role), metrics in found.items():
        values = {
            metric: tuple((max if METRICS[metric].higher else min)(v) if v else math.nan for v in by_seed)
            for metric, by_seed in metrics.items()
        }
        rows.append(CompareRow(name, role, {key: values[key] for key in METRICS if key in values}))
    return sorted(rows, key=lambda row: (row.role != "reference", _or_last(row)))


def _or_last(row: CompareRow) -> float:
    loss = row.of("loss").mean
    return loss if math.isfinite(loss) else math.inf


def ranked(rows: Sequence[CompareRow]) -> list[CompareRow]:
    """Rows by their translator loss, the lowest first; rows without one last."""
    return sorted(rows, key=_or_last)


def apart(metric: str, best: CompareRow, other: CompareRow) -> bool | None:
    """Whether ``best`` is better than ``other`` beyond doubt: the 95% interval of the difference, paired over seeds, excludes 0. None where
    it cannot be told, with fewer than two seeds in common."""
    pairs = list(zip(best.values.get(metric, ()), other.values.get(metric, ()), strict=False))
    differences = [a - b for a, b in pairs if math.isfinite(a - b)]
    if len(differences) < 2:
        return None
    over = t_interval(differences)
    if over.low == over.high or math.isnan(over.low):  # every seed has the same difference
        return over.mean != 0 and (over.mean > 0) == METRICS[metric].higher
    return over.low > 0 if METRICS[metric].higher else over.high < 0


USES = (
    ("loss", "To read actions off latents with few labels"),
    ("psnr", "To predict the next frame"),
    ("addition", "To add latents up"),
    ("success", "To act in the world"),
    ("return", "To act in the world"),
)
Finding = tuple[str, str]  # level (bad, warn, good, note) and a sentence


def words(models: Sequence[CompareRow], others: Sequence[CompareRow]) -> list[Finding]:
    """Which to use for what, what is not beyond doubt, and who collapsed, in plain words."""
    sound = [m for m in models if m.state == "ok"]
    found = [*_failures(models)]
    for metric, use in USES:
        usable = [m for m in sound if math.isfinite(m.of(metric).mean) and not (metric == "addition" and m.void)]
        if usable:
            nothing = _nothing_read(use, ranked(usable)[0], others) if metric == "loss" else None
            found.append(nothing or _best(metric, use, usable))
    if sound and (loss := [m for m in sound if math.isfinite(m.of("loss").mean)]):
        found += _against(ranked(loss)[0], others)
    return found


def _failures(models: Sequence[CompareRow]) -> Iterator[Finding]:
    for m in models:
        if m.state != "ok":
            yield "bad", f"{m.name}: {m.state} ({m.reason}). Its seeds that failed have no figures."
        elif m.void:
            yield "bad", f"{m.name}: {m.void}. Its latent is not to be trusted."
        if m.values.get("perplexity") and m.of("perplexity").mean < COLLAPSED:
            yield "bad", f"{m.name}: its codes collapsed, a slot says the same code nearly always."


def _nothing_read(use: str, best: CompareRow, others: Sequence[CompareRow]) -> Finding | None:
    """What to say where seeds do not show that latents help the translator: the best mean is then nobody's merit."""
    control = next((o for o in others if o.name == SHUFFLED and math.isfinite(o.of("loss").mean)), None)
    if control is None or apart("loss", best, control) is not False:
        return None
    return (
        "warn",
        f"{use}: no method. The best mean, {_figure(best, 'loss')} ({best.name}), is not beyond doubt better than that of {SHUFFLED} "
        f"of some width ({_figure(control, 'loss')}): the previous action, which translators see too, tells as much. The linear probe "
        "tells what the latents say by themselves.",
    )


def _best(metric: str, use: str, usable: Sequence[CompareRow]) -> Finding:
    kind = METRICS[metric]
    order = sorted(usable, key=lambda m: m.of(metric).mean, reverse=kind.higher)
    best = order[0]
    figure = _figure(best, metric)
    if metric == "return" and not best.of(metric).low > 0:
        return (
            "warn",
            f"{use}: no policy is beyond doubt better than random actions (0); the best mean is {best.name}'s, {figure}.",
        )
    if len(order) == 1:
        return "note", f"{use}: {best.name} ({kind.name} {figure}), the only one that was measured."
    verdicts = {m.name: apart(metric, best, m) for m in order[1:]}
    if all(verdicts.values()):
        return "good", f"{use}: {best.name} ({kind.name} {figure}), better than every other method beyond doubt."
    doubted = [m for m in order[1:] if not verdicts[m.name]]
    near = ", ".join(f"{m.name} ({_figure(m, metric)})" for m in doubted)
    why = (
        "one seed decides nothing"
        if any(v is None for v in verdicts.values())
        else "these seeds do not tell them apart"
    )
    return (
        "warn",
        f"{use}: {best.name} ({kind.name} {figure}) has the best mean, but not beyond doubt against {near}: {why}.",
    )


def _against(best: CompareRow, others: Sequence[CompareRow]) -> Iterator[Finding]:
    """The best method against every reference and control."""
    for other in others:
        if not math.isfinite(other.of("loss").mean):
            continue
        better, worse = apart("loss", best, other), apart("loss", other, best)
        figures = f"loss {_figure(best, 'loss')} against {_figure(other, 'loss')}"
        if worse:
            yield (
                "bad",
                f"The {other.role} '{other.name}' reads actions better than {best.name}, the best method: {figures}.",
            )
        elif not better:
            yield "warn", f"{best.name} is not beyond doubt better than the {other.role} '{other.name}': {figures}."
        else:
            yield "good", f"{best.name} reads actions better than the {other.role} '{other.name}': {figures}."


def _figure(row: CompareRow, metric: str) -> str:
    value = row.of(metric).mean
    return f"{value:.0%}" if METRICS[metric].percent else f"{value:.3g}"
