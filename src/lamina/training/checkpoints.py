"""RUN/checkpoints/step-00000500/: the state to resume from. Each folder is complete or absent, and checked before it is used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from lamina.errors import LaminaError
from lamina.files import json_of, reason, whole_folder, write_text
from lamina.records import Malformed, NonNegative, validated
from lamina.training.distributed import Processes
from lamina.weights import Layout, first_non_finite, layout, load_weights, read_tensors, record_of, save_weights

#: What an optimiser keeps of a parameter: a number of steps ("step"), the rest of the parameter's shape. A group of parameters whose
#: optimiser keeps something else names it under "moments".
ADAMW = ("exp_avg", "exp_avg_sq", "step")
TENSORS = ("model.safetensors", "average.safetensors", "optimizer.safetensors")
FILES = (*TENSORS, "streams.json")


@dataclass(frozen=True)
class _File:
    size: NonNegative
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class _Manifest:
    format: Literal[1]
    step: NonNegative
    files: dict[str, _File]


@runtime_checkable
class Stream(Protocol):
    """An endless stream of batches (:class:`Clip` or anything with ``.to(device)``) whose position can be saved and restored."""

    def __iter__(self) -> Iterator[Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


@runtime_checkable
class Counting(Protocol):
    """A stream that counts something for the log."""

    def figures(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint keeps. ``average``: the averaged weights, if there are any; ``processes``: those that train together."""

    processes: Processes
    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor]
    stream: Stream


