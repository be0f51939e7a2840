"""What the data of all policies share: frames and latents of every step, encoded once by a frozen LAM and kept in a folder of arrays.

FOLDER/index.json            what they were made from; written with the rest, whole or not at all
FOLDER/SPLIT.NAME.npy        one row a step, episode after episode
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from lamina.data.dataset import Dataset
from lamina.data.episodes import Episode
from lamina.data.shots import Detector, ShotReader, detector
from lamina.errors import LaminaError
from lamina.files import json_of, partial_path
from lamina.inference.encode import CHUNK, EncodedPairs, encode_pairs
from lamina.models.hub import LatentActionModel
from lamina.models.lam import LAM

ENCODED_SPLITS = ("train", "validation")


def fingerprint(lam: LAM) -> str:
    """sha256 of everything that determines the codes of a transition and which of them are the latent action: weights and configs of the
    modules from pixels to codes (:meth:`LAM.embed`, :meth:`LAM.pair`).

    Decoder and null latent do not count. Joint alignment changes the encoder, and so the fingerprint.
    """
    config = lam.config.to_dict()
    names = ("image", "slots", "encoder", "bottleneck", "whiten", "space", "action_slots")
    decisive = [config.get(name) for name in names]
    if lam.config.pairing != "free":  # so that fingerprints from before there was another pairing stay valid
        decisive.append(lam.config.pairing)
    digest = hashlib.sha256(json.dumps(decisive).encode())
    for part in (lam.space, lam.encoder, lam.whiten, lam.bottleneck):
        for name, value in sorted(part.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def encode_stretch(
    model: LatentActionModel,
    source: Dataset,
    camera: str,
    episode: Episode,
    first: int,
    stop: int,
    gap: float,
    keep: Callable[[int, UInt8[np.ndarray, "n h w 3"]], None],
    find: Detector | None = None,
) -> EncodedPairs:
    """The latents of frames first .. stop-1 of an episode, each with the frame ``gap`` seconds later (:func:`encode_pairs`).

    ``keep`` is called with every chunk of frames and the place of its first one, counted from ``first``. ``find``: finds the cuts.
    """
    chunks = _kept(model, source, camera, episode, first, stop, keep)
    return encode_pairs(model, chunks, episode.times[first:stop], gap, find)


def read_stretch(
    model: LatentActionModel,
    source: Dataset,
    camera: str,
    episode: Episode,
    first: int,
    stop: int,
    keep: Callable[[int, UInt8[np.ndarray, "n h w 3"]], None],
    find: Detector | None = None,
) -> Int[np.ndarray, "t"] | None:
    """:func:`encode_stretch` without latents: only ``keep`` is called. Returns the number of each frame's shot, if cuts are looked for."""
    chunks = _kept(model, source, camera, episode, first, stop, keep)
    shots = None if find is None else ShotReader(find, chunks)
    for _ in chunks if shots is None else shots:
        pass
    return None if shots is None else shots.shot


def _kept(
    model: LatentActionModel,
    source: Dataset,
    camera: str,
    episode: Episode,
    first: int,
    stop: int,
    keep: Callable[[int, UInt8[np.ndarray, "n h w 3"]], None],
) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """Frames first .. stop-1 of an episode at the model's size, in chunks, each of which ``keep`` has seen."""
    _, *size = model.config.image
    for start in range(first, stop, CHUNK):
        chunk = source.frames(episode, camera, start, min(start + CHUNK, stop), (size[0], size[1]))
        keep(start - first, chunk)
        yield chunk


def run_detector(run: Path, source: Dataset) -> Detector | None:
    """What finds the cuts in ``source`` for a policy on RUN's LAM: the choice of the LAM's own training (RUN/config.json).

    "auto", where that says nothing: in plain video. Raises LaminaError as :func:`lamina.data.shots.detector` does.
    """
    try:
        shots = json_of(run / "config.json").get("data", {}).get("shots", "auto")
    except (OSError, ValueError, AttributeError):  # a model without a run
        shots = "auto"
    return detector(shots, source)


def reserve(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """A new memory map whose room on the disk is taken at once: a full disk is then an OSError here, not a bus error later."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def keep_rows(path: Path, kept: Bool[np.ndarray, "n"]) -> None:
    """Write an array anew with the rows that are ``kept``."""
    rows, array = np.flatnonzero(kept), np.load(path, mmap_mode="r")
    fewer = reserve(partial_path(path), (len(rows), *array.shape[1:]), array.dtype)
    for begin in range(0, len(rows), 4096):
        fewer[begin : begin + 4096] = array[rows[begin : begin + 4096]]
    fewer.flush()
    partial_path(path).replace(path)


def read_index(folder: Path) -> dict[str, Any] | None:
    """What a folder of arrays was made from; None if there is none that can be read."""
    try:
        index = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) else None


def index_of(folder: Path, made_from: Mapping[str, Any], wait: bool = False) -> dict[str, Any] | None:
    """The index of a folder whose arrays were made from just this; None where they have to be made. ``wait``: until another process has
    made them."""
    wanted = json.loads(json.dumps(made_from))  # as it was read back
    while True:
        index = read_index(folder)
        if index is not None and all(index.get(name) == value for name, value in wanted.items()):
            return index
        if not wait:
            return None
        time.sleep(0.5)


def open_arrays(folder: Path, split: str, names: Sequence[str], rows: Callable[[dict[str, Any]], int]) -> list[Any]:
    """The arrays of a split as memory maps, after its index, which says how many ``rows`` each has.

    Raises LaminaError if they are damaged.
    """
    try:
        index = read_index(folder)
        if index is None:
            raise ValueError("no index.json")
        arrays = [np.load(folder / f"{split}.{name}.npy", mmap_mode="r") for name in names]
        wanted = rows(index)
        for name, array in zip(names, arrays, strict=True):
            if len(array) != wanted:
                raise ValueError(f"{len(array)} {name}, {wanted} steps")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaminaError(f"{folder}: damaged ({error}); delete this folder, it will be made again") from error
    return [index, *arrays]
