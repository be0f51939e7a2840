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
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from lamina import __version__, codes
from lamina.augment import OFTEN, STRENGTH, augmented
from lamina.calibrate import calibrating, has_statistics
from lamina.data import ClipStream, DataConfig, count_transitions, feature_width, gather, open_source, parse_data
from lamina.data.plan import Plan
from lamina.device import autocast, memory, pick_device
from lamina.draws import Draws
from lamina.errors import LaminaError, LaminaWarning
from lamina.files import alone, read_json, whole_folder, write_text
from lamina.lam import LAM, LAMConfig, LatentActionModel, Provenance
from lamina.motion import FLOW_WIDTH
from lamina.objectives import total
from lamina.paired import LEAST, same_states
from lamina.remedies import added, known, mean_and_deviation, target_actions, target_of
from lamina.shapes import Clip, Latent, to_float
from lamina.sizes import with_decoder
from lamina.space import Observed
from lamina.strict import checked
from lamina.train import FREE, Losses, TrainConfig, Validation, World, differences, fit


@dataclass(frozen=True)
class Recipe:
    """A method with its options filled in: what :func:`pretrain` needs of it, so that the core never imports a method."""

    method: str
    options: Mapping[str, Any]
    lam: LAMConfig
    losses: Losses
    weights: Mapping[str, float]
    group: int  # frames that the objective ties together


def recipe(name: str, method: Any, options: Any) -> Recipe:
    """The recipe of a method's module (``build``, ``losses``, ``weights``) with ``options``, an instance of its Config.

    The remedies that the options switch on are added: no method's file knows of them. A decoder that is to follow the device is chosen.
    """
    options = with_decoder(options, pick_device("auto"))
    lam = method.build(options)
    losses, weights = added(options, method.losses(options), method.weights(options))
    if options.augment:
        # A mirrored picture has another state, other words, another action.
        mirror = not (lam.state or lam.task or lam.target)
        plain, strength = losses, float(options.augment)

        def losses(lam: LAM, clip: Clip, draws: Draws) -> dict[str, Float[Tensor, "b"]]:
            return plain(lam, augmented(clip, strength, draws, mirror), draws)

    return Recipe(name, dataclasses.asdict(options), lam, losses, weights, getattr(method, "GROUP", 2))


def completed(options: Any, data: DataConfig, training: TrainConfig | None = None) -> tuple[Any, DataConfig]:
    """``options`` of a method and its ``data``, with what one needs of the other filled in: proprioception, paired views, targets; and of
    the ``training``: whether little data is seen so often that it must be augmented.

    Raises LaminaError where a remedy is asked for that the data does not allow.
    """
    if training is not None and options.augment is None:
        times = training.steps * training.batch / max(1, count_transitions(data, "train"))
        options = replace(options, augment=STRENGTH if times > OFTEN else 0.0)
    return _with_target(*_with_paired(*with_proprio(options, data)))


def _with_paired(options: Any, data: DataConfig) -> tuple[Any, DataConfig]:
    if not options.cross_exogenous or data.paired is not None:
        return options, data
    sources = [open_source(parse_data(d)[0], n, data.max_bad) for n, d in enumerate(data.data)]
    named = {next((c for c in s.cameras if c.endswith(".paired")), None) for s in sources}
    if len(named) > 1 or None in named:
        raise LaminaError(
            f"{', '.join(data.data)}: --cross-exogenous needs paired views, a camera that shows the same states under another "
            "exogenous state: name it by --paired"
        )
    return options, replace(data, paired=named.pop())


def _with_target(options: Any, data: DataConfig) -> tuple[Any, DataConfig]:
    """The target's width, and what it is standardised by: mean and deviation over the transitions of the training split whose target is
    known, at the middle of the range of gaps."""
    if not options.robust_target or options.target != "action":
        data = replace(data, action=None)  # what an objective does not read cannot stop it
    if not options.robust_target:
        return options, data
    name = options.target
    if name == "flow":
        clip = gather(replace(data, action=None, paired=None, proprio=None, targets=()), "train", limit=256)
        mean, deviation = mean_and_deviation(target_of(clip, options, (0, 1)))
        return replace(options, target_width=FLOW_WIDTH, target_mean=mean, target_deviation=deviation), data
    plan = Plan(data, "train")
    if name == "action":
        if plan.action is None:
            raise LaminaError(f"{', '.join(data.data)}: --robust-target needs actions to predict; or set --target flow")
        options = replace(options, target_width=plan.action.width, target_classes=plan.action.discrete)
    else:
        width = feature_width(data, name)
        if width is None:
            raise LaminaError(f"{', '.join(data.data)}: no feature '{name}' of one width to be the robust target")
        options, data = replace(options, target_width=width), replace(data, targets=(*data.targets, name))
    targets = []
    for source, offset in zip(plan.sources, plan.offsets, strict=False):
        for number, episode in enumerate(source.episodes):
            for _, first, stop in (span for span in episode.splits if span[0] == "train"):
                values = torch.from_numpy(source.column(episode, data.action if name == "action" else name)).float()  # type: ignore[arg-type]
                gap = max(1, round(sum(data.gap) / 2 * episode.fps))
                frames = torch.arange(first, max(first, stop - gap))
                told = frames[known(torch.tensor(offset + number), frames, options)]
                change = values[told] if name == "action" else values[told + gap] - values[told]
                targets.append(target_actions(options).one_hot(change) if name == "action" else change)
    every = torch.cat(targets)
    if len(every) < 2:
        raise LaminaError(
            f"{', '.join(data.data)}: --target-share {options.target_share:g} leaves {len(every)} transitions whose target is known"
        )
    mean, deviation = mean_and_deviation(every, options.target_classes)
    return replace(options, target_mean=mean, target_deviation=deviation), data


