"""The axis legend, and the three records that flow through the pipeline.

Axes, in jaxtyping strings everywhere in this project:

    b  batch            t  time (frames of one sample)      k  latent slot (token of a code)
    c  image channel    h, w  image height and width        d  channel of a vector
    p  patch (token of a frame)                             a  action dimension

Images are uint8 in [0, 255] on disk and in :class:`Clip`; models see float in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import one_hot

from lamina.errors import LaminaError


@dataclass(frozen=True)
class ActionSpec:
    """What an action vector holds: the discrete dimensions come first, then the continuous ones.

    ``discrete[i]`` is the number of classes of discrete dimension i (stored as a whole number in a float vector);
    ``continuous`` is the number of real dimensions.
    """

    discrete: tuple[int, ...] = ()
    continuous: int = 0
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.discrete) + self.continuous == 0:
            raise LaminaError("an action needs at least one dimension")
        if any(n < 2 for n in self.discrete):
            raise LaminaError(f"a discrete action dimension needs at least 2 classes, got {self.discrete}")

    @property
    def dim(self) -> int:
        return len(self.discrete) + self.continuous

    @property
    def width(self) -> int:
        """Numbers of an action whose discrete dimensions are one-hot."""
        return sum(self.discrete) + self.continuous

    def chunk(self, steps: int) -> ActionSpec:
        """What ``steps`` of these actions hold together, as :meth:`pack` lays them out."""
        if steps == 1:
            return self
        d = len(self.discrete)
        parts = (self.names[:d], self.names[d:]) if len(self.names) == self.dim else ()
        names = tuple(f"{name}, step {n + 1}" for part in parts for n in range(steps) for name in part)
        return ActionSpec(self.discrete * steps, self.continuous * steps, names)

    def pack(self, actions: Float[np.ndarray, "*b n a"]) -> Float[np.ndarray, "*b n*a"]:
        """``n`` actions in a row as one action of :meth:`chunk`: the discrete dimensions of every step, then the continuous ones."""
        d, shape = len(self.discrete), actions.shape[:-2]
        return np.concatenate([part.reshape(*shape, -1) for part in (actions[..., :d], actions[..., d:])], axis=-1)

    def unpack(self, packed: Float[np.ndarray, "*b n*a"]) -> Float[np.ndarray, "*b n a"]:
        """The inverse of :meth:`pack`."""
        steps = packed.shape[-1] // self.dim
        parts = np.split(packed, [steps * len(self.discrete)], axis=-1)
        return np.concatenate(
            [part.reshape(*packed.shape[:-1], steps, -1) for part in parts if part.shape[-1]], axis=-1
        )

    def one_hot(self, action: Float[Tensor, "*b a"]) -> Float[Tensor, "*b e"]:
        """Discrete dimensions one-hot, continuous ones as they are."""
        hot = [one_hot(action[..., i].long(), n).float() for i, n in enumerate(self.discrete)]
        return torch.cat([*hot, action[..., len(self.discrete) :]], dim=-1)


R = TypeVar("R", bound="TensorRecord")


class TensorRecord:
    """Base of frozen dataclasses whose fields are tensors with the batch as leading axis, dicts of such tensors, or other records.

    Fields of other types, and None, are passed through.
    """

    def to(self: R, device: torch.device | str) -> R:
        """The same values with every tensor on ``device``."""
        # A copy to the host must have finished before it is read.
        later = torch.device(device).type != "cpu"
        return self._map(lambda x: x.to(device, non_blocking=later))

    def __getitem__(self: R, rows: slice | Tensor) -> R:
        """The rows (samples) of the batch that ``rows`` selects."""
        return self._map(lambda x: x[rows])

    @classmethod
    def cat(cls: type[R], parts: Sequence[R]) -> R:
        """The samples of several records in one batch. All must hold the same fields."""
        return replace(parts[0], **{f.name: _cat([getattr(p, f.name) for p in parts]) for f in fields(parts[0])})  # type: ignore[type-var,arg-type]

    def _map(self: R, function: Callable[[Any], Any]) -> R:
        changed = {f.name: _mapped(getattr(self, f.name), function) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **changed)  # type: ignore[type-var]


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _mapped(v, function) for name, v in value.items()}
    if isinstance(value, TensorRecord):
        return value._map(function)
    return function(value) if isinstance(value, Tensor) else value


def _cat(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {name: _cat([value[name] for value in values]) for name in first}
    if isinstance(first, TensorRecord):
        return type(first).cat(values)
    return torch.cat(values) if isinstance(first, Tensor) else first


@dataclass(frozen=True)
class Clip(TensorRecord):
    """A batch of frame tuples (pairs, triplets, windows), each from one episode, times ascending.

    ``action[:, i]`` is the action taken at frame i (or the mean or all of those over a gap: :class:`lamina.data.DataConfig`);
    ``previous_action[:, i]`` the one taken a row before it (zeros, or
    class 0, at an episode's first row). Optional fields are None where the data has none of them.
    """

    frames: UInt8[Tensor, "b t c h w"]
    time: Float[Tensor, "b t"]  # seconds from the episode's start
    index: Int[Tensor, "b t"]  # frame number within its episode
    episode: Int[Tensor, "b"]  # number of the episode, unique over all sources of the stream
    action: Float[Tensor, "b t a"] | None = None
    previous_action: Float[Tensor, "b t a"] | None = None
    proprio: Float[Tensor, "b t d"] | None = None
    task: Float[Tensor, "b e"] | None = None  # instruction vector of the episode's task, zeros without one
    paired: UInt8[Tensor, "b t c h w"] | None = None  # the same states under another exogenous state
    targets: dict[str, Float[Tensor, "b t d"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.frames.shape[0]


@dataclass(frozen=True)
class Latent(TensorRecord):
    """A latent action: K slots of d channels.

    ``pre``: the (whitened) encoder output; ``post``: the bottleneck's output, which the decoder reads; ``index``: the
    codebook entries, if the bottleneck has a codebook; ``aux``: the bottleneck's own losses, one value a sample.
    """

    pre: Float[Tensor, "b k d"]
    post: Float[Tensor, "b k d"]
    index: Int[Tensor, "b k"] | None = None
    aux: dict[str, Float[Tensor, "b"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.post.shape[0]


TASK_WIDTH = 32  # of an instruction vector


ImageSize = tuple[int, int]  # height, width
