"""The claims of ALAM (arXiv 2605.10819): latents that add up and reverse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lamina.data.sampling import open_source
from lamina.evaluation.probes.horizon import other_episode, transfer
from lamina_research.claims import policies
from lamina_research.claims.structure_study import (
    Record,
    StructureStudy,
    alam_model,
    invalid,
    invalid_text,
    tabulate,
    usage,
)
from lamina_research.experiment import Claim, Experiment, Outcome
from lamina_research.figures import LinePlot
from lamina_research.seeds import Metrics, below, interval, over_seeds, paired_difference
from lamina_research.study import ModelSpec
from lamina_research.text import means_of, signed

PAPER = "ALAM, arXiv 2605.10819"
RATIO = 10.0  # how many times lower the raw errors must be
LOSS = 0.1  # how many dB of PSNR at one stride that may cost
READ = "as the decoder reads it"
KINDS = {"addition": "Add", "reversal": "Rev"}
ROUTES = ("direct", "cumulative")  # the latent of a frame pair; the sum of the latents of its single strides


def pair(seed: int) -> tuple[ModelSpec, ModelSpec]:
    """ALAM, and the same encoder without its two losses."""
    return alam_model(seed), alam_model(seed, structured=False)


OURS, PLAIN = (model.label for model in pair(0))
AS_DIFFERENCES = "ALAM, as differences"


def models(seed: int) -> tuple[ModelSpec, ...]:
    """ALAM and the same encoder without its losses, which decide; and ALAM with a pairing of ours."""
    ours = alam_model(seed)
    differences = replace(ours, options={**ours.options, "pairing": "difference"}, label=AS_DIFFERENCES)
    return (*pair(seed), differences)


def error_name(at: Record, kind: str, form: str) -> str:
    """The metrics' name of an error at a horizon; ``form``: raw, relative to the latent's length, or that as the decoder reads it."""
    return f"{KINDS[kind]}({at['t']}) {form}, {'seen' if at['seen'] else 'unseen'}"


def algebra_scores(record: Record) -> dict[str, float]:
    """The latent usage; the errors of addition and reversal in all readings, the latent's length and (with a decoder) PSNR at each
    horizon."""
    row = usage(record)
    for at in record["horizons"]:
        for kind in KINDS:
            for form in ("raw", "relative"):
                row[error_name(at, kind, form)] = at[kind][form]["mean"]
            read = at[f"{kind}_read"]
            row[error_name(at, kind, READ)] = read["relative"]["mean"] if read else np.nan
        row[f"length({at['t']})"] = at["length"]["mean"]
        if "direct" in at:
            row[f"psnr({at['t']})"] = at["direct"]["psnr"]["mean"]
    return row


def algebra(experiment: Experiment) -> Outcome:
    """Add(t) and Rev(t) for t = k to 5k, raw and relative to the latent's length, with and without the two losses (§4.1, Fig. 4A)."""
    study = StructureStudy(experiment)
    records = study.records(models)
    metrics, unused = tabulate(records, algebra_scores), invalid(records)
    horizons = {at["t"]: at for at in records[OURS][0]["horizons"]}
    last = max(horizons)

    def errors(table: Metrics, label: str, form: str, kind: str, t: int) -> list[float]:
        return table[label][error_name(horizons[t], kind, form)]

    def ratios(table: Metrics) -> dict[tuple[str, int], float]:
        """How many times lower the raw errors are with the two losses. Add(1) is zero by construction and left out."""
        keys = [(kind, t) for t in horizons for kind in KINDS if (kind, t) != ("addition", 1)]
        plain, ours = ({key: np.mean(errors(table, label, "raw", *key)) for key in keys} for label in (PLAIN, OURS))
        return {key: float(plain[key] / ours[key]) for key in keys}

    ratio = ratios(metrics)
    lower = [key for key in ratio if below(*(errors(metrics, label, "relative", *key) for label in (OURS, PLAIN)))]
    kept = paired_difference(metrics[OURS]["psnr(1)"], metrics[PLAIN]["psnr(1)"])
    text = (
        f"Raw errors are {min(ratio.values()):.1f} to {max(ratio.values()):.1f} times lower with the two losses; at {last}k "
        f"{ratio['addition', last]:.1f} (addition) and {ratio['reversal', last]:.1f} (reversal). Relative to the latent's length they "
        f"are significantly lower in {len(lower)} of {len(ratio)} cases. PSNR at k changes by {signed(kept)} dB."
    )
    read = [
        f"{kind} {interval(ours).mean:.2f} and {interval(plain).mean:.2f}"
        for kind in KINDS
        for ours, plain in [[errors(metrics, label, READ, kind, last) for label in (OURS, PLAIN)]]
    ]
    text += f" As the decoder reads latents, by length at {last}k, with and without the two losses: {', '.join(read)}."
    added = interval(errors(metrics, AS_DIFFERENCES, READ, "addition", last)).mean
    price = paired_difference(metrics[AS_DIFFERENCES]["psnr(1)"], metrics[PLAIN]["psnr(1)"])
    text += f" {AS_DIFFERENCES}: addition {added:.2f} so, PSNR {signed(price)} dB."
    trend: Metrics = {}
    for size in study.setup.smaller:
        of_size = study.of_size(size).records(pair)
        small = tabulate(of_size, algebra_scores)
        less, change = ratios(small), paired_difference(small[OURS]["psnr(1)"], small[PLAIN]["psnr(1)"])
        text += f" At size {size}: {min(less.values()):.1f} to {max(less.values()):.1f} times, {signed(change)} dB."
        text += invalid_text(invalid(of_size))
        trend |= {f"{name}, {size}": values for name, values in small.items()}
    controls = tabulate(study.controls(alam_model), algebra_scores)
    level = [f"{name} {interval(errors(controls, name, 'relative', 'addition', last)).mean:.2f}" for name in controls]
    text += f"{invalid_text(unused)} Controls, relative error of addition at {last}k: {', '.join(level)}."
    series = {
        f"{kind}, {label}": [errors(metrics, label, "relative", kind, t) for t in horizons]
        for kind in KINDS
        for label in records
    }
    plot = LinePlot(
        "Errors over the latent's length", "error / length", list(horizons), series, xlabel="horizon, strides"
    )
    holds = (
        not unused.keys() & {OURS, PLAIN}
        and min(ratio.values()) >= RATIO
        and len(lower) == len(ratio)
        and kept.low > -LOSS
    )
    return Outcome(metrics | trend | controls, holds, text, (plot,))


