"""Latent norm against displacement along an episode (AC-LAM Fig. 1, 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.data.dataset import Dataset
from lamina.inference.subject import Subject

MAX_FRAMES = 1000  # frames


@dataclass(frozen=True)
class Trajectory:
    """|f(o_0, o_t)| beside the displacement |s_t - s_0|, both divided by their largest value; no displacement without a state."""

    seconds: Float[np.ndarray, "t"]
    length: Float[np.ndarray, "t"]
    displacement: Float[np.ndarray, "t"] | None
    r: float  # Pearson's, NaN without displacement or where either never varies


def trajectory(
    subject: Subject,
    frames: UInt8[Tensor, "t c h w"],
    state: Float[np.ndarray, "t q"] | None,
    seconds: Float[np.ndarray, "t"],
) -> Trajectory:
    """The norm trajectory of one episode. Channels of the state count by their spread over the episode's data: pass them in like units."""
    length = subject.actions(frames[:1].expand_as(frames), frames).norm(dim=1).double().numpy()
    length /= max(float(length.max()), 1e-12)
    if state is None:
        return Trajectory(seconds, length, None, float("nan"))
    displacement = np.linalg.norm(state - state[0], axis=1)
    displacement /= max(float(displacement.max()), 1e-12)
    flat = np.ptp(length) == 0 or np.ptp(displacement) == 0
    r = float("nan") if flat else float(np.corrcoef(length, displacement)[0, 1])
    return Trajectory(seconds, length, displacement, r)


def trajectories(
    subject: Subject,
    source: Dataset,
    size: tuple[int, int],
    camera: str | None = None,
    state: str | None = None,
    split: str = "test",
    limit: int = 24,
    points: int = MAX_FRAMES,
) -> list[Trajectory]:
    """The norm trajectories of the first ``limit`` stretches of a split, at most MAX_FRAMES long, at ``points`` evenly spread frames."""
    columns = {e.number: source.column(e, state) for e in source.episodes} if state else {}
    spread = np.concatenate(list(columns.values())).std(0).clip(1e-6) if columns else 1.0
    camera = camera or source.cameras[0]
    shown = [e for e in source.episodes if e.number not in source.missing_episodes(camera)]
    stretches = [(e, start, stop) for e in shown for name, start, stop in e.splits if name == split]
    found = []
    for episode, start, stop in stretches[:limit]:
        stop = min(stop, start + MAX_FRAMES)
        rows = np.unique(np.linspace(0, stop - start - 1, min(points, stop - start)).astype(int))
        frames = source.frames(episode, camera, start, stop, size)[rows]
        column = columns[episode.number][start + rows] / spread if columns else None
        seconds = episode.times[start + rows]
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        found.append(trajectory(subject, pictures, column, seconds - seconds[0]))
    return found
