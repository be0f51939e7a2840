"""Stage 1: train a LAM on frames alone, and leave a run folder that every later stage reads.

RUN/config.json       method, its options, data, training options
RUN/log.jsonl         one JSON object a line, with step and loss
RUN/checkpoints/      to resume from
RUN/model/            config.json, model.safetensors, README.md: LatentActionModel.from_pretrained(RUN)
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lamina.data.paired import MIN_TRANSITIONS, are_related, same_states
from lamina.data.sampling import DataConfig, parse_data
from lamina.data.stream import ClipStream, sample_split
from lamina.device import autocast, memory, pick_device
from lamina.errors import LaminaError, warn
from lamina.files import locked, read_json, whole_folder, write_bytes, write_text
from lamina.losses.reconstruction import total
from lamina.models.bottlenecks.vq import VQ, SplitVQ
from lamina.models.calibration import calibrating, even_batches, has_statistics
from lamina.models.config import LAMConfig
from lamina.models.feature_cache import kept_features
from lamina.models.features import fit_space, is_pretrained
from lamina.models.hub import LatentActionModel, Provenance
from lamina.models.lam import LAM
from lamina.records import differences, validated
from lamina.rng import Rng
from lamina.training.diagnostics import latent_diagnostics
from lamina.training.distributed import Processes
from lamina.training.loop import fit
from lamina.training.recipe import Recipe, warn_changed_file
from lamina.training.settings import RESUMABLE_OPTIONS, TrainConfig
from lamina.types import Clip
from lamina.version import __version__

#: Sections of a run's settings that may not change.
FIXED = ("method", "options", "weights", "data", "train")
#: Files that a folder may hold before it is a run: its lock, and a first write that was interrupted.
TEMPORARY = {".model.lock", ".config.json.partial"}
#: What a run may have written before its first checkpoint.
WITHOUT_STEP = TEMPORARY | {"config.json", "method.py", "log.jsonl", "tensorboard", "wandb", "checkpoints"}


def fixed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that may not change when a run is resumed. Paths of data and the number of workers may change; the stream compares the
    content of the data."""
    kept = {name: settings[name] for name in FIXED if name in settings}
    data = {name: value for name, value in kept["data"].items() if name not in ("data", "workers")}
    data.setdefault("shots", "auto")  # the stream compares what that means
    shares = [parse_data(text)[1] for text in kept["data"]["data"]]
    return kept | {
        "data": data | {"shares": shares},
        "train": {name: value for name, value in kept["train"].items() if name not in RESUMABLE_OPTIONS},
    }


def _ended_early(run: Path) -> bool:
    """Whether a run ended before its first checkpoint, as one does that a tracker refuses: another may take its place."""
    try:
        fixed_settings(read_json(run / "config.json", ""))
    except (LaminaError, KeyError, TypeError, AttributeError):
        return False  # somebody else's
    return {entry.name for entry in run.iterdir()} <= WITHOUT_STEP and not any((run / "checkpoints").glob("*"))


def check_run(run: Path, settings: dict[str, Any], resume: bool) -> None:
    """Raises LaminaError if there is a run (or anything else) at ``run`` and ``resume`` is off, or its settings differ."""
    path = run / "config.json"
    if not path.exists():
        if run.exists() and {entry.name for entry in run.iterdir()} - TEMPORARY:
            raise LaminaError(f"{run}: not empty and not a run of lamina; choose another --out")
        return
    if not resume:
        if _ended_early(run):
            return
        raise LaminaError(f"{run}: there is a run here already; add --resume to go on with it, or choose another --out")
    recorded = read_json(path, "it cannot be resumed")
    try:
        before = fixed_settings(recorded)
    except (KeyError, TypeError, AttributeError) as error:
        raise LaminaError(
            f"{path}: not the settings of a run ({error}); it cannot be resumed, start another (--out NEW)"
        ) from error
    if settings.get("init") not in (None, recorded.get("init")):
        raise LaminaError(
            f"{run}: was started with --init {recorded.get('init', 'none')}; resume with the same one, or without it"
        )
    if changed := differences(before, fixed_settings(settings)):
        raise LaminaError(
            f"{run}: was started with other settings ({', '.join(changed)}); resume with the same ones, or start another run from its "
            f"weights (--out NEW --init {run})"
        )
    warn_changed_file(run, recorded.get("method_file"), settings.get("method_file"))


