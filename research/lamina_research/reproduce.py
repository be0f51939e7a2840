"""``lamina reproduce``: runs the experiment of a claim and writes its record; lists the claims of all papers."""

from __future__ import annotations

import difflib
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lamina.errors import LaminaError
from lamina.files import locked, write_bytes
from lamina_research.cache import PACKAGES
from lamina_research.claims import ac_lam, alam, exo, flexlam, ours
from lamina_research.experiment import SCALES, Claim, Experiment
from lamina_research.figures import save
from lamina_research.notes import write_note
from lamina_research.record import make_record, read_record, verdict, write_record

PAPERS = (flexlam, alam, ac_lam, exo, ours)
CLAIMS: dict[str, Claim] = {claim.id: claim for paper in PAPERS for claim in paper.CLAIMS}
RESULTS = Path("results")


def find_claim(claim_id: str) -> Claim:
    """The claim of that id. Raises LaminaError, naming the nearest ids, when there is none."""
    if claim_id in CLAIMS:
        return CLAIMS[claim_id]
    name = claim_id.rpartition("/")[2]
    near = [c for c in CLAIMS if name and c.endswith(f"/{name}")]
    near += [c for c in difflib.get_close_matches(claim_id, CLAIMS, n=3, cutoff=0.5) if c not in near]
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise LaminaError(f"unknown claim {claim_id!r}; {hint}`lamina reproduce --list` shows them all")


def record_path(claim: Claim, scale: str) -> Path:
    """The path of a claim's record in the results folder: PAPER/CLAIM-SCALE.json."""
    return Path(f"{claim.id}-{scale}.json")


@dataclass(frozen=True)
class Job:
    """A claim that is to be run: its scale, its seeds, and the files and folders that this writes."""

    claim: Claim
    scale: str
    seeds: tuple[int, ...]
    out: Path  # the record
    figure: Path
    workdir: Path
    values: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.claim.id.replace('/', '-')}-{self.scale}"

    def experiment(self, progress: Callable[[str], None], **more: Any) -> Experiment:
        """The experiment that its claim is called with; ``more``: fields of Experiment that differ."""
        return replace(Experiment(self.scale, self.seeds, self.workdir, progress, self.values), **more)


def prepare(
    claim_id: str,
    scale: str,
    out: Path | None = None,
    seeds: Sequence[int] | None = None,
    workdir: Path = Path("runs/claims"),
    values: Path | None = None,
) -> Job:
    """The job of :func:`reproduce` with these arguments. Raises LaminaError for those that it rejects."""
    claim = find_claim(claim_id)
    check_scale(scale)
    if claim.run is None:
        raise LaminaError(f"{claim.id} is planned: there is no experiment yet; see `lamina reproduce --list`")
    if scale not in claim.scales:
        raise LaminaError(f"{claim.id} does not have the scale {scale}; it runs at {', '.join(claim.scales)}")
    chosen = tuple(claim.default_seeds(scale) if seeds is None else seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise LaminaError(f"seeds {list(chosen)}: give at least one, and each of them once")
    if out is None:
        out = RESULTS / record_path(claim, scale)
        figure = RESULTS / "figures" / f"{claim.id.replace('/', '-')}-{scale}.svg"
    else:
        figure = out.with_suffix(".svg")
    if out.is_dir():
        raise LaminaError(f"{out}: is a folder; choose another --out")
    return Job(claim, scale, chosen, out, figure, workdir, values)


def check_scale(scale: str) -> None:
    """Raises LaminaError for an unknown scale."""
    if scale not in SCALES:
        near = difflib.get_close_matches(scale, SCALES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise LaminaError(f"unknown scale {scale!r}; {hint}the scales are {', '.join(SCALES)}")


def run_job(job: Job, experiment: Experiment) -> Path:
    """Runs the experiment of a claim, writes its figure, its note (:mod:`lamina_research.notes`) and its record, and returns the path of
    the last. The caller holds the lock of the record."""
    assert job.claim.run is not None
    started = time.monotonic()
    outcome = job.claim.run(experiment)
    if outcome.plots:
        save(outcome.plots, job.figure)
    if outcome.picture is not None:
        write_bytes(job.figure.with_suffix(".png"), outcome.picture.read_bytes())
    seconds = time.monotonic() - started
    record = make_record(job.claim, experiment, outcome, seconds)
    write_note(job.workdir, job.name, experiment, seconds)
    return write_record(job.out, record)


def reproduce(
    claim_id: str,
    scale: str,
    out: Path | None = None,
    seeds: Sequence[int] | None = None,
    workdir: Path = Path("runs/claims"),
    progress: Callable[[str], None] = print,
    values: Path | None = None,
) -> Path:
    """Runs the experiment of a claim in this process and returns the path of its record (:mod:`lamina_research.queue`: in several).

    The record is ``out``, by default ``results/PAPER/CLAIM-SCALE.json``. The figure of the claim, if it has one, is written next to a given
    ``out``, and otherwise to ``results/figures``. Models are kept in ``workdir`` and used again, measured values in
    ``values``, if that is given, whatever becomes of the code and the models. Raises LaminaError for an unknown claim
    or scale, for a planned claim, for a scale that the claim does not have, for repeated seeds, and (before training) if the record cannot
    be written.
    """
    job = prepare(claim_id, scale, out, seeds, workdir, values)
    with locked(job.out):  # fails now, and not after hours of training, if the folder cannot be written
        return run_job(job, job.experiment(progress))


def results_folders() -> tuple[Path, ...]:
    """Where records are searched: ``results`` in the working directory, then in the checkout of this package."""
    return (RESULTS, PACKAGES[1].parent.parent / "results")


def _result(path: Path, scale: str) -> str:
    """The result in a record, in words; empty if it decides nothing."""
    try:
        record = read_record(path)
    except LaminaError as error:
        return str(error)
    if record["holds"] is None:
        return ""
    rows = [row for part in record.get("withdrawn", ()) for row in part["rows"]]
    withdrawn = f"; withdrawn: {', '.join(rows)}" if rows else ""
    outdated = "; outdated, to be run again" if record.get("outdated") else ""
    return f"{verdict(record)} ({scale}, {len(record['seeds'])} seeds{outdated}{withdrawn})"


def find_record(claim: Claim, scale: str, folders: Sequence[Path]) -> Path | None:
    """The record of a claim in the first folder that has it."""
    return next((path for folder in folders if (path := folder / record_path(claim, scale)).is_file()), None)


def _results(claim: Claim, folders: Sequence[Path]) -> str:
    """The results of a claim at all scales."""
    paths = {scale: find_record(claim, scale, folders) for scale in SCALES}
    return "; ".join(filter(None, (_result(path, scale) for scale, path in paths.items() if path)))


def list_claims(folders: Sequence[Path] | None = None) -> str:
    """All claims with their scales, results (from the records in ``folders``) and statements, in plain text."""
    folders = results_folders() if folders is None else folders
    width, state = max(map(len, CLAIMS)) + 2, max(len(claim.state) for claim in CLAIMS.values()) + 2
    lines = []
    for paper in PAPERS:
        lines.append(paper.PAPER)
        for claim in paper.CLAIMS:
            lines.append(f"  {claim.id:{width}}{claim.state:{state}}{_results(claim, folders)}".rstrip())
            lines += textwrap.wrap(claim.statement, 100, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    runnable = sum(claim.run is not None for claim in CLAIMS.values())
    lines.append(f"{len(CLAIMS)} claims, {runnable} runnable, {len(CLAIMS) - runnable} planned.")
    return "\n".join(lines)
