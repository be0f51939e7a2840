"""The one function that labels an episode (of plain video: a file). Engines hand episodes out to it, here or on other machines."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from lamina.data.dataset import Dataset
from lamina.data.episodes import Episode
from lamina.data.lerobot.staging import VALID, Columns, Features, LabelPlan
from lamina.data.read_ahead import ReadAhead
from lamina.data.shots import Shots, detector, detector_name
from lamina.device import Precision, autocast
from lamina.inference.encode import CHUNK, encode_pairs
from lamina.models.adaptive import AdaptiveK
from lamina.models.config import Side
from lamina.models.hub import LatentActionModel
from lamina.types import Latent
from lamina.version import __version__

INDEX = "latent_action.index"
SHOT = "latent_action.shot"
LENGTH = "latent_action.k"
UNUSED = -1  # the code of a slot behind the prefix


def action_columns(model: LatentActionModel, continuous: bool | None = None) -> dict[str, Side]:
    """The float columns that labels have, and the side of the quantiser that each holds."""
    wanted = model.config.action_side == "continuous" if continuous is None else continuous
    columns: dict[str, Side] = {"latent_action": "quantised"}
    if wanted:
        columns["latent_action.continuous"] = "continuous"
    return columns


class Labeller:
    """Labels the episodes of ``source``, as ``camera`` shows them, by a model on its device.

    ``k``: slots that are kept, a number for all rows or a rule for each; None: all, without a column that says so.
    The labels of an episode depend on nothing but the episode, the model and these options.
    """

    def __init__(
        self,
        model: LatentActionModel,
        source: Dataset,
        camera: str,
        columns: dict[str, Side],
        precision: Precision = "fp32",
        shots: Shots = "auto",
        k: int | AdaptiveK | None = None,
    ) -> None:
        self.model, self.source, self.camera, self.columns, self.precision = model, source, camera, columns, precision
        self.shots, self.detector = shots, detector(shots, source)
        # Latents arrive on the CPU.
        self.k, self.prefix = k.to("cpu") if isinstance(k, AdaptiveK) else k, copy.deepcopy(model.lam.prefix).cpu()

    @property
    def slots(self) -> range:
        """The slots that are the model's latent action."""
        return range(self.model.config.slots)[self.model.config.latent_action]

    def features(self) -> Features:
        """The columns as features of a LeRobot dataset."""
        slots, dim = self.slots, self.model.lam.dim
        names = [f"slot_{k}.{d}" for k in slots for d in range(dim)]
        features: dict[str, dict[str, Any]] = {
            name: {"dtype": "float32", "shape": [len(slots) * dim], "names": names} for name in self.columns
        }
        features[VALID] = {"dtype": "bool", "shape": [1], "names": None}
        if self.model.lam.bottleneck.codebook_size:
            names = [f"slot_{k}" for k in slots]
            features[INDEX] = {"dtype": "int64", "shape": [len(slots)], "names": names}
        if self.k is not None:
            features[LENGTH] = {"dtype": "int64", "shape": [1], "names": None}
        if self.detector is not None:
            features[SHOT] = {"dtype": "int64", "shape": [1], "names": None}
        return features

    def plan(self, checkpoint: str | None) -> LabelPlan:
        """The plan of the labelled dataset. ``checkpoint``: sha256 of the model's weights."""
        model = self.model
        provenance = {
            "format": 2,
            "lamina": __version__,
            "method": model.provenance.method,
            "checkpoint": checkpoint,
            "latent_action": model.column,
            "gap_seconds": model.provenance.label_gap,
            "slots": len(self.slots),
            "channels": model.lam.dim,
            "codebook_size": model.lam.bottleneck.codebook_size,
            "camera": self.camera,
            "precision": self.precision,
        }
        if self.k is not None:
            provenance["k"] = self.k if isinstance(self.k, int) else self.k.record()
        if self.detector is not None:
            provenance["shots"] = detector_name(self.detector)
        return LabelPlan(self.source, self.features(), provenance, self.camera)

    def each(self, episodes: Sequence[Episode]) -> Iterator[tuple[Episode, Columns]]:
        """The local engine: labels one episode after the other, and decodes ahead."""
        ahead = ReadAhead(self.source, self.camera, self.model.config.image[1:], chunk=CHUNK, episodes=episodes)
        try:
            for episode in episodes:
                yield episode, self.label(episode, ahead(episode))
        finally:
            ahead.close()

    def label(self, episode: Episode, chunks: Iterator[UInt8[np.ndarray, "n h w 3"]]) -> Columns:
        """The labels of one episode, t rows each, from its frames in order. Raises LaminaError for video that cannot be decoded."""
        with autocast(self.model.device, self.precision):
            found = encode_pairs(self.model, chunks, episode.times, self.model.provenance.label_gap, self.detector)
        lam, latent = self.model.lam, found.latent
        actions = {name: lam.action(latent, side) for name, side in self.columns.items()}
        index = lam.action_index(latent)
        labels = {}
        if (keep := self.lengths(latent)) is not None:
            with torch.no_grad():
                actions = {name: self.prefix(z, keep) for name, z in actions.items()}
            if index is not None:
                index = index.masked_fill(torch.arange(index.shape[1]) >= keep[:, None], UNUSED)
            labels[LENGTH] = keep[:, None].numpy()
        labels |= {name: z.flatten(1).numpy() for name, z in actions.items()}
        labels[VALID] = found.valid[:, None]
        if index is not None:
            labels[INDEX] = index.numpy()
        if found.shot is not None:
            labels[SHOT] = found.shot[:, None]
        return labels

    def lengths(self, latent: Latent) -> Int[Tensor, "t"] | None:
        """The slots that each row keeps; None: all of them."""
        if self.k is None:
            return None
        if isinstance(self.k, int):
            return torch.full((len(latent),), self.k)
        return self.k.lengths(latent.post.float())