def with_proprio(options: Any, data: DataConfig) -> tuple[Any, DataConfig]:
    """``options`` and ``data`` of a method that asks for proprioception (its Config has ``proprio``, a feature's name, and
    ``proprio_width``), completed with what only the data can tell; where it has no such feature, a warning, and neither is changed.
    """
    name = getattr(options, "proprio", None)
    if name is None:
        return options, data
    width = feature_width(data, name)
    if width is None:
        text = f"{', '.join(data.data)}: no feature '{name}' of one width: trained without the proprioceptive forward model"
        warnings.warn(text, LaminaWarning, stacklevel=2)
        return options, data
    return replace(options, proprio_width=width), replace(data, proprio=name)


#: Sections of a run's settings that may not change.
FIXED = ("method", "options", "weights", "data", "train")


#: What may lie in a folder that is no run yet: the lock of this one, and a first write that was killed.
FIRST = {".model.lock", ".config.json.partial"}


def lasting(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that may not change when a run is resumed. Where its data lies may, and who decodes it; the stream itself compares
    what the data is."""
    kept = {name: settings[name] for name in FIXED if name in settings}
    data = {name: value for name, value in kept["data"].items() if name not in ("data", "workers")}
    shares = [parse_data(text)[1] for text in kept["data"]["data"]]
    return kept | {
        "data": data | {"shares": shares},
        "train": {name: value for name, value in kept["train"].items() if name not in FREE},
    }


def check_run(run: Path, settings: dict[str, Any], resume: bool) -> None:
    """Raises LaminaError if there is a run (or anything else) at ``run`` and ``resume`` is off, or its settings differ."""
    path = run / "config.json"
    if not path.exists():
        if run.exists() and {entry.name for entry in run.iterdir()} - FIRST:
            raise LaminaError(f"{run}: not empty and not a run of lamina; choose another --out")
        return
    if not resume:
        raise LaminaError(f"{run}: there is a run here already; add --resume to go on with it, or choose another --out")
    try:
        before = lasting(read_json(path, "it cannot be resumed"))
    except (KeyError, TypeError, AttributeError) as error:
        raise LaminaError(
            f"{path}: not the settings of a run ({error}); it cannot be resumed, start another (--out NEW)"
        ) from error
    if changed := differences(before, lasting(settings)):
        raise LaminaError(
            f"{run}: was started with other settings ({', '.join(changed)}); resume with the same ones, or start another run from its "
            f"weights (--out NEW --init {run})"
        )


class Degenerate(LaminaError):
    """Training was stopped because the latents came to nothing: ``kind`` is collapse or explosion."""

    def __init__(self, kind: str, how: str):
        super().__init__(f"{kind}: {how}")
        self.kind = kind


#: Gain in dB over another transition's latent, or the mean latent, below which the decoder is said to ignore it: 1% of its loss.
IGNORED = 10 * math.log10(1.01)
#: Length and spread, in units of those at the start, below which an ignored latent has collapsed; and length above which it has exploded.
COLLAPSED, EXPLODED = 0.01, 100.0


def length_and_spread(latent: Float[Tensor, "b k d"]) -> tuple[float, float]:
    """Mean length of latents, and their mean distance from their mean."""
    flat = latent.detach().float().flatten(1)
    return float(flat.norm(dim=1).mean()), float((flat - flat.mean(0)).norm(dim=1).mean())


def validator(lam: LAM, clip: Clip, seed: int) -> Callable[[LAM], Validation]:
    """A function ``validate(lam)``: is the latent used, and how long is it; ``lam``: the same model before training.

    Reconstruction loss with the right latent, with another transition's and with the mean latent, and the gains over those in dB;
    use of the codes; mean length of the latent. It raises Degenerate, which ends the run, where the latent has collapsed (its length
    or its spread is a hundredth of what it was at the start, and the decoder ignores it) or exploded (it is a hundred times as long).
    """

    @torch.no_grad()
    def encode(lam: LAM) -> tuple[Observed, Latent]:
        here = clip.to(next(lam.parameters()).device)
        frames = lam.observed(to_float(here.frames))
        return frames, lam.encode(frames, [(0, 1)], here.task)[0, 1]

    was_training = lam.training
    before = length_and_spread(encode(lam.eval())[1].pre)
    lam.train(was_training)
    if lam.config.whiten != "none":  # what the first batch will be scaled to: variance 1 in every channel
        before = (math.sqrt(lam.config.slots * lam.dim),) * 2

    @torch.no_grad()
    def validate(lam: LAM) -> Validation:
        frames, latent = encode(lam)
        device = frames.frames.device
        full = torch.full((len(frames),), lam.config.slots, device=device)
        words, z = latent.post.split([lam.config.task, lam.config.slots - lam.config.task], dim=1)
        rivals = {
            "": z,
            # Half the set away: neighbours are of one episode, and move alike.
            "_with_another_latent": z.roll(len(frames) // 2, 0),
            "_with_the_mean_latent": z.mean(0, keepdim=True).expand_as(z),
        }
        # Draws of the same address: a flow gets the same noise each time.
        loss = {
            name: float(
                lam.reconstruction(
                    frames, {(0, 1): replace(latent, post=torch.cat([words, z], 1))}, full, Draws(seed, device=device)
                ).mean()
            )
            for name, z in rivals.items()
        }
        right, other, mean = loss.values()
        gains = [10 * math.log10(max(rival, 1e-12) / max(right, 1e-12)) for rival in (other, mean)]
        length, spread = length_and_spread(latent.pre)
        figures = {f"reconstruction{name}": value for name, value in loss.items()}
        figures |= {
            "gain_over_another_latent_db": gains[0],
            "gain_over_the_mean_latent_db": gains[1],
            "latent_length": length,
        }
        told = []
        if latent.index is not None:
            uses = codes.slot_use(latent.index, lam.bottleneck.codebook_size)  # type: ignore[arg-type]
            figures |= {f"perplexity/slot_{use.slot}": use.perplexity for use in uses}
            figures |= {f"usage/slot_{use.slot}": use.usage for use in uses}
            told += codes.warnings(uses)
        ignored = min(gains) < IGNORED
        if ignored:
            told.append(
                f"the decoder ignores the latent: the right one reconstructs {gains[0]:+.2f} dB better than another transition's, "
                f"{gains[1]:+.2f} dB better than the mean latent. Lengthen --gap, train longer, or check that what happens between two "
                "frames is visible at --image size"
            )
        if ignored and (length < COLLAPSED * before[0] or spread < COLLAPSED * before[1]):
            raise Degenerate(
                "collapse",
                f"latents have length {length:.2g} and spread {spread:.2g}, {before[0]:.2g} and {before[1]:.2g} before training, and the "
                "decoder ignores them",
            )
        longest = length_and_spread(latent.post)[0]
        if longest > EXPLODED * before[0]:
            raise Degenerate("explosion", f"latents have length {longest:.2g}, {before[0]:.2g} before training")
        return figures, told

    return validate


#: Samples, and bytes of pictures, of a calibration at most.
CALIBRATION = 1024, 256 * 2**20


def settler(recipe: Recipe, data: DataConfig, config: TrainConfig) -> Callable[[LAM], None]:
    """A function that fits a LAM's statistics to its weights by one pass of the method's own losses over training samples, the same ones
    every time."""
    channels, height, width = recipe.lam.image
    limit = min(CALIBRATION[0], max(config.batch, CALIBRATION[1] // (data.frames * channels * height * width)))
    clip = gather(data, "train", limit)
    order = torch.randperm(len(clip), generator=torch.Generator().manual_seed(config.seed))
    size = config.batch // config.accumulate
    batches = [rows for rows in order.split(size) if len(rows) > 1 or len(clip) == 1]

    def settle(lam: LAM) -> None:
        device = next(lam.parameters()).device
        with calibrating(lam):
            for number, rows in enumerate(batches):
                recipe.losses(lam, clip[rows].to(device), Draws(config.seed, number, device=device))

    return settle


COPIES = 5  # of every weight while it is trained: itself, its gradient, two moments and the average


def check_memory(lam: LAMConfig, config: TrainConfig) -> None:
    """Raises LaminaError for a LAM that this machine cannot hold while it is trained, before any of it is allocated."""
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


TRIAL = 16  # samples


def seconds_a_step(lam: LAM, recipe: Recipe, clip: Clip, config: TrainConfig) -> float:
    """About how long a step will take here: losses and gradients of a few samples on a copy of ``lam``, the second time that they are
    computed, in proportion to the batch."""
    device = pick_device(config.device)
    trial = copy.deepcopy(lam).to(device).train()
    number = min(config.batch, TRIAL)
    rows = clip[torch.arange(number) % len(clip)].to(device)
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with autocast(device, config.precision):
            loss = total(recipe.losses(trial, rows, Draws(config.seed, device=device)), recipe.weights)
        loss.backward()
        float(loss.detach())  # an accelerator has finished then
    return (time.perf_counter() - began) * config.batch / number


def duration(seconds: float) -> str:
    """ "40 seconds", "18 minutes", "2.5 hours"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def start_from(lam: LAM, path: Path) -> None:
    """Fill ``lam`` with the weights of the model at ``path`` (a run or model folder), as far as names and shapes agree.

    Raises LaminaError if less than half of them do, or there is no model.
    """
    given = LatentActionModel.from_pretrained(str(path)).lam.state_dict()
    own = lam.state_dict()
    shared = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    if len(shared) < len(own) / 2:
        raise LaminaError(
            f"{path}: a model of another kind, {len(shared)} of {len(own)} weights fit; give --init a run of the same encoder and decoder"
        )
    lam.load_state_dict(shared, strict=False)


def pretrain(run: Path, recipe: Recipe, data: DataConfig, config: TrainConfig, init: Path | None = None) -> Path:
    """Train the recipe's LAM on ``data`` and save it under ``run``; returns the model's folder.

    ``init``: a run whose weights it starts from.
    """
    settings: dict[str, Any] = {
        "format": 1,
        "lamina": __version__,
        "method": recipe.method,
        "options": dict(recipe.options),
        "weights": dict(recipe.weights),
        "data": dataclasses.asdict(data),
        "train": dataclasses.asdict(config),
    }
    settings |= {"init": str(init)} if init is not None else {}
    settings = json.loads(json.dumps(settings))  # as it will be read back
    with alone(run / "model") if World.here().rank == 0 else nullcontext():
        return _pretrain(run, recipe, data, config, init, settings)


def _pretrain(
    run: Path, recipe: Recipe, data: DataConfig, config: TrainConfig, init: Path | None, settings: dict[str, Any]
) -> Path:
    world = World.here()
    if world.rank == 0:
        check_run(run, settings, config.resume)
    check_memory(recipe.lam, config)
    torch.manual_seed(config.seed)
    # Model and data are opened before anything is written: what is wrong with them leaves no half a run behind.
    # As they will be read: what could not be loaded is not trained.
    lam = LAM(LAMConfig.from_dict(recipe.lam.to_dict()))
    provenance = Provenance(recipe.method, data.data, data.gap, __version__, config.steps, frames=recipe.group)
    checked(Provenance, dataclasses.asdict(provenance))
    if init is not None:
        start_from(lam, init)
    held = gather(data, "validation", limit=256)
    if held.paired is not None and len(held) >= LEAST and same_states(held).low <= 0:
        text = (
            f"{', '.join(data.data)}: {data.paired} does not seem to show the same states: the change in one view tells nothing of the "
            "change in the other, held out"
        )
        warnings.warn(text, LaminaWarning, stacklevel=2)
    if world.rank == 0 and not (run / "config.json").exists():
        write_text(run / "config.json", json.dumps(settings, indent=2) + "\n")

    if world.size == 1:
        step = seconds_a_step(lam, recipe, held, config)
        threads = f", {torch.get_num_threads()} threads" if pick_device(config.device) == "cpu" else ""
        tqdm.write(
            f"{config.steps:,} steps of {config.batch} samples on {pick_device(config.device)}{threads}: about "
            f"{duration(step * config.steps)} ({config.batch / step:.0f} samples a second)",
            file=sys.stderr,
        )

    def open_stream(shards: int, shard: int | None) -> ClipStream:
        return ClipStream(data, config.batch // config.accumulate, config.seed, shards=shards, shard=shard)

    settle = settler(recipe, data, config) if config.ema and has_statistics(lam) else None
    state = fit(
        run,
        lam,
        recipe.losses,
        recipe.weights,
        open_stream,
        config,
        validator(lam, held, config.seed),
        title=f"train {recipe.method}",
        settle=settle,
    )
    folder = run / "model"
    if world.rank == 0:
        model = LatentActionModel(recipe.lam, provenance)
        model.lam.load_state_dict(state)
        with whole_folder(folder) as partial:
            model.save_pretrained(partial)
    return folder
