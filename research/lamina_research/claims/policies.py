"""The claims about policies: what latent actions are worth in closed loop (ALAM §4.2, App. F; AC-LAM §4.3; and Lamina's own)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lamina.envs.registry import SUITES
from lamina.methods import alam, lapo
from lamina_research.claims.policy_study import PolicySpec, PolicyStudy
from lamina_research.claims.structure_study import ac_lam_model, alam_model, other_methods, rivals
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import BarPlot, LinePlot
from lamina_research.seeds import Metrics, below, interval, over_seeds, paired_difference
from lamina_research.study import ModelSpec
from lamina_research.text import means_of, signed

ALONE, ALONE_TWICE, OURS, PLAIN = "actions alone", "actions alone, as many rows", "ALAM", "without the losses"
INTERVENTIONS = ("freeze", "block", "shuffle")


def structured(seed: int) -> ModelSpec:
    """ALAM's LAM, which also gives its model folder to policies that read none."""
    return alam_model(seed)


def flexlam_model(seed: int) -> ModelSpec:
    """FlexLAM on the common backbone."""
    return next(model for model in other_methods(seed) if model.label == "FlexLAM")


def pair_model(seed: int) -> ModelSpec:
    """A LAM of frame pairs without a triplet's long pair: Table 4's LAM."""
    return ModelSpec(lapo, seed, {"whiten": "first"}, "LAM of pairs")


def with_latents(model: ModelSpec, label: str = "", **options: Any) -> PolicySpec:
    """A policy that generates the latents of a LAM."""
    return PolicySpec(label or model.label, model.seed, model, **options)


def alone(seed: int, **options: Any) -> PolicySpec:
    """A policy of actions alone."""
    return PolicySpec(ALONE, seed, **options)


def alone_twice(seed: int, **options: Any) -> PolicySpec:
    """A policy of actions alone whose batch has as many rows as that of a policy with latents, all labelled: equal computation."""
    return PolicySpec(ALONE_TWICE, seed, as_many_rows=True, **options)


def higher(metrics: Metrics, ours: str, theirs: str, metric: str = "success") -> bool:
    """Whether ours has significantly more success, paired over seeds."""
    return below(metrics[theirs][metric], metrics[ours][metric])


def gain(metrics: Metrics, ours: str, theirs: str, metric: str = "success") -> str:
    """The difference in percentage points, with its interval."""
    return signed(paired_difference(metrics[ours][metric], metrics[theirs][metric]))


def tier_plot(title: str, metrics: Metrics, names: Sequence[str]) -> BarPlot:
    """Success of policies by tier, and the mean of all tasks."""
    tiers = [key for key in metrics[names[0]] if key.startswith("success, ") and "/" not in key]
    groups = [*(key.removeprefix("success, ") for key in tiers), "all"]
    series = {name: [metrics[name][key] for key in (*tiers, "success")] for name in names}
    return BarPlot(title, "success, percent", groups, series)


def policy(experiment: Experiment) -> Outcome:
    """Success with the latents of several LAMs beside the actions, and of the actions alone, with few labels (Table 1)."""
    study = PolicyStudy(experiment)

    def models(seed: int) -> tuple[ModelSpec, ...]:
        villa_x = next(model for model in rivals(seed) if model.label == "villa-X")
        return (structured(seed), alam_model(seed, False), ac_lam_model(seed), villa_x, flexlam_model(seed))

    def policies(seed: int) -> list[PolicySpec]:
        every = [with_latents(model) for model in models(seed)]
        few = [
            replace(with_latents(model, f"{model.label}, labelled episodes alone"), all_episodes=False)
            for model in models(seed)[:2]  # ALAM, and the same encoder without its losses
        ]
        return [alone(seed), alone_twice(seed), *every, *few]

    metrics = study.table(policies, structured)
    names = [ALONE, ALONE_TWICE, *(model.label for model in models(0))]
    text = (
        f"Success in percent with {study.setup.labels} labelled episodes a task: {means_of(metrics, 'success', 1)}. "
        f"ALAM's latents change it by {gain(metrics, OURS, ALONE)} points against actions alone with the same labelled rows in a batch, by "
        f"{gain(metrics, OURS, ALONE_TWICE)} with as many rows in all, and by {gain(metrics, OURS, PLAIN)} against the latents of the same "
        "encoder without its two losses."
    )
    holds = higher(metrics, OURS, ALONE) and higher(metrics, OURS, ALONE_TWICE)
    return Outcome(metrics, holds, text, (tier_plot("Latents beside actions", metrics, names),))


