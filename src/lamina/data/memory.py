"""A dataset of frames that are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.data.dataset import Dataset
from lamina.data.episodes import (
    SPLITS,
    DecodeError,
    Episode,
    check_classes,
    check_finite,
    count_classes,
    split_episodes,
)
from lamina.errors import LaminaError
from lamina.images import resize_frames
from lamina.types import ActionSpec

CAMERA = "image"  # what the camera of an episode with one array of frames is called


@runtime_checkable
class EpisodeLike(Protocol):
    """One episode of an :class:`InMemoryDataset`: a dataclass, a namedtuple, any object with ``frames``. Optional attributes:

    - ``actions``: [t a] or [t], the action taken at each frame. Integers are classes, floats are continuous.
    - ``columns``: a mapping of further features by name, each [t d] or [t] (proprioception, targets);
    - ``fps``: frames per second, if not the dataset's;
    - ``task``: what is done in it, in words;
    - ``split``: "train", "validation" or "test"; of all episodes or of none;
    - ``name``: for messages.
    """

    @property
    def frames(self) -> UInt8[np.ndarray | Tensor, "t h w 3"] | Mapping[str, UInt8[np.ndarray | Tensor, "t h w 3"]]:
        """RGB frames, or those of each camera by its name."""


class InMemoryDataset(Dataset):
    """Episodes whose frames are arrays or tensors; nothing is copied.

        data = InMemoryDataset([SimpleNamespace(frames=f, actions=a) for f, a in recordings], fps=10)

    ``fps``: frames per second of the episodes that do not state their own. ``action``: what the actions hold, where their values do not
    say it (a class that never occurs, names of dimensions); by default classes are counted up to the largest number. Without ``split``,
    episodes are divided 80/10/10 as those of a folder are (:func:`lamina.data.split_episodes`).

    Raises LaminaError for no episode, frames that are not uint8 [t h w 3], lengths that differ within an episode, features that differ
    between episodes, NaN, infinity, classes out of range.
    """

    def __init__(
        self, episodes: Iterable[EpisodeLike], name: str = "memory", fps: float = 10.0, action: ActionSpec | None = None
    ) -> None:
        self.name = name
        self._specs: dict[str, ActionSpec] = {}
        given = list(episodes)
        if not given:
            raise LaminaError(f"{name}: has no episode")
        names = [str(getattr(e, "name", "") or f"episode {n}") for n, e in enumerate(given)]
        self._frames = [_frames(e, f"{name} {called}") for e, called in zip(given, names, strict=True)]
        self._columns = [_columns(e, f"{name} {called}") for e, called in zip(given, names, strict=True)]
        self.cameras = tuple(dict.fromkeys(camera for views in self._frames for camera in views))
        self.columns = tuple(self._columns[0])
        made: list[Episode] = []
        for n, (item, views, columns) in enumerate(zip(given, self._frames, self._columns, strict=True)):
            called, rate = f"{name} {names[n]}", float(getattr(item, "fps", None) or fps)
            lengths = {len(values) for values in (*views.values(), *columns.values())}
            if len(lengths) > 1:
                raise LaminaError(f"{called}: its frames and columns have {sorted(lengths)} rows; they must agree")
            if not (rate > 0 and np.isfinite(rate)):
                raise LaminaError(f"{called}: fps must be a finite number above 0, not {rate}")
            if columns.keys() != self._columns[0].keys():
                raise LaminaError(f"{called}: has the features {sorted(columns)}, and others {sorted(self.columns)}")
            for feature, values in columns.items():
                check_finite(values, feature, called)
                if values.shape[1] != self._columns[0][feature].shape[1]:
                    raise LaminaError(
                        f"{called}: '{feature}' is {values.shape[1]} numbers wide, not the same in every episode"
                    )
            made.append(Episode(n, called, lengths.pop(), rate, task=str(getattr(item, "task", "") or "")))
        self._episodes = _divided(made, [getattr(e, "split", None) for e in given], names, name)
        if action is not None:
            self._state_action(action)

    @property
    def episodes(self) -> tuple[Episode, ...]:
        return self._episodes

    def frames(
        self, episode: Episode, camera: str, start: int, stop: int, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        views = self._frames[episode.number]
        if camera not in views:
            raise DecodeError(f"{episode.name}: has no frames of '{camera}'; it has: {', '.join(views)}")
        return resize_frames(views[camera][start : min(stop, episode.length)], size)

    def missing_episodes(self, camera: str) -> dict[int, DecodeError | None]:
        """The episodes without frames of that camera."""
        return {n: None for n, views in enumerate(self._frames) if camera not in views}

    def action_spec(self, name: str) -> ActionSpec | None:
        """Integers are classes, unless they are negative or too large for it."""
        if name not in self.columns:
            return None
        if name not in self._specs:
            every = [columns[name] for columns in self._columns]
            discrete = all(values.dtype.kind in "iub" for values in every)
            classes = count_classes(every, name, self.name) if discrete else ()
            self._specs[name] = ActionSpec(classes, every[0].shape[1] - len(classes))
        return self._specs[name]

    def _state_action(self, spec: ActionSpec) -> None:
        if self.width("action") != spec.dim:
            raise LaminaError(
                f"{self.name}: an action of {spec.dim} numbers was stated, and it has {self.width('action')}"
            )
        for episode in self.episodes:
            check_classes(self.column(episode, "action"), spec, "action", episode)
        self._specs["action"] = spec

    def width(self, name: str) -> int | None:
        return self._columns[0][name].shape[1] if name in self.columns else None

    def column(self, episode: Episode, name: str) -> Float[np.ndarray, "t d"]:
        if name not in self.columns:
            return super().column(episode, name)
        return self._columns[episode.number][name].astype(np.float32)


def _frames(item: Any, name: str) -> dict[str, UInt8[np.ndarray, "t h w 3"]]:
    """The frames of an episode by camera. Raises LaminaError for what are none."""
    given = getattr(item, "frames", None)
    views = {str(camera): _array(v) for camera, v in (given if isinstance(given, Mapping) else {CAMERA: given}).items()}
    if not views:
        raise LaminaError(f"{name}: has no frames")
    for camera, frames in views.items():
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise LaminaError(
                f"{name}: frames of '{camera}' must be uint8 [time, height, width, 3], got {frames.dtype} {list(frames.shape)}"
            )
    return views


def _columns(item: Any, name: str) -> dict[str, np.ndarray]:
    """Actions and columns of an episode, each [t d]. Raises LaminaError for what is no number."""
    columns = dict(getattr(item, "columns", None) or {})
    if getattr(item, "actions", None) is not None:
        if "action" in columns:
            raise LaminaError(f"{name}: has actions, and a column 'action' too; leave out one of them")
        columns["action"] = item.actions
    arrays = {str(feature): _array(values) for feature, values in columns.items()}
    for feature, values in arrays.items():
        if values.dtype.kind not in "iufb" or values.ndim not in (1, 2) or values.size == 0:
            raise LaminaError(
                f"{name}: '{feature}' must be numbers [time] or [time, n], got {values.dtype} {list(values.shape)}"
            )
    return {feature: values.reshape(len(values), -1) for feature, values in arrays.items()}


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _divided(episodes: list[Episode], splits: list[str | None], names: list[str], root: str) -> tuple[Episode, ...]:
    if not any(splits):
        return split_episodes(episodes, names, root)
    for episode, split in zip(episodes, splits, strict=True):
        if split not in SPLITS:
            raise LaminaError(
                f"{episode.name}: its split is {split!r}; give every episode one of {', '.join(SPLITS)}, or none any"
            )
    declared = {split: [n for n, s in enumerate(splits) if s == split] for split in SPLITS}
    return split_episodes(episodes, names, root, declared)
