"""The latent actions of a dataset as a table with one row per frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from lamina.data.dataset import Dataset
from lamina.errors import LaminaError


class EpisodeColumns(Mapping[str, np.ndarray]):
    """Columns of a labelled dataset, read from disk when they are asked for: all rows of all episodes, in order."""

    def __init__(self, dataset: Dataset, names: tuple[str, ...]):
        self.dataset, self.names = dataset, names

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        return np.concatenate([self.dataset.column(episode, name) for episode in self.dataset.episodes])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class LatentTable:
    """The latent action of every frame of a dataset, in the order of its episodes. n rows; K slots of d channels.

    ``path``: the LeRobot dataset that holds it as columns, if it was written. ``side``: the column that the model's config calls the latent
    action.
    """

    columns: Mapping[str, np.ndarray]
    episode: Int[np.ndarray, "n"]
    frame: Int[np.ndarray, "n"]
    slots: int
    column: str
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.episode)

    @cached_property
    def latents(self) -> Float[np.ndarray, "n k d"]:
        """The latent action: the column that the model's config names."""
        return self.columns[self.column].reshape(len(self), self.slots, -1)

    @cached_property
    def valid(self) -> Bool[np.ndarray, "n"]:
        """False where the episode ends before the gap: there is no frame that the latent leads to."""
        return self.columns["latent_action.valid"].reshape(-1).astype(bool)

    @cached_property
    def index(self) -> Int[np.ndarray, "n k"] | None:
        """Codebook entries; None for a LAM without a codebook."""
        name = "latent_action.index"
        return self.columns[name].reshape(len(self), -1).astype(np.int64) if name in self.columns else None

    @cached_property
    def k(self) -> Int[np.ndarray, "n"] | None:
        """The slots that each row keeps; None where all rows keep all. Slots behind them hold the null latent, and the code -1."""
        name = "latent_action.k"
        return self.columns[name].reshape(-1).astype(np.int64) if name in self.columns else None

    def rows(self, episode: int) -> slice:
        """The rows of an episode. Raises LaminaError if there is no such episode."""
        found = np.flatnonzero(self.episode == episode)
        if not len(found):
            raise LaminaError(f"this table has no episode {episode}; it has {self.episode.max(initial=-1) + 1}")
        return slice(int(found[0]), int(found[-1]) + 1)
