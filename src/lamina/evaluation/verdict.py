"""The verdict: the findings of the probes in plain words, the most severe first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lamina.data.paired import are_related
from lamina.evaluation.probes.exogenous import PairedLatents, SwapScore
from lamina.evaluation.probes.reconstruction import ReconstructionScore
from lamina.evaluation.probes.translation import TranslationScore
from lamina.intervals import Estimate, bootstrap_mean
from lamina.methods.auxiliary import FLOW_WEIGHT, ROBUST_WEIGHT
from lamina.types import Clip

Finding = tuple[str, str]  # level (bad, warn, good, note) and one plain sentence


def judge_reconstruction(scores: list[ReconstructionScore], clip: Clip) -> Iterator[Finding]:
    """Findings on latent usage and on the prediction against a copy of the frame."""
    model = [s for s in scores if s.role == "model"]
    full = model[-1]
    other = next(s for s in scores if s.name == "shuffled latents")
    copy = next(s for s in scores if s.name == "copy-frame")
    used = bootstrap_mean(full.psnr - other.psnr, clip.episode)
    better = f"the right latent predicts the next frame {used.mean:.2f} dB better than another transition's"
    if used.low > 0.5:
        yield "good", f"The latent is used: {better}."
    elif used.low > 0:
        yield "warn", f"The latent is used only a little: {better}. Lengthen --gap or train longer."
    else:
        yield (
            "bad",
            "The latent is ignored: another transition's latent predicts the next frame as well. "
            "Trust nothing below. Lengthen --gap or train longer.",
        )
    gain = bootstrap_mean(full.psnr - copy.psnr, clip.episode)
    if gain.low > 0:
        yield "good", f"Predictions beat copying the frame by {gain.mean:.1f} dB."
    else:
        yield (
            "bad",
            f"Predictions are no better than a copy of the frame ({gain.mean:+.1f} dB): train longer or lengthen --gap.",
        )
    if len(model) > 1:
        growth = bootstrap_mean(full.psnr - model[0].psnr, clip.episode)
        yield "note", f"From k = {model[0].k} to k = {full.k} slots the prediction gains {growth.mean:+.1f} dB."


def judge_translation(scores: list[TranslationScore], clip: Clip, labels: int) -> Iterator[Finding]:
    """Findings on the translator's loss against the strongest control, the references, and the best prefix."""
    ours = [s for s in scores if s.role == "model" and not s.name.endswith("joint")]
    baselines = [s for s in scores if s.role == "control"]
    if not ours or not baselines:
        return
    full = ours[-1]
    strongest = min(baselines, key=lambda s: float(s.loss.mean()))
    gap = bootstrap_mean(strongest.loss - full.loss, clip.episode)
    figures = f"loss {full.loss.mean():.2f} at k = {full.k} against {strongest.loss.mean():.2f} for '{strongest.name}'"
    if gap.low > 0:
        yield (
            "good",
            f"With {labels} labels the latents tell the actions better than every control: {figures}, the strongest.",
        )
    elif gap.mean > 0:
        yield (
            "warn",
            f"With {labels} labels the latents look better than every control, but not beyond doubt: {figures}. "
            "Use more labels or more test episodes.",
        )
    else:
        yield "bad", f"With {labels} labels the latents tell no more about the actions than a control does: {figures}."
    best = min(ours, key=lambda s: float(s.loss.mean()))
    if best is not full:
        yield "note", f"The best prefix for the actions is k = {best.k}: loss {best.loss.mean():.2f}."
    for reference in (s for s in scores if s.role == "reference"):
        if bootstrap_mean(reference.loss - best.loss, clip.episode).high < 0:
            yield (
                "warn",
                f"On these labels '{reference.name}' does better than the latents: "
                f"loss {reference.loss.mean():.2f} against {best.loss.mean():.2f}.",
            )


