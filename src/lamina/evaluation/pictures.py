"""Figures of reconstructions, transfers and swaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from jaxtyping import Int
from torch import Tensor

from lamina.evaluation.probes.exogenous import SwapScore
from lamina.evaluation.probes.horizon import other_episode
from lamina.files import disk_errors
from lamina.inference.subject import Images, Subject
from lamina.types import Clip

matplotlib.use("Agg")
from matplotlib.figure import Figure


def grid(path: Path, columns: list[str], pictures: list[Images], names: Sequence[str] = ()) -> None:
    """A grid of pictures, one column a tensor [rows c h w], as a PNG; ``names`` of the rows, if any."""
    rows, _, h, w = pictures[0].shape
    gap = max(1, w // 20)
    canvas = torch.full((rows, h + gap, len(columns), w + gap, 3), 255, dtype=torch.uint8)
    for column, cells in enumerate(pictures):
        canvas[:, :h, column, :w] = cells.permute(0, 2, 3, 1).cpu()
    whole = canvas.reshape(rows * (h + gap), len(columns) * (w + gap), 3)[:-gap, :-gap].numpy()
    # One image for all cells: a hundred axes take a second. A column is 1.25 inches wide.
    margin, title = 0.25 if names else 0.05, 0.3
    wide = 1.25 * len(columns)
    tall = wide * whole.shape[0] / whole.shape[1]
    size = (wide + margin + 0.05, tall + title + 0.05)
    figure = Figure(figsize=size, dpi=110)
    axes = figure.add_axes((margin / size[0], 0.05 / size[1], wide / size[0], tall / size[1]))
    axes.axis("off")
    axes.imshow(whole, interpolation="nearest", aspect="auto")
    for column, text in enumerate(columns):
        axes.text(column * (w + gap) + w / 2 - 0.5, -gap - 0.5, text, ha="center", va="bottom", fontsize=9)
    for row, text in enumerate(names):
        axes.text(-gap - 0.5, row * (h + gap) + h / 2 - 0.5, text, ha="right", va="center", rotation=90, fontsize=8)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def most_changed(clip: Clip, count: int) -> Int[Tensor, "count"]:
    """Transitions for figures: evenly spaced in the upper half of pixel change."""
    change = (clip.frames[:, 0].float() - clip.frames[:, 1].float()).abs().flatten(1).mean(1)
    order = change.argsort()
    places = torch.linspace(0.5, 0.95, count) * (len(order) - 1)
    return order[places.round().long()]


def prefix_picture(subject: Subject, clip: Clip, prefixes: tuple[int, ...], path: Path, rows: int = 4) -> None:
    """Source, target, and the prediction from the first k slots, k growing to the right."""
    chosen = clip[most_changed(clip, rows)]
    src, dst = chosen.frames[:, 0], chosen.frames[:, 1]
    subject = subject.quantised
    z = subject.latents(src, dst)
    decoded = [subject.draw(src, subject.truncated(z, k)) for k in prefixes]
    columns = ["$o_t$", "$o_{t+1}$", *[f"k = {k}" for k in prefixes]]
    grid(path, columns, [src, dst, *decoded])


def transfer_picture(subject: Subject, clip: Clip, path: Path, rows: int = 4) -> None:
    """A latent taken from one transition and applied to a frame of another episode."""
    chosen = clip[most_changed(clip, rows)]
    src, dst = chosen.frames[:, 0], chosen.frames[:, 1]
    other = clip.frames[other_episode(clip.episode, chosen.episode), 0]
    moved = subject.quantised.draw(other, subject.quantised.latents(src, dst))
    columns = ["source $o_t$", "source $o_{t+1}$", "another frame", "same latent", "change"]
    change = (128 + (moved.float() - other.float()) / 2).clamp(0, 255).to(torch.uint8)
    grid(path, columns, [src, dst, other, moved, change])


def swap_picture(scores: Mapping[str, SwapScore], path: Path) -> None:
    """The same transitions under two exogenous states, their reconstructions, and the prediction after a swap; a name for each score."""
    shown = [score.pictures for score in scores.values()]
    columns = list(shown[0])
    names = [name for name, score in scores.items() for _ in score.pictures["swap"]]
    grid(path, columns, [torch.cat([pictures[column] for pictures in shown]) for column in columns], names=names)


def composed_picture(subject: Subject, clip: Clip, path: Path, rows: int = 4) -> None:
    """Triplets: the last frame decoded from its own latent and from the sum of the two short ones, from its own start and from a frame of
    another episode."""
    ends = Clip(clip.frames[:, [0, 2]], clip.time[:, [0, 2]], clip.index[:, [0, 2]], clip.episode)
    chosen = clip[most_changed(ends, rows)]
    i, j, k = (chosen.frames[:, n] for n in range(3))
    direct, composed = subject.latents(i, k), subject.latents(i, j) + subject.latents(j, k)
    other = clip.frames[other_episode(clip.episode, chosen.episode), 0]
    drawn = [subject.draw(start, z) for start in (i, other) for z in (direct, composed)]
    columns = [
        "$o_i$",
        "$o_j$",
        "$o_k$",
        "$z_{ik}$",
        "$z_{ij} + z_{jk}$",
        "another frame",
        "$z_{ik}$",
        "$z_{ij} + z_{jk}$",
    ]
    grid(path, columns, [i, j, k, *drawn[:2], other, *drawn[2:]])
