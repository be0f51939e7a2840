"""Latent actions of one clip, applied to the frames of another: the round trip of FlexLAM §6.1 (arXiv 2606.19408) on a user's own clips.

    z  = Enc(o_t, o_t+1) of the source        ô  = Dec(target frame, z)
    z' = Enc(target frame, ô)                 o' = Dec(o_t, z'), which is compared with o_t+1

A latent that carries the motion and not the scene brings it back. Controls: copy-frame (o_t itself), and the same round trip with the
latent of another transition of the source, half the clip away, which must do worse. The direct decoding Dec(o_t, z) is the upper bound.

OUT/transfer.json   scores of every transition, and what they were computed from
OUT/transfer.mp4    the source, and the target as it moves when one latent after the other is applied to it
OUT/transfer.png    some of the round trips
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lamina.data.dataset import Data
from lamina.data.lerobot.writer import VideoEncoding, write_video
from lamina.data.sampling import open_source, source_camera
from lamina.device import autocast, pick_device
from lamina.errors import LaminaError, LaminaWarning
from lamina.evaluation.pictures import grid
from lamina.evaluation.probes.reconstruction import psnr, ssim
from lamina.files import checkpoint_hash, locked, to_json, whole_folder, write_text
from lamina.inference.encode import frame_pairs, in_batches
from lamina.inference.subject import Images
from lamina.models.hub import LatentActionModel, model_folder

BATCH = 32  # frames
PANEL = 192  # height of a picture of the film at least, pixels
ROWS = 6  # of the figure
#: What is written, and what a folder of an earlier transfer holds.
FILES = {"transfer.json", "transfer.mp4", "transfer.png"}


@dataclass(frozen=True)
class Chain:
    """Frames of a clip, each one gap after the one before."""

    clip: str
    index: Int[np.ndarray, "t"]  # numbers of the frames within the clip
    frames: UInt8[Tensor, "t c h w"]


def read_chain(data: Data, gap: float, size: tuple[int, int], count: int, least: int) -> Chain:
    """The first ``count`` frames of a clip that lie ``gap`` seconds apart. Of a folder or dataset it is the first episode, first camera.

    Raises LaminaError for a clip that has fewer than ``least`` of them, and as :func:`open_source` does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LaminaWarning)  # of splits, which are not asked for here
        source = open_source(data)
    episode, camera = source.episodes[0], source_camera(source, None)
    partner, valid = frame_pairs(episode.times, gap)
    chosen = [0]
    while len(chosen) < count and valid[chosen[-1]]:
        chosen.append(int(partner[chosen[-1]]))
    if len(chosen) < least:
        raise LaminaError(
            f"{episode.name}: has {len(chosen)} frames that lie {gap:g} s apart, and {least} are needed; give a longer clip or "
            "a shorter --gap"
        )
    frames = np.concatenate([source.frames(episode, camera, i, i + 1, size) for i in chosen])
    return Chain(episode.name, np.array(chosen), torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous())


@dataclass(frozen=True)
class RoundTrip:
    """Pictures of n transitions; each is [n c h w]."""

    moved: Images  # the target's frame after the source's latent
    recovered: Images  # the source's second frame, from the latent that was read off the target
    agreement: Float[Tensor, "n"]  # share of the codes that are the same after the trip; NaN without a codebook


def round_trip(
    model: LatentActionModel,
    src: Images,
    z: Float[Tensor, "n k d"],
    index: Int[Tensor, "n k"] | None,
    target: Images,
    k: int,
) -> RoundTrip:
    """Apply latents ``z`` (their codes: ``index``) to the target's frames, read them off again and apply them to the source's."""
    moved, recovered, same = [], [], []
    for rows in torch.arange(len(src)).split(BATCH):
        moved.append(model.decode(target[rows], z[rows], k))
        back = model.encode(target[rows], moved[-1])
        recovered.append(model.decode(src[rows], back, k))
        if index is None or back.index is None or not k:
            same.append(torch.full((len(rows),), float("nan")))
        else:
            same.append((back.index[:, :k] == index[rows, :k]).float().mean(1))
    return RoundTrip(*(torch.cat(parts).cpu() for parts in (moved, recovered, same)))


