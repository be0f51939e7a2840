"""Statements of the papers as experiments that anyone can run: ``lamina reproduce CLAIM --scale smoke``.

One file per paper. ``reproduce`` runs a claim and writes its record; ``list_claims`` shows them all with their state.
"""

from __future__ import annotations

import difflib
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lamina.errors import LaminaError
from lamina.files import locked, write_bytes
from lamina_research.cache import PACKAGES
from lamina_research.claims import ac_lam, alam, exo, flexlam
from lamina_research.claims import ours as lamina_own
from lamina_research.experiment import SCALES, Claim, Experiment
from lamina_research.figures import save
from lamina_research.record import make_record, read_record, write_record

PAPERS = (flexlam, alam, ac_lam, exo, lamina_own)
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
    """Where a claim's record lies, from the folder of the results: PAPER/CLAIM-SCALE.json."""
    return Path(f"{claim.id}-{scale}.json")


def reproduce(
    claim_id: str,
    scale: str,
    out: Path | None = None,
    seeds: Sequence[int] | None = None,
    workdir: Path = Path("runs/claims"),
    progress: Callable[[str], None] = print,
) -> Path:
    """Runs the experiment of a claim and returns the path of its record.

    The record goes to ``out``, by default ``results/PAPER/CLAIM-SCALE.json``; a figure, where the claim has one, lies
    beside a given ``out`` and otherwise in ``results/figures``. What the experiment trains is kept in ``workdir`` and
    used again. Raises LaminaError for an unknown claim or scale, for a claim that is planned or not built for
    the scale, for repeated seeds, and where the record can't be written (before anything is trained).
    """
    claim = find_claim(claim_id)
    if scale not in SCALES:
        near = difflib.get_close_matches(scale, SCALES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise LaminaError(f"unknown scale {scale!r}; {hint}the scales are {', '.join(SCALES)}")
    if claim.run is None:
        raise LaminaError(f"{claim.id} is planned, its experiment is not built yet; see `lamina reproduce --list`")
    if scale not in claim.scales:
        raise LaminaError(f"{claim.id} is not built for scale {scale}; it runs at {', '.join(claim.scales)}")
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

    started = time.monotonic()
    with locked(out):  # a disk that refuses does so now, not after hours
        experiment = Experiment(scale, chosen, workdir, progress)
        outcome = claim.run(experiment)
        if outcome.plots:
            save(outcome.plots, figure)
        if outcome.picture is not None:
            write_bytes(figure.with_suffix(".png"), outcome.picture.read_bytes())
        return write_record(out, make_record(claim, experiment, outcome, time.monotonic() - started))


def results_folders() -> tuple[Path, ...]:
    """Where records are looked for: ``results`` here, then in the source checkout that this package runs from."""
    return (RESULTS, PACKAGES[1].parent.parent / "results")


def _verdicts(claim: Claim, folders: Sequence[Path]) -> str:
    """What the records of a claim say, scale by scale, where they decide anything."""
    said = []
    for scale in SCALES:
        path = next((f / record_path(claim, scale) for f in folders if (f / record_path(claim, scale)).is_file()), None)
        if path is None:
            continue
        try:
            record = read_record(path)
        except LaminaError as error:
            said.append(str(error))
            continue
        if record["holds"] is not None:
            rows = [row for part in record.get("withdrawn", ()) for row in part["rows"]]
            withdrawn = f"; withdrawn: {', '.join(rows)}" if rows else ""
            outdated = "; outdated, to be run again" if record.get("outdated") else ""
            verdict = "held" if record["holds"] else "did not hold"
            said.append(f"{verdict} ({scale}, {len(record['seeds'])} seeds{outdated}{withdrawn})")
    return "; ".join(said)


def list_claims(folders: Sequence[Path] | None = None) -> str:
    """Every claim with its state, whether it held (from the records in ``folders``), and its statement; plain text."""
    folders = results_folders() if folders is None else folders
    wide, state = max(map(len, CLAIMS)) + 2, max(len(claim.state) for claim in CLAIMS.values()) + 2
    lines = []
    for paper in PAPERS:
        lines.append(paper.PAPER)
        for claim in paper.CLAIMS:
            lines.append(f"  {claim.id:{wide}}{claim.state:{state}}{_verdicts(claim, folders)}".rstrip())
            lines += textwrap.wrap(claim.statement, 100, initial_indent="      ", subsequent_indent="      ")
        lines.append("")
    runnable = sum(claim.run is not None for claim in CLAIMS.values())
    lines.append(f"{len(CLAIMS)} claims, {runnable} runnable, {len(CLAIMS) - runnable} planned.")
    return "\n".join(lines)
