"""Paths of untrusted datasets: walking folders, checking the paths that metadata states, opening files.

Only regular files are opened (reading a pipe could block for ever), a path that a dataset states stays below its root, and a file's name
is never read as an address.
"""

from __future__ import annotations

import hashlib
import os
import re
import string
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from lamina import files
from lamina.errors import LaminaError

DATASET_MARKS = ("info.json", "episodes", "episodes.jsonl", "tasks.parquet", "tasks.jsonl")
# Folders of operating systems and network storage: recycle bins, thumbnails, metadata.
SYSTEM_FOLDERS = {"$recycle.bin", "#recycle", "@eadir", "__macosx", "lost+found", "system volume information"}


def walk(root: Path, enter: Callable[[Path], bool] = lambda folder: True) -> Iterator[Path]:
    """Every file below ``root``: the real folders first, then those behind links, each folder once however many links lead to it.

    Skipped are names that begin with a dot (files of other systems, unfinished output), the systems' own folders, and what is neither
    a file nor a folder (pipes, sockets, devices). Broken links are yielded like files, so that the caller reports them as missing.
    ``enter`` decides whether a folder is entered. Raises OSError where a folder may not be read.
    """
    seen: set[tuple[int, int]] = set()
    real, linked = [root], list[Path]()
    while real or linked:
        folder = real.pop() if real else linked.pop(0)
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in sorted(os.listdir(folder)):
            path = folder / name
            if name.startswith("."):
                continue
            if path.is_dir():
                if name.lower() not in SYSTEM_FOLDERS and enter(path):
                    (linked if path.is_symlink() else real).append(path)
            elif path.is_file() or not path.exists():
                yield path


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a LeRobot dataset of any version, whole or not."""
    described = any(os.path.lexists(folder / "meta" / mark) for mark in DATASET_MARKS)
    return described or ((folder / "videos").is_dir() and any((folder / "data").glob("chunk-*")))


def dataset_around(path: Path) -> Path | None:
    """The LeRobot dataset in whose videos ``path`` lies, if it does: read as plain video, it would run episodes together."""
    place = Path(os.path.abspath(path))
    return next((p for p in place.parents if "videos" in place.relative_to(p).parts[:1] and is_dataset(p)), None)


def check_regular(path: Path, kind: type[LaminaError] = LaminaError) -> os.stat_result:
    """:func:`lamina.files.check_regular`, which raises an error of ``kind`` that names the file."""
    try:
        return files.check_regular(path)
    except (OSError, ValueError) as error:
        raise kind(f"{path}: cannot be read ({files.reason(error)}); the data is incomplete or damaged") from error


def check_template(template: Any, fields: Collection[str]) -> None:
    """Raises ValueError unless ``template`` is a path below a dataset's root whose only placeholders are ``fields``, of at most 99 digits.

    Templates come from untrusted metadata: as format strings they could name any file, read attributes, or ask for a billion digits.
    """
    if not isinstance(template, str) or not template or len(template) > 1000:
        raise ValueError(f"{str(template)[:80]!r} is no path")
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is not None and (name not in fields or conversion or not re.fullmatch(r"(0?\d?\d?d)?", spec or "")):
            raise ValueError(f"'{template}' has a blank that is not {' or '.join(sorted(fields))}")
    check_inside(template)


def check_inside(path: str) -> None:
    """Raises ValueError unless a path that a dataset states stays below the dataset's root."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or any(c in path for c in "\\\0"):
        raise ValueError(f"'{path}' leads out of the dataset")


#: Files of which :func:`contents` reads blocks, the blocks of each, and the bytes of a block.
SAMPLED_FILES, BLOCKS, BLOCK = 256, 4, 2**16


def contents(files: Sequence[Path]) -> str:
    """sha256 that identifies the content of files, independent of their paths: of the size of every file, and of evenly spaced blocks of
    up to 256 of them. A missing file counts as such."""
    digest = hashlib.sha256()
    chosen = set(np.linspace(0, len(files) - 1, min(len(files), SAMPLED_FILES)).astype(int).tolist())
    for number, path in enumerate(files):
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{size};".encode())
                for start in np.linspace(0, max(0, size - BLOCK), BLOCKS).astype(int) if number in chosen else ():
                    file.seek(int(start))
                    digest.update(file.read(BLOCK))
        except OSError:
            digest.update(b"missing;")
    return digest.hexdigest()


def open_arrow(path: Path, mode: str = "rb") -> pa.OSFile:
    """A file for pyarrow, which takes a colon in a relative path for the end of a protocol's name, and accepts names in UTF-8 only.

    It is not a file object of Python: pyarrow reads in its own threads, and one that is inside Python at exit aborts the process.
    """
    return pa.OSFile(os.fsencode(path), mode)


def local(name: str) -> str:
    """A name from a dataset's metadata, which is UTF-8, in the encoding of this machine's file system (another one in a bare container)."""
    return os.fsdecode(name.encode())


def check_folder_name(name: str) -> None:
    """Raises ValueError unless a feature's name can be that of a folder."""
    if "/" in name:
        raise ValueError(f"no folder can be called '{name[:80]}'")
    check_inside(name)


def belongs(path: Path, root: Path) -> bool:
    """Whether a file lies in the dataset at ``root``, links resolved: below it, or in the store that a snapshot of the hub points to."""
    target, home = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    return target.is_relative_to(home) or (
        home.parent.name == "snapshots" and target.is_relative_to(home.parent.parent / "blobs")
    )