def transfer(
    run: Path | LatentActionModel,
    source: Data,
    target: Data,
    out: Path,
    k: int | None = None,
    gap: float | None = None,
    transitions: int = 16,
    device: str = "auto",
    precision: str = "fp32",
) -> dict[str, Any]:
    """Run the round trips, write the folder ``out`` and return the record.

    ``k``: slots kept (default: all); ``gap``: seconds between two frames (default: the model's own); ``transitions``: at most so many.
    Raises LaminaError for a model without pictures, or one that decodes with an instruction, a clip that is too short, and a folder that
    holds something else.
    """
    if out.exists() and {path.name for path in out.iterdir()} - FILES:
        raise LaminaError(f"{out}: holds other files; choose another --out")
    device = pick_device(device)
    model = run if isinstance(run, LatentActionModel) else LatentActionModel.from_pretrained(str(run))
    model = model.to(device).eval()
    if model.config.space != "pixels":
        raise LaminaError(f"{run}: predicts {model.config.space}, not pixels: it has no pictures to transfer")
    if model.config.task:
        raise LaminaError(f"{run}: decodes with an instruction, which a clip does not have; transfer its second stage")
    gap = gap or model.provenance.label_gap
    kept = model.config.slots if k is None else k
    if not 0 <= kept <= model.config.slots:
        raise LaminaError(f"--k must be 0 to {model.config.slots}, this model's slots, got {kept}")
    size = (model.config.image[1], model.config.image[2])
    with locked(out):
        own = read_chain(source, gap, size, transitions + 1, least=3)
        other = read_chain(target, gap, size, len(own.frames), least=1)
        src, dst = own.frames[:-1], own.frames[1:]
        n = len(src)
        start = other.frames[torch.arange(n) % len(other.frames)]
        with autocast(device, precision):
            found = [model.encode(a, b) for a, b in zip(src.split(BATCH), dst.split(BATCH), strict=True)]
            z = torch.cat([latent.post for latent in found])
            index = None
            if found[0].index is not None:
                index = torch.cat([latent.index for latent in found if latent.index is not None])
            order = torch.arange(n).roll(n // 2)
            codes = (index, None if index is None else index[order])
            right, shuffled = (
                round_trip(model, src, latents, own_codes, start, kept)
                for latents, own_codes in zip((z, z[order]), codes, strict=True)
            )
            direct = in_batches(lambda a, v: model.decode(a, v, kept).cpu(), src, z, size=BATCH)
            films = [_applied(model, other.frames[:1], latents, kept) for latents in (z, z[order])]
        predictions = {
            "direct": direct,
            "round trip": right.recovered,
            "round trip, shuffled": shuffled.recovered,
            "copy-frame": src,
        }
        scores = {
            name: {"psnr": psnr(picture, dst).tolist(), "ssim": ssim(picture, dst).tolist()}
            for name, picture in predictions.items()
        }
        record: dict[str, Any] = {
            "format": 1,
            "model": None if isinstance(run, LatentActionModel) else checkpoint_hash(model_folder(run)),
            "source": {"clip": own.clip, "frames": own.index.tolist()},
            "gap_seconds": gap,
            "k": kept,
            "mean": {
                name: {metric: float(np.mean(values)) for metric, values in score.items()} for name, score in scores.items()
            },
            "same_codes": {"round trip": right.agreement.mean().item(), "round trip, shuffled": shuffled.agreement.mean().item()},
            # How far the target moved, and how far apart two latents left it: PSNR is high where nothing happened.
            "target": {
                "clip": other.clip, "frames": other.index.tolist(), "psnr_moved_to_unmoved": float(psnr(right.moved, start).mean()),
                "psnr_moved_to_shuffled": float(psnr(right.moved, shuffled.moved).mean()),
            },
            "transitions": scores,
        }  # fmt: skip
        with whole_folder(out) as folder:
            write_text(folder / "transfer.json", to_json(record, indent=1) + "\n")
            columns = ["source $o_t$", "source $o_{t+1}$", "target", "target + z", "round trip", "shuffled", "direct"]
            rows = torch.linspace(0, n - 1, min(n, ROWS)).round().long()
            shown = [src, dst, start, right.moved, right.recovered, shuffled.recovered, direct]
            grid(folder / "transfer.png", columns, [picture[rows] for picture in shown])
            titles = ["source", "target + z", "target + another z", "target, unmoved", "round trip"]
            still = other.frames[:1].expand(n + 1, -1, -1, -1)
            panels = [own.frames, *films, still, torch.cat([src[:1], right.recovered])]
            write_video(folder / "transfer.mp4", list(_film(titles, panels)), 1 / gap, VideoEncoding(crf=12))
    return record


def _applied(
    model: LatentActionModel, start: UInt8[Tensor, "1 c h w"], z: Float[Tensor, "n k d"], k: int
) -> UInt8[Tensor, "t c h w"]:
    """The first frame, and what becomes of it as one latent after the other is applied to what the last one left. t = n + 1."""
    frames = [start]
    for one in z.split(1):
        frames.append(model.decode(frames[-1], one, k).cpu())
    return torch.cat(frames)


def _film(titles: list[str], panels: list[UInt8[Tensor, "t c h w"]]) -> Iterator[UInt8[np.ndarray, "h2 w2 3"]]:
    """The panels side by side, enlarged, under their titles."""
    height, width = panels[0].shape[-2:]
    scale = -(-PANEL // height)
    head = _titles(titles, width * scale)
    for row in zip(*panels, strict=True):
        pictures = F.interpolate(torch.stack(row).float(), scale_factor=scale, mode="nearest").to(torch.uint8)
        beside = torch.cat(list(pictures.permute(0, 2, 3, 1)), dim=1).numpy()
        frame = np.concatenate([head, beside])
        yield frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]  # h264 wants even sides


def _titles(titles: list[str], width: int) -> UInt8[np.ndarray, "h w2 3"]:
    """A strip of white words on black, one of ``width`` pixels a title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(len(titles) * width / 100, 0.28), dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    for number, title in enumerate(titles):
        figure.text((number + 0.5) / len(titles), 0.5, title, color="white", ha="center", va="center", fontsize=9)
    canvas.draw()
    strip = np.asarray(canvas.buffer_rgba())[..., :3]
    wanted = len(titles) * width
    return np.ascontiguousarray(np.pad(strip, ((0, 0), (0, max(0, wanted - strip.shape[1])), (0, 0)))[:, :wanted])


def told(record: dict[str, Any]) -> str:
    """The mean scores as a table."""
    lines = [f"{'source o_t+1 predicted by':<28}{'PSNR, dB':>10}{'SSIM':>8}"]
    lines += [f"{name:<28}{score['psnr']:>10.2f}{score['ssim']:>8.3f}" for name, score in record["mean"].items()]
    return "\n".join(lines)
