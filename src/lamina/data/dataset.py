"""What a source of episodes can be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from lamina.data.episodes import DecodeError, Episode
from lamina.types import ActionSpec


class Dataset(Protocol):
    """A folder of video (:class:`lamina.data.video.VideoFolder`) or a LeRobot dataset
    (:class:`lamina.data.lerobot.reader.LeRobotDataset`)."""

    @property
    def root(self) -> Path: ...
    @property
    def kind(self) -> Literal["video", "lerobot"]: ...
    @property
    def fps(self) -> float: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def episodes(self) -> tuple[Episode, ...]: ...
    @property
    def action(self) -> ActionSpec | None: ...
    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the features that :meth:`column` can read."""
        ...

    def action_spec(self, name: str) -> ActionSpec | None:
        """What feature ``name`` holds, read as an action; None if there is no such feature."""
        ...

    def width(self, name: str) -> int | None:
        """Values of feature ``name`` in one frame; None if there is no such feature."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold pictures and rows of its episodes, in an order that does not depend on where it lies."""
        ...

    def unseen(self, camera: str) -> dict[int, DecodeError | None]:
        """Numbers of the episodes that a camera does not show: with None where the dataset says so itself, else with the reason."""
        ...

    def frames(
        self, episode: Episode, camera: str, start: int, stop: int, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """The RGB frames start..stop-1 of an episode, resized to ``size`` = (height, width) or native.

        Calls that go on where the last one ended decode forward without a seek. Raises DecodeError (a LaminaError) if a
        frame cannot be decoded, or its picture is not known for certain; never gives the picture of another row.
        """
        ...

    def seconds(self, episode: Episode, camera: str) -> float:
        """How long a camera shows an episode; NaN where that is not stated."""
        ...

    def column(self, episode: Episode, name: str) -> Float[np.ndarray, "t d"]:
        """One feature of every frame of the episode. Raises LaminaError for NaN, infinity and an unknown name."""
        ...
