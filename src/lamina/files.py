"""Files that are either whole or not there."""

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

LONGEST = 16 * 2**20  # bytes of a JSON file


class Scratch(TemporaryDirectory[str]):
    """A temporary folder that goes with the process that made it; if that was killed, when another one is made."""

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
    """``path``, a file or folder that a command writes, belongs to this process until the ``with`` block ends; missing parents are made.

    The lock is a hidden neighbour of ``path`` that the system lets go of however the process ends. While another process has it, this one
    waits, after a call of ``waiting``; without that it raises LaminaError. Raises LaminaError where the file system refuses.
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
            lock.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone, and makes a new one
            holder.release()
    finally:
        for parent in made:  # where nothing was written, nothing stays
            with suppress(OSError):
                parent.rmdir()


def _holder(lock: Path) -> str:
    try:
        return f"process {int(lock.read_text())}"
    except (OSError, ValueError):
        return "another process"  # which has not said its number yet


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


def reason(error: BaseException) -> str:
    """What went wrong, in one line without the name of the file."""
    lines = (getattr(error, "strerror", None) or str(error)).splitlines()
    return lines[0].strip() if lines else type(error).__name__


def check_regular(path: Path) -> os.stat_result:
    """The status of a regular file, or of one that a link leads to. Raises ValueError for anything else, which reading might wait for."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    return status


def json_of(path: Path, kind: type = dict) -> Any:
    """What the JSON file ``path`` holds: an object, or a value of another ``kind``.

    Raises OSError, and ValueError for what is too long, no regular file, no JSON, or of another kind.
    """
    if (size := check_regular(path).st_size) > LONGEST:
        raise ValueError(f"{size} bytes long, which is more than {LONGEST}")
    try:
        content = json.loads(path.read_bytes().decode())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, kind):
        raise ValueError(f"not a JSON {'object' if kind is dict else kind.__name__}")
    return content


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """The JSON object in a file. Raises LaminaError, which ends with ``hint``, if it is missing, damaged or something else."""
    try:
        return json_of(path)
    except (OSError, ValueError) as error:
        raise LaminaError(f"{path}: cannot be read ({reason(error)}); {hint}") from error


def to_json(content: Any, indent: int | None = None) -> str:
    """``content`` as JSON. A number that is not finite, for which JSON has no word, is null."""
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
