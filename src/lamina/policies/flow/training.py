"""Training, saving and loading of the flow policy."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lamina.data.dataset import Data, Dataset, name_of
from lamina.data.sampling import actions_of_gap, open_source
from lamina.data.shots import detector_name
from lamina.device import pick_device
from lamina.errors import LaminaError
from lamina.files import locked
from lamina.models.hub import LatentActionModel
from lamina.models.lam import LAM
from lamina.policies.base import save_parts
from lamina.policies.encoded import fingerprint, run_detector
from lamina.policies.flow.config import FlowConfig, FlowShapes
from lamina.policies.flow.data import (
    Columns,
    FlowData,
    FlowStream,
    choose_cameras,
    choose_columns,
    encode_steps,
    fixed_batch,
    label_some,
    open_data,
    statistics_of,
)
from lamina.policies.flow.model import FlowBatch, FlowModel, flow_losses
from lamina.policies.flow.plan import plan, told_plan
from lamina.records import read_note
from lamina.rng import Rng
from lamina.training.distributed import Processes
from lamina.training.loop import Validation, fit
from lamina.training.settings import TrainConfig, fixed_options, keep_settings
from lamina.version import __version__
from lamina.weights import load_module

FORMAT = 1  # of config.json and model.safetensors; raised when an old file can no longer be read
NAME = "flow"
FPS_TOLERANCE = 0.01  # by which the frame rates of datasets may differ


def train_flow_policy(
    run: Path, data: Sequence[Data], config: FlowConfig, training: TrainConfig, cameras: Sequence[str] = ()
) -> Path:
    """Train the policy on the frames, actions and latents of ``data``, with RUN's LAM frozen; returns RUN/policy.

    ``cameras``: those that it sees; by default all that the data have. RUN/policy/frames/ keeps the encoded data for the next time,
    checkpoints/ and log.jsonl are the loop's, config.json (written last) and model.safetensors (averaged weights) the result. The
    validation episodes are looked at, with their actions, and choose nothing.
    Raises LaminaError, before any training, for a policy that is there already without ``resume``, a resumed run with other settings, and
    data that do not fit one another, the LAM, or the options.
    """
    if training.parallel == "fsdp2":
        raise LaminaError(
            "a flow policy is trained by --parallel ddp: its layers are called in parts, which fsdp2 cannot gather"
        )
    with locked(run / "policy") if Processes.here().rank == 0 else nullcontext():
        return _train_flow_policy(run, data, config, training, cameras)


def _train_flow_policy(
    run: Path, data: Sequence[Data], config: FlowConfig, training: TrainConfig, cameras: Sequence[str]
) -> Path:
    folder, rank = run / "policy", Processes.here().rank
    lam = LatentActionModel.from_pretrained(str(run)).to(pick_device(training.device))
    if (folder / "config.json").exists() and not training.resume:
        raise LaminaError(f"{folder}: trained already; add --resume to go on, or delete that folder")
    if lam.config.image[0] != 3:
        raise LaminaError(f"{run}: this LAM reads pictures of {lam.config.image[0]} channels, and cameras have 3")
    sources = [open_source(source) for source in data]
    columns, gap = choose_columns(sources, config), gap_of(lam, config)
    shapes = shapes_of(lam, sources, config, columns, cameras)
    check_lengths(sources, config)
    torch.manual_seed(training.seed)
    model = FlowModel(config, shapes)
    settings: dict[str, Any] = {
        "flow_policy": dataclasses.asdict(config),
        "train": fixed_options(training),
        "data": [source.fingerprint() for source in sources],
        "shapes": dataclasses.asdict(shapes),
    }
    find = [run_detector(run, source) for source in sources]
    settings |= {"shots": [detector_name(each) for each in find]} if any(find) else {}
    if rank == 0:
        if not training.resume:  # what a killed run left
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        keep_settings(folder / "training.json", settings, training.resume)
    encode_steps(
        lam,
        sources,
        folder / "frames",
        shapes.fingerprint,
        shapes.cameras,
        columns,
        gap,
        training.precision,
        shapes.latent if config.latent_numbers else None,
        find,
        wait=rank > 0,  # one process encodes for all
    )
    train = label_some(open_data(folder / "frames", "train"), config.labels, training.seed)
    held = open_data(folder / "frames", "validation")
    model.calibrate(statistics_of(train))
    note = describe(train, shapes)
    if rank == 0:
        tqdm.write(told(note, shapes, config))

    def open_stream(shards: int, own: Sequence[int]) -> FlowStream:
        batch = training.batch // training.accumulate
        return FlowStream(train, config, shapes.stride, batch, training.seed, shards, own)

    validate = flow_diagnostics(fixed_batch(held, config, shapes.stride)) if len(held) else None
    state = fit(folder, model, flow_losses, model.weights(), open_stream, training, validate, "train flow policy")
    if rank == 0:
        model.load_state_dict(state)
        note |= {"data": [name_of(source) for source in data], "steps": training.steps, "seed": training.seed}
        note |= {"validation": validate(model.cpu().eval())[0] if validate else {}}
        save_flow_policy(folder, model, note)
    return folder


def gap_of(lam: LatentActionModel, config: FlowConfig) -> float | None:
    """Seconds between the frames of a latent; None for a policy without latents."""
    return (config.latent_gap or lam.provenance.label_gap) if config.latents == "lam" else None


def shapes_of(
    lam: LatentActionModel, sources: Sequence[Dataset], config: FlowConfig, columns: Columns, cameras: Sequence[str]
) -> FlowShapes:
    """What a policy of these data is made for; ``cameras``: those that it sees, none = all. Raises LaminaError if the data do not fit."""
    fps, gap = common_fps(sources), gap_of(lam, config)
    frames, width = actions_of_gap(fps, gap) if gap else 1, lam.config.action_length * lam.lam.dim
    return FlowShapes(
        image=lam.config.image,
        cameras=choose_cameras(sources, cameras),
        discrete=columns.spec.discrete,
        continuous=columns.spec.continuous,
        names=columns.spec.names,
        proprio=columns.width,
        latent=min(width, config.latent_numbers or width) if gap else 0,
        gap=frames,
        stride=frames if config.form == "villa_x" else 1,
        fps=fps,
        tasks=tuple(sorted({e.task for source in sources for e in source.episodes if e.task})),
        columns=(columns.action, columns.proprio),
        fingerprint=fingerprint(lam.lam),
    )


def plan_flow_policy(
    run: Path, data: Sequence[Data], config: FlowConfig, training: TrainConfig, cameras: Sequence[str] = ()
) -> str:
    """What :func:`train_flow_policy` would cost with these arguments, as text; trains and writes nothing. Raises LaminaError as it does."""
    lam, sources = LatentActionModel.from_pretrained(str(run)), [open_source(source) for source in data]
    shapes = shapes_of(lam, sources, config, choose_columns(sources, config), cameras)
    return told_plan(plan(config, shapes), training)


def common_fps(sources: Sequence[Dataset]) -> float:
    """Frames per second of all ``sources``. Raises LaminaError if they differ: a step is an action in all of them."""
    first, *others = sources
    for source in others:
        if abs(source.fps / first.fps - 1) > FPS_TOLERANCE:
            raise LaminaError(
                f"{first.name} has {first.fps:g} frames a second and {source.name} {source.fps:g}: a policy needs one rate"
            )
    return first.fps


def check_lengths(sources: Sequence[Dataset], config: FlowConfig) -> None:
    """Raises LaminaError if no training episode is as long as a chunk."""
    longest = max(
        (stop - first for s in sources for e in s.episodes for name, first, stop in e.splits if name == "train"),
        default=0,
    )
    if longest < config.actions:
        names = ", ".join(source.name for source in sources)
        raise LaminaError(
            f"{names}: the longest training episode has {longest} steps, and a chunk is {config.actions}; set --chunk"
        )


def describe(data: FlowData, shapes: FlowShapes) -> dict[str, Any]:
    """What was trained on: episodes, and which of them were labelled."""
    return {
        "episodes": len(data.names),
        "labelled": [name for name, chosen in zip(data.names, data.labelled.tolist(), strict=True) if chosen],
        "labelled_steps": len(data.steps(labelled=True)),
        "latent_seconds": shapes.gap / shapes.fps if shapes.latent else None,
    }


def told(note: dict[str, Any], shapes: FlowShapes, config: FlowConfig) -> str:
    """One line that says what the policy is trained on."""
    latents = "no latents"
    if shapes.latent:
        latents = (
            f"{config.steps_of_latents} latents a view, each of {shapes.gap} frames ({note['latent_seconds']:.3g} s)"
        )
    others = note["episodes"] - len(note["labelled"])
    return (
        f"{', '.join(shapes.cameras)}; actions: '{shapes.columns[0]}' of {len(note['labelled'])} episodes ({others} others); "
        f"a decision: {config.actions} actions, of which {config.executed} are carried out, and {latents}"
    )


def flow_diagnostics(batch: FlowBatch) -> Callable[[FlowModel], Validation]:
    """A function ``validate(model)``: the losses on a fixed batch with fixed noise, and the error of the actions that the policy samples
    there (:meth:`FlowModel.action_error`)."""

    @torch.no_grad()
    def validate(model: FlowModel) -> Validation:
        on_device = batch.to(model.place.device)
        assert isinstance(on_device, FlowBatch)
        draws = Rng(0, device=model.place.device)
        figures = {name: float(loss.mean()) for name, loss in flow_losses(model, on_device, draws).items()}
        if bool(on_device.action_valid.any()):
            figures["action_error"] = model.action_error(on_device, draws)
        return figures, []

    return validate


@dataclass(frozen=True)
class _Note:
    """What RUN/policy/config.json says of the policy itself: the arguments of :class:`FlowModel`."""

    config: FlowConfig
    shapes: FlowShapes


def save_flow_policy(folder: Path, model: FlowModel, note: dict[str, Any]) -> None:
    """FOLDER/model.safetensors, then config.json, whose presence says that both are whole."""
    record = {"config": dataclasses.asdict(model.config), "shapes": dataclasses.asdict(model.shapes)}
    config = {"kind": NAME, "format": FORMAT, "lamina": __version__, **record, **note}
    save_parts(folder, model.state_dict(), record, config)


def load_flow_policy(folder: Path, lam: LAM | None = None) -> FlowModel:
    """A saved flow policy. Raises LaminaError if there is none, if it is damaged, or if its latents are those of another LAM."""
    path = folder / "config.json"
    remedy = f"delete {folder} and train the policy again"
    if not path.exists():
        raise LaminaError(f"{folder}: no policy here; train one first (lamina policy)")
    note, record = read_note(path, _Note, {"kind": NAME, "format": FORMAT}, remedy)
    model = load_module(lambda: FlowModel(note.config, note.shapes), path, folder / "model.safetensors", record)
    if lam is not None and fingerprint(lam) != model.shapes.fingerprint:
        raise LaminaError(
            f"{folder}: was trained with another LAM (its encoder or bottleneck differs); train a policy for this one"
        )
    return model.eval()
