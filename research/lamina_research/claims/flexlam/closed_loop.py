"""Claims about token policies: returns at matched budgets, and what a shorter prefix saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan

import numpy as np
import torch

from lamina.methods import flexlam
from lamina.models.heads import Translator
from lamina.models.hub import LatentActionModel
from lamina.policies.latency import decision_times
from lamina.policies.token_model import TokenConfig, TokenModel
from lamina.policies.token_policy import TokenPolicy
from lamina.types import ActionSpec
from lamina_research.claims.flexlam.study import FlexLAMStudy, Labels, contenders, flexlam_spec
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import BarPlot
from lamina_research.seeds import below, column, interval, over_seeds, paired_difference
from lamina_research.text import listed, means, means_of

RETURN = "normalised return (random = 0, expert = 100)"


def matched_budget(experiment: Experiment) -> Outcome:
    """FlexLAM@k against a separately trained Fixed-Kk, with scarce labels: held-out loss and return (Fig. 3)."""
    study = FlexLAMStudy(experiment)
    s = study.setup
    labels, rollout_labels = Labels(s.labels), Labels(s.rollout_labels)
    supervised = "supervised on every label"

    def scores(seed: int) -> Iterator[dict[str, dict[str, float]]]:
        losses = study.budget_losses(labels, seed) | study.controls(flexlam_spec(seed), labels)
        yield {name: {"loss": loss} for name, loss in losses.items()}
        yield {supervised: {"loss": study.supervised(seed)}}
        for k in s.budgets:
            for name, model in contenders(k, seed).items():
                yield {name: study.returns(model, rollout_labels, k)}

    metrics = over_seeds(row for seed in experiment.seeds for row in scores(seed))
    loss, returns = column(metrics, "loss"), column(metrics, "above_random")
    pairs = {k: tuple(contenders(k, 0)) for k in s.budgets}  # names at each budget
    ours, theirs = zip(*pairs.values(), strict=True)
    wins_loss = [k for k, (one, other) in pairs.items() if below(loss[one], loss[other])]
    wins_return = [k for k, (one, other) in pairs.items() if below(returns[other], returns[one])]
    gap = [f"{paired_difference(loss[a], loss[b]).mean:+.3f} at {k}" for k, (a, b) in pairs.items()]
    controls = {name: loss[name] for name in ("shuffled latents", "copy-frame", "random-weights encoder")}

    def both(values: dict[str, Sequence[float]], digits: int) -> str:
        return "; ".join(means({name: values[name] for name in names}, digits) for names in (ours, theirs))

    text = (
        f"{s.labels} labels. Loss: {both(loss, 3)}; FlexLAM minus Fixed-K {', '.join(gap)}. "
        f"Controls: {means(controls)}; supervised on every label {interval(loss[supervised]).mean:.3f}. "
        f"Return with {s.rollout_labels} labels, 0 = random and 100 = expert: {both(returns, 1)}. "
        f"FlexLAM is significantly better in loss at k = {listed(wins_loss)}, in return at k = {listed(wins_return)}."
    )
    series = {"FlexLAM": [returns[name] for name in ours], "Fixed-K": [returns[name] for name in theirs]}
    plot = BarPlot(f"Matched budgets, {s.rollout_labels} labels", RETURN, [f"k = {k}" for k in s.budgets], series)
    return Outcome(metrics, wins_loss == wins_return == list(s.budgets), text, (plot,))


def token_budget(experiment: Experiment) -> Outcome:
    """The share of the return that a quarter of the tokens keeps, and the time of a decision that it saves (Table 2)."""
    study = FlexLAMStudy(experiment)
    s = study.setup
    *_, quarter, full = s.budgets

    def scores(seed: int) -> Iterator[dict[str, dict[str, float]]]:
        returns = {k: study.returns(flexlam_spec(seed), Labels(s.rollout_labels), k)["above_random"] for k in s.budgets}
        yield {f"FlexLAM@{k}": {"above_random": value} for k, value in returns.items()}
        times = latencies(s.timed)
        yield {name: {"milliseconds": time} for name, time in times.items()}
        kept = returns[quarter] / returns[full] if returns[full] > 0 else nan
        yield {"FlexLAM": {"times faster": times["K = 64, k = 64"] / times["K = 64, k = 16"], "return kept": kept}}

    metrics = over_seeds(row for seed in experiment.seeds for row in scores(seed))
    faster, kept = metrics["FlexLAM"]["times faster"], interval(metrics["FlexLAM"]["return kept"])
    if np.isnan(kept.mean):
        del metrics["FlexLAM"]["return kept"]
    returns = column(metrics, "above_random")
    share = "an undefined share (it is not above random)" if np.isnan(kept.mean) else f"{100 * kept.mean:.0f}%"
    text = (
        f"k = {quarter} of {full} keeps {share} of the return of k = {full} ({means(returns, 1)}). "
        f"At K = 64 a decision takes {means_of(metrics, 'milliseconds', 1)} ms: {interval(faster).mean:.2f} times less at k = 16 than at "
        "k = 64, by the protocol of App. B.6 (batch 1, 34 frames of context, 20 steps of warm-up), with untrained weights."
    )
    series = {"FlexLAM": list(returns.values())}
    plot = BarPlot("Return over the tokens of a decision", RETURN, list(returns), series)
    return Outcome(metrics, kept.low >= 0.95 and min(faster) >= 3.6, text, (plot,))


def latencies(timed: int) -> dict[str, float]:
    """Milliseconds of a decision at K = 64 and k = 4, 16 and 64, mean of ``timed`` decisions after warm-up; weights are untrained."""
    options = flexlam.Config(size="tiny", image=(64, 64), slots=64, decoder="unet")
    torch.manual_seed(0)
    model = LatentActionModel(flexlam.build(options)).eval()
    codebook = model.lam.bottleneck.codebook_size
    tokens = TokenModel(TokenConfig(size="tiny"), model.config.image, 64, codebook).eval()  # type: ignore[arg-type]
    translator = Translator(64 * model.lam.dim, ActionSpec(discrete=(9,))).eval()
    policy = TokenPolicy(model, tokens, translator, batch=1)
    times = decision_times(policy, (4, 16, 64), timed=timed)
    return {f"K = 64, k = {k}": float(np.mean(milliseconds)) for k, milliseconds in times.items()}
