"""Stage 3: latent actions as columns of a LeRobot dataset. One row a frame; each frame is decoded and embedded once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from lamina import __version__
from lamina.data import Episode, ReadAhead, open_source, write_labels
from lamina.errors import LaminaError
from lamina.files import checkpoint_hash
from lamina.lam import LAM, LatentActionModel, model_folder
from lamina.shapes import to_float

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
    lam: LAM, chunks: Iterator[UInt8[np.ndarray, "n h w 3"]], partner: Int[np.ndarray, "t"]
) -> tuple[Float[Tensor, "t k d"], Int[Tensor, "t k"] | None]:
    """Latents of every frame with its partner, from frames that arrive in order; features are kept only as long as needed."""
    device = next(lam.parameters()).device
    total, done, start = len(partner), 0, 0
    kept: Tensor | None = None  # features of frames start, start + 1, ...
    post, index = [], []
    for chunk in chunks:
        frames = to_float(torch.from_numpy(chunk).permute(0, 3, 1, 2).to(device))
        features: Tensor = lam.encoder.embed(frames)  # type: ignore[operator]
        kept = features if kept is None else torch.cat([kept, features])
        arrived = start + len(kept)
        ready = done
        while ready < total and partner[ready] < arrived and ready < arrived:
            ready += 1
        if ready > done:
            second = torch.from_numpy(partner[done:ready] - start).to(device)
            latent = lam.bottleneck(lam.encoder.compare(kept[done - start : ready - start], kept[second]))  # type: ignore[operator]
            post.append(latent.post.float().cpu())
            if latent.index is not None:
                index.append(latent.index.cpu())
            kept, start, done = kept[ready - start :], ready, ready
    return torch.cat(post), torch.cat(index) if index else None


def label(run: Path, path: str, out: Path, device: str = "cpu", bf16: bool = False, camera: str | None = None) -> Path:
    """Label every frame of ``path`` with RUN's model; writes a LeRobot dataset at ``out``, which is returned.

    Columns: ``latent_action`` (K*d floats after the bottleneck, slot by slot), ``latent_action.index`` (K codes, where there is a codebook)
    and ``latent_action.valid`` (False where the episode ends before the gap). Interrupted, it resumes when run again.
    Raises LaminaError for a damaged model or video, an ``out`` that exists, a disk that refuses.
    """
    folder = model_folder(run)
    model = LatentActionModel.from_pretrained(str(folder)).to(device)
    source = open_source(path)
    if camera is not None and camera not in source.cameras:
        raise LaminaError(f"{path}: has no camera '{camera}'; it has {', '.join(source.cameras)}")
    camera = camera or source.cameras[0]
    slots, dim, gap = model.config.slots, model.lam.dim, model.provenance.label_gap
    names = [f"slot_{k}.{d}" for k in range(slots) for d in range(dim)]
    features: dict[str, dict[str, Any]] = {
        "latent_action": {"dtype": "float32", "shape": [slots * dim], "names": names},
        "latent_action.valid": {"dtype": "bool", "shape": [1], "names": None},
    }
    if model.lam.bottleneck.codebook_size:
        slot_names = [f"slot_{k}" for k in range(slots)]
        features["latent_action.index"] = {"dtype": "int64", "shape": [slots], "names": slot_names}
    provenance = {
        "format": 1,
        "lamina": __version__,
        "method": model.provenance.method,
        "checkpoint": checkpoint_hash(folder),
        "gap_seconds": gap,
        "slots": slots,
        "channels": dim,
        "codebook_size": model.lam.bottleneck.codebook_size,
        "camera": camera,
        "precision": "bf16" if bf16 else "fp32",
    }
    total = sum(episode.length for episode in source.episodes)
    ahead = ReadAhead(source, camera, model.config.image[1:], chunk=CHUNK)  # type: ignore[arg-type]
    with tqdm(total=total, unit="frame", unit_scale=True, desc="label", dynamic_ncols=True) as bar:

        def columns(episode: Episode, _: str) -> dict[str, np.ndarray]:
            partner, valid = partners(episode.times, gap)
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                post, index = encode_episode(model.lam, ahead(episode), partner)
            bar.update(episode.length)
            values = {"latent_action": post.flatten(1).numpy(), "latent_action.valid": valid[:, None]}
            return values | ({"latent_action.index": index.numpy()} if index is not None else {})

        try:
            return write_labels(source, out, features, columns, provenance, camera=camera)
        finally:
            ahead.close()
