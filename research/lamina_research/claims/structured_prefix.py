"""Do retained prefixes compose, and at what price? lamina/structured-prefix.

The LAMs of ``ac_lam/structure`` on MetaWorld are the parents: FlexLAM, which has prefixes, and ALAM, which composes. Composition is
measured in pictures: the prediction from the first k slots of Q(x_ab + x_bc) against that from the first k slots of the code of (a, c). A
direction of the latent that the decoder ignores counts for nothing there, and neither does the scale of the latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamina.data.sampling import DataConfig
from lamina.data.stream import sample_split
from lamina.evaluation.probes import translation
from lamina.evaluation.probes.usage import latent_use
from lamina.images import to_float
from lamina.inference.directions import decoder_directions
from lamina.inference.subject import subject_of
from lamina.methods import flexlam, structured_prefix
from lamina.models.heads import TranslatorConfig
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina.training.heads import head_training, train_translator
from lamina.training.labelled import actions_of, encode_labels, split_labels
from lamina.types import Clip
from lamina_research.claims.structure_study import StructureStudy, alam_model
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import LinePlot
from lamina_research.seeds import Metrics, below, interval, over_seeds
from lamina_research.study import ModelSpec
from lamina_research.text import listed

OURS, PREFIXES, ALGEBRA = "structured prefix", "FlexLAM", "ALAM"
ERRORS = ("composition", "reversal")
WORSE = 1.05  # a score is no worse than another where its mean is at most so many times that one's, and not significantly above it
BATCH = 64
DRAWS = 2  # of labels


def models(seed: int) -> tuple[ModelSpec, ...]:
    """Ours and its parents, on the same clips in the same order; the parents are those of ac_lam/structure."""
    return (
        ModelSpec(structured_prefix, seed, {"whiten": "first"}, OURS),
        ModelSpec(flexlam, seed, {"whiten": "first"}, PREFIXES),
        replace(alam_model(seed), label=ALGEBRA),
    )


def budgets(lam: LAM) -> tuple[int, ...]:
    """Powers of two up to K; K alone for a LAM without prefixes."""
    return (lam.config.slots,) if lam.config.prefix == "full" else powers(lam.config.slots)


def powers(slots: int) -> tuple[int, ...]:
    """1, 2, 4, ... below K, and K."""
    return (*(2**n for n in range(slots.bit_length()) if 2**n < slots), slots)


@torch.no_grad()
def picture_algebra(lam: LAM, frames: Tensor, k: int) -> dict[str, float]:
    """Errors of composition and reversal on triplets a < b < c (uint8 [n 3 c h w]), through the first ``k`` slots.

    Mean squared distance between the predictions from the composed (negated) and from the own code, over that between the predictions from
    the own code and from that of another triplet: 0 is exact, 1 is no better than an unrelated transition.
    """
    sums = {name: np.zeros(2) for name in ERRORS}
    for rows in torch.arange(len(frames)).split(BATCH):
        a, b, c = (to_float(frames[rows, n]) for n in range(3))
        first = {"a": lam.embed(a), "b": lam.embed(b), "c": lam.embed(c)}
        x = {pair: lam.pair(first[pair[0]], first[pair[1]]).pre for pair in ("ab", "bc", "ac", "ba")}
        routes = {"composition": (a, x["ac"], x["ab"] + x["bc"]), "reversal": (b, x["ba"], -x["ab"])}
        for name, (start, own, made) in routes.items():
            other = own.roll(len(own) // 2, 0)
            src = lam.space(start)
            told, asked, chance = (
                lam.decoder.sample(src, lam.prefix(lam.quantise(z).post, k), Rng(0)) for z in (own, made, other)
            )
            sums[name] += [float((told - asked).square().sum()), float((told - chance).square().sum())]
    return {name: float(error / by_chance) if by_chance else float("nan") for name, (error, by_chance) in sums.items()}


def ignored_share(lam: LAM, frames: Tensor) -> float:
    """The share of the continuous latents' variance along directions that the decoder ignores (lamina.inference.directions)."""
    a, b = (to_float(frames[:, n]) for n in range(2))
    with torch.no_grad():
        pre = lam.pair(lam.embed(a), lam.embed(b)).pre
        src, dst = lam.space(a), lam.space.target(b)
    return decoder_directions(lam, src, dst, pre, pre[:, lam.config.latent_action], Rng(0)).ignored()