def full(value: Tensor) -> Tensor:
    """The whole tensor on the CPU, gathered if FSDP2 holds it in pieces (a collective call then)."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value.detach().cpu()


class Checkpoints:
    """A run's checkpoints: weights, averaged weights, the optimiser's and the streams' state, and a manifest with the sha256 of each."""

    def __init__(self, run: Path, keep: int):
        self.run, self.folder, self.keep = run, run / "checkpoints", keep

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _named(self) -> dict[int, Path]:
        """Files and folders with the name of a checkpoint, by step. Copies and other names are not ours."""
        steps = [int(p.name[5:]) for p in self.folder.glob("step-*") if re.fullmatch("step-[0-9]{8,18}", p.name)]
        named = {step: self.path(step) for step in sorted(steps) if step}
        return {step: path for step, path in named.items() if os.path.lexists(path)}

    def steps(self) -> list[int]:
        """The steps of the checkpoints that there are."""
        return [step for step, path in self._named().items() if path.is_dir() and not path.is_symlink()]

    def last(self, steps: int) -> int:
        """The newest step of a run of ``steps`` steps; 0 if there is none.

        Raises LaminaError for what has the name of a checkpoint and can be none: a file or a link, a step beyond the end.
        """
        for step, path in self._named().items():
            if path.is_symlink() or not path.is_dir():
                raise LaminaError(f"{path}: is a file or a link, not the folder of a checkpoint; move it away")
            if step > steps:
                raise LaminaError(f"{path}: is of a step beyond this run's {steps}; move it away")
        return max(self.steps(), default=0)

    def processes(self, step: int) -> int:
        """How many processes wrote the checkpoint of ``step``; 1 where that cannot be read."""
        try:
            return max(1, len(json_of(self.path(step) / "streams.json", list)))
        except (OSError, ValueError):
            return 1  # :meth:`load` says what is wrong with it

    def save(self, step: int, state: TrainingState) -> None:
        """Write a checkpoint and remove the oldest. Raises LaminaError for weights that are not finite, and where the disk refuses."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Any
        optim: Any
        weights, optim = get_state_dict(state.module, state.optimizer, options=options)
        averaged = {name: full(value) for name, value in state.average.items()}
        own = (state.stream.state_dict(), first_non_finite({**weights, **averaged}))
        gathered: list[Any] = [own] * state.processes.size
        if state.processes.size > 1:
            dist.all_gather_object(gathered, own)
        if bad := next((bad for _, bad in gathered if bad), None):  # known to all processes, so that all of them end
            raise LaminaError(
                f"{self.run}: '{bad}' is not finite at step {step}; go on from an earlier checkpoint or start again, with a lower --lr"
            )
        if state.processes.rank == 0:
            path = self.path(step)
            if path.is_symlink() or path.is_file():
                raise LaminaError(f"{path}: a file or a link is where a checkpoint has to go; move it away")
            moments = {
                f"{name}.{moment}": value
                for name, kept in optim.get("state", {}).items()
                for moment, value in kept.items()
            }
            with whole_folder(path) as folder:
                for name, tensors in zip(TENSORS, (weights, averaged, moments), strict=True):
                    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name)
                write_text(folder / "streams.json", json.dumps([position for position, _ in gathered]))
                files = {n: {"size": (folder / n).stat().st_size, "sha256": _sha256(folder / n)} for n in FILES}
                write_text(folder / "manifest.json", json.dumps({"format": 1, "step": step, "files": files}, indent=1))
            # Not those of later steps, which are not this run's.
            for old in [s for s in self.steps() if s <= step][: -self.keep]:
                shutil.rmtree(self.path(old))
        if state.processes.size > 1:
            dist.barrier()

    def load(self, step: int, state: TrainingState) -> None:
        """Put everything back where it was at ``step``.

        The number of processes may be another one than that which wrote it. Raises LaminaError, and has loaded nothing, for a checkpoint
        that is damaged or of another model, and for a stream of other data.
        """
        folder = self.path(step)
        names = {id(p): name for name, p in state.module.named_parameters()}
        try:
            _check_files(folder, step)
            expected = (layout(state.module.state_dict()), layout(state.average), _moments(state.optimizer, names))
            weights: Any
            weights, averaged, moments = (
                read_tensors(folder / name, wanted)[0] for name, wanted in zip(TENSORS, expected, strict=True)
            )
            streams = json_of(folder / "streams.json", list)
            same = len(streams) == state.processes.size
            state.stream.load_state_dict(streams[state.processes.rank] if same else _together(streams))
            kept: dict[str, Any] = {}
            for name, value in moments.items():
                parameter, moment = name.rsplit(".", 1)
                kept.setdefault(parameter, {})[moment] = value
            # The groups' own options are the run's settings, which are compared elsewhere.
            groups = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in state.optimizer.param_groups]
            optim: Any = {"state": kept, "param_groups": groups}
            options = StateDictOptions(full_state_dict=True)
            set_state_dict(
                state.module, state.optimizer, model_state_dict=weights, optim_state_dict=optim, options=options
            )
        except Exception as error:  # torch and safetensors raise many kinds for damaged files; to the user they are one
            if isinstance(error, LaminaError) and not isinstance(error, Malformed):
                raise
            raise LaminaError(
                f"{folder}: damaged checkpoint ({reason(error)}); delete this folder and --resume goes on from the one before"
            ) from error
        for name, value in averaged.items():
            own = state.average[name]
            piece = distribute_tensor(value, own.device_mesh, own.placements) if isinstance(own, DTensor) else value
            own.copy_(piece)


def _together(states: list[Any]) -> Any:
    """The positions of the processes' streams as the position of one stream, which has the data shards of all of them.

    Raises ValueError if they do not fit together.
    """
    if not states or not all(isinstance(state, dict) and state.keys() == states[0].keys() for state in states):
        if any(state != states[0] for state in states) or not states:
            raise ValueError("the streams of its processes do not fit together")
        return states[0]
    values = {name: [state[name] for state in states] for name in states[0]}
    shards = (
        {"shards": {r: state for each in values.pop("shards") for r, state in each.items()}}
        if "shards" in values
        else {}
    )
    return {name: _together(each) for name, each in values.items()} | shards


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _moments(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Layout:
    """The state that an optimiser keeps of its parameters; ``names``: of the parameters, by their id."""
    step = torch.zeros(())
    return layout(
        {
            f"{names[id(parameter)]}.{moment}": step if moment == "step" else parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            for moment in group.get("moments", ADAMW)
        }
    )


def _check_files(folder: Path, step: int) -> None:
    """Raises ValueError or OSError unless a checkpoint's files are, byte for byte, those that its manifest lists."""
    try:
        manifest = validated(_Manifest, json_of(folder / "manifest.json"), "manifest.json")
    except FileNotFoundError as error:
        raise ValueError("no manifest.json: incomplete, or of a version of lamina that wrote none") from error
    if manifest.step != step or manifest.files.keys() != set(FILES):
        raise ValueError("manifest.json is that of another folder")
    for name, file in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != file.size or _sha256(path) != file.sha256:
            raise ValueError(f"{name} is not what was written")


@dataclass(frozen=True)
class _Loss:
    loss: Annotated[float, Field(allow_inf_nan=False)]


class BestCheckpoint:
    """Keeps the checkpoint with the lowest validation loss on disk, so that a resumed run continues from it."""

    def __init__(self, path: Path):
        self.path, self.loss = path, float("inf")
        if path.exists():
            try:
                note = record_of(path) or {}
                self.loss = validated(_Loss, note).loss
            except (SafetensorError, OSError, ValueError) as error:
                raise LaminaError(f"{path}: damaged ({reason(error)}); delete {path.parent} and align again") from error

    def update(self, module: nn.Module, loss: float) -> None:
        if loss < self.loss:
            self.loss = loss
            save_weights(self.path, module.state_dict(), {"loss": loss})

    def restore(self, module: nn.Module) -> None:
        load_weights(module, self.path, {"loss": self.loss})
