"""The claims of ALAM (arXiv 2605.10819): latents that add up and reverse."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lamina.data.sampling import open_source
from lamina.evaluation.pictures import composed_picture
from lamina.evaluation.probes.horizon import other_episode, transfer
from lamina_research.claims.structure_study import (
    ModelEntry,
    StructureStudy,
    alam_model,
    gains,
    invalid_entries,
    void_text,
)
from lamina_research.experiment import Claim, Experiment, Outcome
from lamina_research.figures import LinePlot
from lamina_research.seeds import Interval, below, interval, paired_difference
from lamina_research.text import means_of

PAPER = "ALAM, arXiv 2605.10819"
SCALES = ("smoke", "cpu", "gpu")
#: How many times smaller the raw errors must be; and how many dB at one stride may be lost for it.
RATIO, LOSS = 10.0, 0.1


def pair(lab: StructureStudy, seeds: tuple[int, ...]) -> dict[str, list[dict[str, Any]]]:
    """Records of ALAM and of the same encoder without its two losses."""
    models = [[alam_model(seed, structured) for seed in seeds] for structured in (True, False)]
    return {of_seeds[0].label: [lab.record(model) for model in of_seeds] for of_seeds in models}


Errors = dict[tuple[str, str, str, int], list[float]]  # of each seed, by (LAM, kind, form, t)


def algebra_errors(records: dict[str, list[dict[str, Any]]]) -> tuple[Errors, dict[str, dict[str, list[float]]]]:
    """Add(t) and Rev(t) of each LAM, for the rule and as metrics of the record."""
    errors: Errors = {}
    metrics: dict[str, dict[str, list[float]]] = {}
    for name, of_seeds in records.items():
        metrics[name] = gains(of_seeds)
        for step in range(len(of_seeds[0]["horizons"])):
            at = [record["horizons"][step] for record in of_seeds]
            t, words = at[0]["t"], "seen" if at[0]["seen"] else "unseen"
            for kind, title in (("addition", "Add"), ("reversal", "Rev")):
                for form in ("raw", "relative"):
                    values = [h[kind][form]["mean"] for h in at]
                    errors[name, kind, form, t] = values
                    metrics[name][f"{title}({t}) {form}, {words}"] = values
            metrics[name][f"length({t})"] = [h["length"]["mean"] for h in at]
            if "direct" in at[0]:  # a control has no decoder
                metrics[name][f"psnr({t})"] = [h["direct"]["psnr"]["mean"] for h in at]
    return errors, metrics


def ratios(errors: Errors) -> dict[tuple[str, int], float]:
    """How many times lower the raw errors are with the two losses, by (kind, t). Add(1) is zero by construction and left out."""
    ours, plain = dict.fromkeys(name for name, *_ in errors)
    keys = [
        (kind, t) for name, kind, form, t in errors if name == ours and form == "raw" and (kind, t) != ("addition", 1)
    ]
    return {
        (kind, t): float(np.mean(errors[plain, kind, "raw", t]) / np.mean(errors[ours, kind, "raw", t]))
        for kind, t in keys
    }


def algebra(experiment: Experiment) -> Outcome:
    """Add(t) and Rev(t) for t = k to 5k, raw and by the latent's length, with and without the two losses (§4.1, Fig. 4A)."""
    lab = StructureStudy(experiment)
    records = pair(lab, experiment.seeds)
    ours, plain = records
    errors, metrics = algebra_errors(records)
    ratio = ratios(errors)
    lower = [
        key
        for key in ratio
        if below(errors[ours, key[0], "relative", key[1]], errors[plain, key[0], "relative", key[1]])
    ]
    kept = paired_difference(metrics[ours]["psnr(1)"], metrics[plain]["psnr(1)"])
    unused = invalid_entries(records)
    last = max(t for _, t in ratio)
    trend = ""
    for size in lab.setup.smaller:
        of_size = pair(lab.of_size(size), experiment.seeds)
        small, found = algebra_errors(of_size)
        less = ratios(small)
        lost = paired_difference(found[ours]["psnr(1)"], found[plain]["psnr(1)"])
        trend += (
            f" At size {size}: {min(less.values()):.1f} to {max(less.values()):.1f} times, {_with_interval(lost)} dB."
        )
        trend += void_text(invalid_entries(of_size))
        metrics |= {f"{name}, {size}": values for name, values in found.items()}
    text = (
        f"Raw errors are {min(ratio.values()):.1f} to {max(ratio.values()):.1f} times lower with the two losses; at {last}k "
        f"{ratio['addition', last]:.1f} (addition) and {ratio['reversal', last]:.1f} (reversal). Divided by the latent's length they "
        f"are lower beyond doubt in {len(lower)} of {len(ratio)} cases. PSNR at k changes by "
        f"{_with_interval(kept)} dB.{trend}{void_text(unused)}"
    )
    strides = [h["t"] for h in records[ours][0]["horizons"]]
    controls, beside = algebra_errors(lab.controls([alam_model(seed) for seed in experiment.seeds]))
    level = {name: interval(controls[name, "addition", "relative", last]).mean for name in beside}
    text += f" Controls, addition at {last}k by length: {', '.join(f'{n} {v:.2f}' for n, v in level.items())}."
    return Outcome(
        metrics=metrics | beside,
        holds=not unused
        and min(ratio.values()) >= RATIO
        and len(lower) == len(ratio)
        and kept.low is not None
        and kept.low > -LOSS,
        explanation=text,
        plot=LinePlot(
            "Errors over the latent's length",
            "horizon, strides",
            "error / length",
            strides,
            {
                f"{kind}, {name}": [interval(errors[name, kind, "relative", t]) for t in strides]
                for kind in ("addition", "reversal")
                for name in records
            },
        ),
    )


