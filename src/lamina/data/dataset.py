"""The base class of every source of episodes: folders of video, LeRobot datasets, frames in memory, or a class of your own."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lamina.data.episodes import DecodeError, Episode
from lamina.errors import LaminaError
from lamina.types import ActionSpec

#: Episodes, and frames of each, that :meth:`Dataset.content` reads.
FINGERPRINT_EPISODES, FINGERPRINT_FRAMES = 256, 4


class Dataset(ABC):
    """Episodes of video. ``episodes`` and :meth:`frames` are enough; the rest has defaults for data without actions and other columns.

    The attributes may be class attributes, properties or set in ``__init__``.
    """

    #: Cameras that show the episodes; the first is read where none is asked for.
    cameras: tuple[str, ...] = ("image",)
    #: Names of the features that :meth:`column` can read.
    columns: tuple[str, ...] = ()

    @property
    @abstractmethod
    def episodes(self) -> tuple[Episode, ...]:
        """The episodes, numbered from 0, with their splits (:func:`lamina.data.split_episodes` makes them)."""

    @abstractmethod
    def frames(
        self, episode: Episode, camera: str, start: int, stop: int, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """The RGB frames start..stop-1 of an episode, resized to ``size`` = (height, width), or as they are without one.

        Resize with :func:`lamina.images.resize_frames`. Successive calls mostly continue where the last one ended. Raises DecodeError (a
        LaminaError) for frames that cannot be decoded, or whose row is uncertain; never returns the frames of other rows.
        """

    @cached_property
    def name(self) -> str:
        """What messages, config.json and labels call it."""
        return type(self).__name__

    @cached_property
    def fps(self) -> float:
        """Frames per second: the median of the episodes'."""
        return float(np.median([episode.fps for episode in self.episodes]))

    def action_spec(self, name: str) -> ActionSpec | None:
        """What feature ``name`` holds, read as an action; None if there is no such feature."""
        return None

    def width(self, name: str) -> int | None:
        """Values of feature ``name`` in one frame; None if there is no such feature."""
        return None

    def missing_episodes(self, camera: str) -> dict[int, DecodeError | None]:
        """Numbers of the episodes that a camera does not show: with None where the dataset itself says so, else with the reason."""
        return {}

    def seconds(self, episode: Episode, camera: str) -> float:
        """How long a camera shows an episode; NaN where that is unknown."""
        return float(episode.times[-1]) + 1.0 / episode.fps

    def column(self, episode: Episode, name: str) -> Float[np.ndarray, "t d"]:
        """One feature of every frame of the episode, float32. Raises LaminaError for NaN, infinity and an unknown name."""
        raise LaminaError(f"{self.name}: has no feature '{name}'; it has: {', '.join(self.columns) or 'none'}")

    def fingerprint(self) -> str:
        """sha256 of :meth:`content` and of the episodes' splits and tasks, by which a resumed run notices other data."""
        digest = hashlib.sha256(self.content().encode())
        for episode in self.episodes:
            digest.update(f"{episode.length} {episode.fps} {episode.splits} {episode.task!r};".encode())
        return digest.hexdigest()

    def content(self) -> str:
        """sha256 that identifies what the episodes show, when, and their columns: of the times of all episodes, and of four frames of the
        first camera and all columns of up to 256 evenly spaced ones."""
        digest = hashlib.sha256()
        for episode in self.episodes:
            digest.update(f"{episode.length} {episode.fps};".encode())
            digest.update(b"" if episode.stamps is None else np.ascontiguousarray(episode.stamps, np.float64).tobytes())
        missing = self.missing_episodes(self.cameras[0])
        shown = [episode for episode in self.episodes if episode.number not in missing]
        for n in np.linspace(0, len(shown) - 1, min(len(shown), FINGERPRINT_EPISODES)).astype(int).tolist():
            for start in np.linspace(0, shown[n].length - 1, FINGERPRINT_FRAMES).astype(int).tolist():
                digest.update(np.ascontiguousarray(self.frames(shown[n], self.cameras[0], start, start + 1)).tobytes())
            for name in self.columns:
                digest.update(np.ascontiguousarray(self.column(shown[n], name)).tobytes())
        return digest.hexdigest()


#: One source: the path of a video folder, a video file or a LeRobot dataset; or a Dataset.
Data = str | Path | Dataset


def name_of(data: Data) -> str:
    """What messages and records call a source."""
    return data.name if isinstance(data, Dataset) else str(data)


def check_name(source: Dataset, what: str, name: str | None, there: tuple[str, ...]) -> None:
    """Raises LaminaError unless ``name``, if there is one, is among the cameras or features that are ``there``."""
    if name is not None and name not in there:
        raise LaminaError(f"{source.name}: has no {what} '{name}'; it has: {', '.join(there) or 'none'}")
