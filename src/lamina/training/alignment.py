"""Stage 2: `lamina align` ties latent actions to real ones with few labels (FlexLAM §4.2, §6.3) and writes RUN/translator or RUN/joint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from lamina.data.dataset import Data, Dataset, name_of
from lamina.data.sampling import ActionsOf, count_transitions
from lamina.data.stream import sample_split
from lamina.device import autocast, pick_device
from lamina.errors import LaminaError
from lamina.files import checkpoint_hash, locked, write_text
from lamina.models.config import Side
from lamina.models.feature_cache import kept_features
from lamina.models.heads import Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel, model_folder
from lamina.records import Count, Extent, NonNegative, read_note, validated
from lamina.training.heads import train_translator
from lamina.training.joint import JointObjective, train_joint
from lamina.training.labelled import (
    ActionTarget,
    LabelledTransitions,
    actions_of,
    encode_labels,
    parse_labels,
    probe_data,
    split_labels,
    warn_multi_action,
)
from lamina.training.settings import TrainConfig, fixed_options, keep_settings
from lamina.types import ActionSpec, Clip
from lamina.weights import load_module, save_weights

LARGEST_ACTION = 65_536  # numbers of a label whose discrete dimensions are one-hot
FORMAT = 2  # of translator.json; raised when an old file can no longer be read


@dataclass(frozen=True)
class AlignConfig:
    """How the translator from latent to real actions is trained."""

    labels: str = "5%"
    """number of labelled transitions (120) or share of the training split (5%); a quarter of them choose the checkpoint"""
    joint: bool = False
    """let the action loss update encoder and bottleneck too"""
    translator: TranslatorConfig = field(default_factory=TranslatorConfig)
    actions: ActionsOf = "first"
    """which of the actions in the gap of a latent are predicted: the first, their mean, or all of them (a chunk)"""
    side: Literal["model", "quantised", "continuous"] = "model"
    """latents that the translator reads: before (continuous) or after (quantised) the quantiser; model: as the model's config says"""
    tasks: tuple[str, ...] = ()
    """tasks that the labels come from; default: evenly from all"""
    camera: str | None = None
    """camera of a LeRobot dataset; default: the first"""
    action: str = "action"
    """feature that holds the actions"""


def align(
    run: Path, path: Data, config: AlignConfig, training: TrainConfig, objective: JointObjective | None = None
) -> Path:
    """Train the translator of RUN's model on a few labels of the training split and save it.

    Frozen: RUN/translator. Joint: RUN/joint, with the LAM that was trained with it, by ``objective`` on unlabelled video.
    Raises LaminaError for data without actions, too few labels, a folder that is there already without ``resume``, a resumed alignment
    with other settings or labels.
    """
    folder = run / ("joint" if config.joint else "translator")
    with locked(folder), kept_features():
        model = LatentActionModel.from_pretrained(str(run)).to(pick_device(training.device))
        data = probe_data(model, path, config.camera, config.action, config.actions)
        data = dataclasses.replace(data, tasks=config.tasks)
        number = parse_labels(config.labels, count_transitions(data, "train"))
        if (folder / "translator.json").exists() and not training.resume:
            raise LaminaError(f"{folder}: aligned already; add --resume to go on, or delete that folder")
        if config.joint and objective is None:
            raise LaminaError("joint alignment needs the method's own losses")
        actions = actions_of(data)
        _check_width(actions.spec, actions.steps)
        warn_multi_action(data, actions)
        clip = sample_split(data, "train", number, seed=training.seed, require_action=True)
        side = model.config.action_side if config.side == "model" else config.side
        with autocast(model.device, training.precision):
            items = encode_labels(model.lam, clip, side, config.translator.condition.endswith("observation"))
        scratch = folder / "training"
        if not training.resume:  # what a killed alignment left
            shutil.rmtree(scratch, ignore_errors=True)
        settings = {
            "align": {n: v for n, v in dataclasses.asdict(config).items() if n != "labels"},
            "train": fixed_options(training),
            "labels": _digest(clip),
            "model": checkpoint_hash(model_folder(run)),
        }
        keep_settings(scratch / "settings.json", settings, training.resume)
        train, held = split_labels(items, training.seed)
        if config.joint:
            assert objective is not None
            video = dataclasses.replace(data, gap=model.provenance.gap_seconds, actions="first", tasks=())
            translator, loss = train_joint(
                model.lam, train, held, actions.spec, config.translator, training, objective, video, scratch, actions.steps, side
            )  # fmt: skip
        else:
            # The translator is small and its latents are cached: it reads no video while it trains.
            train, held = dataclasses.replace(train, clip=None), dataclasses.replace(held, clip=None)
            translator, loss = train_translator(
                model.lam.prefix, train, held, actions.spec, config.translator, training, scratch, actions.steps
            )
        note = note_of(items, actions, config, side, name_of(path), training, loss)
        if config.joint:
            model.provenance = dataclasses.replace(model.provenance, metrics={})  # those of other weights
            model.save_pretrained(folder / "model")
        save_translator(folder, translator, note)
    return folder


