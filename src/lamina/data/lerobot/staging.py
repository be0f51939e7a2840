"""Labels that wait to become columns of a dataset: one parquet file for each finished episode, so that a killed job goes on after it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lamina.data.dataset import Dataset
from lamina.data.episodes import Episode
from lamina.data.lerobot.statistics import Statistics, column_statistics
from lamina.data.lerobot.tables import read_metadata, read_table, to_numpy
from lamina.data.lerobot.writer import column_type, to_arrow, write_json, write_table, writing
from lamina.errors import LaminaError

VALID = "latent_action.valid"  # rows where it is False are left out of the other labels' statistics

Columns = dict[str, np.ndarray]
Features = dict[str, dict[str, Any]]
#: An engine: labels the episodes that it is given, in any order, wherever it likes.
Engine = Callable[[Sequence[Episode]], Iterable[tuple[Episode, Columns]]]


@dataclass(frozen=True)
class LabelPlan:
    """What is labelled, and how: ``features`` are the new columns of ``source``, by ``camera``. ``provenance`` is meta/lamina.json."""

    source: Dataset
    features: Features
    provenance: dict[str, Any]
    camera: str

    def record(self) -> dict[str, Any]:
        """What labels of an episode depend on, for JSON: labels of two plans with equal records can be mixed."""
        return {
            "provenance": self.provenance,
            "features": self.features,
            "camera": self.camera,
            "lengths": [episode.length for episode in self.source.episodes],
            "content": self.source.content(),
        }


def digest(record: dict[str, Any]) -> str:
    """sha256 of a :meth:`LabelPlan.record`."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def one_by_one(label: Callable[[Episode], Columns]) -> Engine:
    """The engine that labels episodes in their order, in this process."""
    return lambda episodes: ((episode, label(episode)) for episode in episodes)


def empty_labels(episode: Episode, features: Features) -> Columns:
    """The labels of an episode that the camera does not show: zeros, not valid."""
    return {n: np.zeros((episode.length, *f["shape"]), np.dtype(f["dtype"])) for n, f in features.items()}


class Staging:
    """The labels of each finished episode in ``folder``. ``whole``: what it is all for, which messages about the disk name."""

    def __init__(self, folder: Path, whole: Path, features: Features) -> None:
        self.folder, self.whole, self.features = folder, whole, features
        self.schema = pa.schema([(n, column_type(f)) for n, f in features.items()])

    def resume(self, key: str, within: Path) -> None:
        """Keep what an interrupted job with the same key left behind in ``within``, which holds the folder, and nothing else."""
        marker = self.folder / "key.json"
        with writing(self.whole):
            if within.exists() and not (marker.exists() and read_metadata(marker).get("key") == key):
                shutil.rmtree(within)
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.glob("*.parquet"):
                try:  # a loss of power can leave files that are not whole: waiting for the disk after each is most of their time
                    read_table(path)
                except LaminaError:
                    path.unlink()
        write_json(marker, {"key": key})

    def path(self, episode: Episode) -> Path:
        """The file of an episode's labels."""
        return self.folder / f"episode-{episode.number:06d}.parquet"

    def has(self, episode: Episode) -> bool:
        return self.path(episode).exists()

    def fill(self, episodes: Sequence[Episode], missing: set[int], engine: Engine) -> None:
        """Label the episodes that are not there yet by ``engine``; those with a number in ``missing`` get rows that are not valid."""
        left = [episode for episode in episodes if not self.has(episode)]
        for episode in left:
            if episode.number in missing:
                self.put(episode, empty_labels(episode, self.features))
        for episode, columns in engine([episode for episode in left if episode.number not in missing]):
            self.put(episode, columns)

    def put(self, episode: Episode, columns: Columns) -> None:
        """Keep the labels of an episode. Raises LaminaError for what does not fit the features, NaN and infinity."""
        if columns.keys() != self.features.keys():
            raise LaminaError(f"{episode.name}: labels are {sorted(columns)}, not {sorted(self.features)}")
        arrays = []
        for name, feature in self.features.items():
            values = np.asarray(columns[name]).reshape(len(columns[name]), -1)
            if values.shape != (episode.length, *feature["shape"]):
                raise LaminaError(
                    f"{episode.name}: '{name}' is {values.shape}, not {(episode.length, *feature['shape'])}"
                )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise LaminaError(f"{episode.name}: '{name}' is NaN or infinite; the model is damaged or has diverged")
            arrays.append(to_arrow(values, feature))
        write_table(self.path(episode), [pa.table(arrays, schema=self.schema)], self.schema, durable=False)

    def column(self, episode: Episode, name: str) -> np.ndarray:
        """One of the labels of an episode, [t d]."""
        return to_numpy(read_table(self.path(episode), [name])[name])

    def get(self, episode: Episode) -> tuple[pa.Table, dict[str, Statistics]]:
        """An episode's labels and their statistics."""
        table = read_table(self.path(episode))
        values = {n: to_numpy(table[n]) for n in self.features}
        valid = values[VALID][:, 0] if VALID in values else np.ones(episode.length, dtype=bool)
        return table, {n: column_statistics(v if n == VALID else v[valid]) for n, v in values.items()}
