"""Atomic writes, locks, scratch folders and JSON files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from lamina.errors import LaminaError

LONGEST = 16 * 2**20  # maximum size of a JSON file, bytes


class Scratch(TemporaryDirectory[str]):
    """A temporary folder, removed at exit. Folders of killed processes are removed when the next one is created."""

    PREFIX = "lamina-scratch-"

    def __init__(self) -> None:
        for lock in Path(gettempdir()).glob(f"{self.PREFIX}*/lock"):
            with suppress(Timeout, OSError), FileLock(lock, timeout=0):
                shutil.rmtree(lock.parent, ignore_errors=True)
        super().__init__(prefix=self.PREFIX)
        self._lock = FileLock(Path(self.name) / "lock")
        self._lock.acquire()

    def cleanup(self) -> None:
        self._lock.release()
        super().cleanup()


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """An exclusive lock on ``path``, a file or folder that a command writes, until the ``with`` block ends. Missing parents are created.

    The lock is a hidden file beside ``path``; the operating system releases it however the process ends. While another process holds it,
    this one waits, after a call of ``waiting``; without ``waiting`` it raises LaminaError. Raises LaminaError if the file system reports
    an error.
    """
    path = Path(os.path.realpath(path))
    lock = path.with_name(f".{path.name}.lock")
    made = [parent for parent in lock.parents if not parent.exists()]
    try:
        with disk_errors(path):
            lock.parent.mkdir(parents=True, exist_ok=True)
            holder = FileLock(lock, timeout=0)
            try:
                holder.acquire()
            except Timeout as error:
                if waiting is None:
                    raise LaminaError(f"{path}: in use by {_holder(lock)}; wait for it to end") from error
                waiting()
                holder.acquire(timeout=-1)
        try:
            with disk_errors(path):
                lock.write_text(str(os.getpid()))
            yield
        finally:
            # Before the release: a waiting process sees that the file is gone and creates a new one.
            lock.unlink(missing_ok=True)
            holder.release()
    finally:
        for parent in made:  # folders that are still empty are removed
            with suppress(OSError):
                parent.rmdir()


def _holder(lock: Path) -> str:
    try:
        return f"process {int(lock.read_text())}"
    except (OSError, ValueError):
        return "another process"  # it has not written its id yet


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert an error of the file system (full disk, no permission) into a LaminaError that names ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LaminaError(f"{path}: cannot be written ({reason}); free some space or choose another place") from error


def partial_path(path: Path) -> Path:
    """Temporary name of ``path`` during writing: a hidden sibling, so that the last step is a rename."""
    return path.with_name(f".{path.name}.partial")


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: BaseException) -> str:
    """The error message in one line, without the file name."""
    lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def check_regular(path: Path) -> os.stat_result:
    """The ``stat`` result of a regular file; links are followed. Raises ValueError for pipes and devices, on which reading could block."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    return status


def json_of(path: Path, kind: type = dict) -> Any:
    """The content of the JSON file ``path``: an object, or a value of another type ``kind``.

    Raises OSError, and ValueError if the file is too large, not a regular file, not JSON, or of another type.
    """
    if (size := check_regular(path).st_size) > LONGEST:
        raise ValueError(f"{size} bytes long, which is more than {LONGEST}")
    try:
        content = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, kind):
        raise ValueError(f"not a JSON {'object' if kind is dict else kind.__name__}")
    return content


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """The JSON object in a file. Raises a LaminaError that ends with ``hint`` if the file is missing or damaged, or holds no object."""
    try:
        return json_of(path)
    except (OSError, ValueError) as error:
        raise LaminaError(f"{path}: cannot be read ({reason(error)}); {hint}") from error


def to_json(content: Any, indent: int | None = None) -> str:
    """``content`` as JSON. NaN and infinity, which JSON cannot represent, become null."""
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {name: _finite(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
    return value


def write_text(path: Path, text: str) -> Path:
    """:func:`write_bytes` of ``text`` in UTF-8."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` atomically. Raises LaminaError if the folder is not writable or the disk is full."""
    with whole_file(path) as partial:
        partial.write_bytes(content)
    return path


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[Path]:
    """The name of a temporary sibling file, which is renamed to ``path`` at the end of the ``with`` block. Missing parents are created.

    After an exception the temporary file is removed and an existing ``path`` remains. ``durable``: wait until the disk has the content.
    Raises LaminaError if the file system reports an error.
    """
    partial = partial_path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if durable:
                sync(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling folder, renamed to ``path`` at the end of the ``with`` block. An existing ``path`` is replaced.

    After an exception the temporary folder is removed; one of a killed process is removed at the next call. Raises LaminaError if the file
    system reports an error.
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


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_hash(model: Path) -> str:
    """sha256 of the weights in a model folder; it identifies the model in labels and reports."""
    return sha256(model / "model.safetensors")
