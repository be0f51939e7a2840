"""Claims about tying latents to actions: matched budgets, label counts, a narrow source, prefixes, joint tuning, conditioning, p(k)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from scipy.stats import spearmanr

from lamina_research.claims.flexlam.study import FlexLAMStudy, Labels, fixed_k_spec, flexlam_spec
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import BarPlot, LinePlot
from lamina_research.seeds import Interval, below, interval
from lamina_research.study import ModelSpec
from lamina_research.text import means, yes_no

Values = dict[str, list[float]]  # one value a seed


def as_metrics(**named: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Sequence[float]]]:
    """``metrics[method][metric]`` from one mapping method -> values for each metric."""
    methods = dict.fromkeys(name for values in named.values() for name in values)
    return {m: {metric: values[m] for metric, values in named.items() if m in values} for m in methods}


def budget_losses(lab: FlexLAMStudy, labels: Labels, without: Sequence[str] = ()) -> tuple[Values, Values]:
    """Held-out losses of FlexLAM@k and of each Fixed-Kk, for every seed."""
    ours: Values = {f"FlexLAM@{k}": [] for k in lab.setup.budgets}
    theirs: Values = {f"Fixed-K{k}": [] for k in lab.setup.budgets}
    for seed in lab.experiment.seeds:
        losses = lab.losses(flexlam_spec(seed), labels, lab.setup.budgets, without)
        for k in lab.setup.budgets:
            ours[f"FlexLAM@{k}"].append(losses[k])
            theirs[f"Fixed-K{k}"].append(lab.losses(fixed_k_spec(k, seed), labels, (k,), without)[k])
    return ours, theirs


def label_scaling(experiment: Experiment) -> Outcome:
    """Held-out loss over the number of labels (Fig. 3, left)."""
    lab = FlexLAMStudy(experiment)
    counts, budgets = lab.setup.curve, lab.setup.budgets
    curves: dict[str, list[Values]] = {}
    gaps: dict[int, list[float]] = {}
    metrics: dict[str, dict[str, list[float]]] = {}
    for number in counts:
        ours, theirs = budget_losses(lab, Labels(number))
        for name, values in {**ours, **theirs}.items():
            curves.setdefault(name, []).append({"loss": values})
            metrics.setdefault(name, {})[f"loss at {number} labels"] = values
        per_seed = [
            sum(theirs[f"Fixed-K{k}"][i] - ours[f"FlexLAM@{k}"][i] for k in budgets) / len(budgets)
            for i in range(len(experiment.seeds))
        ]
        gaps[number] = per_seed
        metrics.setdefault("Fixed-K minus FlexLAM, mean over budgets", {})[f"loss at {number} labels"] = per_seed
    scarce, plenty = lab.setup.labels, counts[-1]
    advantage = interval(gaps[scarce])
    shrinks = below(gaps[plenty], gaps[scarce])
    text = (
        f"Fixed-K's loss minus FlexLAM's, mean over k = {', '.join(map(str, budgets))}: "
        + ", ".join(f"{interval(gap).mean:+.3f} at {number}" for number, gap in gaps.items())
        + " labels."
    )
    return Outcome(
        metrics=metrics,
        holds=advantage.low is not None and advantage.low > 0 and shrinks,
        explanation=text,
        plot=LinePlot(
            "Translator loss over the number of labels",
            "labelled transitions",
            "held-out loss (nats)",
            counts,
            {name: [interval(v["loss"]) for v in points] for name, points in curves.items()},
            log_x=True,
        ),
    )


def narrow_source(experiment: Experiment) -> Outcome:
    """Labels from one task, scored on all the others, against as many labels from all tasks (Fig. 4)."""
    lab = FlexLAMStudy(experiment)
    source, last = lab.source(), lab.setup.budgets[-1]
    labels, played = (Labels(number, tasks=(source,)) for number in (lab.setup.labels, lab.setup.played))
    narrow, wide = (_both(budget_losses(lab, x, (source,))) for x in (labels, Labels(lab.setup.labels)))
    rise = {name: [n - w for n, w in zip(narrow[name], wide[name], strict=True)] for name in narrow}
    ours, theirs = f"FlexLAM@{last}", f"Fixed-K{last}"
    returns: Values = {ours: [], theirs: []}
    for seed in experiment.seeds:
        for name, model in ((ours, flexlam_spec(seed)), (theirs, fixed_k_spec(last, seed))):
            returns[name].append(float(lab.returns(model, played, last)["above_random"]))
    text = (
        f"{labels.number} labels of '{source}' alone, loss on the other tasks: {means(narrow)}. "
        f"Rise over as many labels from every task: {means(rise)}. "
        f"Return on the other tasks with {played.number} labels, 0 = random and 100 = expert: {means(returns, 1)}."
    )
    named = {"loss, one task": narrow, "loss, all tasks": wide, "rise": rise, "above_random": returns}
    return Outcome(
        metrics=as_metrics(**named),
        holds=below(narrow[ours], narrow[theirs]) and below(rise[ours], rise[theirs]),
        explanation=text,
        plot=BarPlot(
            "Labels from one task against labels from all",
            "held-out loss on the other tasks (nats)",
            list(narrow),
            {"one task": [interval(v) for v in narrow.values()], "all tasks": [interval(v) for v in wide.values()]},
        ),
    )


def _both(pair: tuple[Values, Values]) -> Values:
    return {**pair[0], **pair[1]}


def prefix_scaling(experiment: Experiment) -> Outcome:
    """Held-out loss over every k of one model, and the controls (Fig. 7)."""
    lab = FlexLAMStudy(experiment)
    slots = lab.setup.budgets[-1]
    ks = tuple(range(1, slots + 1))
    losses: dict[int, list[float]] = {k: [] for k in ks}
    rivals: Values = {}
    correlation: list[float] = []
    for seed in experiment.seeds:
        curve = lab.losses(flexlam_spec(seed), Labels(lab.setup.labels), ks)
        for k in ks:
            losses[k].append(curve[k])
        correlation.append(float(spearmanr(ks, [curve[k] for k in ks]).statistic))
        for name, loss in lab.rivals(flexlam_spec(seed), Labels(lab.setup.labels)).items():
            rivals.setdefault(name, []).append(loss)
    rho = interval(correlation)
    blind = rivals["shuffled latents"]
    falls = rho.high is not None and rho.high < 0
    text = (
        f"Spearman correlation of loss with k: {rho.mean:.2f}. Loss {interval(losses[1]).mean:.3f} at k = 1 and "
        f"{interval(losses[slots]).mean:.3f} at k = {slots}; without the latent {interval(blind).mean:.3f}. "
        f"{lab.setup.labels} labels, mean of {lab.setup.draws} draws."
    )
    return Outcome(
        metrics={
            **{f"FlexLAM@{k}": {"loss": values} for k, values in losses.items()},
            "FlexLAM": {"spearman": correlation},
            **{name: {"loss": values} for name, values in rivals.items()},
        },
        holds=falls and below(losses[1], blind),
        explanation=text,
        plot=LinePlot(
            "Translator loss over the retained prefix",
            "k, slots kept",
            "held-out loss (nats)",
            ks,
            {"FlexLAM": [interval(losses[k]) for k in ks]},
            {name: interval(values) for name, values in rivals.items()},
        ),
    )


def joint_alignment(experiment: Experiment) -> Outcome:
    """Inverse dynamics, Fixed-K and FlexLAM, frozen and tuned jointly (Fig. 8)."""
    lab = FlexLAMStudy(experiment)
    slots = lab.setup.budgets[-1]
    frozen: Values = {"IDM": [], f"Fixed-K{slots}": [], f"FlexLAM@{slots}": []}
    joint: Values = {name: [] for name in frozen if name != "IDM"}
    labels = Labels(lab.setup.joint_labels)
    for seed in experiment.seeds:
        frozen["IDM"].append(lab.rivals(flexlam_spec(seed), labels)["inverse dynamics model"])
        for name, model in ((f"Fixed-K{slots}", fixed_k_spec(slots, seed)), (f"FlexLAM@{slots}", flexlam_spec(seed))):
            frozen[name].append(lab.losses(model, labels, (slots,))[slots])
            joint[name].append(lab.losses(model, replace(labels, joint=True), (slots,))[slots])
    gain = {name: [a - b for a, b in zip(frozen[name], joint[name], strict=True)] for name in joint}
    flexlam, rigid = f"FlexLAM@{slots}", f"Fixed-K{slots}"
    idm_first = below(frozen["IDM"], frozen[flexlam]) and below(frozen["IDM"], frozen[rigid])
    reversed_ = below(joint[flexlam], frozen["IDM"])
    most = below(gain[rigid], gain[flexlam])
    text = (
        f"{labels.number} labels. Frozen: {means(frozen)}; joint: {means(joint)}; gain: {means(gain)}. "
        f"Inverse dynamics leads the frozen LAMs: {yes_no(idm_first)}; joint FlexLAM passes it: {yes_no(reversed_)}; "
        f"FlexLAM gains more than Fixed-K: {yes_no(most)}."
    )
    names = list(frozen)
    nothing = Interval(float("nan"), None, None)
    return Outcome(
        metrics=as_metrics(frozen=frozen, joint=joint, gain=gain),
        holds=idm_first and reversed_ and most,
        explanation=text,
        plot=BarPlot(
            "Frozen and joint alignment",
            "held-out loss (nats)",
            names,
            {
                "frozen": [interval(frozen[n]) for n in names],
                "joint": [interval(joint[n]) if n in joint else nothing for n in names],
            },
        ),
    )


def translator_conditioning(experiment: Experiment) -> Outcome:
    """Three translators on the same labels: z, z and the previous action, both and the frame (Fig. 10)."""
    lab = FlexLAMStudy(experiment)
    slots = lab.setup.budgets[-1]
    what = {
        "z": "latent",
        "z + previous action": "latent+previous",
        "z + previous action + observation": "latent+previous+observation",
    }
    losses: Values = {name: [] for name in what}
    for seed in experiment.seeds:
        for name, condition in what.items():
            labels = Labels(lab.setup.labels, condition=condition)  # type: ignore[arg-type]
            losses[name].append(lab.losses(flexlam_spec(seed), labels, (slots,))[slots])
    alone, previous, observed = losses.values()
    return Outcome(
        metrics=as_metrics(loss=losses),
        holds=below(previous, alone) and below(previous, observed),
        explanation=f"{lab.setup.labels} labels, k = {slots}: {means(losses)}.",
        plot=BarPlot(
            "What the translator reads",
            "held-out loss (nats)",
            list(losses),
            {"FlexLAM": [interval(v) for v in losses.values()]},
        ),
    )


def prefix_distribution(experiment: Experiment) -> Outcome:
    """FlexLAM trained with p(k) uniform, biased short and biased long (App. A.7)."""
    lab = FlexLAMStudy(experiment)
    slots = lab.setup.budgets[-1]
    ks = tuple(range(1, slots + 1))
    laws = ("short", "uniform", "long")
    losses: dict[str, dict[int, list[float]]] = {law: {k: [] for k in ks} for law in laws}
    for seed in experiment.seeds:
        for law in laws:
            model: ModelSpec = flexlam_spec(seed) if law == "uniform" else flexlam_spec(seed, prefix=law)
            for k, loss in lab.losses(model, Labels(lab.setup.labels), ks).items():
                losses[law][k].append(loss)
    compresses = below(losses["short"][1], losses["long"][1])
    details = below(losses["long"][slots], losses["short"][slots])
    text = (
        f"{lab.setup.labels} labels. At k = 1: {means({law: losses[law][1] for law in laws})}; "
        f"at k = {slots}: {means({law: losses[law][slots] for law in laws})}. "
        f"Short is better at k = 1: {yes_no(compresses)}; long is better at k = {slots}: {yes_no(details)}."
    )
    return Outcome(
        metrics={f"p(k) {law}, k = {k}": {"loss": losses[law][k]} for law in laws for k in ks},
        holds=compresses and details,
        explanation=text,
        plot=LinePlot(
            "Three distributions of the retained prefix",
            "k, slots kept",
            "held-out loss (nats)",
            ks,
            {f"p(k) {law}": [interval(losses[law][k]) for k in ks] for law in laws},
        ),
    )
