"""How well does a translator read actions off the latents, with the labels at hand, and would it do so without them?

Every control is trained as the translator was: same labels, same division, same steps. Each sees the previous action too.

- shuffled latents: every transition gets another one's latent; what is left is the previous action and the action frequencies.
- copy-frame: the latent of the first frame against itself, so no transition at all.
- observation-only: an encoder trained from scratch on the first frame alone.
- random-weights encoder: the same LAM before training.

Beside them, as references and not as controls: the inverse dynamics model (both frames, no bottleneck), and the pair's plain pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina.align import (
    ActionHead,
    InverseDynamics,
    Labelled,
    Translator,
    TranslatorConfig,
    labelled,
    observe,
    quick,
    split_labels,
    train_idm,
    train_translator,
)
from lamina.lam import LAM
from lamina.prefix import RetainedPrefix
from lamina.probes.linear import pixel_features
from lamina.shapes import ActionSpec, Clip, to_float

STEPS = 600


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
    translator: Translator, prefix: nn.Module, test: Labelled, prefixes: tuple[int, ...], name: str, role: str
) -> list[TranslationScore]:
    """A translator at each prefix length."""
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
def score_idm(module: InverseDynamics, test: Labelled, name: str, role: str) -> TranslationScore:
    """An inverse dynamics model, or the observation-only control."""
    assert test.clip is not None
    frames = test.clip.frames
    output = torch.cat(
        [module(to_float(frames[i : i + 256]), test.previous[i : i + 256]) for i in range(0, len(test), 256)]
    )
    return score(module.action, output, test.action, name, role, None)


def controls(
    lam: LAM, labels: Clip, test: Clip, spec: ActionSpec, config: TranslatorConfig, seed: int, steps: int = STEPS
) -> list[TranslationScore]:
    """Train and score every control and reference on the same labels, each for ``steps`` steps."""
    full = (lam.config.slots,)
    training = quick(steps, seed)
    generator = torch.Generator().manual_seed(seed)
    config = dataclasses.replace(config, condition="latent+previous")

    def run(encoder: LAM, change: Callable[[Labelled], Labelled], name: str, role: str = "control") -> TranslationScore:
        train, held = (
            dataclasses.replace(part, clip=None) for part in split_labels(change(labelled(encoder, labels)), seed)
        )
        translator, _ = train_translator(encoder, train, held, spec, config, training)
        prefixed = score_translator(translator, encoder.prefix, change(labelled(encoder, test)), full, name, role)
        return prefixed[0]

    def shuffle(items: Labelled) -> Labelled:
        return dataclasses.replace(items, z=items.z[torch.randperm(len(items), generator=generator)])

    def still(items: Labelled) -> Labelled:
        assert items.clip is not None
        return dataclasses.replace(items, z=observe(lam, items.clip).view_as(items.z))

    torch.manual_seed(seed + 1)
    random = LAM(lam.config)
    scores = [
        run(lam, shuffle, "shuffled latents"),
        run(lam, still, "copy-frame"),
        run(random, lambda items: items, "random-weights encoder"),
    ]
    items, held_out = labelled(lam, labels), labelled(lam, test)
    train, held = split_labels(items, seed)
    # A fifth of the steps: these train a whole encoder, and on few labels their best checkpoint comes early.
    slow = dataclasses.replace(training, steps=steps // 5, checkpoint_every=steps // 5, validate_every=10)
    alone, _ = train_idm(lam.config, train, held, spec, slow, pairs=False)
    scores.append(score_idm(alone, held_out, "observation-only", "control"))
    pair, _ = train_idm(lam.config, train, held, spec, slow)
    scores.append(score_idm(pair, held_out, "inverse dynamics model", "reference"))
    a, b = pixel_features(to_float(labels.frames), to_float(test.frames), items.z[0].numel())
    pixels = Pixels(a.shape[1])
    train, held = split_labels(dataclasses.replace(items, z=a[:, None], clip=None), seed)
    translator, _ = train_translator(pixels, train, held, spec, config, training)  # type: ignore[arg-type]
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
