"""Does a length chosen for each transition take fewer tokens than the best single one? lamina/adaptive-k.

On FlexLAM's study: its LAMs, labels, draws of labels and translators (``flexlam/prefix-scaling`` has them too). The rule is fitted on
training transitions (:func:`lamina.training.adaptive.fit_rule`); the single length k* and the rule's threshold are chosen on the validation
split, and both are scored on the test split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamina.methods import flexlam
from lamina.models.adaptive import AdaptiveK, Changed
from lamina.models.heads import Translator
from lamina.models.lam import LAM
from lamina.training import adaptive as rules
from lamina.training.adaptive import AdaptiveConfig, action_changes, calibrated, fit_rule, picture_changes
from lamina.training.alignment import load_translator
from lamina.training.labelled import LabelledTransitions
from lamina_research.claims.flexlam.study import FlexLAMStudy, Labels, flexlam_spec
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import LinePlot
from lamina_research.seeds import below, interval, over_seeds, paired_difference
from lamina_research.study import ModelSpec
from lamina_research.text import signed

EQUAL = 0.01  # nats: losses that differ by less are equal
SHARES = (0.15, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # of K: mean lengths that are tried
FITTED = 4096  # training transitions that the rule is fitted to
RULES: tuple[Changed, ...] = ("action", "picture")  # what the rule keeps; the first one decides


@dataclass(frozen=True)
class Curve:
    """The transitions of a split: the loss of each at every single length, its weight (every task counts the same), its code."""

    loss: Float[Tensor, "n k"]
    weight: Float[Tensor, "n"]
    z: Float[Tensor, "n k d"]

    def at(self, keep: Int[Tensor, "n"]) -> float:
        """The mean loss where transition i keeps ``keep[i]`` slots."""
        return float((self.loss.gather(1, keep[:, None] - 1)[:, 0] * self.weight).sum())

    def tokens(self, keep: Int[Tensor, "n"]) -> float:
        """The mean length, every task counting the same."""
        return float((keep.double() * self.weight).sum())

    def single(self) -> list[float]:
        """The mean loss at each single length 1 .. K."""
        return [float((self.loss[:, k] * self.weight).sum()) for k in range(self.loss.shape[1])]


@torch.no_grad()
def curve(translator: Translator, lam: LAM, items: LabelledTransitions, tasks: list[str]) -> Curve:
    """The losses of a translator on ``items``, whose tasks are ``tasks``."""
    losses = [
        translator.action.loss(translator(lam.prefix(items.z, k), items.previous), items.action)
        for k in range(1, items.z.shape[1] + 1)
    ]
    number = {task: tasks.count(task) for task in set(tasks)}
    weight = torch.tensor([1 / (number[task] * len(number)) for task in tasks], dtype=torch.float64)
    return Curve(torch.stack(losses, dim=1).double(), weight, items.z)


def chosen(rule: AdaptiveK, fit: Tensor, held: Curve, most: float) -> AdaptiveK:
    """The rule with the fewest tokens, of those calibrated on the codes ``fit``, whose loss on ``held`` is at most ``most``; else the one
    with the lowest loss."""
    slots = held.loss.shape[1]
    tried = [calibrated(rule, fit, max(1.0, share * slots)) for share in SHARES]
    tried.append(replace(rule, threshold=0.0))
    found = [(each, held.at(each.lengths(held.z))) for each in tried]
    return next((each for each, loss in found if loss <= most), min(found, key=lambda pair: pair[1])[0])


class AdaptiveStudy(FlexLAMStudy):
    """FlexLAM's study with the lengths of a rule."""

    def rule_scores(self, seed: int, draw: int, of: Changed) -> dict[str, float]:
        """Tokens and loss of the rule and of the best single length, for one draw of the labels."""
        model, labels = flexlam_spec(seed), Labels(self.setup.labels, draw=draw)
        folder, _ = self.aligned(model, labels)
        key = {"adaptive k": self.key(model), "labels": labels, "steps": self.setup.translator_steps, "of": of}
        key |= {"split": self.setup.split, "shares": SHARES, "fitted": FITTED}
        return self.experiment.cached_value(
            key, (__name__, rules, flexlam), lambda: self._compared(seed, load_translator(folder)[0], model, draw, of)
        )

    def _compared(
        self, seed: int, translator: Translator, model: ModelSpec, draw: int, of: Changed
    ) -> dict[str, float]:
        lam = self.load(model).lam
        train, held, test = (self.latents(model, split) for split in ("train", "validation", self.setup.split))
        some = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(draw))[:FITTED]]
        if of == "picture":
            assert some.clip is not None
            items = picture_changes(lam, some.clip)
        else:
            items = action_changes(translator, lam, replace(some, clip=None))
        config = AdaptiveConfig(seed=draw, steps=1000 if self.experiment.scale != "smoke" else 20)
        rule = fit_rule(items, config, "")
        validation, tested = (curve(translator, lam, part, self.task_of(part)) for part in (held, test))
        singles = validation.single()
        best = int(np.argmin(singles)) + 1
        # The shortest single length that is as good as the best one: a rule must not win against slots that do nothing.
        best = next(k for k, loss in enumerate(singles, 1) if loss <= singles[best - 1] + EQUAL / 2)
        adaptive = chosen(rule, items.z, validation, singles[best - 1])
        keep = adaptive.lengths(tested.z)
        shuffled = keep[torch.randperm(len(keep), generator=torch.Generator().manual_seed(seed))]
        found = {
            "tokens": tested.tokens(keep), "loss": tested.at(keep), "loss, lengths shuffled": tested.at(shuffled),
            "best single k": float(best), "loss at the best single k": tested.single()[best - 1],
        }  # fmt: skip
        for share in SHARES:
            tried = calibrated(rule, items.z, max(1.0, share * tested.loss.shape[1])).lengths(tested.z)
            found |= {f"tokens at {share:g} K": tested.tokens(tried), f"loss at {share:g} K": tested.at(tried)}
        return found | {f"loss at k = {k}": loss for k, loss in enumerate(tested.single(), 1)}


