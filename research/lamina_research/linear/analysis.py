"""What would leak, if: the linear LAM's closed forms on exact moments, for any world, in seconds (``lamina exogenous``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError
from lamina.options import check_options
from lamina_research.claims.exo import linear
from lamina_research.claims.exo.linear_study import Grid
from lamina_research.figures import Plot, save
from lamina_research.linear import closed_form, scores
from lamina_research.linear.ex_bmdp import LinearExBMDP
from lamina_research.linear.lam import OBJECTIVES, LinearLAM, Objective, check_width, loss

Figure = Literal["leakage", "sensitivity", "remedies", "cca"]
ALONG_P = tuple(i / 20 for i in range(21))
ALONG_ALPHA = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
FEW_P = (0.05, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class LinearSetting:
    """A world, a bottleneck and the weight of the remedies. Means are over draws of H_0 and R_xi."""

    p_switch: float = 0.2
    """probability that the exogenous state changes in a transition"""
    alpha: float = 1.0
    """sensitivity of observations to it: H_xi = H_0 + alpha R_xi"""
    states: int = 8
    """exogenous states"""
    state: int = 8
    """d_s = d_a, dimensions of state and action"""
    observation: int = 128
    """d_o"""
    latent: int = 8
    """d_z"""
    steps: int = 4
    """transitions of a trajectory: the longer, the larger states, and so changes of their appearance"""
    weight: float = 1.0
    """lambda of each remedy"""
    draws: int = 4
    """worlds that are drawn; seeds 0, 1, ..."""

    def __post_init__(self) -> None:
        check_options(self)

    def grid(self, p: Sequence[float] | None = None, alpha: Sequence[float] | None = None) -> Grid:
        """The worlds asked about. Raises LaminaError for values that make none."""
        world = LinearExBMDP(self.states, self.state, self.observation, steps=self.steps)
        return Grid(world, tuple(p or (self.p_switch,)), tuple(alpha or (self.alpha,)), tuple(range(self.draws)))

    def objectives(self) -> dict[str, Objective]:
        """The paper's objectives with the weight asked for; without weight a remedy is plain reconstruction."""
        plain, *remedies = OBJECTIVES
        changed = {
            name: replace(OBJECTIVES[name], cross=self.weight) if OBJECTIVES[name].cross else replace(OBJECTIVES[name], weight=self.weight)
            for name in remedies
        }  # fmt: skip
        return {plain: OBJECTIVES[plain], **changed}


def _solved(question: LinearSetting, grid: Grid) -> dict[str, LinearLAM]:
    return {name: closed_form.solve(grid.exact, o, question.latent) for name, o in question.objectives().items()}


def leakage_table(question: LinearSetting) -> str:
    """The closed-form quantities of each objective, mean and standard error over the draws, as a table in plain text."""
    grid = question.grid()
    world, models = grid.world, _solved(question, grid)
    rows = []
    for name, model in models.items():
        got = grid.measure(model, grid.exact, grid.exact)
        left, right = scores.bound(model, grid.exact, grid.exact, "a")
        rows.append([name, *(_told(got[k]) for k in ("nmse", "leakage", "context")), _told(left), _told(right)])
    heads = ["objective", "action NMSE", "z from xi'", "z from xi, xi'", "|W(z - ~z)|^2", "6 L + 3 eta"]
    plain = next(iter(models.values()))
    least = loss(plain, grid.exact, Objective())
    blind = closed_form.blind_loss(grid.exact, grid.emission, world.states, question.latent)
    lines = [
        f"{world.states} exogenous states, p_switch {question.p_switch:g}, alpha {question.alpha:g}; "
        f"d_s = d_a = {world.state}, d_o = {world.observation}, d_z = {question.latent}; "
        f"mean ± standard error of {question.draws} draws of H_0 and R_xi",
        "",
        *table([heads, *rows]),
        "",
        f"Least reconstruction loss {_told(least)}; of a latent that does not depend on xi' {_told(blind)}, "
        f"{_more(question, question.p_switch)} more; without any switching, where nothing can leak, it is {_more(question, 0.0)} more.",
    ]
    return "\n".join(lines)


def _more(question: LinearSetting, p: float) -> str:
    """How much more the best latent that does not depend on xi' loses than the best of all, in percent."""
    grid = question.grid(p=(p,))
    best = loss(closed_form.solve(grid.exact, Objective(), question.latent), grid.exact, Objective())
    blind = closed_form.blind_loss(grid.exact, grid.emission, grid.world.states, question.latent)
    return f"{float((blind / best).mean()) - 1:.1%}"


def _told(values: Float[Tensor, "k x p"]) -> str:
    mean, count = float(values.mean()), values.shape[0]
    if count == 1:
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {float(values.flatten().std()) / count**0.5:.1g}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text in columns as wide as they need."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]


def figure(question: LinearSetting, name: Figure) -> Plot:
    """A figure of the paper from closed forms alone, in the world asked about."""
    plain = next(iter(OBJECTIVES))
    if name == "leakage":
        grid = question.grid(p=ALONG_P)
        got = grid.measure(_solved(question, grid)[plain], grid.exact, grid.exact)
        return linear.leakage_plot(grid.p, {"action NMSE": got["nmse"][:, 0], "variance by xi'": got["leakage"][:, 0]})
    if name == "sensitivity":
        grid = question.grid(p=FEW_P, alpha=ALONG_ALPHA)
        error = grid.measure(_solved(question, grid)[plain], grid.exact, grid.exact)["nmse"]
        return linear.sensitivity_plot(grid.alpha, {f"p_switch = {p:g}": error[..., i] for i, p in enumerate(grid.p)})
    grid = question.grid(p=ALONG_P if name == "remedies" else FEW_P)
    if name == "remedies":
        got_by = {n: grid.measure(m, grid.exact, grid.exact) for n, m in _solved(question, grid).items()}
        change = {n: (got["nmse"] - got_by[plain]["nmse"])[:, 0] for n, got in got_by.items() if n != plain}
        return linear.remedies_plot(grid.p, change, {n: got["context"][:, 0] for n, got in got_by.items()})
    check_width(question.latent, grid.exact)
    pairs = closed_form.transitions(grid.exact)
    found = closed_form.canonical(pairs("u", "u"), pairs("u", "~u"), pairs("~u", "~u")).correlations[:, 0]
    some = min(2 * question.latent, found.shape[-1])
    return linear.cca_plot({f"p_switch = {p:g}": found[:, i, :some] for i, p in enumerate(grid.p)})


def draw(question: LinearSetting, name: Figure, path: Path) -> Path:
    """Draws a figure into the SVG file ``path``."""
    if path.suffix != ".svg":
        raise LaminaError(f"{path}: figures are drawn as .svg")
    with torch.no_grad():
        return save(figure(question, name), path)
