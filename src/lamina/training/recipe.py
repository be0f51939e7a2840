"""A method with its options and its data filled in: what training needs of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lamina import methods
from lamina.data.augment import DEFAULT_CROP, MAX_REPEATS, augmented
from lamina.data.sampling import DataConfig, SampleIndex, count_transitions, feature_width, open_sources
from lamina.data.stream import sample_split
from lamina.device import pick_device
from lamina.errors import LaminaError, warn
from lamina.files import read_json
from lamina.losses.optical_flow import FLOW_WIDTH
from lamina.methods import MethodFile
from lamina.methods.auxiliary import label_mask, mean_and_deviation, target_actions, target_of, with_auxiliary
from lamina.methods.base import Losses, LossOutput, Method, MethodLosses, with_decoder
from lamina.models.config import LAMConfig
from lamina.models.feature_cache import kept_features
from lamina.models.features import ClipView, is_pretrained
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina.training.settings import TrainConfig
from lamina.types import Clip


@dataclass(frozen=True)
class Recipe:
    """A method with its options filled in: all that training needs of it.

    ``losses(lam, clip, rng) -> {term: [b]}`` is the objective on a batch of clips, and ``weights`` has a weight for each term.
    """

    method: str
    options: Mapping[str, Any]
    lam: LAMConfig
    losses: Losses
    weights: Mapping[str, float]
    objective_frames: int  # frames that the objective ties together: 2 of a pair, 3 of a triplet
    file: MethodFile | None = None  # where the method was loaded from, if from a file
    initialise: Callable[[LAM], None] | None = None  # fills a new LAM with pretrained weights


def recipe(name: str | Path, method: Method, options: Any) -> Recipe:
    """The recipe of a method with ``options``, an instance of its Config; ``name``: its name or path.

    Adds the auxiliary losses that the options enable, and resolves a decoder that follows the device. Raises LaminaError where
    ``method.losses(options)`` is no function of (lam, view, rng).
    """
    name = methods.name_of(name)
    options = with_decoder(options, pick_device("auto"))
    lam = method.build(options)
    initialise: Callable[[Any, LAM], None] | None = getattr(method, "initialise", None)
    losses, weights = with_auxiliary(options, checked_losses(name, method.losses(options)), method.weights(options))
    # A mirrored picture has another state, another instruction and another action.
    mirror = not (lam.state or lam.task or lam.target)
    return Recipe(
        method=name,
        options=dataclasses.asdict(options),
        lam=lam,
        losses=objective(losses, options, mirror),
        weights=weights,
        objective_frames=getattr(method, "OBJECTIVE_FRAMES", 2),
        file=methods.file_of(method),
        initialise=None if initialise is None else partial(initialise, options),
    )


def recipe_of(run: Path, method: str | Path | None = None) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that a run was trained with, and the settings of its data.

    ``method``: the method's file, for a run that was trained from one. RUN/method.py is a record and is never executed. A file that has
    changed since is a LaminaWarning. Raises LaminaError if RUN/config.json cannot be read, or the method cannot be loaded.
    """
    path = run / "config.json"
    settings = read_json(path, "it does not say how this run was trained")
    recorded = settings.get("method_file")
    if isinstance(recorded, dict) and method is None:
        raise LaminaError(f"{run}: was trained from a file; add --method {recorded.get('path')}")
    try:
        given = method or settings["method"]
        loaded = methods.load(given)
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["options"].items()}
        make_options: Callable[..., Any] = loaded.Config
        found = recipe(given, loaded, make_options(**options))
        data: dict[str, Any] = settings["data"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LaminaError(f"{path}: cannot read how this run was trained ({error})") from error
    warn_changed_file(run, recorded, found.file.record() if found.file else None)
    return found, data


def warn_changed_file(run: Path, recorded: Any, file: Mapping[str, str] | None) -> None:
    """Warn if a run's method file is not the one that it was started with. ``recorded``, ``file``: path and sha256 of each."""
    before = recorded.get("sha256") if isinstance(recorded, dict) else None
    if file is not None and file["sha256"] != before:
        warn(f"{file['path']}: is not the code that {run} was started with, of which {run / 'method.py'} is a copy")


def checked_losses(name: str, losses: MethodLosses) -> MethodLosses:
    """A method's losses; calling them raises LaminaError where they return no LossOutput. Raises LaminaError for another signature."""
    methods.check_losses(name, losses)

    def terms(lam: LAM, view: ClipView, rng: Rng) -> LossOutput:
        found = losses(lam, view, rng)
        if not isinstance(found, LossOutput):
            kind = type(found).__name__
            raise LaminaError(f"{name}.losses must return LossOutput(terms, latents), it returned {kind}")
        return found

    return terms


def objective(losses: MethodLosses, options: Any, mirror: bool) -> Losses:
    """The loss terms of a batch of clips, as training, calibration and joint alignment compute them.

    Applies random crops (and mirror images, if ``mirror``) to the clips where the options ask for augmentation.
    """

    def terms(lam: LAM, clip: Clip, rng: Rng) -> dict[str, Float[Tensor, "b"]]:
        paired = bool(options.cross_exogenous)
        if not options.augment:
            return losses(lam, lam.view(clip, paired), rng).terms
        clip = augmented(clip, float(options.augment), rng, mirror)
        with kept_features(False):  # no crop comes twice
            return losses(lam, lam.view(clip, paired), rng).terms

    return terms


def filled_in(options: Any, data: DataConfig, training: TrainConfig | None = None) -> tuple[Any, DataConfig]:
    """``options`` of a method and its ``data``, with what one needs of the other filled in: proprioception, paired views, targets; and of
    the ``training``: whether little data is seen so often that it must be augmented (never for a pretrained space).

    Raises LaminaError if the data does not allow an auxiliary loss that is asked for.
    """
    if training is not None and options.augment is None:
        times = training.steps * training.batch / max(1, count_transitions(data, "train"))
        # Crops would need a pretrained encoder at every step, where each frame's features are computed once.
        crops = times > MAX_REPEATS and not is_pretrained(options.space)
        options = replace(options, augment=DEFAULT_CROP if crops else 0.0)
    return _with_target(*_with_paired(*with_proprio(options, data)))


def _with_paired(options: Any, data: DataConfig) -> tuple[Any, DataConfig]:
    if not options.cross_exogenous or data.paired is not None:
        return options, data
    sources = [source for source, _ in open_sources(data)]
    named = {next((c for c in s.cameras if c.endswith(".paired")), None) for s in sources}
    if len(named) > 1 or None in named:
        raise LaminaError(
            f"{', '.join(data.names)}: --cross-exogenous needs paired views, a camera that shows the same states under another "
            "exogenous state: name it by --paired"
        )
    return options, replace(data, paired=named.pop())


def _with_target(options: Any, data: DataConfig) -> tuple[Any, DataConfig]:
    """The target's width, and what it is standardised by: mean and deviation over the transitions of the training split whose target is
    known, at the middle of the range of gaps."""
    if not options.robust_target or options.target != "action":
        data = replace(data, action=None)  # an objective that reads no actions accepts data with damaged ones
    if not options.robust_target:
        return options, data
    name = options.target
    if name == "flow":
        clip = sample_split(replace(data, action=None, paired=None, proprio=None, targets=()), "train", limit=256)
        mean, deviation = mean_and_deviation(target_of(clip, options, (0, 1)))
        return replace(options, target_width=FLOW_WIDTH, target_mean=mean, target_deviation=deviation), data
    plan = SampleIndex(data, "train")
    if name == "action":
        if plan.action is None:
            raise LaminaError(
                f"{', '.join(data.names)}: --robust-target needs actions to predict; or set --target flow"
            )
        options = replace(options, target_width=plan.action.width, target_classes=plan.action.discrete)
    else:
        width = feature_width(data, name)
        if width is None:
            raise LaminaError(f"{', '.join(data.names)}: no feature '{name}' of one width to be the robust target")
        options, data = replace(options, target_width=width), replace(data, targets=(*data.targets, name))
    column = data.action if name == "action" else name
    assert column is not None
    targets = []
    for source, offset in zip(plan.sources, plan.offsets, strict=False):
        for number, episode in enumerate(source.episodes):
            for _, first, stop in (part for part in episode.splits if part[0] == "train"):
                values = torch.from_numpy(source.column(episode, column)).float()
                gap = max(1, round(sum(data.gap) / 2 * episode.fps))
                frames = torch.arange(first, max(first, stop - gap))
                labelled = frames[label_mask(torch.tensor(offset + number), frames, options)]
                change = values[labelled] if name == "action" else values[labelled + gap] - values[labelled]
                targets.append(target_actions(options).one_hot(change) if name == "action" else change)
    every = torch.cat(targets)
    if len(every) < 2:
        raise LaminaError(
            f"{', '.join(data.names)}: --target-share {options.target_share:g} leaves {len(every)} transitions whose target is known"
        )
    mean, deviation = mean_and_deviation(every, options.target_classes)
    return replace(options, target_mean=mean, target_deviation=deviation), data


def with_proprio(options: Any, data: DataConfig) -> tuple[Any, DataConfig]:
    """``options`` and ``data`` of a method that asks for proprioception (its Config has ``proprio``, a feature's name, and
    ``proprio_width``), completed from the data; without such a feature a LaminaWarning, and neither is changed.
    """
    name = getattr(options, "proprio", None)
    if name is None:
        return options, data
    width = feature_width(data, name)
    if width is None:
        warn(
            f"{', '.join(data.names)}: no feature '{name}' of one width: trained without the proprioceptive forward model"
        )
        return options, data
    return replace(options, proprio_width=width), replace(data, proprio=name)
