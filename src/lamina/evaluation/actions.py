"""What latents tell of actions: linear probes, translators, and the controls and references of both."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamina.data.dataset import Data, Dataset, name_of
from lamina.data.sampling import DataConfig, count_transitions
from lamina.data.stream import sample_split
from lamina.errors import LaminaError, warn
from lamina.evaluation.probes.linear_probe import LinearScore, linear_probe, pixel_features, plain_features
from lamina.evaluation.probes.translation import (
    TranslationScore,
    controls,
    encode_labels,
    features_row,
    fit_translator,
    prefix_of,
    prefixes_of,
    score_translator,
)
from lamina.evaluation.settings import EvaluateConfig
from lamina.files import Scratch
from lamina.inference.subject import RANDOM, Subject, subject_of
from lamina.models.features import PretrainedFeatures
from lamina.models.heads import ActionHead, Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel, translator_folder
from lamina.training.alignment import TranslatorNote, load_translator
from lamina.training.heads import head_training
from lamina.training.labelled import ActionTarget, parse_labels, probe_data
from lamina.training.log import read_log
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec, Clip


def linear_probes(
    subject: Subject,
    train: Clip,
    test: Clip,
    spec: ActionSpec,
    filling: Clip,
    features: PretrainedFeatures | None = None,
) -> list[tuple[str, str, int | None, LinearScore]]:
    """The linear probe on every prefix of the latent action and on the controls, as (name, role, k, score).

    ``filling``: transitions that fill the statistics of the random-weights encoder. ``features``: whose plain features are a reference.
    """
    assert train.action is not None and test.action is not None
    head = ActionHead(spec)
    head.calibrate(train.action[:, 0])
    y, test_y = head.embed(train.action[:, 0]), head.embed(test.action[:, 0])
    (src, dst), (test_src, test_dst) = ((clip.frames[:, 0], clip.frames[:, 1]) for clip in (train, test))

    def probe(a: Tensor, b: Tensor) -> LinearScore:
        return linear_probe(a.flatten(1), y, b.flatten(1), test_y, test.episode, spec)

    z, test_z = subject.slotted(src, dst), subject.slotted(test_src, test_dst)
    full, prefix = z.shape[1], prefix_of(subject, z)
    lengths = prefixes_of(full) if subject.prefix else (full,)
    with torch.no_grad():
        rows: list[tuple[str, str, int | None, LinearScore]] = [
            (subject.name, "model", k, probe(prefix(z, k), prefix(test_z, k))) for k in lengths
        ]
    order, test_order = (torch.randperm(len(x), generator=torch.Generator().manual_seed(0)) for x in (z, test_z))
    rows.append(("shuffled latents", "control", full, probe(z[order], test_z[test_order])))
    still = probe(subject.actions(src, src), subject.actions(test_src, test_src))
    rows.append(("copy-frame", "control", None, still))
    if subject.control:
        random = subject.control(filling, 1)
        rows.append((RANDOM, "control", full, probe(random.actions(src, dst), random.actions(test_src, test_dst))))
    pixels = pixel_features(train.frames, test.frames, z[0].numel())
    rows.append(("plain pixels of the pair", "reference", None, probe(*pixels)))
    if features is not None:
        plain = plain_features(features, train.frames, test.frames, z[0].numel())
        rows.append((features_row(features), "reference", None, probe(*plain)))
    return rows


@dataclass(frozen=True)
class TrainedTranslators:
    """The scores of a model's translators on the test split, and all that it takes to train controls in the same way.

    ``record``: the number of labels and the training curve, for evaluation.json.
    """

    subject: Subject
    scores: list[TranslationScore]
    labels: Clip
    heads: TranslatorConfig
    training: TrainConfig
    record: dict[str, Any]


def aligned_translators(
    run: Path,
    model: LatentActionModel,
    path: Data,
    test: Clip,
    actions: ActionTarget,
    aligned: tuple[Translator, TranslatorNote],
    config: EvaluateConfig,
) -> TrainedTranslators:
    """RUN's translators, frozen and joint."""
    translator, note = aligned
    expected = (actions.spec.discrete, actions.spec.continuous, actions.steps)
    if (translator.spec.discrete, translator.spec.continuous, translator.steps) != expected:
        raise LaminaError(
            f"{run / 'translator'}: was trained for other actions than this dataset has; align again on it"
        )
    subject = subject_of(model, note.side)

    def scores_of(translator: Translator, read: Subject, note: TranslatorNote, name: str) -> list[TranslationScore]:
        items = encode_labels(read, test, bool(note.observation))
        prefix = prefix_of(read, items.z)
        return score_translator(translator, prefix, items, prefixes_of(note.slots), name, "model")

    scores = scores_of(translator, subject, note, subject.name)
    if (run / "joint" / "translator.json").exists():
        joint = LatentActionModel.from_pretrained(str(run / "joint" / "model")).to(model.device)
        head, joint_note = load_translator(run / "joint")
        if _labels_of(joint_note) != _labels_of(note):
            warn(
                f"{run / 'joint'}: was aligned to other actions, or on another camera, than {run / 'translator'}; it is left out"
            )
        else:
            read = subject_of(joint, joint_note.side)
            scores += scores_of(head, read, joint_note, f"{subject.name}, joint")
    source = path if name_of(path) == note.data else note.data  # a Dataset cannot be opened by its name
    data = probe_data(model, source, note.camera, note.action, note.actions)
    data = dataclasses.replace(data, tasks=note.tasks)
    training = note.train_config(device=config.device, precision=config.precision)
    labels = sample_split(data, "train", note.labels, seed=training.seed, require_action=True)
    curve = translator_curve(translator_folder(run) / "training" / "log.jsonl")
    record = {"labels": note.labels, "label_episodes": note.label_episodes, "translator_curve": curve}
    return TrainedTranslators(subject, scores, labels, note.config, training, record)


