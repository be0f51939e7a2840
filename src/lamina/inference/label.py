"""Stage 3: latent actions as columns of a LeRobot dataset. One row a frame; each frame is decoded and embedded once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lamina.data.dataset import Data
from lamina.data.episodes import Episode
from lamina.data.lerobot.labels import check_shown, empty_labels, write_labels
from lamina.data.read_ahead import ReadAhead
from lamina.data.sampling import open_source, source_camera
from lamina.device import autocast, pick_device
from lamina.files import Scratch, checkpoint_hash, locked
from lamina.inference.encode import CHUNK, encode_episode, frame_pairs
from lamina.inference.table import EpisodeColumns, LatentTable
from lamina.models.config import Side
from lamina.models.hub import LatentActionModel, model_folder
from lamina.version import __version__


def action_columns(model: LatentActionModel, continuous: bool | None = None) -> dict[str, Side]:
    """The float columns that :func:`label` writes, and the side of the quantiser that each holds."""
    wanted = model.config.action_side == "continuous" if continuous is None else continuous
    columns: dict[str, Side] = {"latent_action": "quantised"}
    if wanted:
        columns["latent_action.continuous"] = "continuous"
    return columns


def _checkpoint(run: Path | LatentActionModel) -> str:
    """sha256 of a model's weights, as its file has them."""
    if not isinstance(run, LatentActionModel):
        return checkpoint_hash(model_folder(run))
    with Scratch() as folder:
        run.save_pretrained(folder)
        return checkpoint_hash(Path(folder))


def label(
    run: Path | LatentActionModel,
    data: Data,
    out: Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    camera: str | None = None,
    continuous: bool | None = None,
) -> LatentTable:
    """The latent action of every frame of ``data`` by a run's model, or by a model; with ``out`` also written there as a LeRobot dataset.

    Columns, of the slots that are the model's latent action (K of d channels):

    - ``latent_action``: K d floats after the quantiser, slot by slot;
    - ``latent_action.continuous``: the same before the quantiser, if ``continuous`` (default: where the model's latent action is that);
    - ``latent_action.index``: K codes, where there is a codebook;
    - ``latent_action.valid``: False where the episode ends before the gap.

    Interrupted, it resumes when run again.
    Raises LaminaError for a damaged model or video, an ``out`` that exists, a disk that refuses.
    """
    device = pick_device(device)
    model = run if isinstance(run, LatentActionModel) else LatentActionModel.from_pretrained(str(run))
    model = model.to(device).eval()
    source = open_source(data)
    camera = source_camera(source, camera)
    config, gap = model.config, model.provenance.label_gap
    dim, slots = model.lam.dim, range(config.slots)[config.latent_action]
    columns = action_columns(model, continuous)
    features: dict[str, dict[str, Any]] = {
        name: {
            "dtype": "float32",
            "shape": [len(slots) * dim],
            "names": [f"slot_{k}.{d}" for k in slots for d in range(dim)],
        }
        for name in columns
    }
    features["latent_action.valid"] = {"dtype": "bool", "shape": [1], "names": None}
    if model.lam.bottleneck.codebook_size:
        names = [f"slot_{k}" for k in slots]
        features["latent_action.index"] = {"dtype": "int64", "shape": [len(slots)], "names": names}
    provenance = {
        "format": 2,
        "lamina": __version__,
        "method": model.provenance.method,
        "checkpoint": None if out is None else _checkpoint(run),
        "latent_action": model.column,
        "gap_seconds": gap,
        "slots": len(slots),
        "channels": dim,
        "codebook_size": model.lam.bottleneck.codebook_size,
        "camera": camera,
        "precision": precision,
    }
    total = sum(episode.length for episode in source.episodes)
    ahead = ReadAhead(source, camera, config.image[1:], chunk=CHUNK)
    with tqdm(total=total, unit="frame", unit_scale=True, desc="label", dynamic_ncols=True) as bar:

        def values(episode: Episode, _: str) -> dict[str, np.ndarray]:
            partner, valid = frame_pairs(episode.times, gap)
            with autocast(device, precision):
                latent = encode_episode(model, ahead(episode), partner)
            bar.update(episode.length)
            found = {name: model.lam.action(latent, side).flatten(1).numpy() for name, side in columns.items()}
            index = model.lam.action_index(latent)
            found |= {"latent_action.valid": valid[:, None]}
            return found | ({"latent_action.index": index.numpy()} if index is not None else {})

        try:
            if out is None:
                missing = check_shown(source, camera)
                parts = [
                    empty_labels(episode, features) if episode.number in missing else values(episode, camera)
                    for episode in source.episodes
                ]
                found: Mapping[str, np.ndarray] = {
                    name: np.concatenate([part[name] for part in parts]) for name in features
                }
            else:
                with locked(out):
                    write_labels(source, out, features, values, provenance, camera=camera)
                source = open_source(out)
                found = EpisodeColumns(source, tuple(features))
        finally:
            ahead.close()
    lengths = [episode.length for episode in source.episodes]
    rows = np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(length) for length in lengths])
    return LatentTable(found, *rows, len(slots), model.column, out)
