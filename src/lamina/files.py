"""Files that are either whole or not there."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lamina.errors import LaminaError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a refusal of the file system (full disk, no permission) into a LaminaError that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LaminaError(f"{path}: cannot be written ({reason}); free some space or choose another place") from error


def partial_path(path: Path) -> Path:
    """Where ``path`` is put together: a hidden neighbour, so that the last step is a rename."""
    return path.with_name(f".{path.name}.partial")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> Path:
    """:func:`write_bytes` of ``text`` in UTF-8."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes ``content`` to ``path`` through a sibling partial file, so that a reader never sees half of it.

    Raises LaminaError when the folder can't be written or the disk is full; the old file is then still in place.
    """
    partial = partial_path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            sync(partial)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    return path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A sibling partial folder to write into, renamed to ``path`` at the end of the ``with`` block; an older ``path`` gives way.

    What an exception leaves, or a process that was killed here before, is removed. Raises LaminaError when the disk refuses.
    """
    partial = partial_path(path)
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in (*partial.rglob("*"), partial):
                sync(file)
            shutil.rmtree(path, ignore_errors=True)
            partial.replace(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def checkpoint_hash(model: Path) -> str:
    """sha256 of a model folder's weights, which names the model in labels and reports."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