def horizon(experiment: Experiment) -> Outcome:
    """Change of PSNR and SSIM from each model's own score at k, direct and cumulative (§4.1, Fig. 4B)."""
    lab = StructureStudy(experiment)
    records = pair(lab, experiment.seeds)
    ours, plain = records
    metrics: dict[str, dict[str, list[float]]] = {name: gains(of_seeds) for name, of_seeds in records.items()}
    change: dict[tuple[str, str, int], list[float]] = {}
    for name, of_seeds in records.items():
        for way in ("direct", "cumulative"):
            for metric in of_seeds[0]["horizons"][0][way]:
                first = [record["horizons"][0][way][metric]["mean"] for record in of_seeds]
                metrics[name][f"{way} {metric} at 1"] = first
                for step, at in enumerate(of_seeds[0]["horizons"][1:], start=1):
                    values = [
                        r["horizons"][step][way][metric]["mean"] - f for r, f in zip(of_seeds, first, strict=True)
                    ]
                    metrics[name][f"{way} {metric}, change at {at['t']}"] = values
                    if metric == "psnr":
                        change[name, way, at["t"]] = values
    strides = sorted({t for _, _, t in change})
    last = strides[-1]
    slower = {way: below(change[plain, way, last], change[ours, way, last]) for way in ("direct", "cumulative")}
    leads = {
        way: _with_interval(paired_difference(change[ours, way, last], change[plain, way, last]))
        for way in ("direct", "cumulative")
    }
    unused = invalid_entries(records)
    text = (
        f"At {last}k ALAM has lost {leads['direct']} dB (direct) and {leads['cumulative']} dB (cumulative) less than the same "
        f"encoder without the two losses, each from its own score at k.{void_text(unused)}"
    )
    return Outcome(
        metrics=metrics,
        holds=not unused and all(slower.values()),
        explanation=text,
        plot=LinePlot(
            "Reconstruction over growing horizons",
            "horizon, strides",
            "change of PSNR from one stride (dB)",
            strides,
            {
                f"{way}, {name}": [interval(change[name, way, t]) for t in strides]
                for way in ("direct", "cumulative")
                for name in records
            },
        ),
    )


def _with_interval(gap: Interval) -> str:
    between = "" if gap.low is None or gap.high is None else f" ({gap.low:+.2f} to {gap.high:+.2f})"
    return f"{gap.mean:+.2f}{between}"