#: Samples, and bytes of pictures, of a calibration at most; and how many samples even the shortest training gets.
CALIBRATION = 1024, 256 * 2**20
FEWEST = 128


def recalibration(recipe: Recipe, data: DataConfig, config: TrainConfig) -> Callable[[LAM], None]:
    """A function that fits a LAM's statistics to its weights by one pass of the method's own losses over training samples, the same ones
    every time."""
    channels, height, width = recipe.lam.image
    fitting = max(config.batch, CALIBRATION[1] // (data.frames * channels * height * width))
    limit = min(CALIBRATION[0], max(FEWEST, config.steps * config.batch), fitting)  # no more than were trained on
    clip = sample_split(data, "train", limit)
    order = torch.randperm(len(clip), generator=torch.Generator().manual_seed(config.seed))
    batches = even_batches(order, config.batch // config.accumulate)

    def recalibrate(lam: LAM) -> None:
        device = next(lam.parameters()).device
        with calibrating(lam):
            for number, rows in enumerate(batches):
                recipe.losses(lam, clip[rows].to(device), Rng(config.seed, number, device=device))

    return recalibrate


COPIES = 5  # values kept for each weight in training: itself, its gradient, two moments and the average


def check_memory(lam: LAMConfig, config: TrainConfig) -> None:
    """Raises LaminaError, before anything is allocated, for a LAM whose training needs more memory than this machine has."""
    try:
        with torch.device("meta"):
            needed = COPIES * sum(value.numel() * value.element_size() for value in LAM(lam).parameters())
    except (RuntimeError, ValueError, OverflowError) as error:
        if isinstance(error, LaminaError):
            raise
        raise LaminaError(f"no model has these sizes: {str(error).splitlines()[0]}") from error
    there = memory(pick_device(config.device))
    if needed > there:
        raise LaminaError(
            f"training this model takes {needed / 2**30:,.0f} GiB for its weights alone, this machine has {there / 2**30:,.0f}; choose a "
            "smaller --size, --width, --slots or --image"
        )


FITTED_SAMPLES = 128  # whose frames give the statistics of pretrained features
TRIAL = 16  # samples


def seconds_a_step(
    lam: LAM, recipe: Recipe, clip: Clip, config: TrainConfig, clock: Callable[[], float] = time.perf_counter
) -> float:
    """About how long a step will take here: losses and gradients of a few samples on a copy of ``lam``, the second time that they are
    computed, in proportion to the batch. ``clock``: time.process_time for CPU time."""
    device = pick_device(config.device)
    trial = copy.deepcopy(lam).to(device).train()
    number = min(config.batch, TRIAL)
    rows = clip[torch.arange(number) % len(clip)].to(device)
    began = 0.0
    for _ in range(2):
        began = clock()
        with autocast(device, config.precision):
            loss = total(recipe.losses(trial, rows, Rng(config.seed, device=device)), recipe.weights)
        loss.backward()
        float(loss.detach())  # an accelerator has finished then
    return (clock() - began) * config.batch / number


def duration(seconds: float) -> str:
    """ "40 seconds", "18 minutes", "2.5 hours"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _show_duration(lam: LAM, recipe: Recipe, clip: Clip, config: TrainConfig) -> None:
    step, device = seconds_a_step(lam, recipe, clip, config), pick_device(config.device)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    tqdm.write(
        f"{config.steps:,} steps of {config.batch} samples on {device}{threads}: about {duration(step * config.steps)} "
        f"({config.batch / step:.0f} samples a second)",
        file=sys.stderr,
    )


def load_matching_weights(lam: LAM, path: Path) -> None:
    """Fill ``lam`` with the weights of the model at ``path`` (a run or model folder), as far as names and shapes agree.

    Statistics of one module (a codebook, a whitening) are taken all or not at all, as one says whether the others are there. What a
    codebook that goes on learning counts begins anew. Raises LaminaError if less than half of the weights agree, or there is no model.
    """
    given = LatentActionModel.from_pretrained(str(path)).lam.state_dict()
    own = lam.state_dict()
    shared = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    kept = {part for split in lam.modules() if isinstance(split, SplitVQ) for part in split.frozen_parts}
    for prefix, module in lam.named_modules():
        statistics = {f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False)} & own.keys()
        if not statistics <= shared.keys():
            shared = {name: value for name, value in shared.items() if name not in statistics}
        if isinstance(module, VQ) and module not in kept:
            shared.pop(f"{prefix}.updates", None)
    if len(shared) < len(own) / 2:
        raise LaminaError(
            f"{path}: a model of another kind, {len(shared)} of {len(own)} weights fit; give --init a run of the same encoder and decoder"
        )
    lam.load_state_dict(shared, strict=False)


def run_settings(recipe: Recipe, data: DataConfig, config: TrainConfig, init: Path | None) -> dict[str, Any]:
    """What RUN/config.json says, as it will be read back."""
    settings: dict[str, Any] = {
        "format": 1,
        "lamina": __version__,
        "method": recipe.method,
        "options": dict(recipe.options),
        "weights": dict(recipe.weights),
        "data": data.to_dict(),
        "train": dataclasses.asdict(config),
    }
    settings |= {"init": str(init)} if init is not None else {}
    settings |= {"method_file": recipe.file.record()} if recipe.file is not None else {}
    return json.loads(json.dumps(settings))


def pretrain(run: Path, recipe: Recipe, data: DataConfig, config: TrainConfig, init: Path | None = None) -> Path:
    """Train the recipe's LAM on ``data`` and save it under ``run``; returns the model's folder.

    ``init``: a run whose weights it starts from.
    """
    folder, settings, processes = run / "model", run_settings(recipe, data, config, init), Processes.here()
    first = processes.rank == 0
    with locked(folder) if first else nullcontext(), kept_features():
        if first:
            check_run(run, settings, config.resume)
        check_memory(recipe.lam, config)
        torch.manual_seed(config.seed)
        # Model and data are opened before anything is written, so that an error in them leaves nothing behind.
        # The config is used as it will be read: a model that could not be loaded is not trained.
        lam = LAM(LAMConfig.from_dict(recipe.lam.to_dict()))
        provenance = Provenance(
            recipe.method,
            data.names,
            data.gap,
            __version__,
            config.steps,
            frames=recipe.objective_frames,
            span=data.span,
        )
        validated(Provenance, dataclasses.asdict(provenance))
        if recipe.initialise is not None:
            recipe.initialise(lam)
        if init is None and config.resume and not any((run / "checkpoints").glob("*")):  # nothing of it is kept yet
            started = (
                read_json(run / "config.json", "start again").get("init") if (run / "config.json").exists() else None
            )
            init = None if started is None else Path(started)
        if init is not None:
            load_matching_weights(lam, init)
        if is_pretrained(recipe.lam.space):
            fit_space(lam.space, sample_split(data, "train", limit=FITTED_SAMPLES).frames.flatten(0, 1))
        held = sample_split(data, "validation", limit=256)
        if held.paired is not None and len(held) >= MIN_TRANSITIONS and not are_related(same_states(held)):
            warn(
                f"{', '.join(data.names)}: {data.paired} does not seem to show the same states: the change in one view tells nothing of "
                "the change in the other, held out"
            )
        record = run / "method.py"  # which nothing executes
        if first and not (config.resume and (run / "config.json").exists()):
            record.unlink(missing_ok=True)  # of a run that ended early
            write_text(run / "config.json", json.dumps(settings, indent=2) + "\n")
        if first and recipe.file is not None and not record.exists():
            write_bytes(record, recipe.file.source)
        if processes.size == 1:
            _show_duration(lam, recipe, held, config)

        def open_stream(shards: int, own: Sequence[int]) -> ClipStream:
            return ClipStream(data, config.batch // config.accumulate, config.seed, shards=shards, own=own)

        state = fit(
            run,
            lam,
            recipe.losses,
            recipe.weights,
            open_stream,
            config,
            latent_diagnostics(lam, held, config.seed),
            title=f"train {recipe.method}",
            recalibrate=recalibration(recipe, data, config) if config.ema and has_statistics(lam) else None,
        )
        if first:
            model = LatentActionModel(recipe.lam, provenance)
            model.lam.load_state_dict(state)
            if (
                config.resume and (folder / "config.json").exists()
            ):  # it had ended: what was measured of these weights stays
                with suppress(LaminaError):
                    ended = LatentActionModel.from_pretrained(str(folder))
                    there = ended.lam.state_dict()
                    if all(torch.equal(value, there[name]) for name, value in model.lam.state_dict().items()):
                        model.provenance = dataclasses.replace(provenance, metrics=ended.provenance.metrics)
            with whole_folder(folder) as partial:
                model.save_pretrained(partial)
    return folder
