"""Observation spaces: pixels, frozen random features, or learned features with an EMA target encoder.

A LAM reads and predicts frames in its observation space. Features keep the picture's height and width, so every encoder and decoder
reads them like pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamina.images import to_float
from lamina.types import Clip

SpaceName = Literal["pixels", "features", "ema"]


class FeatureSpace(nn.Module):
    """Features of single frames.

    ``has_target_encoder``: prediction targets come from an encoder of their own (an EMA), inputs from the online encoder.
    """

    channels: int
    has_target_encoder = False

    def target(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Features of frames as prediction targets."""
        return self(frames)


class ClipView:
    """A batch of clips in a LAM's observation space. Each frame position is encoded when it is first asked for, and once.

    ``frames`` [b t c h w] are the clips' in [-1, 1]; ``paired`` the same states under another exogenous state, or None. Both views go
    through the encoder in the same call, so features that normalise over the batch see both at once.
    """

    def __init__(self, space: FeatureSpace, clip: Clip, paired: bool = False):
        self.space, self.clip = space, clip
        self.frames: Float[Tensor, "b t c h w"] = to_float(clip.frames)
        self.paired: Float[Tensor, "b t c h w"] | None = None
        if paired:
            assert clip.paired is not None
            self.paired = to_float(clip.paired)
        self._both = self.frames if self.paired is None else torch.cat([self.frames, self.paired])
        self._inputs: dict[int, Tensor] = {}
        self._targets: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def length(self) -> int:
        """Frames of one clip, t."""
        return self.frames.shape[1]

    def inputs(self, positions: Sequence[int]) -> Float[Tensor, "n d h w"]:
        """Input features at these positions of the time axis, one position after the other: n = positions b."""
        return torch.cat([both[: len(self)] for both in self.inputs_with_paired(positions)])

    def targets(self, positions: Sequence[int]) -> Float[Tensor, "n d h w"]:
        """Prediction targets at these positions; equal to the inputs where the space has no target encoder."""
        return torch.cat([both[: len(self)] for both in self.targets_with_paired(positions)])

    def inputs_with_paired(self, positions: Sequence[int]) -> list[Float[Tensor, "m d h w"]]:
        """Input features at each position: the clips', then those of their paired views where there are any (m = b or 2 b)."""
        return self._encoded(self._inputs, self.space, positions)

    def targets_with_paired(self, positions: Sequence[int]) -> list[Float[Tensor, "m d h w"]]:
        """Prediction targets at each position, likewise."""
        if not self.space.has_target_encoder:
            return self.inputs_with_paired(positions)
        return self._encoded(self._targets, self.space.target, positions)

    def _encoded(
        self, cache: dict[int, Tensor], encoder: Callable[[Tensor], Tensor], positions: Sequence[int]
    ) -> list[Float[Tensor, "m d h w"]]:
        new = [i for i in dict.fromkeys(positions) if i not in cache]
        if new:
            features = encoder(torch.cat([self._both[:, i] for i in new]))
            cache.update(zip(new, features.chunk(len(new)), strict=True))
        return [cache[i] for i in positions]


class Pixels(FeatureSpace):
    """The pixels themselves."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return frames


class RandomFeatures(FeatureSpace):
    """Two convolutions with frozen random weights, a declared stand-in for a pretrained network (UniVLA reads DINOv2's patches).

    The features are local, non-linear and never trained. Values lie in [-1, 1].
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
    """Features that are learned with the LAM; prediction targets come from their exponential moving average, without gradient.

    After DynaMo (arXiv 2409.12192), as *Why Latent Actions Fail* (App. D) uses it. Deviations: two convolutions that keep the
    picture's size instead of a ResNet; channels are normalised over the batch instead of a penalty on their covariance. Both exclude
    constant features, which would be predicted without error.
    """

    has_target_encoder = True

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
        """Move the average towards the online weights. `fit` calls this once after every optimiser step."""
        for ours, theirs in zip(self.average.parameters(), self.online.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.decay)


SPACES: dict[str, type[FeatureSpace]] = {"pixels": Pixels, "features": RandomFeatures, "ema": EMAFeatures}
