"""What a flow policy sees, and the networks that read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from lamina.data.episodes import task_vector
from lamina.errors import LaminaError
from lamina.images import to_float
from lamina.models.layers import MLP, ConvBlock, group_norm, position_embedding
from lamina.policies.flow.config import FlowConfig, FlowShapes
from lamina.types import TASK_WIDTH, TensorRecord

LARGEST_MAP = 6  # side of the convolutional encoder's last feature map, at most


@dataclass(frozen=True)
class Context(TensorRecord):
    """What is seen in b decisions."""

    frames: UInt8[Tensor, "b v t c h w"]  # v cameras, t frames of history, the latest last
    proprio: Float[Tensor, "b t p"] | None
    words: tuple[str, ...]  # the task of each decision ("" = unknown)

    def __post_init__(self) -> None:
        if len(self.words) != len(self.frames):
            raise ValueError(f"{len(self.words)} tasks for {len(self.frames)} decisions")

    def __len__(self) -> int:
        return len(self.frames)


@runtime_checkable
class ObservationEncoder(Protocol):
    """Reads a context; a module. It sees no time and no noise, so a decision encodes its context once."""

    width: int  # channels of its tokens

    def __call__(self, context: Context) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"] | None]:
        """The context as tokens, and which of them are real, the rest being filler that nothing may see (None: all are).

        ``proprio`` is standardised.
        """
        ...


class CameraEncoder(nn.Module):
    """Strided convolutions from the stacked frames of one camera to tokens of a small map. [n c h w] -> [n p d].

    The task scales and shifts the channels of the last map but one (FiLM, Perez et al. 2018): what is looked for depends on it.
    """

    def __init__(self, channels: int, size: tuple[int, int], first: int, width: int, task: int):
        super().__init__()
        side, stages = max(size) // 4, 0
        while side > LARGEST_MAP:
            side, stages = -(-side // 2), stages + 1
        stride = 4 * 2**stages
        if size[0] % stride or size[1] % stride:
            raise LaminaError(
                f"image {size[0]}x{size[1]} is not a multiple of {stride}, which the policy's convolutional encoder needs; train the LAM "
                "at another --image, or choose a --backbone"
            )
        layers: list[nn.Module] = [nn.Conv2d(channels, first, 8, stride=4, padding=2)]
        for _ in range(stages):
            layers += [group_norm(first), nn.SiLU(), nn.Conv2d(first, 2 * first, 4, stride=2, padding=1)]
            first *= 2
        self.strided, self.norm = nn.Sequential(*layers), group_norm(first, affine=False)
        self.film = nn.Linear(task, 2 * first)
        self.block = nn.Sequential(nn.SiLU(), ConvBlock(first), group_norm(first), nn.SiLU())
        self.project = nn.Linear(first, width)
        self.place = position_embedding((size[0] // stride) * (size[1] // stride), width)

    def forward(self, pictures: Float[Tensor, "n c h w"], task: Float[Tensor, "n e"]) -> Float[Tensor, "n p d"]:
        scale, shift = self.film(task)[:, :, None, None].chunk(2, dim=1)
        x = self.block(self.norm(self.strided(pictures)) * (1 + scale) + shift)
        return self.project(x.flatten(2).transpose(1, 2)) + self.place


class ConvObservationEncoder(nn.Module):
    """A small convolutional network for each camera; one token for the proprioception, one for the task. [b n d].

    The words are read as :func:`lamina.data.episodes.task_vector`, which tells tasks apart and understands none.
    """

    def __init__(self, config: FlowConfig, shapes: FlowShapes):
        super().__init__()
        size = config.dimensions
        self.width = size.width
        channels, height, width = shapes.image
        self.cameras = nn.ModuleList(
            CameraEncoder(channels * config.context, (height, width), size.channels, size.width, TASK_WIDTH)
            for _ in shapes.cameras
        )
        self.proprio = MLP(config.context * shapes.proprio, size.width, size.width) if shapes.proprio else None
        self.reads_task = config.task
        self.task = MLP(TASK_WIDTH, size.width, size.width)
        self.norm = nn.LayerNorm(size.width)

    def forward(self, context: Context) -> tuple[Float[Tensor, "b n d"], None]:
        """See :class:`ObservationEncoder`."""
        views = to_float(context.frames).flatten(2, 3).unbind(1)
        words = context.words if self.reads_task else ("",) * len(context)
        task = torch.from_numpy(np.stack([task_vector(text) for text in words])).to(views[0].device)
        tokens = [camera(view, task) for camera, view in zip(self.cameras, views, strict=True)]
        if self.proprio is not None:
            assert context.proprio is not None
            tokens.append(self.proprio(context.proprio.flatten(1)).unsqueeze(1))
        return self.norm(torch.cat([*tokens, self.task(task).unsqueeze(1)], dim=1)), None