def _digest(clip: Clip) -> str:
    """sha256 of labelled transitions: the same labels may come from another path."""
    digest = hashlib.sha256()
    for values in (clip.frames, clip.action, clip.previous_action):
        assert values is not None
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TranslatorNote:
    """translator.json: all that it takes to use a translator, and to train another one, a control, in the same way."""

    data: str = ""
    camera: str | None = None
    action: str = "action"
    actions: ActionsOf = "first"
    steps: Count
    tasks: tuple[str, ...] = ()
    labels: NonNegative = 0
    label_episodes: NonNegative = 0
    spec: ActionSpec
    config: TranslatorConfig
    slots: Extent
    side: Side
    latent: NonNegative
    """numbers of a latent"""
    observation: NonNegative
    """numbers of the features of o_t; 0: the translator does not read them"""
    low: tuple[float, ...] | None = None
    """range of the labels in each continuous dimension; None: not known, as in files of older versions"""
    high: tuple[float, ...] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    """options of TrainConfig"""
    validation_loss: float = math.nan

    def __post_init__(self) -> None:
        _check_width(self.spec, self.steps)
        if {len(ends) for ends in (self.low, self.high) if ends is not None} - {self.spec.continuous * self.steps}:
            raise LaminaError(f"low, high: need a number for each of {self.spec.continuous * self.steps} dimensions")

    def meaning(self) -> dict[str, Any]:
        """What the numbers of translator.safetensors mean, beside their shapes: kept with them too."""
        names = ("spec", "config", "slots", "side", "latent", "observation", "steps", "low", "high")
        return {n: value for n, value in dataclasses.asdict(self).items() if n in names and value is not None}

    def camera_of(self, source: Dataset, wanted: str | None, folder: Path) -> str | None:
        """The camera whose latents the translator of ``folder`` reads. Raises LaminaError where another one is ``wanted``."""
        own = self.camera or next(iter(source.cameras), None)
        if wanted not in (None, own):
            raise LaminaError(f"{folder}: was aligned on camera '{own}'; leave out --camera, or align again")
        return self.camera

    def train_config(self, **changes: Any) -> TrainConfig:
        """How the translator was trained, with ``changes``. Raises LaminaError for options that this version does not know."""
        if not self.training:
            raise LaminaError("translator.json: does not say how it was trained; align again")
        try:
            return validated(TrainConfig, {**self.training, **changes}, "training")
        except LaminaError as error:
            raise LaminaError(f"translator.json: does not say how it was trained ({error}); align again") from error


def _check_width(spec: ActionSpec, steps: int) -> None:
    """Raises LaminaError for labels of more numbers than are read back."""
    if spec.continuous < 0 or spec.width * steps > LARGEST_ACTION:
        raise LaminaError(f"an action of {spec.width} numbers times {steps}; they can be at most {LARGEST_ACTION}")


def note_of(
    items: LabelledTransitions,
    actions: ActionTarget,
    config: AlignConfig,
    side: Side,
    data: str,
    training: TrainConfig,
    validation: float,
) -> TranslatorNote:
    """The note of a translator that was trained on ``items``."""
    return TranslatorNote(
        data=data,
        camera=config.camera,
        action=config.action,
        actions=config.actions,
        steps=actions.steps,
        tasks=config.tasks,
        labels=len(items),
        label_episodes=len(items.episode.unique()),
        spec=actions.spec,
        config=config.translator,
        slots=items.z.shape[1],
        side=side,
        latent=items.z.shape[1] * items.z.shape[2],
        observation=0 if items.observation is None else items.observation.shape[-1],
        training={n: v for n, v in vars(training).items() if n not in ("resume", "tensorboard", "wandb")},
        validation_loss=validation,
    )


def save_translator(folder: Path, translator: Translator, note: TranslatorNote) -> None:
    """RUN/translator/: translator.safetensors, then translator.json, whose presence says that both are whole."""
    head = translator.action
    if bool(head.low.isfinite().all()):
        note = dataclasses.replace(note, low=tuple(head.low.tolist()), high=tuple(head.high.tolist()))
    save_weights(folder / "translator.safetensors", translator.state_dict(), note.meaning())
    write_text(folder / "translator.json", json.dumps({"format": FORMAT, **dataclasses.asdict(note)}, indent=2) + "\n")


def load_translator(folder: Path) -> tuple[Translator, TranslatorNote]:
    """A saved translator and its note. Raises LaminaError if there is none or it is damaged."""
    path = folder / "translator.json"
    remedy = f"delete {folder} and align again"
    if not path.exists():
        raise LaminaError(f"{folder}: no translator here; run: lamina align {folder.parent} --data DATASET")
    note, _ = read_note(path, TranslatorNote, {"format": FORMAT}, remedy)
    translator = load_module(
        lambda: Translator(note.latent, note.spec, note.config, note.observation, note.steps),
        path,
        folder / "translator.safetensors",
        note.meaning(),
    )
    if note.low is not None and note.high is not None:
        translator.action.low.copy_(torch.tensor(note.low))
        translator.action.high.copy_(torch.tensor(note.high))
    return translator.eval(), note
