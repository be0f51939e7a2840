"""The stage itself: `lamina align` writes RUN/translator, or RUN/joint with the model that moved."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lamina.align.fitting import train_translator
from lamina.align.heads import Translator, TranslatorConfig
from lamina.align.joint import train_joint
from lamina.align.labels import Labelled, action_spec, labelled, observe, parse_labels, probe_data, split_labels
from lamina.data import count_transitions, gather
from lamina.errors import LaminaError
from lamina.files import disk_errors, write_text
from lamina.lam import LatentActionModel, load_weights
from lamina.shapes import ActionSpec
from lamina.train import Losses, TrainConfig

FORMAT = 1  # of translator.json; raised when an old file can no longer be read


@dataclass(frozen=True)
class AlignConfig:
    """How latents are tied to actions."""

    labels: str = "5%"
    """number of labelled transitions (120) or share of the training split (5%); a quarter of them choose the checkpoint"""
    joint: bool = False
    """let the action loss update encoder and bottleneck too"""
    translator: TranslatorConfig = field(default_factory=TranslatorConfig)
    tasks: tuple[str, ...] = ()
    """tasks that the labels come from; default: evenly from all"""
    camera: str | None = None
    action: str = "action"


def align(
    run: Path,
    path: str,
    config: AlignConfig,
    training: TrainConfig,
    losses: Losses | None = None,
    weights: dict[str, float] | None = None,
    needs: Mapping[str, Any] = {},
) -> Path:
    """Train the translator of RUN's model on a few labels of the training split and save it.

    Frozen: RUN/translator. Joint: RUN/joint, with the model that moved with it; this needs the method's ``losses`` and ``weights``, and
    the fields of DataConfig that those read (``needs``).
    Raises LaminaError for data without actions, too few labels, or a folder that is there already without ``resume``.
    """
    folder = run / ("joint" if config.joint else "translator")
    model = LatentActionModel.from_pretrained(str(run))
    data = dataclasses.replace(probe_data(model, path, config.camera, config.action), tasks=config.tasks)
    number = parse_labels(config.labels, count_transitions(data, "train"))
    if (folder / "translator.json").exists() and not training.resume:
        raise LaminaError(f"{folder}: aligned already; add --resume to go on, or delete that folder")
    clip = gather(data, "train", number, seed=training.seed, require_action=True)
    spec = action_spec(data)
    items = labelled(model.lam, clip)
    if config.translator.condition.endswith("observation"):
        items = dataclasses.replace(items, observation=observe(model.lam, clip))
    train, held = split_labels(items, training.seed)
    # The translator is small and its latents are cached: it reads no video while it trains.
    train_small, held_small = dataclasses.replace(train, clip=None), dataclasses.replace(held, clip=None)
    scratch = folder / "training"
    if not training.resume:  # what a killed alignment left
        shutil.rmtree(scratch, ignore_errors=True)
    if config.joint:
        if losses is None or weights is None:
            raise LaminaError("joint alignment needs the method's own losses")
        video = dataclasses.replace(data, gap=model.provenance.gap_seconds, tasks=(), **needs)
        translator, loss = train_joint(
            model.lam, train, held, spec, config.translator, training, losses, weights, video, scratch
        )
    else:
        translator, loss = train_translator(
            model.lam, train_small, held_small, spec, config.translator, training, scratch
        )
    note = note_of(
        items,
        spec,
        config.translator,
        path,
        training.seed,
        training.steps,
        loss,
        config.camera,
        config.action,
        config.tasks,
    )
    if config.joint:
        model.save_pretrained(folder / "model")
    save_translator(folder, translator, note)
    return folder


def note_of(
    items: Labelled,
    spec: ActionSpec,
    config: TranslatorConfig,
    data: str,
    seed: int,
    steps: int,
    validation: float,
    camera: str | None = None,
    action: str = "action",
    tasks: tuple[str, ...] = (),
) -> dict[str, Any]:
    """What translator.json says of a translator that was trained on ``items``."""
    return {
        "format": FORMAT,
        "data": data,
        "camera": camera,
        "action": action,
        "tasks": list(tasks),
        "labels": len(items),
        "label_episodes": len(items.episode.unique()),
        "spec": dataclasses.asdict(spec),
        "config": dataclasses.asdict(config),
        "latent": items.z.shape[1] * items.z.shape[2],
        "observation": 0 if items.observation is None else items.observation.shape[-1],
        "seed": seed,
        "steps": steps,
        "validation_loss": validation,
    }


def save_translator(folder: Path, translator: Translator, note: dict[str, Any]) -> None:
    """RUN/translator/: translator.safetensors, then translator.json, whose presence says that both are whole."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in translator.state_dict().items()}
        save_file(state, folder / "translator.safetensors")
    write_text(folder / "translator.json", json.dumps(note, indent=2) + "\n")


def load_translator(folder: Path) -> tuple[Translator, dict[str, Any]]:
    """A saved translator and its note. Raises LaminaError if there is none or it is damaged."""
    path = folder / "translator.json"
    try:
        note = json.loads(path.read_text())
        if note["format"] != FORMAT:
            raise ValueError(f"format {note['format']}, this version of lamina reads {FORMAT}")
        spec = note["spec"]
        actions = ActionSpec(tuple(spec["discrete"]), spec["continuous"], tuple(spec["names"]))
        config = TranslatorConfig(**note["config"])
        translator = Translator(note["latent"], actions, config, note["observation"])
    except FileNotFoundError as error:
        raise LaminaError(f"{folder}: no translator here; run: lamina align {folder.parent} --data DATASET") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaminaError(f"{path}: damaged ({error}); delete {folder} and align again") from error
    load_weights(translator, folder / "translator.safetensors")
    return translator.eval(), note
