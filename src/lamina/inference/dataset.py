"""A torch Dataset of (frame, latent, action)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.data.dataset import Data
from lamina.data.sampling import open_source, source_camera
from lamina.device import DeviceName
from lamina.inference.label import LabelOptions, label
from lamina.models.hub import LatentActionModel


class LatentSample(NamedTuple):
    """What a policy of one's own is trained on; ``action`` is None in data without actions."""

    frame: UInt8[Tensor, "c h w"]
    latent: Float[Tensor, "k d"]
    action: Tensor | None


class LatentDataset(torch.utils.data.Dataset[LatentSample]):
    """A torch Dataset of (frame, latent, action), for a policy of one's own: the frames of ``data`` that have a valid latent action.

    ``run``: a run's folder, or a model. Latents are encoded once, when the dataset is made; frames are read when they are asked for, and
    resized to ``size`` (height, width) if it is given. ``action``: the feature that holds the actions, if there are any. Give
    :meth:`collate` to a DataLoader. Raises what :func:`lamina.inference.label.label` raises.
    """

    def __init__(
        self,
        run: str | os.PathLike[str] | LatentActionModel,
        data: Data,
        camera: str | None = None,
        size: tuple[int, int] | None = None,
        action: str = "action",
        device: DeviceName = "auto",
    ):
        self.data = open_source(data)
        self.camera, self.size = source_camera(self.data, camera), size
        model = run if isinstance(run, LatentActionModel) else Path(run)
        self.table = label(model, self.data, None, device, LabelOptions(camera))
        self.kept = np.flatnonzero(self.table.valid)
        there = action in self.data.columns
        self.actions = [self.data.column(episode, action) for episode in self.data.episodes] if there else None

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> LatentSample:
        row = int(self.kept[index])
        number, frame = int(self.table.episode[row]), int(self.table.frame[row])
        episode = self.data.episodes[number]
        picture = self.data.frames(episode, self.camera, frame, frame + 1, self.size)[0]
        action = None if self.actions is None else torch.as_tensor(self.actions[number][frame])
        pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
        return LatentSample(pixels, torch.from_numpy(self.table.latents[row].copy()), action)

    @staticmethod
    def collate(samples: list[LatentSample]) -> LatentSample:
        """Samples as one batch, for DataLoader's ``collate_fn``."""
        frames, latents, actions = zip(*samples, strict=True)
        return LatentSample(
            torch.stack(frames), torch.stack(latents), None if actions[0] is None else torch.stack(actions)
        )
