"""How well does a translator read actions off the latents, with the labels at hand, and would it do so without them?

Every control is trained as the translator was: the same labels, the same division of them, learning rate, batch, steps, rule for the
checkpoint and condition.

- shuffled latents: every transition gets another one's latent; what is left is the previous action and the action frequencies.
- copy-frame: the latent of the first frame against itself, so no transition at all.
- random-weights encoder: the same LAM before training; one pass over unlabelled data has filled its whitening and its codebook.
- observation-only: an encoder trained from scratch on the first frame alone.

Beside them, as references and not as controls: the inverse dynamics model (both frames, no bottleneck), and the pair's plain pixels.
Observation-only and inverse dynamics train a whole encoder. They have a budget of their own: as many steps as the translator, unless
more are asked for.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina.evaluation.probes.linear_probe import pixel_features
from lamina.images import to_float
from lamina.inference.encode import observe
from lamina.models.bottlenecks.prefix import RetainedPrefix
from lamina.models.calibration import random_weights
from lamina.models.config import Side
from lamina.models.heads import ActionHead, InverseDynamics, Translator, TranslatorConfig
from lamina.models.lam import LAM
from lamina.training.heads import train_idm, train_translator
from lamina.training.labelled import ActionTarget, LabelledTransitions, encode_labels, split_labels
from lamina.training.settings import TrainConfig
from lamina.types import Clip


@dataclass(frozen=True)
class TranslationScore:
    """Per-transition scores of one translator on the test split. ``k`` None: it does not depend on the prefix."""

    name: str
    role: str
    k: int | None
    loss: Float[np.ndarray, "n"]  # nats and units of variance, mean over the action's dimensions
    right: Float[np.ndarray, "n"] | None  # every discrete dimension predicted
    error: Float[np.ndarray, "n"] | None  # squared error of the continuous dimensions ...
    spread: Float[np.ndarray, "n"] | None  # ... and what predicting the labels' mean would give


def score(
    head: ActionHead, output: Float[Tensor, "n e"], action: Float[Tensor, "n a"], name: str, role: str, k: int | None
) -> TranslationScore:
    """Loss, accuracy and squared error of predictions."""
    n = len(head.spec.discrete)
    read = head.read(output)
    right = (read[:, :n] == action[:, :n]).all(1).double().numpy() if n else None
    error = spread = None
    if head.spec.continuous:
        error = ((read[:, n:] - action[:, n:]) / head.std).square().mean(1).double().numpy()
        spread = ((head.mean - action[:, n:]) / head.std).square().mean(1).double().numpy()
    return TranslationScore(name, role, k, head.loss(output, action).double().numpy(), right, error, spread)


@torch.no_grad()
def score_translator(
    translator: Translator,
    prefix: nn.Module,
    test: LabelledTransitions,
    prefixes: tuple[int, ...],
    name: str,
    role: str,
) -> list[TranslationScore]:
    """A translator at each prefix length; labels, and what is computed, are on the CPU."""
    translator, prefix = translator.cpu(), copy.deepcopy(prefix).cpu()
    return [
        score(
            translator.action,
            translator(prefix(test.z, k), test.previous, test.observation),
            test.action,
            name,
            role,
            k,
        )
        for k in prefixes
    ]


@torch.no_grad()
def score_idm(module: InverseDynamics, test: LabelledTransitions, name: str, role: str) -> TranslationScore:
    """An inverse dynamics model, or the observation-only control."""
    assert test.clip is not None
    frames = test.clip.frames
    output = torch.cat(
        [module(to_float(frames[i : i + 256]), test.previous[i : i + 256]) for i in range(0, len(test), 256)]
    )
    return score(module.action, output, test.action, name, role, None)


def controls(
    lam: LAM,
    labels: Clip,
    test: Clip,
    actions: ActionTarget,
    config: TranslatorConfig,
    training: TrainConfig,
    unlabelled: Clip,
    side: Side | None = None,
    scratch: TrainConfig | None = None,
) -> list[TranslationScore]:
    """Train and score every control and reference on the same labels.

    ``config`` and ``training``: the translator's own. ``unlabelled``: transitions of the training split, which fill the statistics of the
    random-weights encoder. ``side``: of the quantiser that the translator reads. ``scratch``: how encoders from scratch are trained; None:
    as the translator.
    """
    full, seed, device = (lam.config.action_length,), training.seed, next(lam.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    observed = config.condition.endswith("observation")

    def read(encoder: LAM, clip: Clip) -> LabelledTransitions:
        return encode_labels(encoder, clip, side, observed)

    def fit(prefix: Any, items: LabelledTransitions) -> Translator:
        train, held = (dataclasses.replace(part, clip=None) for part in split_labels(items, seed))
        return train_translator(prefix, train, held, actions.spec, config, training, steps=actions.steps)[0]

    def run(
        encoder: LAM, change: Callable[[LabelledTransitions], LabelledTransitions], name: str, role: str = "control"
    ) -> TranslationScore:
        translator = fit(encoder, change(read(encoder, labels)))
        return score_translator(translator, encoder.prefix, change(read(encoder, test)), full, name, role)[0]

    def shuffle(items: LabelledTransitions) -> LabelledTransitions:
        return dataclasses.replace(items, z=items.z[torch.randperm(len(items), generator=generator)])

    def still(items: LabelledTransitions) -> LabelledTransitions:
        assert items.clip is not None
        return dataclasses.replace(items, z=observe(lam, items.clip, side).view_as(items.z))

    random = random_weights(lam.config, unlabelled, seed + 1).to(device)
    scores = [
        run(lam, shuffle, "shuffled latents"),
        run(lam, still, "copy-frame"),
        run(random, lambda items: items, "random-weights encoder"),
    ]
    items, held_out = read(lam, labels), read(lam, test)
    train, held = split_labels(items, seed)
    for pairs, name, role in ((False, "observation-only", "control"), (True, "inverse dynamics model", "reference")):
        module, _ = train_idm(
            lam.config, train, held, actions.spec, scratch or training, pairs, config, actions.steps
        )  # fmt: skip
        scores.append(score_idm(module, held_out, name, role))
    a, b = pixel_features(to_float(labels.frames), to_float(test.frames), items.z[0].numel())
    pixels = Pixels(a.shape[1])
    translator = fit(pixels, dataclasses.replace(items, z=a[:, None], clip=None))
    test_items = dataclasses.replace(held_out, z=b[:, None], clip=None)
    scores += [
        dataclasses.replace(s, k=None)
        for s in score_translator(translator, pixels.prefix, test_items, (1,), "plain pixels of the pair", "reference")
    ]
    return scores


class Pixels(nn.Module):
    """Plain features in the place of a LAM's latent: one slot, never truncated."""

    def __init__(self, width: int):
        super().__init__()
        self.prefix = RetainedPrefix(1, width, "full")
