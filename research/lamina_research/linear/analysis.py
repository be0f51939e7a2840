"""Closed-form analysis of leakage: the linear LAM on exact moments, for any parameters, in seconds (``lamina exogenous``)."""

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
from lamina_research.figures import Plot, save
from lamina_research.linear import closed_form, scores
from lamina_research.linear.ex_bmdp import LinearExBMDP
from lamina_research.linear.lam import OBJECTIVES, LinearLAM, Objective, check_width, loss
from lamina_research.linear.sweep import Sweep, cca_plot, leakage_plot, remedies_plot, sensitivity_plot

Figure = Literal["leakage", "sensitivity", "remedies", "cca"]
MANY_P = tuple(i / 20 for i in range(21))
FEW_P = (0.05, 0.2, 0.4, 0.8)
MANY_ALPHA = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
PLAIN, *AUXILIARY = OBJECTIVES


@dataclass(frozen=True)
class LinearSetting:
    """Parameters of the linear model and of the auxiliary losses."""

    p_switch: float = 0.2
    """probability that the exogenous state changes in a transition"""
    alpha: float = 1.0
    """sensitivity of observations to the exogenous state: H_xi = H_0 + alpha R_xi"""
    states: int = 8
    """number of exogenous states"""
    state: int = 8
    """d_s = d_a, dimensions of state and action"""
    observation: int = 128
    """d_o"""
    latent: int = 8
    """d_z"""
    steps: int = 4
    """transitions of a trajectory; the variance of the state grows with it, and with that the effect of a switch"""
    weight: float = 1.0
    """weight lambda of each auxiliary loss"""
    draws: int = 4
    """draws of H_0 and R_xi to average over; seeds 0, 1, ..."""

    def __post_init__(self) -> None:
        check_options(self)

    def sweep(self, p: Sequence[float] | None = None, alpha: Sequence[float] | None = None) -> Sweep:
        """The Ex-BMDPs of these parameters. Raises LaminaError for parameters out of range."""
        mdp = LinearExBMDP(self.states, self.state, self.observation, steps=self.steps)
        return Sweep(mdp, tuple(p or (self.p_switch,)), tuple(alpha or (self.alpha,)), tuple(range(self.draws)))

    def objectives(self) -> dict[str, Objective]:
        """The paper's objectives, with the weight of these parameters for each auxiliary loss."""
        w = self.weight
        given = {name: OBJECTIVES[name] for name in AUXILIARY}
        weighted = {name: replace(o, cross=w) if o.cross else replace(o, weight=w) for name, o in given.items()}
        return {PLAIN: OBJECTIVES[PLAIN], **weighted}

    def solved(self, sweep: Sweep) -> dict[str, LinearLAM]:
        """The global minimiser of each objective on exact moments."""
        return {name: closed_form.solve(sweep.exact, o, self.latent) for name, o in self.objectives().items()}


def leakage_table(setting: LinearSetting) -> str:
    """The scores of each objective's minimiser, mean and standard error over the draws, as a table in plain text."""
    sweep = setting.sweep()
    exact, mdp, models = sweep.exact, sweep.mdp, setting.solved(sweep)
    rows = [["objective", "action NMSE", "z from xi'", "z from xi, xi'", "z from s", "|W(z - ~z)|^2", "6 L + 3 eta"]]
    for name, model in models.items():
        found = sweep.measure(model, exact, exact)
        values = [found[score] for score in ("nmse", "leakage", "context", "state")]
        rows.append([name, *map(mean_text, [*values, *scores.bound(model, exact, exact, "a")])])
    least, blind = reconstruction_losses(setting, sweep)
    without, blind_without = reconstruction_losses(setting, setting.sweep(p=(0.0,)))
    note = (
        f"n d_s = {mdp.states * mdp.state} is above d_o = {mdp.observation}, so a frame does not determine the state s. With "
        "switching, a cross-exogenous z then holds what the paired frames tell of s."
    )
    crowded = mdp.states * mdp.state > mdp.observation
    return "\n".join(
        (
            f"{mdp.states} exogenous states, p_switch {setting.p_switch:g}, alpha {setting.alpha:g}; "
            f"d_s = d_a = {mdp.state}, d_o = {mdp.observation}, d_z = {setting.latent}; "
            f"mean ± standard error of {setting.draws} draws of H_0 and R_xi",
            "",
            *table(rows),
            *(("", note) if crowded else ()),
            "",
            f"Least reconstruction loss {mean_text(least)}; of a latent that does not depend on xi' {mean_text(blind)}, "
            f"{float((blind / least).mean()) - 1:.1%} more; without any switching, where nothing can leak, it is "
            f"{float((blind_without / without).mean()) - 1:.1%} more.",
        )
    )


def reconstruction_losses(
    setting: LinearSetting, sweep: Sweep
) -> tuple[Float[Tensor, "k x p"], Float[Tensor, "k x p"]]:
    """The least reconstruction loss of all latents, and of those that do not depend on xi'."""
    best = closed_form.solve(sweep.exact, OBJECTIVES[PLAIN], setting.latent)
    blind = closed_form.blind_loss(sweep.exact, sweep.emission, sweep.mdp.states, setting.latent)
    return loss(best, sweep.exact, OBJECTIVES[PLAIN]), blind


def mean_text(values: Float[Tensor, "k x p"]) -> str:
    values = torch.where(values.abs() < 1e-12, 0.0, values)  # rounding
    mean, count = float(values.mean()), values.shape[0]
    return f"{mean:.3g}" if count == 1 else f"{mean:.3g} ± {float(values.flatten().std()) / count**0.5:.1g}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def figure(setting: LinearSetting, name: Figure) -> Sequence[Plot]:
    """A figure of the paper, from closed forms alone."""
    alpha = MANY_ALPHA if name == "sensitivity" else None
    sweep = setting.sweep(MANY_P if name in ("leakage", "remedies") else FEW_P, alpha)
    if name == "cca":
        check_width(setting.latent, sweep.exact.sizes["o"])
        found = closed_form.transition_cca(sweep.exact).correlations[:, 0, :, : 2 * setting.latent]
        return cca_plot({f"p_switch = {p:g}": found[:, i] for i, p in enumerate(sweep.p)})
    solved = setting.solved(sweep)
    needed = list(solved) if name == "remedies" else [PLAIN]
    measured = {each: sweep.measure(solved[each], sweep.exact, sweep.exact) for each in needed}
    nmse = {name: values["nmse"] for name, values in measured.items()}
    if name == "sensitivity":
        return sensitivity_plot(sweep.alpha, {f"p_switch = {p:g}": nmse[PLAIN][..., i] for i, p in enumerate(sweep.p)})
    if name == "leakage":
        return leakage_plot(
            sweep.p, {"action NMSE": nmse[PLAIN][:, 0], "variance by xi'": measured[PLAIN]["leakage"][:, 0]}
        )
    change = {name: (nmse[name] - nmse[PLAIN])[:, 0] for name in AUXILIARY}
    return remedies_plot(sweep.p, change, {name: values["context"][:, 0] for name, values in measured.items()})


def draw(setting: LinearSetting, name: Figure, path: Path) -> Path:
    """Draws a figure into the SVG file ``path``. Raises LaminaError for another suffix."""
    if path.suffix != ".svg":
        raise LaminaError(f"{path}: figures are drawn as .svg")
    with torch.no_grad():
        return save(figure(setting, name), path)
