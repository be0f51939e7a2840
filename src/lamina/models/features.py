"""Observation spaces: pixels, frozen random features, learned features with an EMA target encoder, or a frozen pretrained encoder's.

A LAM reads and predicts frames in its observation space. Features lie on a grid, and every encoder and decoder reads them like pixels:
the built-in ones keep the picture's height and width, those of a pretrained encoder have a grid of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.images import to_float, to_uint8
from lamina.models.feature_cache import cache_for
from lamina.models.layers import BatchNorm
from lamina.models.pretrained import open_encoder
from lamina.types import Clip

SpaceName = str  # a name of SPACES, or what lamina.models.pretrained opens


class FeatureSpace(nn.Module):
    """Features of single frames, on a grid of ``grid`` places (None: one for every pixel).

    ``has_target_encoder``: prediction targets come from an encoder of their own (an EMA), inputs from the online encoder.
    """

    channels: int
    grid: tuple[int, int] | None = None
    has_target_encoder = False

    def observation(self, image: tuple[int, int, int]) -> tuple[int, int, int]:
        """Channels, height and width of the features of pictures of the shape ``image``."""
        return (self.channels, *(self.grid or image[1:]))

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
                BatchNorm(features), nn.Tanh(),
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


class PretrainedFeatures(FeatureSpace):
    """Features of a frozen pretrained encoder (:mod:`lamina.models.pretrained`), each channel standardised by its mean and deviation over
    training frames (:meth:`fit`).

    The statistics and the encoder's fingerprint are saved with the LAM; its weights are not. Loading raises LaminaError where another
    encoder has taken its place. Features are numbers of float16 and the same whether they are computed or were kept on disk
    (:mod:`lamina.models.feature_cache`).
    """

    fingerprint: Tensor
    mean: Tensor
    deviation: Tensor
    fitted: Tensor

    def __init__(self, name: str):
        super().__init__()
        encoder = open_encoder(name)
        self.name, self.channels, self.grid = name, encoder.channels, encoder.grid
        with torch.device("cpu"):
            self.mark = torch.tensor(list(bytes.fromhex(encoder.fingerprint)), dtype=torch.uint8)
        self.register_buffer("fingerprint", self.mark.clone())
        self.register_buffer("mean", torch.zeros(self.channels))
        self.register_buffer("deviation", torch.ones(self.channels))
        self.register_buffer("fitted", torch.tensor(False))
        self.register_load_state_dict_pre_hook(_check_encoder)

    def forward(self, frames: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
        return (self.plain(to_uint8(frames)) - self.mean[:, None, None]) / self.deviation[:, None, None]

    @torch.no_grad()
    def plain(self, pictures: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
        """The encoder's features as they are, on this module's device."""
        # Opened once in a process and no part of this module: it is neither trained, averaged, sharded nor saved with it.
        encoder = open_encoder(self.name)

        def encode(pictures: Tensor) -> Tensor:
            return encoder(pictures).clamp(-LARGEST, LARGEST).half()

        pictures = pictures.to(self.mean.device)
        kept = cache_for(encoder.fingerprint, (encoder.channels, *encoder.grid))
        return (encode(pictures) if kept is None else kept.features(pictures, encode)).float()

    @torch.no_grad()
    def fit(self, pictures: UInt8[Tensor, "n c h w"]) -> None:
        """Take each channel's mean and deviation over all places of ``pictures``."""
        features = self.plain(pictures).double().transpose(0, 1).flatten(1)
        self.mean.copy_(features.mean(1))
        self.deviation.copy_(features.std(1, correction=0).clamp_min(1e-3 * float(features.std()) + 1e-6))
        self.fitted.fill_(True)


LARGEST = 65504.0  # of float16


def _check_encoder(space: PretrainedFeatures, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    """Raises LaminaError for the state of a LAM that was trained with another encoder."""
    mark = state.get(f"{prefix}fingerprint")
    if mark is not None and not torch.equal(mark.cpu(), space.mark):
        saved, here = (bytes(x.cpu().tolist()).hex()[:12] for x in (mark, space.mark))
        raise LaminaError(
            f"the encoder {space.name} on this machine is not the one that this model was trained with (sha256 {here}, not {saved}): put "
            "back its weights and settings"
        )


SPACES: dict[str, type[FeatureSpace]] = {"pixels": Pixels, "features": RandomFeatures, "ema": EMAFeatures}


def is_pretrained(name: SpaceName) -> bool:
    """Whether a space is that of a pretrained encoder."""
    return name not in SPACES


def open_space(name: SpaceName, channels: int) -> FeatureSpace:
    """The observation space of that name, for pictures of ``channels``. Raises LaminaError as lamina.models.pretrained.open_encoder
    does, and for a pretrained encoder of pictures that are not RGB."""
    if not is_pretrained(name):
        return SPACES[name](channels)  # type: ignore[call-arg]
    if channels != 3:
        raise LaminaError(f"--space {name} reads RGB pictures, these have {channels} channels")
    return PretrainedFeatures(name)


FITTED_FRAMES = 256  # at most, that the statistics of pretrained features are taken over


def fit_space(space: FeatureSpace, pictures: UInt8[Tensor, "n c h w"]) -> None:
    """Take the statistics of a pretrained space, where it has none yet, from training frames, evenly spaced ones of ``pictures``."""
    if isinstance(space, PretrainedFeatures) and not bool(space.fitted):
        count = min(len(pictures), FITTED_FRAMES)
        space.fit(pictures[torch.linspace(0, len(pictures) - 1, count).long()])


def scratch_space(name: SpaceName, channels: int) -> FeatureSpace:
    """What networks from scratch read that a LAM is compared with: its frozen pretrained features, otherwise the pixels."""
    return open_space(name if is_pretrained(name) else "pixels", channels)