class PrefixStudy(StructureStudy):
    """The models of :class:`StructureStudy` with what this claim measures of them."""

    def label_data(self, gap: float) -> DataConfig:
        """Transitions with the mean of the actions that they span."""
        return replace(self.data(), frames=2, gap=(gap, gap), actions="mean", action="action", proprio=None)

    def scores(self, model: ModelSpec) -> dict[str, float]:
        """Errors, PSNR and translator loss at every k, and the use of the latent."""
        s, key = self.setup, {"prefixes of": self.key(model), "windows": self.setup.windows, "split": self.setup.split}
        key |= {"labels": LABELS[self.experiment.scale], "draws": DRAWS, "stride": s.stride}
        return self.experiment.cached_value(
            key, (__name__, *self.model_code(model.method)), lambda: {} if self.stopped(model) else self._measured(model, s.split),
            needs=lambda: self.run(model),
        )  # fmt: skip

    def _measured(self, model: ModelSpec, split: str) -> dict[str, float]:
        loaded, held = self.load(model), self.held()
        lam, subject = loaded.lam, subject_of(loaded)
        frames, start, goal = held.triplets.frames, held.windows.frames[:, 0], held.windows.frames[:, 1]
        use = latent_use(subject.quantised, start, goal, held.windows.episode)
        found = {"used": float(use.used), "variance that the decoder ignores": ignored_share(lam, frames)}
        z = subject.quantised.latents(start, goal)
        losses = self.losses(model, split)
        for k in budgets(lam):
            found |= {f"{name} at k = {k}": value for name, value in picture_algebra(lam, frames, k).items()}
            error = subject.quantised.error(start, subject.truncated(z, k), goal)
            found[f"psnr at k = {k}"] = float((10 * torch.log10(4 / error.clamp_min(1e-12))).mean())
            found[f"loss at k = {k}"] = losses[k]
        return found

    def losses(self, model: ModelSpec, split: str) -> dict[int, float]:
        """Held-out loss of a translator at every k, mean over draws of the labels."""
        loaded, count = self.load(model), LABELS[self.experiment.scale]
        data = self.label_data(loaded.provenance.label_gap)
        spec, test = actions_of(data).spec, encode_labels(loaded.lam, _labelled(data, split, None))
        every: dict[int, list[float]] = {k: [] for k in budgets(loaded.lam)}
        for draw in range(DRAWS):
            few = encode_labels(loaded.lam, _labelled(data, "train", count, 1000 * model.seed + draw))
            train, held = (replace(part, clip=None) for part in split_labels(few, draw))
            training = head_training(600 if count > 100 else 20, draw)
            translator, _ = train_translator(loaded.lam.prefix, train, held, spec, TranslatorConfig(), training)
            for score in translation.score_translator(translator, loaded.lam.prefix, test, tuple(every), "", "model"):
                assert score.k is not None
                every[score.k].append(float(score.loss.mean()))
        return {k: float(np.mean(losses)) for k, losses in every.items()}


LABELS = {"smoke": 48, "cpu": 512, "gpu": 512}


@lru_cache(maxsize=8)
def _labelled(data: DataConfig, split: str, limit: int | None, seed: int = 0) -> Clip:
    return sample_split(data, split, limit, seed=seed, require_action=True)


def no_worse(ours: list[float], theirs: list[float]) -> bool:
    """Lower is better: the mean is at most 5% above the other's, and the other is not significantly lower."""
    return interval(ours).mean <= WORSE * interval(theirs).mean and not below(theirs, ours)


def structured(experiment: Experiment) -> Outcome:
    """Errors of composition and reversal, PSNR and translator loss over k, of ours and both parents."""
    study = PrefixStudy(experiment, StructureStudy(experiment).shorter().setup)
    metrics: Metrics = over_seeds(
        {model.label: study.scores(model)} for seed in experiment.seeds for model in models(seed)
    )
    ks = powers(study.setup.options["slots"])
    return decided({name: row for name, row in metrics.items() if row}, ks, len(experiment.seeds))


def decided(metrics: Mapping[str, Mapping[str, Any]], ks: tuple[int, ...], seeds: int) -> Outcome:
    """The rule, applied to the scores."""
    told = [name for name in (OURS, PREFIXES, ALGEBRA) if len(metrics.get(name, {}).get("used", ())) < seeds]
    if told:
        return Outcome(metrics, False, f"Stopped because its latents collapsed or exploded: {', '.join(told)}.")
    ours, flex, alam = (metrics[name] for name in (OURS, PREFIXES, ALGEBRA))
    unused = [name for name, row in metrics.items() if not all(row["used"])]
    top = f"k = {ks[-1]}"
    (last,) = {name.partition(" at ")[2] for name in alam if name.startswith("loss at ")}  # ALAM has more slots
    failed = [
        f"{name} at k = {k}" for name in ERRORS for k in ks if not below(*_both(ours, flex, f"{name} at k = {k}"))
    ]
    algebra = [name for name in ERRORS if not no_worse(ours[f"{name} at {top}"], alam[f"{name} at {last}"])]
    budget = [f"k = {k}" for k in ks if not no_worse(*_both(ours, flex, f"loss at k = {k}"))]
    if not no_worse(ours[f"loss at {top}"], alam[f"loss at {last}"]):
        budget.append(f"{top}, than ALAM")
    ignored = ", ".join(
        f"{name} {interval(row['variance that the decoder ignores']).mean:.2f}" for name, row in metrics.items()
    )

    def at(name: str, k: int) -> str:
        return ", ".join(
            f"{label} {interval(row[f'{name} at k = {k}']).mean:.3f}"
            for label, row in metrics.items()
            if f"{name} at k = {k}" in row
        )

    text = (
        f"Errors in pictures, as a share of the distance of unrelated transitions. Composition: at k = {ks[0]} "
        f"{at('composition', ks[0])}; at {top} {at('composition', ks[-1])}; ALAM with all slots "
        f"{interval(alam[f'composition at {last}']).mean:.3f}. "
        f"Not significantly below FlexLAM: {listed(failed)}. Worse than ALAM with all slots: {listed(algebra)}. "
        f"Translator loss worse at: {listed(budget)}. Share of the latent's variance that the decoder ignores: {ignored}."
    )
    text += f" Invalid, since the latent is ignored: {', '.join(unused)}." if unused else ""
    plots = [
        LinePlot(
            f"{name.capitalize()} of prefixes", "error / distance of unrelated transitions", list(ks),
            {label: [metrics[label][f"{name} at k = {k}"] for k in ks] for label in (OURS, PREFIXES)},
            {ALGEBRA: alam[f"{name} at {last}"]}, xlabel="k, slots kept",
        )
        for name in ERRORS
    ]  # fmt: skip
    return Outcome(metrics, not (unused or failed or algebra or budget), text, plots)


def _both(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    return ours[name], theirs[name]