def coupling(experiment: Experiment) -> Outcome:
    """Latents with and without structure, joint or two-stage generation, flow matching or diffusion: the six rows of Table 3."""
    study = PolicyStudy(experiment)
    rows: dict[str, tuple[bool | None, dict[str, Any]]] = {
        ALONE: (None, {}),
        "LAM, joint, diffusion": (False, {"framework": "diffusion"}),
        "ALAM, joint, diffusion": (True, {"framework": "diffusion"}),
        "LAM, joint, flow": (False, {}),
        "ALAM, two-stage, flow": (True, {"generation": "two_stage"}),
        "ALAM, joint, flow": (True, {}),
    }

    def policies(seed: int) -> list[PolicySpec]:
        return [
            PolicySpec(label, seed, None if kind is None else alam_model(seed, kind), flow=options)
            for label, (kind, options) in rows.items()
        ]

    metrics = study.table(policies, structured)
    *others, ours = rows
    text = (
        f"Success in percent: {means_of(metrics, 'success', 1)}. Structure adds {gain(metrics, ours, 'LAM, joint, flow')} points under "
        f"flow matching and {gain(metrics, 'ALAM, joint, diffusion', 'LAM, joint, diffusion')} under diffusion; joint generation "
        f"{gain(metrics, ours, 'ALAM, two-stage, flow')}; flow matching {gain(metrics, ours, 'ALAM, joint, diffusion')}."
    )
    plot = tier_plot("Generative framework", metrics, list(rows))
    return Outcome(metrics, all(higher(metrics, ours, other) for other in others), text, (plot,))


def losses(experiment: Experiment) -> Outcome:
    """Policies with the latents of ALAM without one or both of its losses, and of a LAM of pairs (Table 4)."""
    study = PolicyStudy(experiment)
    kept = {
        "without both": (0.0, 0.0),
        "without reversal": (0.01, 0.0),
        "without composition": (0.0, 0.01),
        OURS: (0.01, 0.01),
    }

    def models(seed: int) -> list[ModelSpec]:
        base = alam_model(seed)
        variants = [
            ModelSpec(alam, seed, {**base.options, "composition": c, "reversal": r}, label, "continuous")
            for label, (c, r) in kept.items()
        ]
        return [pair_model(seed), *variants]

    metrics = study.table(lambda seed: [alone(seed), *(with_latents(model) for model in models(seed))], structured)
    single = ("without reversal", "without composition")
    text = (
        f"Success in percent: {means_of(metrics, 'success', 1)}. Against neither loss: composition alone "
        f"{gain(metrics, single[0], 'without both')}, reversal alone {gain(metrics, single[1], 'without both')}, both "
        f"{gain(metrics, OURS, 'without both')} points."
    )
    helps = all(higher(metrics, name, "without both") for name in single)
    best = all(higher(metrics, OURS, name) for name in (*single, "without both"))
    names = [ALONE, *(model.label for model in models(0))]
    return Outcome(metrics, helps and best, text, (tier_plot("The two losses", metrics, names),))


def interventions(experiment: Experiment) -> Outcome:
    """One trained policy whose actions see noise, nothing, or latents in another order (App. F)."""
    study = PolicyStudy(experiment)

    def scores(seed: int) -> dict[str, dict[str, float]]:
        spec = with_latents(structured(seed))
        return {name: study.success(spec, spec.lam, intervention=name) for name in ("none", *INTERVENTIONS)}  # type: ignore[arg-type]

    metrics = over_seeds(scores(seed) for seed in experiment.seeds)
    changes = ", ".join(f"{name} {gain(metrics, name, 'none')}" for name in INTERVENTIONS)
    text = f"Success in percent: {means_of(metrics, 'success', 1)}. Change in points: {changes}."
    holds = all(higher(metrics, "none", name) for name in INTERVENTIONS)
    return Outcome(
        metrics, holds, text, (tier_plot("Interventions on the latents", metrics, ["none", *INTERVENTIONS]),)
    )


