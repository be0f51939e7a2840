"""Features of frames on disk, so that a frozen encoder sees each picture once, whichever run or command asks for it.

FOLDER/FINGERPRINT/part-*.bin     records of equal length: key, features, checksum

A folder holds the features of one encoder (its fingerprint: weights and preprocessing), and a record's key is a sha256 of the picture's
own pixels and shape: features of another encoder, another picture or another size are never found. Each process appends to a part of its
own and reads those of all others, so several may run at once. A process that is killed leaves whole records and perhaps the beginning of
one, which is ignored; a record whose checksum is wrong is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.errors import LaminaError
from lamina.files import reason

#: The environment variable that names the folder; empty: nothing is kept.
VARIABLE = "LAMINA_CACHE"
KEY, CHECK = 16, 4  # bytes

_reading: ContextVar[bool] = ContextVar("features are kept", default=False)


@contextmanager
def kept_features(on: bool = True) -> Iterator[None]:
    """Within, the features of pretrained encoders are read from the disk, and written there; ``on`` False: neither.

    For work that sees the same frames again and again: training, alignment, evaluation.
    """
    token = _reading.set(on)
    try:
        yield
    finally:
        _reading.reset(token)


def cache_for(fingerprint: str, shape: tuple[int, ...]) -> FeatureCache | None:
    """The cache of an encoder's features; None where features are not kept."""
    root = os.environ.get(VARIABLE, str(Path.home() / ".cache" / "lamina"))
    return _opened(Path(root).absolute() / "features" / fingerprint[:32], shape) if _reading.get() and root else None


class FeatureCache:
    """The features of one encoder, each of ``shape`` and numbers of ``precision``. ``folder`` is made when the first are written.

    ``otherwise``: what to do where it cannot be, for the error.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, ...],
        precision: Literal["float16", "float32"] = "float16",
        otherwise: str = f"set {VARIABLE} to a folder with room, or to nothing to do without",
    ):
        self.folder, self.shape, self.otherwise = folder, shape, otherwise
        self.numbers = np.dtype(precision).newbyteorder("<")
        self.record = np.dtype([("key", f"V{KEY}"), ("value", self.numbers, shape), ("check", "<u4")])
        self._places: dict[bytes, tuple[Path, int]] = {}  # key -> part, number of the record
        self._seen: dict[Path, int] = {}  # records of each part that are in _places
        self._own: Path | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __deepcopy__(self, memo: object) -> FeatureCache:
        return self

    def features(
        self, pictures: UInt8[Tensor, "n c h w"], encode: Callable[[UInt8[Tensor, "m c h w"]], Tensor], chunk: int = 16
    ) -> Float[Tensor, "n ..."]:
        """The features of ``pictures``. Those that are not here are computed by ``encode``, ``chunk`` pictures at a time.

        Raises LaminaError where they cannot be written.
        """
        shown = np.ascontiguousarray(pictures.cpu().numpy())
        head = repr(shown.shape[1:]).encode()
        keys = [hashlib.sha256(head + picture.tobytes()).digest()[:KEY] for picture in shown]
        found = {key: value for key in set(keys) & self._places.keys() if (value := self._read(key)) is not None}
        if missing := [n for key, n in {key: n for n, key in enumerate(keys)}.items() if key not in found]:
            self._look_for_others()
            for n in missing:
                if keys[n] in self._places and (value := self._read(keys[n])) is not None:
                    found[keys[n]] = value
            rows = torch.tensor([n for n in missing if keys[n] not in found], dtype=torch.long)
            for part in rows.split(chunk) if len(rows) else ():
                values = encode(pictures[part.to(pictures.device)]).cpu().numpy()
                found |= self._append([keys[n] for n in part.tolist()], values)
        return torch.from_numpy(np.stack([found[key] for key in keys])).to(pictures.device)

    def _look_for_others(self) -> None:
        """Learn of the records that other processes have written since."""
        size = self.record.itemsize
        for path in sorted(self.folder.glob("part-*.bin")):
            with contextlib.suppress(OSError):  # it was deleted meanwhile
                whole, seen = path.stat().st_size // size, self._seen.get(path, 0)
                if whole > seen:
                    part = np.memmap(path, self.record, "r", shape=(whole,))
                    keys = part["key"][seen:].tobytes()
                    places = {keys[KEY * n : KEY * (n + 1)]: (path, seen + n) for n in range(whole - seen)}
                    self._places = places | self._places
                    self._seen[path] = whole

    def _read(self, key: bytes) -> np.ndarray | None:
        """A record's features; None, and forgotten, if it is damaged or gone."""
        path, number = self._places[key]
        size = self.record.itemsize
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            raw = os.pread(file.fileno(), size, number * size)
            if (
                len(raw) == size
                and raw[:KEY] == key
                and zlib.crc32(raw[:-CHECK]) == int.from_bytes(raw[-CHECK:], "little")
            ):
                return np.frombuffer(raw, self.record)[0]["value"].copy()
        del self._places[key]
        return None

    def _append(self, keys: list[bytes], values: np.ndarray) -> dict[bytes, np.ndarray]:
        """Write records to this process's own part."""
        content = b""
        for key, value in zip(keys, values := np.ascontiguousarray(values, self.numbers), strict=True):
            body = key + value.tobytes()
            content += body + zlib.crc32(body).to_bytes(CHECK, "little")
        if self._own is None or not self._own.exists():
            self._own = self.folder / f"part-{secrets.token_hex(8)}.bin"
        written = self._seen.get(self._own, 0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._own.open("ab", buffering=0) as file:
                try:
                    if file.write(content) != len(content):
                        raise OSError("the disk is full")
                except OSError:
                    file.truncate(written * self.record.itemsize)  # whole records only
                    raise
        except OSError as error:
            raise LaminaError(
                f"{self.folder}: features cannot be kept there ({reason(error)}); {self.otherwise}"
            ) from error
        self._places |= {key: (self._own, written + n) for n, key in enumerate(keys)}
        self._seen[self._own] = written + len(keys)
        return dict(zip(keys, values, strict=True))


@cache
def _opened(folder: Path, shape: tuple[int, ...]) -> FeatureCache:
    return FeatureCache(folder, shape)
