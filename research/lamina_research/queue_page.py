"""The page of a queue: how far its claims and models are, in one HTML file that loads itself again every few seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lamina.errors import LaminaError
from lamina.evaluation.report.charts import Chart
from lamina.evaluation.report.tables import curve
from lamina.files import json_of, write_text
from lamina.training.log import read_log
from lamina.training.pretraining import duration
from lamina_research.agenda import Row, Run, cached_runs, in_words, total_left
from lamina_research.record import read_record, verdict

REFRESH = 10  # seconds
LINES = 6  # of a chart: the models that run, and the newest of the others
#: What is drawn of a log: the first of these that it has.
CURVES = ("validation/reconstruction", "validation/action", "validation/loss", "loss")
LEVELS = {"done": "good", "failed": "bad", "running": "note", "waiting": ""}


@dataclass(frozen=True)
class Curve:
    """What is drawn of the log of a run."""

    kind: str  # of figure
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Training:
    """How far a run is that is being built."""

    title: str
    claim: str
    step: int | None
    steps: int | None
    loss: float | None
    spent: str
    left: str | None

    @property
    def percent(self) -> float:
        return 100 * min(1.0, self.step / self.steps) if self.step and self.steps else 0.0


@dataclass(frozen=True)
class ClaimRow:
    """A claim as the page shows it."""

    id: str
    state: str
    level: str
    models: str
    spent: str
    left: str
    record: str


def newest_log(run: Path) -> Path | None:
    """The log of a run that was written last: a run may hold others, such as those of two stages."""
    logs = [(path.stat().st_mtime, path) for path in run.rglob("log.jsonl")] if run.is_dir() else []
    return max(logs)[1] if logs else None


def steps_of(log: Path, run: Run) -> int | None:
    """The number of steps of a training, by the settings beside its log or by the key of its run."""
    try:
        return int(json_of(log.with_name("config.json"))["train"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return run.event.steps


def curve_of(rows: Sequence[Mapping[str, Any]]) -> Curve | None:
    """What is drawn of the rows of a log."""
    for kind in CURVES:
        points = [(row["step"], float(row[kind])) for row in rows if isinstance(row.get(kind), int | float)]
        if points:
            steps, values = zip(*points, strict=True)
            return Curve(kind, steps, values)
    return None


class QueuePage:
    """The page of some claims, written anew by :meth:`write`. Charts are drawn again only when their points have changed."""

    def __init__(self, path: Path, rows: Sequence[Row], jobs: int, workdir: Path, title: str):
        self.path, self.rows, self.jobs, self.workdir, self.title = path, rows, jobs, workdir, title
        self._began = time.monotonic()
        self._finished: dict[str, Curve | None] = {}  # curves of runs that will not change
        self._first: dict[str, tuple[float, int]] = {}  # when a running training was first seen, and at which step
        self._charts: dict[str, tuple[object, list[Chart]]] = {}  # by claim, with what they were drawn from

    def write(self, ended: bool = False) -> Path:
        """Writes the page whole. The last one, of a queue that has ``ended``, does not load itself again."""
        return write_text(self.path, self.render(ended))

    def render(self, ended: bool = False) -> str:
        curves: dict[str, dict[str, Curve]] = {}
        trainings = []
        for row in self.rows:
            of_row: dict[str, Curve] = {}
            for name, run in row.runs.items():
                if run.event.kind == "begun" and row.open and not ended:
                    training, drawn = self.training(row, name, run)
                    trainings.append(training)
                else:
                    drawn = self.finished(name)
                if drawn:
                    same = sum(title.startswith(run.event.title) for title in of_row)
                    of_row = {run.event.title + f" ({same + 1})" * bool(same): drawn} | of_row  # the newest first
            curves[row.job.claim.id] = of_row
        there = cached_runs(self.workdir)
        seconds, unknown = total_left([row for row in self.rows if row.open], there)
        counts = {state: sum(row.state == state for row in self.rows) for state in LEVELS}
        package = "lamina.evaluation.report"
        environment = Environment(
            loader=ChoiceLoader([PackageLoader("lamina_research", ""), PackageLoader(package, "")]),
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        return environment.get_template("queue.html.j2").render(
            style=Markup(resources.files(package).joinpath("page.css").read_text(encoding="utf-8")),
            missing="not available", title=self.title, ended=ended, refresh=REFRESH, jobs=self.jobs,
            counts=counts, trainings=trainings, claims=[self.claim(row, there) for row in self.rows],
            failures=[(row.job.claim.id, row.why) for row in self.rows if row.why],
            left=in_words(seconds, unknown, self.jobs), written=datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
            spent=duration(time.monotonic() - self._began),
            charts_found=[chart for claim, found in curves.items() for chart in self.charts(claim, found)],
        )  # fmt: skip

    def training(self, row: Row, name: str, run: Run) -> tuple[Training, Curve | None]:
        """How far a run is, and its curve."""
        log = newest_log(self.workdir / "cache" / f"{name}.partial")
        rows = read_log(log) if log else []
        now, step, steps = time.monotonic(), None, steps_of(log, run) if log else run.event.steps
        left = None
        if rows:
            step = rows[-1]["step"]
            began, first = self._first.setdefault(name, (now, step))
            if step > first and steps:
                left = duration((now - began) / (step - first) * max(0, steps - step))
        told = Training(
            run.event.title, row.job.claim.id, step, steps, rows[-1]["loss"] if rows else None, duration(now - run.began), left
        )  # fmt: skip
        return told, curve_of(rows)

    def finished(self, name: str) -> Curve | None:
        """The curve of a run that is there."""
        if name not in self._finished:
            log = newest_log(self.workdir / "cache" / name)
            found = curve_of(read_log(log)) if log else None
            if not (self.workdir / "cache" / name).is_dir():
                return found  # dropped, and perhaps begun again
            self._finished[name] = found
        return self._finished[name]

    def charts(self, claim: str, curves: Mapping[str, Curve]) -> list[Chart]:
        """A chart for each kind of curve of a claim."""
        kept = self._charts.get(claim)
        if kept and kept[0] == curves:
            return kept[1]
        charts = []
        for kind in CURVES:
            lines = [(title, c) for title, c in curves.items() if c.kind == kind][:LINES]
            name = f"{claim}: {'training loss' if kind == 'loss' else kind.replace('/', ' ')}"
            if lines and (chart := curve(name, {title: (c.steps, c.values) for title, c in lines})):
                charts.append(chart)
        self._charts[claim] = (dict(curves), charts)
        return charts

    def claim(self, row: Row, there: set[str]) -> ClaimRow:
        """The row of a claim in the table."""
        there = there | {name for name, run in row.runs.items() if run.event.kind in ("built", "found")}
        earlier = set(row.note.runs) if row.note else set()
        met = {name for name in row.runs if name in there}
        if row.state == "done":
            of = f"{len(met)}"
        else:  # after a change of the code, the runs of before have other names, but their number is about the same
            of = f"{len(met)} of {max(len(earlier), len(row.runs))}" if earlier else f"{len(met)} so far"
        seconds = (row.ended or time.monotonic()) - row.began if row.began else None
        left = row.seconds_left(there)
        told = row.why_run
        if row.state == "done":
            try:
                told = verdict(read_record(row.job.out))
            except LaminaError as error:
                told = str(error)
        elif row.why:
            told = "failed"
        return ClaimRow(
            row.job.claim.id, row.state, LEVELS[row.state], of if row.runs or earlier else "",
            "" if seconds is None else duration(seconds),
            "" if not row.open else "unknown" if left is None else duration(left), told,
        )  # fmt: skip