def judge_exogenous(
    views: PairedLatents | None, clip: Clip, alike: Estimate | None, actions: bool
) -> Iterator[Finding]:
    """Findings on what the exogenous state changes in the latent, with the remedy that the data allows.

    ``views``: None without paired views; a SwapScore where the model predicts pictures. ``alike``: the estimate of whether the paired
    views show the same states. ``actions``: the data has action labels.
    """
    apart = alike is not None and not are_related(alike)
    target = (
        f"--robust-target {ROBUST_WEIGHT:g}, which a few of your action labels allow"
        if actions
        else f"--robust-target {FLOW_WEIGHT:g} --target flow, which needs no labels and helps where the camera stands still"
    )
    if views is None:
        yield (
            "note",
            "How much of the latent is not the agent's doing can't be told without paired views of the same states (--paired). Where "
            f"background or camera move by themselves, train with {target}.",
        )
        return
    if apart:
        yield (
            "bad",
            "The paired views do not seem to show the same states: the change in one tells nothing of the change in the other. What a "
            f"latent holds of their exogenous states can't be told, and they are nothing to train on; {target}, needs none.",
        )
        return
    change, whole = views.future_change(clip.episode), views.inconsistency(clip.episode)
    if math.isnan(change.mean):
        yield (
            "bad",
            "The latent is the same for every transition: it holds neither what the agent did nor anything else.",
        )
        return
    found = (
        f"another exogenous state of the next frame changes it by {change.mean:.2f} of the change between unrelated transitions "
        f"({whole.mean:.2f} with both frames)"
    )
    copied = False
    if isinstance(views, SwapScore):
        lost = bootstrap_mean(views.reconstruction - views.swap, clip.episode)
        copied = bootstrap_mean(views.swap_as_paired - views.swap, clip.episode).low > 0
        found += f"; under another one the prediction loses {lost.mean:.1f} dB"
        found += " and looks more like that other frame than like its own" if copied else ""
    if change.low > 0.5 or copied:
        yield (
            "bad",
            f"The latent copies what the agent did not do: {found}. Train with --cross-exogenous 1, which paired views allow, or with "
            f"{target}.",
        )
    elif change.low > 0.1:
        yield (
            "warn",
            f"Part of the latent is not the agent's doing: {found}. --cross-exogenous 1 (paired views), or {target}, may help.",
        )
    else:
        yield "good", f"The latent holds little that is not the agent's doing: {found}."


def judge_leakage(rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """The accuracy of the classifier of environments, as a note: motion alone can identify an environment, so no check can fail."""
    if not rows:
        return
    key = "leak_unseen" if all(row["leak_unseen"] for row in rows) else "leak"
    accuracy = {row["name"]: row[key]["mean"] for row in rows}
    (own,) = (row["name"] for row in rows if row["role"] == "model")
    others = ", ".join(f"{name} {value:.0%}" for name, value in accuracy.items() if name != own)
    seen = " of episodes that it never saw" if key == "leak_unseen" else ""
    yield (
        "note",
        f"A classifier{seen} names the environment from the latent in {accuracy[own]:.0%} of the cases ({others}).",
    )


def judge_use(structure: dict[str, Any]) -> Iterator[Finding]:
    """Findings on latent usage by the structural probes, for models that predict no pictures."""
    first = next(record for record in structure["records"] if record["role"] == "model")
    if first["void"]:
        yield (
            "bad",
            f"{first['void'][0].upper()}{first['void'][1:]}. Trust nothing below. Lengthen --gap or train longer.",
        )
    elif first["use"]:
        gain = first["use"]["another"]["mean"]
        yield (
            "good",
            f"The latent is used: the right latent predicts what follows {gain:.2f} dB better than another transition's.",
        )


def judge_structure(structure: dict[str, Any]) -> Iterator[Finding]:
    """Composition and reversal errors, as notes, since most methods do not train for them; a warning where the scores are invalid."""
    controlled = any(r["role"] == "control" for r in structure["records"])
    for record in (r for r in structure["records"] if r["role"] == "model"):
        if record["void"]:
            yield "warn", f"Structure of the latent ({record['name']}): void, {record['void']}."
            continue
        last = record["horizons"][-1]
        addition, reversal = (last[name]["relative"]["mean"] for name in ("addition", "reversal"))
        yield (
            "note",
            f"Structure of the latent ({record['name']}): over {last['t']} strides of {structure['stride_seconds']:g} s, sums of short "
            f"latents miss the long one by {addition:.0%} of its length, and the way back misses the way there by {reversal:.0%}."
            + ("" if controlled else " There is no random-weights control to compare with."),
        )


def verdict(
    reconstruction: list[ReconstructionScore],
    decoded: Clip,
    translation: list[TranslationScore],
    test: Clip,
    labels: int,
    code_warnings: list[str],
    structure: dict[str, Any] | None = None,
) -> list[Finding]:
    """The findings of every evaluation. ``decoded``: the transitions that were reconstructed; ``test``: those translated."""
    found: list[Finding] = []
    if reconstruction:
        found += judge_reconstruction(reconstruction, decoded)
    elif structure:
        found += judge_use(structure)
    found += judge_translation(translation, test, labels)
    found += judge_structure(structure) if structure else []
    found += [("warn", f"{text[0].upper()}{text[1:]}.") for text in code_warnings]
    return found


def summary(findings: list[Finding]) -> str:
    """One sentence: the most severe finding; without a failed check, the one on the actions, or else the first."""
    bad = [text for level, text in findings if level == "bad"]
    actions = [text for _, text in findings if " labels the latents " in text]
    first = [*bad, *actions, *(text for _, text in findings), "Nothing could be measured."]
    return first[0]


def in_order(findings: list[Finding]) -> list[dict[str, str]]:
    """Findings as {"level", "text"}, the most severe first."""
    order = ["bad", "warn", "good", "note"]
    return [{"level": level, "text": text} for level, text in sorted(findings, key=lambda f: order.index(f[0]))]
