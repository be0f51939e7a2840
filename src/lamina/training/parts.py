"""Tensors that several processes hold, in a folder of safetensors files: each process writes its own part, any number of them reads.

By ``torch.distributed.checkpoint``. Its usual storage keeps an index of all parts in a file that is pickled; the one used here keeps in
the header of each safetensors file which pieces of which tensors the file holds, and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from lamina.errors import LaminaError
from lamina.files import disk_errors, partial_path, reason, whole_folder
from lamina.training.distributed import Processes
from lamina.weights import TYPES, Layout, first_non_finite

T = TypeVar("T")


def storage() -> Any:
    """The module of torch that keeps parts as safetensors. Raises LaminaError for a torch that is too old for it."""
    try:
        from torch.distributed.checkpoint import hf_storage

        known = "save_distributed" in signature(hf_storage.HuggingFaceStorageWriter).parameters
    except ImportError:
        known = False
    if not known:
        raise LaminaError(
            f"torch {torch.__version__} cannot write checkpoints of several processes; install torch 2.9 or later"
        )
    return hf_storage


def own_piece(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def first_non_finite_piece(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with NaN or infinity in what this process holds of it."""
    return first_non_finite({name: own_piece(value) for name, value in tensors.items()})


def together(processes: Processes, value: T) -> list[T]:
    """The ``value`` of every process, in all of them."""
    gathered: list[Any] = [value] * processes.size
    if processes.size > 1:
        dist.all_gather_object(gathered, value)
    return gathered


def agreed(processes: Processes, work: Callable[[], T]) -> T:
    """The result of ``work``. Where it fails on one process it fails on all of them, so that none waits for another: with the error itself,
    with LaminaError where that is one, else with ValueError."""
    found: T | None = None
    failed: Exception | None = None
    try:
        found = work()
    except Exception as error:
        failed = error
    told = None if failed is None else (isinstance(failed, LaminaError), reason(failed))
    others = [each for each in together(processes, told) if each is not None]
    if failed is not None:
        raise failed
    for is_ours, text in others:
        raise LaminaError(text) if is_ours else ValueError(text)
    return found  # type: ignore[return-value]


@contextmanager
def common_folder(path: Path, processes: Processes) -> Iterator[Path]:
    """:func:`whole_folder` in which all processes write: the first one makes it, and gives it its name when all of them have left."""
    if processes.rank == 0:
        with whole_folder(path) as folder:
            together(processes, None)
            yield folder
            together(processes, None)
    else:
        with disk_errors(path):
            together(processes, None)
            yield partial_path(path)
            together(processes, None)
    together(processes, None)  # it has its name


def write_parts(folder: Path, tensors: Mapping[str, Tensor], processes: Processes) -> list[Path]:
    """Write what the processes hold of ``tensors``; returns the files of this process. A collective call.

    A tensor that all of them hold is written by one. Raises OSError, on all processes, where the disk refuses.
    """
    writer = storage().HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save({name: value.contiguous() for name, value in tensors.items()}, storage_writer=writer)
    except dcp.CheckpointException as error:
        raise OSError("; ".join(sorted({str(failure[0]) for failure in error.failures.values()}))) from error
    return sorted(folder.glob(f"shard-{processes.rank + 1:05d}-*.safetensors"))


def layout_of_parts(folder: Path) -> Layout:
    """Type and shape of each whole tensor in a folder. Raises ValueError where a piece is missing."""
    found: Layout = {}
    for name, stored in storage().HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        if sum(chunk.sizes.numel() for chunk in stored.chunks) != stored.size.numel():
            raise ValueError(f"pieces of '{name}' are missing")
        found[name] = (TYPES[stored.properties.dtype], tuple(stored.size))
    return found


def read_parts(folder: Path, tensors: Mapping[str, Tensor], processes: Processes) -> None:
    """Fill what this process holds of ``tensors``, which are all that are in the folder. A collective call.

    Raises whatever torch raises for files that do not hold them.
    """
    reader = storage().HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():  # torch warns that one process is alone
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(dict(tensors), storage_reader=reader, no_dist=processes.size == 1)
