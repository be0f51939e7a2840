"""The commands ``lamina reproduce`` and ``lamina exogenous``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from lamina.cli import parse_options, plain_command, with_options
from lamina.errors import LaminaError


@dataclass(frozen=True)
class Reproduce:
    """Test a paper's claim at one scale, and write its record (JSON) and figure; or with --all every claim that lacks a record.

    Example: lamina reproduce flexlam/prefix-scaling --scale smoke --out record.json
    """

    claim: Positional[str | None] = None
    scale: str = "cpu"
    """smoke (shows that the code runs), cpu, gpu, or paper (the paper's own configuration)"""
    out: Path | None = None
    """file of the record; default: results/PAPER/CLAIM-SCALE.json"""
    seeds: tuple[int, ...] | None = None
    """default: those of the claim at this scale"""
    workdir: Path = Path("runs/claims")
    """folder of the trained models; a model that is already there is not trained again"""
    values: Path | None = None
    """folder of measured values; one that is there is not measured again, not even after a change of the code, and the record says so"""
    jobs: int | None = None
    """processes in which models are trained; default at cpu scale: one for each core, at other scales one"""
    list: bool = False
    """show all claims with the scales they run at and their results"""
    all: bool = False
    """run every claim that has no record at this scale, or an outdated one, in one queue; WORKDIR/queue.html shows how far it is"""
    claims: tuple[str, ...] = ()
    """with --all: only claims that match one of these, such as alam or 'exo/*'"""
    dry_run: bool = False
    """with --all: show the queue and how long it takes, and run nothing"""

    def run(self) -> None:
        from lamina.comparison.plan import cores
        from lamina_research.agenda import agenda, agenda_text
        from lamina_research.reproduce import list_claims
        from lamina_research.scheduler import outcome_text, reproduce_all, reproduce_in_parallel

        jobs = self.jobs or (cores() if self.scale == "cpu" else 1)
        if self.list:
            print(list_claims())
        elif self.all:
            if self.claim is not None:
                raise LaminaError(f"--all runs every claim; to run {self.claim} alone leave it out, or use --claims")
            if self.out is not None:
                raise LaminaError("--out is for one claim; the records of --all go to results/PAPER/CLAIM-SCALE.json")
            if self.dry_run:
                print(agenda_text(agenda(self.scale, self.claims, self.seeds, self.workdir), jobs, self.workdir))
                return
            rows = reproduce_all(self.scale, self.claims, self.seeds, self.workdir, values=self.values, jobs=jobs)
            print(outcome_text(rows))
            if failed := [row.job.claim.id for row in rows if row.state == "failed"]:
                raise LaminaError(f"{len(failed)} of {len(rows)} claims failed: {', '.join(failed)}")
        elif self.claims or self.dry_run:
            raise LaminaError(f"{'--claims' if self.claims else '--dry-run'} belongs to --all")
        elif self.claim is None:
            raise LaminaError("name a claim, or ask for --all or --list")
        else:
            record = reproduce_in_parallel(
                self.claim, self.scale, self.out, self.seeds, self.workdir, values=self.values, jobs=jobs
            )
            print(record)


@dataclass(frozen=True, kw_only=True)
class Exogenous:
    """Closed-form analysis of leakage: the exogenous share of a linear LAM's latent, for each training objective.

    Example: lamina exogenous --p-switch 0.4 --alpha 2 --figure remedies --out remedies.svg
    """

    figure: Literal["leakage", "sensitivity", "remedies", "cca"] | None = None
    """draw this figure instead of printing the table"""
    out: Path | None = None
    """file of the figure; default: FIGURE.svg"""


def exogenous(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina exogenous``: the closed forms of the linear LAM."""
    from lamina_research.linear.analysis import LinearSetting, draw, leakage_table

    args = parse_options(with_options(Exogenous, setting=LinearSetting()), argv, prog="lamina exogenous")
    if parse_only:
        return
    if args.figure is None and args.out is not None:
        raise LaminaError("--out is for a figure: name one with --figure")
    if args.figure is None:
        print(leakage_table(args.setting))
    else:
        print(draw(args.setting, args.figure, args.out or Path(f"{args.figure}.svg")))


reproduce = plain_command(Reproduce, "reproduce")
