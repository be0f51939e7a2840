"""Does a length chosen for each transition take fewer tokens than the best single one? lamina/adaptive-k.

On FlexLAM's study: its LAMs, labels, draws of labels and translators (``flexlam/prefix-scaling`` has them too). The best single length k*
is chosen on the validation split. The rule chooses lengths up to k*: it is fitted on training transitions
(:func:`lamina.training.adaptive.fit_rule`), its threshold is chosen on the validation split, and both are scored on the test split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

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
from lamina_research.seeds import Metrics, below, interval, over_seeds, paired_difference
from lamina_research.study import ModelSpec
from lamina_research.text import signed

EQUAL = 0.01  # nats: losses that differ by less are equal
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of k*: mean lengths that are tried
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
    with the lowest loss. The last one that is tried keeps the longest prefix that the rule knows in every row."""
    tried = [calibrated(rule, fit, max(1.0, share * rule.head.slots)) for share in SHARES]
    tried.append(replace(rule, threshold=0.0))
    found = [(each, held.at(each.lengths(held.z))) for each in tried]
    return next((each for each, loss in found if loss <= most), min(found, key=lambda pair: pair[1])[0])


class AdaptiveStudy(FlexLAMStudy):
    """FlexLAM's study with the lengths of a rule."""

    def rule_scores(self, seed: int, draw: int, of: Changed) -> dict[str, float]:
        """Tokens and loss of the rule and of the best single length, for one draw of the labels."""
        model, labels = flexlam_spec(seed), Labels(self.setup.labels, draw=draw)
        key = {"adaptive k": self.key(model), "labels": labels, "steps": self.setup.translator_steps, "of": of}
        key |= {"split": self.setup.split, "shares": SHARES, "fitted": FITTED, "equal": EQUAL}

        def compute() -> dict[str, float]:
            return self._compared(seed, load_translator(self.translator(model, labels))[0], model, draw, of)

        return self.experiment.cached_value(
            key, (__name__, rules, *self.translator_code(model)), compute, needs=lambda: self.translator(model, labels)
        )

    def _compared(
        self, seed: int, translator: Translator, model: ModelSpec, draw: int, of: Changed
    ) -> dict[str, float]:
        lam = self.load(model).lam
        train, held, test = (self.latents(model, split) for split in ("train", "validation", self.setup.split))
        validation, tested = (curve(translator, lam, part, self.task_of(part)) for part in (held, test))
        singles = validation.single()
        # The shortest single length that is as good as the best one: a rule must not win against slots that do nothing.
        best = next(k for k, loss in enumerate(singles, 1) if loss <= min(singles) + EQUAL / 2)
        at_best = tested.single()[best - 1]
        found = {"best single k": float(best), "loss at the best single k": at_best}
        found |= {f"loss at k = {k}": loss for k, loss in enumerate(tested.single(), 1)}
        if best == 1:  # no shorter prefix
            found |= {"tokens": 1.0, "loss": at_best, "loss, lengths shuffled": at_best}
            same = {f"loss at {share:g} k*{which}": at_best for share in SHARES for which in ("", ", one length")}
            return found | same
        some = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(draw))[:FITTED]]
        if of == "picture":
            assert some.clip is not None
            items = picture_changes(lam, some.clip, best)
        else:
            items = action_changes(translator, lam, replace(some, clip=None), best)
        config = AdaptiveConfig(seed=draw, steps=1000 if self.experiment.scale != "smoke" else 20)
        rule = fit_rule(items, config, "")
        keep = chosen(rule, items.z, validation, singles[best - 1] + EQUAL / 2).lengths(tested.z)
        shuffled = keep[torch.randperm(len(keep), generator=torch.Generator().manual_seed(seed))]
        found |= {
            "tokens": tested.tokens(keep), "loss": tested.at(keep), "loss, lengths shuffled": tested.at(shuffled)
        }  # fmt: skip
        ks = range(1, len(singles) + 1)
        for share in SHARES:
            tried = calibrated(rule, items.z, max(1.0, share * best)).lengths(tested.z)
            found[f"loss at {share:g} k*"] = tested.at(tried)
            found[f"loss at {share:g} k*, one length"] = float(np.interp(tested.tokens(tried), ks, tested.single()))
        return found


def adaptive_k(experiment: Experiment) -> Outcome:
    """Mean tokens and translator loss of the rule against the best single k, mean over draws of labels."""
    study = AdaptiveStudy(experiment)
    draws = range(study.setup.draws)

    def scores(seed: int) -> Iterator[dict[str, dict[str, float]]]:
        for of in RULES:
            rows = [study.rule_scores(seed, draw, of) for draw in draws]
            yield {f"rule of the {of}": {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}}

    metrics = over_seeds(row for seed in experiment.seeds for row in scores(seed))
    return decided(metrics, study.setup.labels)


def decided(metrics: Metrics, labels: int) -> Outcome:
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
    action = metrics[f"rule of the {RULES[0]}"]
    series = {"as many slots in every row": [action[f"loss at {share:g} k*, one length"] for share in SHARES]}
    series |= {name: [row[f"loss at {share:g} k*"] for share in SHARES] for name, row in metrics.items()}
    levels = {"best single k": action["loss at the best single k"]}
    xlabel = "mean number of slots over the best single k"
    plot = LinePlot(
        "Translator loss over the mean length", "held-out loss (nats)", SHARES, series, levels, xlabel=xlabel
    )
    return Outcome(metrics, verdicts[0], text, (plot,))