def _labels_of(note: TranslatorNote) -> tuple[Any, ...]:
    """What a translator predicts, and of which pictures."""
    return note.spec, note.steps, note.action, note.actions, note.camera


def new_translator(
    subject: Subject, data: DataConfig, test: Clip, actions: ActionTarget, config: EvaluateConfig
) -> TrainedTranslators:
    """A translator trained on ``config.labels`` transitions of the training split with the defaults of `lamina align`."""
    training = head_training(config.translator_steps, config.seed, device=config.device, precision=config.precision)
    heads = TranslatorConfig()
    number = parse_labels(config.labels or "", count_transitions(data, "train"))
    data = dataclasses.replace(data, paired=None)
    labels = sample_split(data, "train", number, seed=training.seed, require_action=True)
    items, test_items = encode_labels(subject, labels), encode_labels(subject, test)
    prefix = prefix_of(subject, items.z)
    with Scratch() as scratch:
        translator = fit_translator(prefix, items, actions, heads, training, Path(scratch))
        curve = translator_curve(Path(scratch) / "log.jsonl")
    lengths = prefixes_of(prefix.slots) if subject.prefix else (items.z.shape[1],)
    scores = score_translator(translator, prefix, test_items, lengths, subject.name, "model")
    record = {"labels": len(labels), "label_episodes": len(labels.episode.unique()), "translator_curve": curve}
    return TrainedTranslators(subject, scores, labels, heads, training, record)


def score_controls(
    trained: TrainedTranslators,
    test: Clip,
    actions: ActionTarget,
    config: EvaluateConfig,
    filling: Clip,
    features: PretrainedFeatures | None = None,
) -> tuple[list[TranslationScore], dict[str, Any]]:
    """The controls of a translator, trained as it was, and the training budget of all."""
    training, heads = trained.training, trained.heads
    steps = config.scratch_steps or training.steps
    scratch = dataclasses.replace(training, steps=steps, checkpoint_every=steps)
    scores = controls(trained.subject, trained.labels, test, actions, heads, training, filling, scratch, features)
    shared = {"batch": training.batch, "lr": training.lr, "validate_every": training.validate_every}
    return scores, {"steps": training.steps, "scratch_steps": steps, "condition": heads.condition, **shared}


def kept_translator(
    run: Path | None, source: Dataset, config: EvaluateConfig
) -> tuple[Translator, TranslatorNote] | None:
    """RUN's translator and its note, where there is one. Raises LaminaError for options that do not fit it.

    A translator is scored on what it was aligned to: on another action or camera its score would say nothing of its labels.
    """
    folder = translator_folder(run) if run else None
    if folder is None or not (folder / "translator.json").exists():
        return None
    translator, note = load_translator(folder)
    if config.labels:
        raise LaminaError(f"{folder}: is trained already; leave out --labels, or delete that folder")
    if config.actions not in (None, note.actions):
        raise LaminaError(
            f"{folder}: was aligned to the {note.actions} of a gap's actions; leave out --actions, or align again"
        )
    if config.action not in (None, note.action):
        raise LaminaError(f"{folder}: was aligned to the action '{note.action}'; leave out --action, or align again")
    note.camera_of(source, config.camera, folder)
    return translator, note


def translator_curve(path: Path) -> dict[str, Any]:
    """Steps, training and validation loss of a translator's log; empty if there is none."""
    rows = [row for row in read_log(path) if "validation/action" in row]
    steps, train = [row["step"] for row in rows], [row["loss"] for row in rows]
    return {"steps": steps, "train": train, "validation": [row["validation/action"] for row in rows]}
