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
import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina.evaluation.probes.linear_probe import pixel_features, plain_features
from lamina.files import whole_file
from lamina.images import to_float
from lamina.inference.encode import in_batches
from lamina.inference.subject import RANDOM, Subject
from lamina.methods import flexlam
from lamina.models.bottlenecks.prefix import RetainedPrefix
from lamina.models.config import LAMConfig
from lamina.models.features import PretrainedFeatures
from lamina.models.heads import ActionHead, InverseDynamics, Translator, TranslatorConfig
from lamina.training.heads import train_idm, train_translator
from lamina.training.labelled import ActionTarget, LabelledTransitions, split_labels
from lamina.training.settings import TrainConfig, fixed_options
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


_kept: ContextVar[Path | None] = ContextVar("folder of the scores of encoders from scratch", default=None)


@contextmanager
def kept_references(folder: Path) -> Iterator[None]:
    """Within, an encoder from scratch that was trained before is not trained again; its scores are in ``folder``.

    It depends on the labels and on the shape of a method's encoder, not on what the method learned, so the methods of a comparison share
    it where they share these.
    """
    token = _kept.set(folder)
    try:
        yield
    finally:
        _kept.reset(token)


def from_scratch(
    lam: LAMConfig,
    items: LabelledTransitions,
    test: LabelledTransitions,
    actions: ActionTarget,
    training: TrainConfig,
    seed: int,
    pairs: bool,
    head: TranslatorConfig,
    name: str,
    role: str,
) -> TranslationScore:
    """Scores of an encoder that is trained from scratch on labels; their division into training and validation has ``seed``.

    ``pairs`` False: it sees the first frame alone. Of ``lam`` it has the encoder, its input and the number of slots.
    """

    def train() -> TranslationScore:
        kept, held = split_labels(items, seed)
        module, _ = train_idm(lam, kept, held, actions.spec, training, pairs, head, actions.steps)
        return score_idm(module, test, name, role)

    folder = _kept.get()
    if folder is None:
        return train()
    shape = (lam.encoder, lam.space, lam.image, lam.slots, actions.spec, actions.steps, head, seed, pairs, name, role)
    digest = hashlib.sha256(repr((shape, sorted(fixed_options(training).items()), training.device)).encode())
    for part in (items, test):
        assert part.clip is not None
        for values in (part.clip.frames, part.action, part.previous, part.episode):
            digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.contiguous().numpy().data)
    path = folder / f"{digest.hexdigest()[:32]}.npz"
    names = ("loss", "right", "error", "spread")
    try:
        with np.load(path, allow_pickle=False) as found:
            read = {n: found[n] for n in names if n in found}
        return TranslationScore(
            name, role, None, read["loss"], read.get("right"), read.get("error"), read.get("spread")
        )
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):  # not there, or damaged
        score = train()
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **{n: values for n in names if (values := getattr(score, n)) is not None})
    return score


def encode_labels(subject: Subject, clip: Clip, observed: bool = False) -> LabelledTransitions:
    """:meth:`LabelledTransitions.encoded` by a subject."""
    return LabelledTransitions.encoded(clip, lambda c: subject.slotted(c.frames[:, 0], c.frames[:, 1]), observed)


def prefixes_of(slots: int) -> tuple[int, ...]:
    """1, 2, 4, ... and K: the prefix lengths that are reported."""
    return tuple(sorted({2**i for i in range(slots.bit_length()) if 2**i <= slots} | {slots}))


def prefix_of(subject: Subject, z: Float[Tensor, "n k d"]) -> RetainedPrefix:
    """The prefix that a translator of ``z`` is trained with: the subject's own, or one that keeps all slots."""
    return copy.deepcopy(subject.prefix).cpu() if subject.prefix else RetainedPrefix(z.shape[1], z.shape[2], "full")


def shuffled(items: LabelledTransitions, generator: torch.Generator) -> LabelledTransitions:
    """``items`` with another transition's latent each."""
    return dataclasses.replace(items, z=items.z[torch.randperm(len(items), generator=generator)])


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

    def still(items: LabelledTransitions) -> LabelledTransitions:
        assert items.clip is not None
        first = items.clip.frames[:, 0]
        return dataclasses.replace(items, z=subject.slotted(first, first))

    scores = [
        run(prefix, shuffled(items, generator), shuffled(test_items, generator), "shuffled latents"),
        run(prefix, still(items), still(test_items), "copy-frame"),
    ]
    if subject.control:
        random = subject.control(unlabelled, training.seed + 1)
        a, b = (encode_labels(random, clip, observed) for clip in (labels, test))
        scores.append(run(prefix_of(random, a.z), a, b, RANDOM))
    lam = subject.config or flexlam.build(flexlam.Config(size="tiny", image=subject.image, decoder="unet"))
    for pairs, name, role in ((False, "observation-only", "control"), (True, "inverse dynamics model", "reference")):
        own = scratch or training
        scores.append(from_scratch(lam, items, test_items, actions, own, training.seed, pairs, config, name, role))
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
