"""The axis legend, and the data types of the pipeline: ActionSpec, Clip, Latent.

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
    """Layout of an action vector: first the discrete dimensions, then the continuous ones.

    ``discrete[i]`` is the number of classes of discrete dimension i (the class is stored as a float);
    ``continuous`` is the number of continuous dimensions. Raises LaminaError for no dimension and for fewer than 2 classes.
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
        """Length of an action vector with one-hot discrete dimensions."""
        return sum(self.discrete) + self.continuous

    def chunk(self, steps: int) -> ActionSpec:
        """The layout of a chunk of ``steps`` actions, as :meth:`pack` arranges it."""
        if steps == 1:
            return self
        d = len(self.discrete)
        parts = (self.names[:d], self.names[d:]) if len(self.names) == self.dim else ()
        names = tuple(f"{name}, step {n + 1}" for part in parts for n in range(steps) for name in part)
        return ActionSpec(self.discrete * steps, self.continuous * steps, names)

    def pack(self, actions: Float[np.ndarray, "*b n a"]) -> Float[np.ndarray, "*b n*a"]:
        """``n`` consecutive actions as one action of :meth:`chunk`: the discrete dimensions of all steps, then the continuous ones."""
        d, shape = len(self.discrete), actions.shape[:-2]
        return np.concatenate([part.reshape(*shape, -1) for part in (actions[..., :d], actions[..., d:])], axis=-1)

    def unpack(self, packed: Float[np.ndarray, "*b c"]) -> Float[np.ndarray, "*b n a"]:
        """The inverse of :meth:`pack`: c = n a."""
        steps = packed.shape[-1] // self.dim
        parts = np.split(packed, [steps * len(self.discrete)], axis=-1)
        return np.concatenate(
            [part.reshape(*packed.shape[:-1], steps, -1) for part in parts if part.shape[-1]], axis=-1
        )

    def clip(
        self, action: Float[Tensor, "*b a"], low: Float[Tensor, "c"], high: Float[Tensor, "c"]
    ) -> Float[Tensor, "*b a"]:
        """The action with its continuous dimensions between ``low`` and ``high``, and unchanged discrete ones."""
        classes, numbers = action.tensor_split([len(self.discrete)], dim=-1)
        return torch.cat([classes, torch.minimum(torch.maximum(numbers, low), high)], dim=-1)

    def one_hot(self, action: Float[Tensor, "*b a"]) -> Float[Tensor, "*b e"]:
        """The action with one-hot discrete dimensions and unchanged continuous ones."""
        hot = [one_hot(action[..., i].long(), n).float() for i, n in enumerate(self.discrete)]
        return torch.cat([*hot, action[..., len(self.discrete) :]], dim=-1)


R = TypeVar("R", bound="TensorRecord")


@dataclass(frozen=True)
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
        return replace(parts[0], **{f.name: _cat([getattr(p, f.name) for p in parts]) for f in fields(parts[0])})

    def _map(self: R, function: Callable[[Any], Any]) -> R:
        changed = {f.name: _mapped(getattr(self, f.name), function) for f in fields(self)}
        return replace(self, **changed)


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
    """A batch of frame tuples (pairs, triplets, windows). The frames of a sample are from one episode, in temporal order.

    ``action[:, i]`` is the action at frame i, or the mean or the chunk of the actions in the gap (``actions`` of
    :class:`lamina.data.DataConfig`). ``previous_action[:, i]`` is the action one row earlier; at an episode's first row it is zero, or
    class 0. Optional fields are None if the data do not have them.
    """

    frames: UInt8[Tensor, "b t c h w"]
    time: Float[Tensor, "b t"]  # seconds from the episode's start
    index: Int[Tensor, "b t"]  # frame number within its episode
    episode: Int[Tensor, "b"]  # number of the episode, unique over all datasets of the stream
    action: Float[Tensor, "b t a"] | None = None
    previous_action: Float[Tensor, "b t a1"] | None = None  # a1 = a, unless the actions are chunks
    proprio: Float[Tensor, "b t d"] | None = None
    task: Float[Tensor, "b e"] | None = None  # embedding of the episode's language instruction; zeros if there is none
    paired: UInt8[Tensor, "b t c h w"] | None = None  # paired view: the same states under another exogenous state
    targets: dict[str, Float[Tensor, "b t _"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.frames.shape[0]


@dataclass(frozen=True)
class Latent(TensorRecord):
    """A batch of latents: K slots of d channels.

    ``pre``: before quantisation (continuous). ``post``: after quantisation, the decoder's input. ``index``: codebook indices, None without
    a codebook. ``aux``: losses of the bottleneck, one value per sample.
    """

    pre: Float[Tensor, "b k d"]
    post: Float[Tensor, "b k d"]
    index: Int[Tensor, "b k"] | None = None
    aux: dict[str, Float[Tensor, "b"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.post.shape[0]


TASK_WIDTH = 32  # length of the embedding of a language instruction


ImageSize = tuple[int, int]  # height, width
