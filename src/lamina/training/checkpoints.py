"""RUN/checkpoints/step-00000500/: the state to resume from. Each folder is complete or absent, and checked before it is used.

    manifest.json                  step, and size and sha256 of every other file
    streams.json                   where the data streams are
    model.safetensors              of one process: weights; average.safetensors; optimizer.safetensors
    shard-00001-model-....         of several: what the first process holds of all three (lamina.training.parts)

Several processes write and read in a folder that all of them see. Either form is read by any number of processes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from lamina.errors import LaminaError
from lamina.files import json_of, reason, sha256, write_text
from lamina.records import Malformed, NonNegative, validated
from lamina.training.distributed import Processes
from lamina.training.parts import (
    agreed,
    common_folder,
    first_non_finite_piece,
    layout_of_parts,
    read_parts,
    together,
    write_parts,
)
from lamina.weights import Layout, check_layout, layout, load_weights, read_tensors, record_of, save_weights

#: What an optimiser keeps of a parameter: a number of steps ("step"), the rest of the parameter's shape. A group of parameters whose
#: optimiser keeps something else names it under "moments".
ADAMW = ("exp_avg", "exp_avg_sq", "step")
TENSORS = ("model.safetensors", "average.safetensors", "optimizer.safetensors")
FILES = (*TENSORS, "streams.json")
#: What the names of a part's tensors begin with.
KINDS = ("model", "average", "optimizer")


@dataclass(frozen=True)
class _File:
    size: NonNegative
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class _Manifest:
    """Format 1 is of one process, 2 of several. ``shards``: of the data, where that is not the number of processes."""

    format: Literal[1, 2]
    step: NonNegative
    files: dict[str, _File]
    shards: Annotated[int, Field(ge=1, lt=2**31)] | None = None


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
    """What a checkpoint keeps. ``average``: the averaged weights, if there are any; ``processes``: those that train together; ``shards``:
    into how many the data are divided."""

    processes: Processes
    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor]
    stream: Stream
    shards: int


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

    def shards(self, step: int) -> int:
        """How many shards the data of the run had that wrote the checkpoint of ``step``; 1 where that cannot be read."""
        try:
            stated = json_of(self.path(step) / "manifest.json").get("shards")
            return max(1, int(stated or len(json_of(self.path(step) / "streams.json", list))))
        except (OSError, ValueError, TypeError):
            return 1  # :meth:`load` says what is wrong with it

    def save(self, step: int, state: TrainingState) -> None:
        """Write a checkpoint and remove the oldest. Raises LaminaError for weights that are not finite, and where the disk refuses."""
        processes, path = state.processes, self.path(step)
        alone = processes.size == 1
        options = StateDictOptions(full_state_dict=alone, cpu_offload=alone)
        weights: Any
        optim: Any
        weights, optim = get_state_dict(state.module, state.optimizer, options=options)
        # Known to all processes, so that all of them end.
        bad = together(processes, first_non_finite_piece({**weights, **state.average}))
        if any(bad):
            raise LaminaError(
                f"{self.run}: '{next(filter(None, bad))}' is not finite at step {step}; go on from an earlier checkpoint or start again, "
                "with a lower --lr"
            )
        if path.is_symlink() or path.is_file():
            raise LaminaError(f"{path}: a file or a link is where a checkpoint has to go; move it away")
        tensors = (weights, state.average, _by_moment(optim))
        streams = together(processes, state.stream.state_dict())
        note: dict[str, Any] = {"format": 1 if alone else 2, "step": step}
        note |= {} if state.shards == processes.size else {"shards": state.shards}
        with common_folder(path, processes) as folder:
            if alone:
                for name, content in zip(TENSORS, tensors, strict=True):
                    save_file({k: full(v).contiguous() for k, v in content.items()}, folder / name)
                own = [folder / name for name in TENSORS]
            else:
                own = write_parts(folder, _named(tensors), processes)
            written = agreed(processes, lambda: {p.name: {"size": p.stat().st_size, "sha256": sha256(p)} for p in own})
            files = {name: file for each in together(processes, written) for name, file in each.items()}
            if processes.rank == 0:
                write_text(folder / "streams.json", json.dumps(streams))
                size = (folder / "streams.json").stat().st_size
                files["streams.json"] = {"size": size, "sha256": sha256(folder / "streams.json")}
                write_text(folder / "manifest.json", json.dumps(note | {"files": files}, indent=1))
        if processes.rank == 0:
            # Not those of later steps, which are not this run's.
            for old in [s for s in self.steps() if s <= step][: -self.keep]:
                shutil.rmtree(self.path(old))

    def load(self, step: int, state: TrainingState) -> None:
        """Put everything back where it was at ``step``.

        The number of processes may be another one than that which wrote it. Raises LaminaError, and has loaded nothing, for a checkpoint
        that is damaged or of another model, and for a stream of other data.
        """
        folder = self.path(step)
        names = {id(p): name for name, p in state.module.named_parameters()}
        try:
            manifest = agreed(state.processes, lambda: _checked(folder, step, state.processes))
            read = _read_whole if manifest.format == 1 else _read_parts
            weights, averaged, moments = read(folder, state, names)
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
            options = StateDictOptions(full_state_dict=manifest.format == 1)
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
            whole = isinstance(own, DTensor) and not isinstance(value, DTensor)
            own.copy_(distribute_tensor(value, own.device_mesh, own.placements) if whole else value)  # type: ignore[attr-defined]


def _by_moment(optim: Any) -> dict[str, Tensor]:
    """An optimiser's state as one dictionary."""
    return {f"{name}.{moment}": v for name, kept in optim.get("state", {}).items() for moment, v in kept.items()}