def moved(lab: StructureStudy, models: tuple[ModelEntry, ...]) -> dict[str, list[float]]:
    """Agreement of direct and composed latents decoded from a frame of another task, and the controls, seed by seed (dB)."""
    held = lab.held().triplets
    tasks = [open_source(lab.data().data[0]).episodes[int(e)].task for e in held.episode]
    order = {task: n for n, task in enumerate(dict.fromkeys(tasks))}
    domain = torch.tensor([order[task] for task in tasks]) if len(order) > 1 else held.episode
    start = held.frames[other_episode(domain, domain), 0]
    found: dict[str, list[float]] = {name: [] for name in ("agreement", "by chance", "margin", "moved")}
    for model in models:
        got = transfer(lab.subject(model, lab.load(model)), held.frames, start)
        for name, values in zip(found, (got.agreement, got.by_chance, got.margin, got.moved), strict=True):
            found[name].append(float(values.mean()))
    return found


def across(experiment: Experiment) -> Outcome:
    """z_ab + z_bc against z_ac, both taken in one task and decoded from a frame of another (§4.1, App. E)."""
    lab = StructureStudy(experiment)
    models = {s: tuple(alam_model(seed, s) for seed in experiment.seeds) for s in (True, False)}
    metrics = {of_seeds[0].label: moved(lab, of_seeds) for of_seeds in models.values()}
    ours, plain = metrics
    unused = invalid_entries(pair(lab, experiment.seeds))
    picture = experiment.workdir / "alam-transfer.png"
    first = models[True][0]
    composed_picture(lab.subject(first, lab.load(first)), lab.held().triplets, picture, rows=6)
    better = below(metrics[ours]["by chance"], metrics[ours]["agreement"]) and below(
        metrics[plain]["margin"], metrics[ours]["margin"]
    )
    text = (
        f"PSNR in dB between the composed and the direct rollout from a frame of another task: "
        f"{means_of(metrics, 'agreement', 2)}; above that of another triplet's latent by "
        f"{means_of(metrics, 'margin', 2)}.{void_text(unused)}"
    )
    return Outcome(metrics=metrics, holds=better and not unused, explanation=text, picture=picture)


CLAIMS = (
    Claim(
        id="alam/algebra",
        statement="The two losses lower the errors of additivity and reversal by one to two orders of magnitude.",
        paper="Section 4.1: 46 and 25 times lower at 5k, 85 times lower at k.",
        decides="Add(t) and Rev(t) for t = k to 5k on held-out episodes, one encoder with and without the two losses: at least 10 times "
        "lower raw, and lower divided by the mean latent norm (an encoder which shrinks every latent doesn't win), at every "
        "horizon, paired over seeds; PSNR at k at most 0.1 dB lower; void unless both decoders use their latent.",
        run=algebra,
        scales=SCALES,
    ),
    Claim(
        id="alam/horizon",
        statement="Direct and cumulative reconstruction degrade more slowly as the horizon grows.",
        paper="Section 4.1, Fig. 4B: +2.89 dB and +1.58 dB at 5k.",
        decides="Change of PSNR from each model's own score at k steps: at 5k ALAM loses less, direct and cumulative, paired over "
        "seeds; SSIM (and LPIPS where its weights are) beside it; void unless both decoders use their latent.",
        run=horizon,
        scales=SCALES,
    ),
    Claim(
        id="alam/losses",
        statement="Each of the two losses helps, and both together help most.",
        paper="Table 4: success 58.3, 63.6, 67.2 and 78.0.",
        decides="Downstream success and algebra errors of the five variants.",
    ),
    Claim(
        id="alam/coupling",
        statement="Structured latents, joint generation and flow matching add to one another.",
        paper="Table 3: success 38.2 to 85.0.",
        decides="Success of six variants on held-out task seeds.",
    ),
    Claim(
        id="alam/policy",
        statement="ALAM's latents raise the success of a flow policy on MetaWorld.",
        paper="Table 1: 47.9 to 85.0 on MT50.",
        decides="Success per tier of a policy with and without latents, on the same budget of scripted-expert data.",
    ),
    Claim(
        id="alam/interventions",
        statement="Freezing, masking or shuffling the latent stream at test time hurts the policy.",
        paper="Appendix F: 85.0 falls to between 75 and 77.",
        decides="Success of one trained policy under the three interventions.",
    ),
    Claim(
        id="alam/transfer",
        statement="Latents of one domain, composed, act in another.",
        paper="Appendix E: pictures.",
        decides="PSNR between the composed and the direct rollout from a frame of another task is above that of another triplet's "
        "latent, and by more than without the two losses, paired over seeds; and the picture.",
        run=across,
        scales=SCALES,
    ),
)