def ac_lam_policy(experiment: Experiment) -> Outcome:
    """Policies of villa-X's form with the latents of AC-LAM and of its rivals, in the scenes of the demonstrations and in changed ones."""
    study = PolicyStudy(experiment)

    def policies(seed: int) -> list[PolicySpec]:
        form = {"form": "villa_x"}
        models = (ac_lam_model(seed), *rivals(seed))
        return [replace(alone(seed), flow=form), *(replace(with_latents(model), flow=form) for model in models)]

    world = study.setup.data.world
    suites = {"ID": world}
    if world in SUITES:
        suites |= {"OOD-B": f"{world}-ood-b", "OOD-D": f"{world}-ood-d"}
    tables = {name: study.table(policies, structured, worlds=suite) for name, suite in suites.items()}
    metrics: Metrics = {
        label: {f"success, {name}": table[label]["success"] for name, table in tables.items()} for label in tables["ID"]
    }
    ours, others = "AC-LAM", [label for label in metrics if label != "AC-LAM"]
    won = {name: [other for other in others if higher(metrics, ours, other, f"success, {name}")] for name in suites}
    text = " ".join(
        f"{name}: {means_of(metrics, f'success, {name}', 1)}; AC-LAM is significantly above {len(won[name])} of {len(others)}."
        for name in suites
    )
    plot = BarPlot(
        "Latents of several LAMs", "success, percent", list(suites),
        {label: [row[f"success, {name}"] for name in suites] for label, row in metrics.items()},
    )  # fmt: skip
    return Outcome(metrics, all(len(names) == len(others) for names in won.values()), text, (plot,))


def worth(count: float, counts: Sequence[int], ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many labelled episodes give ``theirs`` the success that ``count`` of them give ours, on a line between the measured counts
    (in their logarithm). Above the last count where theirs never gets there: infinity; at or below the first: that one."""
    wanted = float(np.interp(np.log(count), np.log(counts), ours))
    best = np.maximum.accumulate(theirs)
    if wanted > best[-1]:
        return float("inf")
    n = int(np.argmax(best >= wanted))
    if n == 0:
        return float(counts[0])
    share = (wanted - best[n - 1]) / (best[n] - best[n - 1])
    return float(np.exp(np.log(counts[n - 1]) + share * (np.log(counts[n]) - np.log(counts[n - 1]))))


def few_labels(experiment: Experiment) -> Outcome:
    """Success over the number of labelled episodes, with and without the latents of many unlabelled ones, and what those are worth."""
    study = PolicyStudy(experiment)
    counts = study.setup.counts
    kinds: dict[str, Callable[[int, int], PolicySpec]] = {
        ALONE: lambda seed, n: alone(seed, labels=n),
        OURS: lambda seed, n: with_latents(structured(seed), labels=n),
    }

    def scores(seed: int) -> dict[str, dict[str, float]]:
        return {
            name: {f"success, {n} labels": study.success(kind(seed, n), structured(seed))["success"] for n in counts}
            for name, kind in kinds.items()
        }

    metrics = over_seeds(scores(seed) for seed in experiment.seeds)
    curves = {name: [interval(row[f"success, {n} labels"]).mean for n in counts] for name, row in metrics.items()}
    worths = {n: worth(n, counts, curves[OURS], curves[ALONE]) for n in counts}
    gains = {n: gain(metrics, OURS, ALONE, f"success, {n} labels") for n in counts}
    told = ", ".join(f"{n} labels are worth {worths[n]:.1f} ({gains[n]} points)" for n in counts)
    text = f"With ALAM's latents of the unlabelled episodes, {told}."
    few = [n for n in counts if n <= study.setup.labels]
    holds = all(higher(metrics, OURS, ALONE, f"success, {n} labels") for n in few)
    series = {name: [row[f"success, {n} labels"] for n in counts] for name, row in metrics.items()}
    plot = LinePlot(
        "What unlabelled episodes are worth", "success, percent", list(counts), series, xlabel="labelled episodes of a task",
        log_x=True,
    )  # fmt: skip
    return Outcome(metrics, holds, text, (plot,))
