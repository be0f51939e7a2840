"""Claims about translators: label counts, a narrow source, prefixes, joint alignment, conditioning, p(k)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import nan

from scipy.stats import spearmanr

from lamina.models.heads import Condition
from lamina_research.claims.flexlam.study import FlexLAMStudy, Labels, contenders, flexlam_spec
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import BarPlot, LinePlot
from lamina_research.seeds import below, column, interval, over_seeds
from lamina_research.text import listed, means, means_of, yes_no

LOSS = "held-out loss (nats)"
BLIND = "shuffled latents, k = 1"


def label_scaling(experiment: Experiment) -> Outcome:
    """Held-out loss over the number of labels (Fig. 3, left)."""
    study = FlexLAMStudy(experiment)
    s, gap = study.setup, "Fixed-K minus FlexLAM, mean over budgets"

    def scores(seed: int, number: int) -> dict[str, dict[str, float]]:
        losses = study.budget_losses(Labels(number), seed)
        losses[gap] = sum(losses[f"Fixed-K{k}"] - losses[f"FlexLAM@{k}"] for k in s.budgets) / len(s.budgets)
        return {name: {f"loss at {number} labels": loss} for name, loss in losses.items()}

    metrics = over_seeds(scores(seed, number) for seed in experiment.seeds for number in s.label_counts)
    curves = {name: [row[f"loss at {number} labels"] for number in s.label_counts] for name, row in metrics.items()}
    gaps = dict(zip(s.label_counts, curves.pop(gap), strict=True))
    text = f"Fixed-K's loss minus FlexLAM's, mean over k = {listed(s.budgets)}: "
    text += listed(f"{interval(values).mean:+.3f} at {number}" for number, values in gaps.items()) + " labels."
    holds = interval(gaps[s.labels]).low > 0 and below(gaps[s.label_counts[-1]], gaps[s.labels])
    title = "Translator loss over the number of labels"
    plot = LinePlot(title, LOSS, s.label_counts, curves, xlabel="labelled transitions", log_x=True)
    return Outcome(metrics, holds, text, (plot,))


def narrow_source(experiment: Experiment) -> Outcome:
    """Labels from one task, scored on all the others, against as many labels from all tasks (Fig. 4)."""
    study = FlexLAMStudy(experiment)
    s, task = study.setup, study.narrow_task()
    last = s.budgets[-1]

    def scores(seed: int) -> Iterator[dict[str, dict[str, float]]]:
        narrow = study.budget_losses(Labels(s.labels, tasks=(task,)), seed, (task,))
        wide = study.budget_losses(Labels(s.labels), seed, (task,))
        for name in narrow:
            losses = {"loss, one task": narrow[name], "loss, all tasks": wide[name]}
            yield {name: losses | {"rise": narrow[name] - wide[name]}}
        for name, model in contenders(last, seed).items():
            returns = study.returns(model, Labels(s.rollout_labels, tasks=(task,)), last)
            yield {name: {"above_random": returns["above_random"]}}

    metrics = over_seeds(row for seed in experiment.seeds for row in scores(seed))
    ours, theirs = (metrics[name] for name in contenders(last, 0))
    narrow, wide = column(metrics, "loss, one task"), column(metrics, "loss, all tasks")
    text = (
        f"{s.labels} labels of '{task}' alone, loss on the other tasks: {means(narrow)}. "
        f"Rise over as many labels from every task: {means_of(metrics, 'rise')}. "
        f"Return on the other tasks with {s.rollout_labels} labels, 0 = random and 100 = expert: {means_of(metrics, 'above_random', 1)}."
    )
    series = {"one task": list(narrow.values()), "all tasks": list(wide.values())}
    label = "held-out loss on the other tasks (nats)"
    plot = BarPlot("Labels from one task against labels from all", label, list(narrow), series)
    return Outcome(metrics, steadier(ours, theirs), text, (plot,))


def steadier(ours: Mapping[str, list[float]], theirs: Mapping[str, list[float]]) -> bool:
    """With a narrow source, a lower loss that rises less, and a higher return; each paired over seeds."""
    lower = all(below(ours[m], theirs[m]) for m in ("loss, one task", "rise"))
    return lower and below(theirs["above_random"], ours["above_random"])


def prefix_scaling(experiment: Experiment) -> Outcome:
    """Held-out loss over all k of one model, and the controls (Fig. 7)."""
    study = FlexLAMStudy(experiment)
    s, slots = study.setup, study.setup.budgets[-1]
    ks, labels = range(1, slots + 1), Labels(s.labels)

    def scores(seed: int) -> dict[str, dict[str, float]]:
        curve = study.losses(flexlam_spec(seed), labels, ks)
        controls = study.controls(flexlam_spec(seed), labels)
        losses = {f"FlexLAM@{k}": curve[k] for k in ks} | controls
        # Of the width and the draws that it is compared with.
        losses[BLIND] = study.shuffled_loss(flexlam_spec(seed), labels, 1)
        rank = {"FlexLAM": {"spearman": float(spearmanr(ks, list(curve.values())).statistic)}}
        return {name: {"loss": loss} for name, loss in losses.items()} | rank

    metrics = over_seeds(map(scores, experiment.seeds))
    losses, rank = column(metrics, "loss"), interval(metrics["FlexLAM"]["spearman"])
    ours = {k: losses.pop(f"FlexLAM@{k}") for k in ks}
    blind = losses[BLIND]
    text = (
        f"Spearman correlation of loss with k: {rank.mean:.2f}. Loss {interval(ours[1]).mean:.3f} at k = 1 and "
        f"{interval(ours[slots]).mean:.3f} at k = {slots}; with shuffled latents, at k = 1, {interval(blind).mean:.3f}. "
        f"{s.labels} labels, mean of {s.draws} draws."
    )
    series = {"FlexLAM": list(ours.values())}
    plot = LinePlot("Translator loss over the retained prefix", LOSS, ks, series, losses, xlabel="k, slots kept")
    return Outcome(metrics, rank.high < 0 and below(ours[1], blind), text, (plot,))


def joint_alignment(experiment: Experiment) -> Outcome:
    """Inverse dynamics, Fixed-K and FlexLAM, frozen and tuned jointly (Fig. 8), all with the first draw of labels: each tunes a LAM."""
    study = FlexLAMStudy(experiment)
    slots, labels = study.setup.budgets[-1], Labels(study.setup.joint_labels)

    def scores(seed: int) -> Iterator[dict[str, dict[str, float]]]:
        yield {"IDM": {"frozen": study.controls(flexlam_spec(seed), labels)["inverse dynamics model"]}}
        for name, model in contenders(slots, seed).items():
            frozen, joint = (
                study.losses(model, replace(labels, joint=j), (slots,), draws=1)[slots] for j in (False, True)
            )
            yield {name: {"frozen": frozen, "joint": joint, "gain": frozen - joint}}

    metrics = over_seeds(row for seed in experiment.seeds for row in scores(seed))
    flexlam, fixed_k = (metrics[name] for name in contenders(slots, 0))
    idm = metrics["IDM"]["frozen"]
    idm_first = below(idm, flexlam["frozen"]) and below(idm, fixed_k["frozen"])
    joint_first = below(flexlam["joint"], idm)
    most = below(fixed_k["gain"], flexlam["gain"])
    text = (
        f"{labels.number} labels. Frozen: {means_of(metrics, 'frozen')}; joint: {means_of(metrics, 'joint')}; "
        f"gain: {means_of(metrics, 'gain')}. "
        f"Inverse dynamics leads the frozen LAMs: {yes_no(idm_first)}; joint FlexLAM passes it: {yes_no(joint_first)}; "
        f"FlexLAM gains more than Fixed-K: {yes_no(most)}."
    )
    series = {name: [row.get(name, [nan]) for row in metrics.values()] for name in ("frozen", "joint")}
    plot = BarPlot("Frozen and joint alignment", LOSS, list(metrics), series)
    return Outcome(metrics, idm_first and joint_first and most, text, (plot,))


def translator_conditioning(experiment: Experiment) -> Outcome:
    """Three translators on the same labels: z, z and the previous action, both and the frame (Fig. 10)."""
    study = FlexLAMStudy(experiment)
    s, slots = study.setup, study.setup.budgets[-1]
    conditions: dict[str, Condition] = {
        "z": "latent",
        "z + previous action": "latent+previous",
        "z + previous action + observation": "latent+previous+observation",
    }
    metrics = over_seeds(
        {name: {"loss": study.losses(flexlam_spec(seed), Labels(s.labels, condition=condition), (slots,))[slots]}}
        for seed in experiment.seeds
        for name, condition in conditions.items()
    )
    losses = column(metrics, "loss")
    alone, previous, observed = losses.values()
    plot = BarPlot("Inputs of the translator", LOSS, list(losses), {"FlexLAM": list(losses.values())})
    text = f"{s.labels} labels, k = {slots}: {means(losses)}."
    return Outcome(metrics, below(previous, alone) and below(previous, observed), text, (plot,))


def prefix_distribution(experiment: Experiment) -> Outcome:
    """FlexLAM trained with p(k) uniform, biased short and biased long (App. A.7)."""
    study = FlexLAMStudy(experiment)
    labels, slots = Labels(study.setup.labels), study.setup.budgets[-1]
    ks = range(1, slots + 1)
    options = {"short": {"prefix": "short"}, "uniform": {}, "long": {"prefix": "long"}}
    metrics = over_seeds(
        {f"p(k) {law}, k = {k}": {"loss": loss}}
        for seed in experiment.seeds
        for law, changed in options.items()
        for k, loss in study.losses(flexlam_spec(seed, **changed), labels, ks).items()
    )
    losses = {law: [metrics[f"p(k) {law}, k = {k}"]["loss"] for k in ks] for law in options}
    first, last = ({law: curve[at] for law, curve in losses.items()} for at in (0, -1))
    short_wins, long_wins = below(first["short"], first["long"]), below(last["long"], last["short"])
    text = (
        f"{labels.number} labels. At k = 1: {means(first)}; at k = {slots}: {means(last)}. "
        f"Short is better at k = 1: {yes_no(short_wins)}; long is better at k = {slots}: {yes_no(long_wins)}."
    )
    series = {f"p(k) {law}": curve for law, curve in losses.items()}
    plot = LinePlot("Three distributions of the retained prefix", LOSS, ks, series, xlabel="k, slots kept")
    return Outcome(metrics, short_wins and long_wins, text, (plot,))