def _named(tensors: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights, averages and moments as one dictionary."""
    return {f"{kind}.{name}": v for kind, each in zip(KINDS, tensors, strict=True) for name, v in each.items()}


#: Weights, averaged weights and the optimiser's moments.
_Tensors = tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]


def _read_whole(folder: Path, state: TrainingState, names: Mapping[int, str]) -> _Tensors:
    """The whole tensors of a checkpoint of one process."""
    expected = (layout(state.module.state_dict()), layout(state.average), _moments(state.optimizer, names))
    files = [folder / name for name in TENSORS]
    found = agreed(state.processes, lambda: [read_tensors(*each)[0] for each in zip(files, expected, strict=True)])
    return found[0], found[1], found[2]


def _read_parts(folder: Path, state: TrainingState, names: Mapping[int, str]) -> _Tensors:
    """What this process holds of the tensors of a checkpoint of several."""
    weights: Any
    optim: Any
    weights, optim = get_state_dict(state.module, state.optimizer)
    own = _named((weights, state.average, _by_moment(optim)))
    agreed(state.processes, lambda: check_layout(layout_of_parts(folder), layout(own)))
    filled = {name: torch.zeros_like(value) for name, value in own.items()}
    read_parts(folder, filled, state.processes)
    bad = together(state.processes, first_non_finite_piece(filled))
    if any(bad):
        raise ValueError(f"'{next(filter(None, bad))}' is not finite")
    found = [{n.partition(".")[2]: v for n, v in filled.items() if n.startswith(f"{kind}.")} for kind in KINDS]
    return found[0], found[1], found[2]


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


def _checked(folder: Path, step: int, processes: Processes) -> _Manifest:
    """The manifest of a checkpoint, of whose files this process has checked its share.

    Raises ValueError or OSError unless they are, byte for byte, those that the manifest lists, and there is no other part.
    """
    try:
        manifest = validated(_Manifest, json_of(folder / "manifest.json"), "manifest.json")
    except FileNotFoundError as error:
        raise ValueError("no manifest.json: incomplete, or of a version of lamina that wrote none") from error
    parts = {path.name for path in folder.glob("*.safetensors")}
    listed = set(FILES) if manifest.format == 1 else {"streams.json", *parts}
    if manifest.step != step or manifest.files.keys() != listed:
        raise ValueError("manifest.json is that of another folder")
    for name, file in sorted(manifest.files.items())[processes.rank :: processes.size]:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != file.size or sha256(path) != file.sha256:
            raise ValueError(f"{name} is not what was written")
    return manifest


@dataclass(frozen=True)
class _Loss:
    loss: Annotated[float, Field(allow_inf_nan=False)]


class BestCheckpoint:
    """Keeps the best checkpoint by its validation loss on disk, so that a resumed run continues from it."""

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