def adaptive_k(experiment: Experiment) -> Outcome:
    """Mean tokens and translator loss of the rule against the best single k, mean over draws of labels."""
    study = AdaptiveStudy(experiment)
    draws = range(study.setup.draws)

    def scores(seed: int) -> Iterator[dict[str, dict[str, float]]]:
        for of in RULES:
            rows = [study.rule_scores(seed, draw, of) for draw in draws]
            yield {f"rule of the {of}": {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}}

    metrics = over_seeds(row for seed in experiment.seeds for row in scores(seed))
    return decided(metrics, study.setup.labels, study.setup.options["slots"])


def decided(metrics: dict[str, dict[str, list[float]]], labels: int, slots: int) -> Outcome:
    """The rule, applied to the scores."""
    text = f"{labels} labels."
    verdicts = []
    for name, row in metrics.items():
        fewer = below(row["tokens"], row["best single k"])
        cost = paired_difference(row["loss"], row["loss at the best single k"])
        equal = cost.mean <= EQUAL and not below(row["loss at the best single k"], row["loss"])
        told = below(row["loss"], row["loss, lengths shuffled"])
        verdicts.append(fewer and equal and told)
        mean = {metric: interval(values).mean for metric, values in row.items()}
        text += (
            f" {name.capitalize()}: {mean['tokens']:.2f} tokens at a loss of {mean['loss']:.3f}, the best single k "
            f"{mean['best single k']:.2f} at {mean['loss at the best single k']:.3f} ({signed(cost)} nats); with its lengths shuffled over "
            f"transitions {mean['loss, lengths shuffled']:.3f}."
        )
    # Over one axis: the mean lengths that the rule was asked for, between whole lengths on the line that joins them.
    at, ks = [max(1.0, share * slots) for share in SHARES], range(1, slots + 1)
    first = next(iter(metrics.values()))
    curves = np.array([first[f"loss at k = {k}"] for k in ks])
    series = {"one length for all": [[float(np.interp(x, ks, curve)) for curve in curves.T] for x in at]}
    series |= {name: [row[f"loss at {share:g} K"] for share in SHARES] for name, row in metrics.items()}
    plot = LinePlot(
        "Translator loss over the mean length", "held-out loss (nats)", at, series, xlabel="mean number of slots kept"
    )
    return Outcome(metrics, verdicts[0], text, (plot,))
