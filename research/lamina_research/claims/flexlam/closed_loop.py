"""Claims about deciding with latent tokens: returns at matched budgets, and what a shorter prefix saves."""

from __future__ import annotations

import numpy as np
import torch

from lamina.methods import flexlam
from lamina.models.heads import Translator
from lamina.models.hub import LatentActionModel
from lamina.policies.latency import decision_times
from lamina.policies.token_model import TokenConfig, TokenModel
from lamina.policies.token_policy import TokenPolicy
from lamina.types import ActionSpec
from lamina_research.claims.flexlam.alignment import Values, as_metrics, budget_losses
from lamina_research.claims.flexlam.study import FlexLAMStudy, Labels, fixed_k_spec, flexlam_spec
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import BarPlot
from lamina_research.seeds import below, interval, paired_difference
from lamina_research.text import listed, means


def budget_returns(lab: FlexLAMStudy, labels: Labels) -> tuple[Values, Values, Values]:
    """Normalized returns of FlexLAM@k and of each Fixed-Kk for every seed (0 = random actions, 100 = expert), and percent of the expert."""
    ours: Values = {f"FlexLAM@{k}": [] for k in lab.setup.budgets}
    theirs: Values = {f"Fixed-K{k}": [] for k in lab.setup.budgets}
    percent: Values = {}
    for seed in lab.experiment.seeds:
        for k in lab.setup.budgets:
            for name, model, into in (
                (f"FlexLAM@{k}", flexlam_spec(seed), ours),
                (f"Fixed-K{k}", fixed_k_spec(k, seed), theirs),
            ):
                record = lab.returns(model, labels, k)
                into[name].append(float(record["above_random"]))
                percent.setdefault(name, []).append(float(record["normalized"]))
    return ours, theirs, percent


def matched_budget(experiment: Experiment) -> Outcome:
    """FlexLAM@k against a separately trained Fixed-Kk, with scarce labels: held-out loss and closed-loop return (Fig. 3)."""
    lab = FlexLAMStudy(experiment)
    labels = Labels(lab.setup.labels)
    losses, rigid_losses = budget_losses(lab, labels)
    played = Labels(lab.setup.played)
    returns, rigid_returns, percent = budget_returns(lab, played)
    rivals: Values = {}
    for seed in experiment.seeds:
        for name, loss in lab.rivals(flexlam_spec(seed), labels).items():
            rivals.setdefault(name, []).append(loss)
    bound = [lab.supervised(seed) for seed in experiment.seeds]
    budgets = lab.setup.budgets
    wins_loss = [k for k in budgets if below(losses[f"FlexLAM@{k}"], rigid_losses[f"Fixed-K{k}"])]
    wins_return = [k for k in budgets if below(rigid_returns[f"Fixed-K{k}"], returns[f"FlexLAM@{k}"])]
    differences = {k: paired_difference(losses[f"FlexLAM@{k}"], rigid_losses[f"Fixed-K{k}"]) for k in budgets}
    gap = ", ".join(f"{d.mean:+.3f} at {k}" for k, d in differences.items())
    controls = {
        name: v for name, v in rivals.items() if name in ("copy-frame", "shuffled latents", "random-weights encoder")
    }
    text = (
        f"{labels.number} labels. Loss: {means(losses)}; {means(rigid_losses)}; FlexLAM minus Fixed-K {gap}. "
        f"Controls: {means(controls)}; supervised on every label {interval(bound).mean:.3f}. "
        f"Return with {played.number} labels, 0 = random and 100 = expert: {means(returns, 1)}; {means(rigid_returns, 1)}. "
        f"FlexLAM wins beyond doubt in loss at k = {listed(wins_loss)}, in return at k = {listed(wins_return)}."
    )
    names = [f"k = {k}" for k in budgets]
    return Outcome(
        metrics={
            **as_metrics(
                loss={**losses, **rigid_losses}, above_random={**returns, **rigid_returns}, percent_of_expert=percent
            ),
            **{name: {"loss": values} for name, values in rivals.items()},
            "supervised on every label": {"loss": bound},
        },
        holds=wins_loss == list(budgets) and wins_return == list(budgets),
        explanation=text,
        plot=BarPlot(
            f"Matched budgets, {played.number} labels",
            "normalized return (random = 0, expert = 100)",
            names,
            {
                "FlexLAM": [interval(v) for v in returns.values()],
                "Fixed-K": [interval(v) for v in rigid_returns.values()],
            },
        ),
    )


def token_budget(experiment: Experiment) -> Outcome:
    """What a quarter of the tokens keeps of the return, and what it saves of the time of a decision (Table 2)."""
    lab = FlexLAMStudy(experiment)
    *_, quarter, full = lab.setup.budgets
    labels = Labels(lab.setup.played)
    returns: Values = {f"FlexLAM@{k}": [] for k in lab.setup.budgets}
    latency: Values = {}
    for seed in experiment.seeds:
        for k in lab.setup.budgets:
            returns[f"FlexLAM@{k}"].append(float(lab.returns(flexlam_spec(seed), labels, k)["above_random"]))
        for name, ms in latencies(lab.setup.timed).items():
            latency.setdefault(name, []).append(ms)
    kept = [
        a / b if b > 0 else float("nan")
        for a, b in zip(returns[f"FlexLAM@{quarter}"], returns[f"FlexLAM@{full}"], strict=True)
    ]
    faster = [a / b for a, b in zip(latency["K = 64, k = 64"], latency["K = 64, k = 16"], strict=True)]
    low = interval(kept).low
    share = f"{100 * interval(kept).mean:.0f}%" if low is not None else "an undefined share (it is not above random)"
    text = (
        f"k = {quarter} of {full} keeps {share} of the return of k = {full} ({means(returns, 1)}). "
        f"At K = 64 a decision takes {means(latency, 1)} ms: {interval(faster).mean:.2f} times less at k = 16 than at k = 64, "
        "by the protocol of App. B.6 (batch 1, 34 frames of context, 20 steps of warm-up), weights untrained."
    )
    return Outcome(
        metrics={
            **as_metrics(above_random=returns),
            "FlexLAM": {"times faster": faster} | ({} if np.isnan(kept).any() else {"return kept": kept}),
            **{name: {"milliseconds": values} for name, values in latency.items()},
        },
        holds=low is not None and low >= 0.95 and min(faster) >= 3.6,
        explanation=text,
        plot=BarPlot(
            "Return over the tokens of a decision",
            "normalized return (random = 0, expert = 100)",
            list(returns),
            {"FlexLAM": [interval(v) for v in returns.values()]},
        ),
    )


def latencies(timed: int) -> dict[str, float]:
    """Milliseconds of a decision at K = 64, k = 4, 16, 64, mean of ``timed`` steady steps; untrained weights take as long."""
    options = flexlam.Config(size="tiny", image=(64, 64), slots=64, decoder="unet")
    torch.manual_seed(0)
    model = LatentActionModel(flexlam.build(options)).eval()
    codebook = model.lam.bottleneck.codebook_size
    tokens = TokenModel(TokenConfig(size="tiny"), model.config.image, 64, codebook).eval()  # type: ignore[arg-type]
    translator = Translator(64 * model.lam.dim, ActionSpec(discrete=(9,))).eval()
    policy = TokenPolicy(model, tokens, translator, batch=1)
    times = decision_times(policy, (4, 16, 64), timed=timed)
    return {f"K = 64, k = {k}": float(np.mean(milliseconds)) for k, milliseconds in times.items()}