def horizon_scores(record: Record) -> dict[str, float]:
    """The latent usage; each reconstruction score at one stride, and its change from there at each longer horizon."""
    first, *longer = record["horizons"]
    row = usage(record)
    for route in ROUTES:
        for metric, at_one in first[route].items():
            row[f"{route} {metric} at 1"] = at_one["mean"]
            row |= {
                f"{route} {metric}, change at {at['t']}": at[route][metric]["mean"] - at_one["mean"] for at in longer
            }
    return row


def horizon(experiment: Experiment) -> Outcome:
    """Change of PSNR and SSIM from each model's own score at k, direct and cumulative (§4.1, Fig. 4B)."""
    study = StructureStudy(experiment)
    records = study.records(models)
    metrics, unused = tabulate(records, horizon_scores), invalid(records)
    strides = [at["t"] for at in records[OURS][0]["horizons"][1:]]

    def change(label: str, route: str, t: int) -> list[float]:
        return metrics[label][f"{route} psnr, change at {t}"]

    ours, plain = ({route: change(label, route, strides[-1]) for route in ROUTES} for label in (OURS, PLAIN))
    lead = {route: signed(paired_difference(ours[route], plain[route])) for route in ROUTES}
    text = (
        f"At {strides[-1]}k ALAM has lost {lead['direct']} dB (direct) and {lead['cumulative']} dB (cumulative) less than the same "
        f"encoder without the two losses, each from its own score at k.{invalid_text(unused)}"
    )
    series = {f"{way}, {label}": [change(label, way, t) for t in strides] for way in ROUTES for label in records}
    label = "change of PSNR from one stride (dB)"
    plot = LinePlot("Reconstruction over growing horizons", label, strides, series, xlabel="horizon, strides")
    return Outcome(
        metrics,
        not unused.keys() & {OURS, PLAIN} and all(below(plain[route], ours[route]) for route in ROUTES),
        text,
        (plot,),
    )


