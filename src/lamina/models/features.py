"""What an observation is to a LAM: the picture itself, or features of it that the decoder predicts in its place.

Features here keep the picture's height and width, so that every encoder and decoder reads them as it reads pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SpaceName = Literal["pixels", "features", "ema"]


class FeatureSpace(nn.Module):
    """Features of single frames; ``moving``: what is predicted are other features than those that are read."""

    channels: int
    moving = False

    def target(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """What a frame is as something to be predicted."""
        return self(frames)


class ClipView:
    """Clips as a LAM observes them: what a position on the time axis looks like is computed when it is asked for, and once.

    ``paired``: the same clips under another exogenous state. They are looked at in the same calls, so that features which normalise over
    the batch see both views at once.
    """

    def __init__(
        self, space: FeatureSpace, frames: Float[Tensor, "b t c h w"], paired: Float[Tensor, "b t c h w"] | None = None
    ):
        self.space, self.frames, self.paired = space, frames, paired
        self._both = frames if paired is None else torch.cat([frames, paired])
        self._seen: dict[int, Tensor] = {}
        self._ahead: dict[int, Tensor] = {}

    @property
    def shape(self) -> torch.Size:
        """Of the frames, [b t c h w]."""
        return self.frames.shape

    def __len__(self) -> int:
        return len(self.frames)

    def seen(self, positions: Sequence[int]) -> Float[Tensor, "n d h w"]:
        """What is read at these positions, one after the other: n = positions b."""
        return torch.cat([both[: len(self)] for both in self.inputs_with_paired(positions)])

    def ahead(self, positions: Sequence[int]) -> Float[Tensor, "n d h w"]:
        """What is to be predicted there; the same where the space does not move."""
        return torch.cat([both[: len(self)] for both in self.targets_with_paired(positions)])

    def inputs_with_paired(self, positions: Sequence[int]) -> list[Float[Tensor, "m d h w"]]:
        """What is read at each position, the clips first, then their paired views where there are any: m = b or 2 b."""
        return self._taken(self._seen, self.space, positions)

    def targets_with_paired(self, positions: Sequence[int]) -> list[Float[Tensor, "m d h w"]]:
        """What is to be predicted at each position, likewise."""
        moving = self.space.moving
        return self._taken(self._ahead, self.space.target, positions) if moving else self.inputs_with_paired(positions)

    def _taken(
        self, known: dict[int, Tensor], look: Callable[[Tensor], Tensor], positions: Sequence[int]
    ) -> list[Float[Tensor, "m d h w"]]:
        new = [i for i in dict.fromkeys(positions) if i not in known]
        if new:
            features = look(torch.cat([self._both[:, i] for i in new]))
            known.update(zip(new, features.chunk(len(new)), strict=True))
        return [known[i] for i in positions]


class Pixels(FeatureSpace):
    """The picture as it is."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return frames


class RandomFeatures(FeatureSpace):
    """Two convolutions with frozen random weights: a declared stand-in for a pretrained network (UniVLA reads DINOv2's patches).

    They hold no knowledge of objects; they are local, not linear in the pixels, and never trained. Values lie in [-1, 1].
    """

    def __init__(self, channels: int, features: int = 8):
        super().__init__()
        self.channels = features
        generator = torch.Generator().manual_seed(0)
        for name, inputs, wide in (("first", channels, 5), ("second", features, 3)):
            weight = torch.randn(features, inputs, wide, wide, generator=generator, device="cpu") * math.sqrt(
                2 / (inputs * wide**2)
            )
            # Filters that sum to zero see edges and motion, and not how bright the picture is.
            self.register_buffer(name, weight - weight.mean(dim=(1, 2, 3), keepdim=True))

    def forward(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        x = F.gelu(2 * F.conv2d(frames, self.first, padding=2))  # type: ignore[arg-type]
        return torch.tanh(2 * F.conv2d(x, self.second, padding=1))  # type: ignore[arg-type]


class EMAFeatures(FeatureSpace):
    """Features that are learned with the LAM; the next frame is seen by their exponential moving average, without gradient.

    After DynaMo (arXiv 2409.12192), as *Why Latent Actions Fail* (App. D) uses it. Deviations: two convolutions that keep the
    picture's size in the place of a ResNet, and channels normalised over the batch in the place of a penalty on their covariance:
    constant features, which would predict themselves at no loss, can't be had.
    """

    moving = True

    def __init__(self, channels: int, features: int = 8, decay: float = 0.99):
        super().__init__()
        self.channels, self.decay = features, decay

        def convolutions() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, features, 5, padding=2), nn.GELU(), nn.Conv2d(features, features, 3, padding=1),
                nn.BatchNorm2d(features, affine=False), nn.Tanh(),
            )  # fmt: skip

        self.online, self.average = convolutions(), convolutions().requires_grad_(False)
        self.average.load_state_dict(self.online.state_dict())

    def forward(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.online(frames)

    @torch.no_grad()
    def target(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        return self.average(frames)

    @torch.no_grad()
    def after_step(self) -> None:
        """The average follows, once a step of the optimiser (`fit` calls it), however often a step asks for targets."""
        for ours, theirs in zip(self.average.parameters(), self.online.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.decay)


SPACES: dict[str, type[FeatureSpace]] = {"pixels": Pixels, "features": RandomFeatures, "ema": EMAFeatures}
