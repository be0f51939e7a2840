"""The latent actions of a dataset as a table with one row per frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, Int

from lamina.data.episodes import Episode
from lamina.data.lerobot.staging import Features
from lamina.errors import LaminaError


class EpisodeColumns(Mapping[str, np.ndarray]):
    """Columns of ``episodes`` on disk, which ``read`` (of an episode and a name) gets when they are asked for: all rows, in order."""

    def __init__(self, episodes: Sequence[Episode], features: Features, read: Callable[[Episode, str], np.ndarray]):
        self.episodes, self.features, self.read = episodes, features, read

    def __getitem__(self, name: str) -> np.ndarray:
        feature = self.features[name]
        if not self.episodes:
            return np.zeros((0, *feature["shape"]), feature["dtype"])
        return np.concatenate([self.read(episode, name) for episode in self.episodes])

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class LatentTable:
    """The latent action of every frame of a dataset, in the order of its episodes. n rows; K slots of d channels.

    ``path``: the LeRobot dataset that holds it as columns, if it was written; of a shard the folder of its part, and the rows are those
    of the shard. ``column``: the one that the model's config calls the latent action.
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
        return rearrange(self.columns[self.column], "n (k d) -> n k d", k=self.slots)

    @cached_property
    def valid(self) -> Bool[np.ndarray, "n"]:
        """False where the episode ends before the gap: there is no frame that the latent leads to."""
        return self.columns["latent_action.valid"].reshape(-1).astype(bool)

    @cached_property
    def index(self) -> Int[np.ndarray, "n k"] | None:
        """Codebook entries; None for a LAM without a codebook."""
        name = "latent_action.index"
        return self.columns[name].astype(np.int64) if name in self.columns else None

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