def across(experiment: Experiment) -> Outcome:
    """z_ab + z_bc against z_ac, both taken in one task and decoded from a frame of another (§4.1, App. E)."""
    study = StructureStudy(experiment)
    held = study.held().triplets
    episodes = open_source(study.dataset()).episodes
    tasks = [episodes[int(e)].task for e in held.episode]
    number = {task: n for n, task in enumerate(dict.fromkeys(tasks))}
    # With a single task: a frame of another episode.
    domain = torch.tensor([number[task] for task in tasks]) if len(number) > 1 else held.episode
    start = held.frames[other_episode(domain, domain), 0]

    def scores(model: ModelSpec) -> dict[str, float]:
        """PSNR (dB) between the frames from the direct and the composed latent, and its controls."""
        found = transfer(study.subject(model), held.frames, start)
        columns = {
            "agreement": found.agreement,
            "by chance": found.by_chance,
            "margin": found.margin,
            "moved": found.moved,
        }
        return {name: float(values.mean()) for name, values in columns.items()}

    metrics = over_seeds({model.label: scores(model)} for seed in experiment.seeds for model in pair(seed))
    ours, plain = metrics[OURS], metrics[PLAIN]
    unused = invalid(study.records(pair))
    text = (
        f"PSNR in dB between the composed and the direct rollout from a frame of another task: "
        f"{means_of(metrics, 'agreement', 2)}; above that of another triplet's latent by "
        f"{means_of(metrics, 'margin', 2)}.{invalid_text(unused)}"
    )
    holds = not unused and below(ours["by chance"], ours["agreement"]) and below(plain["margin"], ours["margin"])
    return Outcome(
        metrics, holds, text, picture=study.composed_picture(alam_model(experiment.seeds[0]), "alam-transfer.png")
    )


CLAIMS = (
    Claim(
        id="alam/algebra",
        statement="The two losses lower the errors of additivity and reversal by one to two orders of magnitude.",
        paper="Section 4.1: 46 and 25 times lower at 5k, 85 times lower at k.",
        decides="Add(t) and Rev(t) for t = k to 5k on held-out episodes, one encoder with and without the two losses: at least 10 times "
        "lower raw, and lower divided by the mean latent norm (an encoder which shrinks every latent doesn't win), at every "
        "horizon, paired over seeds; PSNR at k at most 0.1 dB lower; void unless both decoders use their latent.",
        run=algebra,
    ),
    Claim(
        id="alam/horizon",
        statement="Direct and cumulative reconstruction degrade more slowly as the horizon grows.",
        paper="Section 4.1, Fig. 4B: +2.89 dB and +1.58 dB at 5k.",
        decides="Change of PSNR from each model's own score at k steps: at 5k ALAM loses less, direct and cumulative, paired over "
        "seeds; SSIM (and LPIPS where its weights are) beside it; void unless both decoders use their latent.",
        run=horizon,
    ),
    Claim(
        id="alam/losses",
        statement="Each of the two losses helps, and both together help most.",
        paper="Table 4: success 58.3, 63.6, 67.2 and 78.0.",
        decides="Success of flow policies on held-out starts, few labels, with the latents of the same encoder under neither, one and "
        "both losses (beside a LAM of pairs and actions alone): each loss above neither, both above each, paired over seeds. Algebra "
        "errors of the variants: alam/algebra.",
        run=policies.losses,
    ),
    Claim(
        id="alam/coupling",
        statement="Structured latents, joint generation and flow matching add to one another.",
        paper="Table 3: success 38.2 to 85.0.",
        decides="Success of six variants on held-out starts, few labels: structured latents, joint generation and flow matching above "
        "each of the five others, paired over seeds.",
        run=policies.coupling,
    ),
    Claim(
        id="alam/policy",
        statement="ALAM's latents raise the success of a flow policy on MetaWorld.",
        paper="Table 1: 47.9 to 85.0 on MT50.",
        decides="Success on held-out starts of a policy with and without latents, per tier and mean, on the same few labelled "
        "demonstrations and steps: ALAM's above actions alone, paired over seeds, both with the same labelled rows in a batch and with as "
        "many rows in all; other LAMs' latents, and latents of the labelled episodes alone, beside it.",
        run=policies.policy,
    ),
    Claim(
        id="alam/interventions",
        statement="Freezing, masking or shuffling the latent stream at test time hurts the policy.",
        paper="Appendix F: 85.0 falls to between 75 and 77.",
        decides="Success of one trained policy under the three interventions: each below none, paired over seeds.",
        run=policies.interventions,
    ),
    Claim(
        id="alam/transfer",
        statement="Latents of one domain, composed, act in another.",
        paper="Appendix E: pictures.",
        decides="PSNR between the composed and the direct rollout from a frame of another task is above that of another triplet's "
        "latent, and by more than without the two losses, paired over seeds; and the picture.",
        run=across,
    ),
)
