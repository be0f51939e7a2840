"""Stage 1: train a LAM on frames alone, and leave a run folder that every later stage reads.

RUN/config.json       method, its options, data, training options
RUN/log.jsonl         one JSON object a line, with step and loss
RUN/checkpoints/      to resume from
RUN/model/            config.json, model.safetensors, README.md: LatentActionModel.from_pretrained(RUN)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lamina import __version__, codes
from lamina.data import ClipStream, DataConfig, gather
from lamina.draws import Draws
from lamina.errors import LaminaError
from lamina.files import disk_errors, whole_folder, write_text
from lamina.lam import LAM, LAMConfig, LatentActionModel, Provenance
from lamina.shapes import Clip, to_float
from lamina.train import Losses, TrainConfig, Validation, World, fit

#: Training options that a resumed run may change without becoming another experiment.
FREE = {
    "resume",
    "checkpoint_every",
    "keep",
    "tensorboard",
    "wandb",
    "compile",
    "parallel",
    "device",
    "log_every",
    "validate_every",
}


@dataclass(frozen=True)
class Recipe:
    """A method with its options filled in: what :func:`pretrain` needs of it, so that the core never imports a method."""

    method: str
    options: Mapping[str, Any]
    lam: LAMConfig
    losses: Losses
    weights: Mapping[str, float]


def recipe(name: str, method: Any, options: Any) -> Recipe:
    """The recipe of a method's module (``build``, ``losses``, ``weights``) with ``options``, an instance of its Config."""
    return Recipe(name, dataclasses.asdict(options), method.build(options), method.losses, method.weights(options))


def check_run(run: Path, settings: dict[str, Any], resume: bool) -> None:
    """Raises LaminaError if there is a run (or anything else) at ``run`` and ``resume`` is off, or its settings differ."""
    path = run / "config.json"
    if not path.exists():
        if run.exists() and any(run.iterdir()):
            raise LaminaError(f"{run}: not empty and not a run of lamina; choose another --out")
        return
    if not resume:
        raise LaminaError(f"{run}: there is a run here already; add --resume to go on with it, or choose another --out")
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise LaminaError(f"{path}: not readable as JSON; this run cannot be resumed") from error
    changed = [
        f"{section}.{name}"
        for section in settings
        if isinstance(settings[section], dict)
        for name in settings[section]
        if name not in FREE and settings[section][name] != before.get(section, {}).get(name)
    ]
    if changed or settings["method"] != before.get("method"):
        what = ", ".join(changed) or "method"
        raise LaminaError(f"{run}: was started with other settings ({what}); resume with the same ones")


def validator(clip: Clip, losses: Losses, seed: int) -> Any:
    """A function ``validate(lam)``: reconstruction loss with the right and with another transition's latent, and code use."""

    @torch.no_grad()
    def validate(lam: LAM) -> Validation:
        device = next(lam.parameters()).device
        held = clip.to(device)
        frames = to_float(held.frames)
        latent = lam.encode(frames, [(0, 1)])[0, 1]
        full = torch.full((len(frames),), lam.config.slots, device=device)
        draws = [Draws(seed, device=device) for _ in range(2)]
        right = lam.reconstruction(frames, {(0, 1): latent}, full, draws[0]).mean()
        other = lam.reconstruction(frames, {(0, 1): latent[torch.arange(len(frames)).roll(1)]}, full, draws[1]).mean()
        figures = {"reconstruction": float(right), "reconstruction_with_another_latent": float(other)}
        told = []
        if latent.index is not None:
            uses = codes.slot_use(latent.index, lam.bottleneck.codebook_size)  # type: ignore[arg-type]
            figures |= {f"perplexity/slot_{use.slot}": use.perplexity for use in uses}
            figures |= {f"usage/slot_{use.slot}": use.usage for use in uses}
            told += codes.warnings(uses)
        if float(other) < 1.01 * float(right):
            told.append(
                "the decoder ignores the latent: another transition's latent reconstructs as well. Lengthen --gap, train longer, "
                "or check that what happens between two frames is visible at --image size"
            )
        return figures, told

    return validate


def pretrain(run: Path, recipe: Recipe, data: DataConfig, config: TrainConfig) -> Path:
    """Train the recipe's LAM on ``data`` and save it under ``run``; returns the model's folder."""
    settings: dict[str, Any] = {
        "format": 1,
        "lamina": __version__,
        "method": recipe.method,
        "options": dict(recipe.options),
        "weights": dict(recipe.weights),
        "data": dataclasses.asdict(data),
        "train": dataclasses.asdict(config),
    }
    settings = json.loads(json.dumps(settings))  # as it will be read back
    world = World.here()
    if world.rank == 0:
        check_run(run, settings, config.resume)
    torch.manual_seed(config.seed)
    # Model and data are opened before anything is written: what is wrong with them leaves no half a run behind.
    lam = LAM(recipe.lam)
    held = gather(data, "validation", limit=256)
    if world.rank == 0 and not (run / "config.json").exists():
        with disk_errors(run):
            run.mkdir(parents=True, exist_ok=True)
        write_text(run / "config.json", json.dumps(settings, indent=2) + "\n")

    def open_stream(shards: int, shard: int | None) -> ClipStream:
        return ClipStream(data, config.batch // config.accumulate, config.seed, shards=shards, shard=shard)

    state = fit(
        run,
        lam,
        recipe.losses,
        recipe.weights,
        open_stream,
        config,
        validator(held, recipe.losses, config.seed),
        title=f"train {recipe.method}",
    )
    folder = run / "model"
    if world.rank == 0:
        provenance = Provenance(recipe.method, data.data, data.gap, __version__, config.steps)
        model = LatentActionModel(recipe.lam, provenance)
        model.lam.load_state_dict(state)
        with whole_folder(folder) as partial:
            model.save_pretrained(partial)
    return folder
