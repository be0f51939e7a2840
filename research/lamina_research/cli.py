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
    """Test a paper's claim at one scale, and write its record (JSON) and figure.

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
    list: bool = False
    """show all claims with the scales they run at and their results"""

    def run(self) -> None:
        from lamina_research.reproduce import list_claims, reproduce

        if self.list:
            print(list_claims())
        elif self.claim is None:
            raise LaminaError("name a claim, or ask for --list")
        else:
            print(reproduce(self.claim, self.scale, self.out, self.seeds, self.workdir, values=self.values))


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
