"""Weights in safetensors files. Saved weights are finite; loaded weights have exactly the names, shapes and types of the module.

The metadata of a file that Lamina writes contain a ``record`` of the settings that the weights belong to (quantiser levels, heads, gap in
seconds; tensor shapes do not determine most of them) and a sha256 of record and tensors. Older files have neither and are loaded
without these checks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.files import check_regular, reason, whole_file
from lamina.records import differences

M = TypeVar("M", bound=nn.Module)

LONGEST_HEADER = 8 * 2**20  # bytes; enough for names, types and shapes of about ten thousand tensors
COMPUTED = 2**28  # maximum size of non-persistent buffers, which are in no file, bytes
KEY = "lamina"  # the only key of the metadata: the order of several keys in the file would be random

TYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Layout = dict[str, tuple[str, tuple[int, ...]]]


class LayoutMismatch(ValueError):
    """The tensors are intact but do not fit the module."""


def layout(state: Mapping[str, Tensor]) -> Layout:
    """Type and shape of every tensor, as a safetensors header states them."""
    return {name: (TYPES[value.dtype], tuple(value.shape)) for name, value in state.items()}


def first_non_finite(state: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with NaN or infinity; None if all are finite."""
    return next((n for n, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())), None)


def digest(state: Mapping[str, Tensor], record: Any) -> str:
    """sha256 of a record and all tensors."""
    found = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_weights(path: Path, state: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and their record to ``path`` atomically.

    Raises LaminaError if a tensor contains NaN or infinity, or if the file system reports an error.
    """
    whole = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    if bad := first_non_finite(whole):
        raise LaminaError(f"{path}: not saved, '{bad}' is not finite; train again with a lower --lr")
    note = json.dumps({"record": record, "sha256": digest(whole, json.loads(json.dumps(record)))}, sort_keys=True)
    with whole_file(path) as partial:
        save_file(whole, partial, metadata={KEY: note})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file; only its header has been read. Raises OSError, ValueError, SafetensorError."""
    check_regular(path)
    with path.open("rb") as file:
        if (length := int.from_bytes(file.read(8), "little")) > LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
    with safe_open(path, "pt") as opened:
        yield opened


def _check_layout(file: Any, expected: Layout) -> None:
    """Check that an open file has exactly the ``expected`` tensors. Raises LayoutMismatch otherwise."""
    names = file.keys()
    slices = {name: file.get_slice(name) for name in names}
    check_layout({n: (part.get_dtype(), tuple(part.get_shape())) for n, part in slices.items()}, expected)


def check_layout(found: Layout, expected: Layout) -> None:
    """Raises LayoutMismatch unless the tensors that were ``found`` are those that are ``expected``."""
    if lost := sorted(expected.keys() - found.keys()):
        raise LayoutMismatch(f"'{lost[0]}' is missing")
    if foreign := sorted(found.keys() - expected.keys()):
        raise LayoutMismatch(f"{foreign[0]!r} is not one of them")
    for name, wanted in expected.items():
        if found[name] != wanted:
            raise LayoutMismatch(f"'{name}' is {_told(*found[name])}, not {_told(*wanted)}")


def _told(kind: str, shape: tuple[int, ...]) -> str:
    return f"{kind} [{', '.join(map(str, shape))}]"


def read_tensors(path: Path, expected: Layout) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of ``path`` and the file's metadata. The tensors are finite and have exactly the ``expected`` names, types and shapes.

    Raises LayoutMismatch for other tensors, before any is read; OSError, ValueError and SafetensorError for a missing or damaged file.
    """
    with _opened(path) as file:
        _check_layout(file, expected)
        tensors = {name: file.get_tensor(name) for name in expected}
        metadata = file.metadata() or {}
    if bad := first_non_finite(tensors):
        raise ValueError(f"'{bad}' is not finite")
    return tensors, metadata


def record_of(path: Path) -> dict[str, Any] | None:
    """The record in a weights file, without reading the tensors; None if there is none. Raises OSError, ValueError, SafetensorError."""
    with _opened(path) as file:
        note = note_of_weights(file.metadata() or {})
    return None if note is None else note["record"]


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Convert errors of a weights file into a one-line LaminaError."""
    try:
        yield
    except LaminaError:
        raise
    except FileNotFoundError as error:
        raise LaminaError(f"{path}: no such file") from error
    except LayoutMismatch as error:
        raise LaminaError(f"{path}: the weights do not fit the config beside them: {reason(error)}") from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise LaminaError(
            f"{path}: damaged or cut short ({reason(error)}); restore the checkpoint from a copy or train again"
        ) from error


def note_of_weights(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Record and sha256 in a file's metadata; None for an older file without them. Raises ValueError if they are damaged."""
    if KEY not in metadata:
        return None
    note = json.loads(metadata[KEY])
    if not isinstance(note, dict) or note.keys() != {"record", "sha256"} or not isinstance(note["record"], dict):
        raise ValueError("its metadata are not those of a model")
    return note


def load_weights(module: nn.Module, path: Path, record: Mapping[str, Any] | None = None) -> None:
    """Load a safetensors file into ``module``.

    ``record``: the settings that the weights must have been saved with; None: not checked.
    Raises LaminaError for a file that is missing, damaged or does not fit, for NaN and infinity, and for a different record.
    """
    with _failures(path):
        tensors, metadata = read_tensors(path, layout(module.state_dict()))
        note = note_of_weights(metadata)
        if note is not None and note["sha256"] != digest(tensors, note["record"]):
            raise ValueError("its content is not what was saved")
    if note is not None and record is not None:
        now = json.loads(json.dumps(record))
        if now != note["record"]:
            changed = ", ".join(differences(note["record"], now))
            raise LaminaError(
                f"{path}: the config beside these weights is not the one that they were saved with ({changed}); restore it from a copy"
            )
    module.load_state_dict(tensors)


def load_module(make: Callable[[], M], config: Path, path: Path, record: Mapping[str, Any]) -> M:
    """The module that ``make`` builds from the file ``config``, with the weights of ``path``.

    The module is first built on the meta device, without memory, and compared with the header of the weights, so a config with sizes that
    its weights do not have allocates nothing. Raises LaminaError as :func:`load_weights` does, and for a config that describes no module.
    """
    try:
        with torch.device("meta"):
            plan = make()
        stored = plan.state_dict()
        computed = sum(value.nbytes for name, value in plan.named_buffers() if name not in stored)
        if computed > COMPUTED:
            raise ValueError(f"tables of {computed} bytes")
        expected = layout(stored)
    except Exception as error:  # torch raises many types of errors for invalid sizes
        raise LaminaError(f"{config}: describes no model: {reason(error)}") from error
    with _failures(path), _opened(path) as file:
        _check_layout(file, expected)
    try:
        module = make()
    except RuntimeError as error:
        raise LaminaError(f"{config}: the model cannot be built here ({reason(error)})") from error
    load_weights(module, path, record)
    return module
