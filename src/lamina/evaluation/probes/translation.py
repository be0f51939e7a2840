"""Translation: how well a translator predicts actions from latents with few labels, and how well each control does.

Every control is trained as the translator was: the same labels, the same division of them, learning rate, batch, steps, choice of the
checkpoint and inputs.

- shuffled latents: every transition gets another one's latent; what is left is the previous action and the action frequencies.
- copy-frame: the latent of the first frame against itself, which holds no transition.
- random-weights encoder: the same architecture before training; one pass over unlabelled data has filled its whitening and codebook.
- observation-only: an encoder trained from scratch on the first frame alone.

References: the inverse dynamics model (both frames, no bottleneck) and the pair's plain pixels.
Observation-only and inverse dynamics train a whole encoder. They have as many steps as the translator, unless others are given.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina.evaluation.probes.linear_probe import pixel_features, plain_features
from lamina.images import to_float
from lamina.inference.encode import in_batches
from lamina.inference.subject import RANDOM, Subject
from lamina.methods import flexlam
from lamina.models.bottlenecks.prefix import RetainedPrefix
from lamina.models.features import PretrainedFeatures
from lamina.models.heads import ActionHead, InverseDynamics, Translator, TranslatorConfig
from lamina.training.heads import train_idm, train_translator
from lamina.training.labelled import ActionTarget, LabelledTransitions, split_labels
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
    """Scores of a translator at each prefix length, computed on the CPU."""
    translator, prefix = translator.cpu(), copy.deepcopy(prefix).cpu()
    outputs = {k: translator(prefix(test.z, k), test.previous, test.observation) for k in prefixes}
    return [score(translator.action, output, test.action, name, role, k) for k, output in outputs.items()]


@torch.no_grad()
def score_idm(module: InverseDynamics, test: LabelledTransitions, name: str, role: str) -> TranslationScore:
    """An inverse dynamics model, or the observation-only control."""
    assert test.clip is not None
    output = in_batches(lambda x, previous: module(to_float(x), previous), test.clip.frames, test.previous, size=256)
    return score(module.action, output, test.action, name, role, None)


def encode_labels(subject: Subject, clip: Clip, observed: bool = False) -> LabelledTransitions:
    """:meth:`LabelledTransitions.encoded` by a subject."""
    return LabelledTransitions.encoded(clip, lambda c: subject.slotted(c.frames[:, 0], c.frames[:, 1]), observed)


def prefix_of(subject: Subject, z: Float[Tensor, "n k d"]) -> RetainedPrefix:
    """The prefix that a translator of ``z`` is trained with: the subject's own, or one that keeps all slots."""
    return copy.deepcopy(subject.prefix).cpu() if subject.prefix else RetainedPrefix(z.shape[1], z.shape[2], "full")


def fit_translator(
    prefix: RetainedPrefix,
    items: LabelledTransitions,
    actions: ActionTarget,
    config: TranslatorConfig,
    training: TrainConfig,
    run: Path | None = None,
) -> Translator:
    """A translator for cached latents; its labels are divided as :func:`lamina.training.labelled.split_labels` does."""
    train, held = (dataclasses.replace(part, clip=None) for part in split_labels(items, training.seed))
    return train_translator(prefix, train, held, actions.spec, config, training, run, actions.steps)[0]


def controls(
    subject: Subject,
    labels: Clip,
    test: Clip,
    actions: ActionTarget,
    config: TranslatorConfig,
    training: TrainConfig,
    unlabelled: Clip,
    scratch: TrainConfig | None = None,
    features: PretrainedFeatures | None = None,
) -> list[TranslationScore]:
    """Train and score every control and reference on the same labels.

    ``config`` and ``training``: the translator's own. ``unlabelled``: transitions of the training split, which fill the statistics of the
    random-weights encoder. ``scratch``: how encoders from scratch are trained; None: as the translator. ``features``: the encoder whose
    plain features are a reference beside the plain pixels.
    """
    generator = torch.Generator().manual_seed(training.seed)
    observed = config.condition.endswith("observation")
    items, test_items = encode_labels(subject, labels, observed), encode_labels(subject, test, observed)
    prefix = prefix_of(subject, items.z)

    def run(
        prefix: RetainedPrefix, a: LabelledTransitions, b: LabelledTransitions, name: str, role: str = "control"
    ) -> TranslationScore:
        translator = fit_translator(prefix, a, actions, config, training)
        return score_translator(translator, prefix, b, (b.z.shape[1],), name, role)[0]

    def shuffled(items: LabelledTransitions) -> LabelledTransitions:
        return dataclasses.replace(items, z=items.z[torch.randperm(len(items), generator=generator)])

    def still(items: LabelledTransitions) -> LabelledTransitions:
        assert items.clip is not None
        first = items.clip.frames[:, 0]
        return dataclasses.replace(items, z=subject.slotted(first, first))

    scores = [
        run(prefix, shuffled(items), shuffled(test_items), "shuffled latents"),
        run(prefix, still(items), still(test_items), "copy-frame"),
    ]
    if subject.control:
        random = subject.control(unlabelled, training.seed + 1)
        a, b = (encode_labels(random, clip, observed) for clip in (labels, test))
        scores.append(run(prefix_of(random, a.z), a, b, RANDOM))
    train, held = split_labels(items, training.seed)
    lam = subject.config or flexlam.build(flexlam.Config(size="tiny", image=subject.image, decoder="unet"))
    for pairs, name, role in ((False, "observation-only", "control"), (True, "inverse dynamics model", "reference")):
        module, _ = train_idm(lam, train, held, actions.spec, scratch or training, pairs, config, actions.steps)
        scores.append(score_idm(module, test_items, name, role))
    width = items.z[0].numel()
    pairs_of = {"plain pixels of the pair": pixel_features(labels.frames, test.frames, width)}
    if features is not None:
        pairs_of[features_row(features)] = plain_features(features, labels.frames, test.frames, width)
    for name, plain in pairs_of.items():
        z, test_z = (x[:, None] for x in plain)
        a, b = dataclasses.replace(items, z=z), dataclasses.replace(test_items, z=test_z)
        scores.append(dataclasses.replace(run(RetainedPrefix(1, z.shape[2], "full"), a, b, name, "reference"), k=None))
    return scores


def features_row(space: PretrainedFeatures) -> str:
    """The name of the plain features' row in tables; of a folder only its last part."""
    return f"plain features of the pair ({Path(space.name).name})"
