"""Stage 3: latent actions as columns of a LeRobot dataset. One row a frame; each frame is decoded and embedded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

from lamina import __version__
from lamina.data import Episode, ReadAhead, open_source, source_camera, write_labels
from lamina.device import autocast, pick_device
from lamina.files import alone, checkpoint_hash
from lamina.lam import Embedded, LatentActionModel, Side, model_folder
from lamina.shapes import Latent

CHUNK = 64  # frames that are embedded at once


def partners(times: Float[np.ndarray, "t"], gap: float) -> tuple[Int[np.ndarray, "t"], Bool[np.ndarray, "t"]]:
    """For each frame the number of the frame nearest to ``gap`` seconds later (at least one frame), and whether there is one.

    Where the episode ends before, the partner is the frame itself: the latent of "nothing happened", marked as not valid.
    """
    own = np.arange(len(times))
    wanted = times + gap
    after = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
    before = after - 1
    # A tie (10 frames a second and a gap of 0.15) goes to the earlier frame, whatever the rounding of the times.
    nearest = np.where(
        wanted - times[before] <= times[np.minimum(after, len(times) - 1)] - wanted + 1e-4, before, after
    )
    # Half a frame interval of grace, as for training pairs: the last frame that can be reached still counts.
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    found = np.maximum(nearest, own + 1)
    valid = (found < len(times)) & (wanted <= times[-1] + step / 2)
    return np.where(valid, found, own), valid


@torch.inference_mode()
def encode_episode(
    model: LatentActionModel, chunks: Iterator[UInt8[np.ndarray, "n h w 3"]], partner: Int[np.ndarray, "t"]
) -> Latent:
    """Latents of every frame with its partner (t of them, on the CPU), from frames that arrive in order; features are kept only as long
    as needed."""
    total, done, start = len(partner), 0, 0
    kept: Embedded | None = None  # frames start, start + 1, ...
    parts: list[Latent] = []
    for chunk in chunks:
        features = model.lam.embed(model.read(torch.from_numpy(chunk).permute(0, 3, 1, 2)))
        kept = features if kept is None else Embedded.cat([kept, features])
        arrived = start + len(kept)
        ready = done
        while ready < total and partner[ready] < arrived and ready < arrived:
            ready += 1
        if ready > done:
            second = torch.from_numpy(partner[done:ready] - start).to(model.device)
            parts.append(model.lam.pair(kept[done - start : ready - start], kept[second]).to("cpu"))
            kept, start, done = kept[ready - start :], ready, ready
    return Latent.cat(parts)


def action_columns(model: LatentActionModel, continuous: bool | None = None) -> dict[str, Side]:
    """The float columns that :func:`label` writes, and the side of the quantiser that each holds."""
    wanted = model.config.action_side == "continuous" if continuous is None else continuous
    columns: dict[str, Side] = {"latent_action": "quantised"}
    if wanted:
        columns["latent_action.continuous"] = "continuous"
    return columns


def label(
    run: Path,
    path: str,
    out: Path,
    device: str = "auto",
    precision: str = "fp32",
    camera: str | None = None,
    continuous: bool | None = None,
) -> Path:
    """Label every frame of ``path`` with RUN's model; writes a LeRobot dataset at ``out``, which is returned.

    Columns, of the slots that are the model's latent action (K of d channels):

    - ``latent_action``: K d floats after the quantiser, slot by slot;
    - ``latent_action.continuous``: the same before the quantiser, if ``continuous`` (default: where the model's latent action is that);
    - ``latent_action.index``: K codes, where there is a codebook;
    - ``latent_action.valid``: False where the episode ends before the gap.

    Interrupted, it resumes when run again.
    Raises LaminaError for a damaged model or video, an ``out`` that exists, a disk that refuses.
    """
    folder = model_folder(run)
    device = pick_device(device)
    model = LatentActionModel.from_pretrained(str(folder)).to(device)
    source = open_source(path)
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
        "checkpoint": checkpoint_hash(folder),
        "latent_action": model.column,
        "gap_seconds": gap,
        "slots": len(slots),
        "channels": dim,
        "codebook_size": model.lam.bottleneck.codebook_size,
        "camera": camera,
        "precision": precision,
    }
    total = sum(episode.length for episode in source.episodes)
    ahead = ReadAhead(source, camera, config.image[1:], chunk=CHUNK)  # type: ignore[arg-type]
    with tqdm(total=total, unit="frame", unit_scale=True, desc="label", dynamic_ncols=True) as bar:

        def values(episode: Episode, _: str) -> dict[str, np.ndarray]:
            partner, valid = partners(episode.times, gap)
            with autocast(device, precision):
                latent = encode_episode(model, ahead(episode), partner)
            bar.update(episode.length)
            found = {name: model.lam.action(latent, side).flatten(1).numpy() for name, side in columns.items()}
            index = model.lam.action_index(latent)
            found |= {"latent_action.valid": valid[:, None]}
            return found | ({"latent_action.index": index.numpy()} if index is not None else {})

        try:
            with alone(out):
                return write_labels(source, out, features, values, provenance, camera=camera)
        finally:
            ahead.close()
