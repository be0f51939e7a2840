"""The interface of a method, its options, and the loss terms that several methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.device import pick_device
from lamina.errors import LaminaError
from lamina.models.bottlenecks.whitening import Whitening
from lamina.models.config import NETWORK_SIZES, LAMConfig, Pairing, SizeName
from lamina.models.decoders.autoencoder import Autoencoder
from lamina.models.decoders.flow import FlowDecoder
from lamina.models.decoders.pixel import PixelDecoder
from lamina.models.decoders.sd3 import SD3Decoder
from lamina.models.decoders.unet import UNetDecoder
from lamina.models.encoders import ENCODERS
from lamina.models.encoders.conv import ConvEncoder
from lamina.models.encoders.transformer import TransformerEncoder
from lamina.models.encoders.videomae import VideoMAEEncoder
from lamina.models.features import ClipView, SpaceName, is_pretrained
from lamina.models.lam import LAM, EncodedPairs, Pair
from lamina.models.layers import GROUPS
from lamina.models.pretrained import open_encoder
from lamina.options import check_options
from lamina.rng import Rng
from lamina.types import Clip, Latent

EncoderName = str  # auto, or a name of lamina.models.encoders.ENCODERS, which packages extend
DecoderName = Literal["auto", "flow", "pixel", "unet", "sd3"]


@dataclass(frozen=True)
class MethodConfig:
    """Options of every method. ``size`` sets all widths and depths; None means: derived from ``size`` and ``image``."""

    size: SizeName = "tiny"
    image: tuple[int, int] = (64, 64)
    """height and width that frames are resized to, pixels"""
    space: SpaceName = "pixels"
    """what is observed and predicted: pixels, features (frozen random ones), ema (learned ones), efficientnet-lite0, or another pretrained
    encoder: the folder of a transformers or timm model, or its id on the hub (docs/spaces.md)"""
    encoder: EncoderName = "auto"
    """auto (conv up to 64 pixels, transformer above and for a pretrained space), conv, transformer, videomae, or the name of a registered
    encoder"""
    decoder: DecoderName = "auto"
    """auto: flow (rectified flow, as in FlexLAM) on CUDA; unet elsewhere, which needs a tenth of the training time; pixel, in one pass,
    for a pretrained space"""
    slots: int = 16
    """K, tokens of a latent action"""
    frames: int = 2
    """frames of one training sample; every neighbouring pair is trained on"""
    whiten: Whitening = "none"
    """scaling of each channel of the latents: none; first: by its deviation in the first batch; batch: by its deviation in every batch, so
    that latents cannot shrink"""
    pairing: Pairing = "free"
    """how a latent follows from its frames: free: by the encoder; antisymmetric (ours): half of its output minus that of the reversed
    pair, so that z_ba = -z_ab and z_aa = 0 before the quantiser; difference (ours): the same plus a difference of encodings of the single
    frames"""
    linear_condition: bool = False
    """the unet reads the latent through a linear map without a bias, and so reads a sum as the sum of what it reads of its terms (ours)"""
    augment: float | None = None
    """random crops of training samples: largest share of each side that is cut off; 0: none; default: 0.5 if training sees every sample
    more than 50 times, else none. Methods that read frames alone also get mirror images"""
    cross_exogenous: float = 0.0
    """weight of cross-exogenous reconstruction, which needs paired views (--paired); 0: none"""
    shared_slots: int | None = None
    """first slots that cross-exogenous reconstruction reads off the paired view; the slots behind are the view's own, so that detail of its
    exogenous state has a place there; default: all"""
    robust_target: float = 0.0
    """weight of the robust target, which exogenous state does not change: squared error of a linear head, in units of the target's
    variance; 0: none"""
    target: str = "action"
    """the robust target: action, flow (optical flow), or the name of a feature, whose change is predicted"""
    target_share: float = 1.0
    """share of the transitions whose robust target is known"""
    target_classes: tuple[int, ...] = ()
    """numbers of classes of discrete actions; filled in from the data"""
    target_width: int = 0
    """size of the robust target; filled in from the data"""
    target_mean: tuple[float, ...] = ()
    """mean of the robust target; filled in from the data"""
    target_deviation: tuple[float, ...] = ()
    """standard deviation of the robust target; filled in from the data"""
    width: int | None = None
    heads: int | None = None
    layers: int | None = None
    channels: int | None = None
    patch: int | None = None
    """side of a transformer patch in pixels; derived so that the shorter side has at least 8 patches"""
    flow_steps: int = 8
    """Euler steps of one sample of the flow decoder"""

    def __post_init__(self) -> None:
        check_options(self)
        if self.encoder != "auto" and self.encoder not in ENCODERS:
            raise LaminaError(f"unknown encoder {self.encoder!r}: choose auto, {', '.join(ENCODERS)}")
        if self.shared_slots is not None and self.shared_slots > self.slots:
            raise LaminaError(f"--shared-slots must be at most --slots {self.slots}, got {self.shared_slots}")
        if self.frames < 2:
            raise LaminaError(f"--frames must be at least 2, got {self.frames}: a latent action is of a pair")

    def parts(self) -> dict[str, Any]:
        """Fields of :class:`lamina.models.config.LAMConfig` that do not depend on the method: image, slots, encoder, decoder, ..."""
        if self.size not in NETWORK_SIZES:
            raise LaminaError(f"unknown size {self.size!r}: choose {', '.join(NETWORK_SIZES)}")
        size = NETWORK_SIZES[self.size]
        width, heads = self.width or size.width, self.heads or size.heads
        layers, channels = self.layers or size.layers, self.channels or size.channels
        # Tokens of a pretrained encoder lie on a grid of their own, which patches tile as they tile a picture.
        tokens = is_pretrained(self.space)
        observed = open_encoder(self.space).grid if tokens else self.image
        short = min(observed)
        # The largest square patch that tiles what is observed and leaves the shorter side at least 8 of them.
        tiling = [d for d in range(1, short // 8 + 1) if not any(side % d for side in observed)]
        patch = self.patch or max(tiling, default=1)
        kind = self.encoder if self.encoder != "auto" else ("conv" if short <= 64 and not tokens else "transformer")
        encoder: Any
        if kind == "conv":
            # Strided stages until the pair is seen on a map of 8x8 or less.
            stages = max(1, math.ceil(math.log2(short / 32)))
            encoder = ConvEncoder.Config(channels, tuple(2 ** (i + 1) for i in range(stages)), 2 * width)
        elif kind == "transformer":
            encoder = TransformerEncoder.Config(patch, width, heads, frame_layers=layers, pair_layers=layers)
        elif kind == "videomae":
            rows, columns = (side // patch for side in self.image)
            encoder = VideoMAEEncoder.Config(patch, width, heads, layers, 4 * width, rows, columns)
        else:
            registered: Any = ENCODERS[kind]
            encoder = registered.Config()
        decoder: Any
        name = with_decoder(self, pick_device("auto")).decoder
        if self.linear_condition and name != "unet":
            raise LaminaError(
                f"--linear-condition is an option of the unet, and the decoder is {name}: add --decoder unet"
            )
        match name:
            case "flow":
                decoder = FlowDecoder.Config(patch, width, heads, layers, self.flow_steps)
            case "pixel":
                decoder = PixelDecoder.Config(patch, width, heads, layers)
            case "unet":
                decoder = UNetDecoder.Config(channels=channels, condition=2 * width, linear=self.linear_condition)
            case "sd3":
                # A token covers a patch of the picture: the autoencoder shrinks it as far as halves go, up to 8 times.
                halves = min((patch & -patch).bit_length() - 1, 4)
                widths = tuple(channels * m for m in (1, 2, 4, 4)[: max(1, halves)])
                decoder = SD3Decoder.Config(
                    2 if halves else 1, layers, heads, width // heads, width, width, 0, steps=self.flow_steps,
                    autoencoder=Autoencoder.Config(widths, layers=1, groups=min(GROUPS, channels)),
                )  # fmt: skip
        return {
            "image": (3, *self.image),
            "slots": self.slots,
            "space": self.space,
            "whiten": self.whiten,
            "pairing": self.pairing,
            "target": self.target_width if self.robust_target else 0,
            "encoder": encoder,
            "decoder": decoder,
        }


def with_decoder(options: Any, device: str) -> Any:
    """The options of a method, with the decoder "auto" replaced by the device's: flow on CUDA, unet elsewhere; pixel for the tokens of a
    pretrained encoder."""
    if options.decoder != "auto":
        return options
    if is_pretrained(options.space):
        return replace(options, decoder="pixel")
    return replace(options, decoder="flow" if device == "cuda" else "unet")


@dataclass(frozen=True)
class LossOutput:
    """What a method's losses return: the loss terms, each [b], and the latents that they were computed from."""

    terms: dict[str, Float[Tensor, "b"]]
    latents: EncodedPairs


#: A method's losses on a batch of clips: ``losses(lam, view, rng) -> LossOutput``.
MethodLosses = Callable[[LAM, ClipView, Rng], LossOutput]

#: The losses of any module on any batch, as the training loop calls them: ``losses(module, batch, rng) -> {term: [b]}``.
Losses = Callable[[Any, Any, Rng], dict[str, Float[Tensor, "b"]]]


@runtime_checkable
class Method(Protocol):
    """A LAM's architecture and objective. A module with these members is a method, and so is any object.

    Optional: ``OBJECTIVE_FRAMES: int`` (default 2), the number of frames that the objective ties together; ``initialise(config, lam)``,
    which fills a new LAM with pretrained weights; ``TRAINING: dict``, the paper's options of the training, for ``--plan``; ``SUMS: Side``,
    the side of the quantiser on which latents are trained to add up, where that is not the side of the latent action. A Config that has
    ``proprio`` (a feature's name) and ``proprio_width`` gets proprioception where the data has it.
    """

    Config: type[MethodConfig]

    def build(self, config: Any) -> LAMConfig:
        """The LAM for these options."""
        ...

    def losses(self, config: Any) -> MethodLosses:
        """The loss terms as a function of (lam, view, rng)."""
        ...

    def weights(self, config: Any) -> dict[str, float]:
        """The weight of each loss term."""
        ...


def neighbours(frames: int) -> list[Pair]:
    """Neighbouring frames of a clip."""
    return [(i, i + 1) for i in range(frames - 1)]


def mean_aux(latents: Mapping[Pair, Latent]) -> dict[str, Float[Tensor, "b"]]:
    """The bottleneck's own losses, averaged over the pairs."""
    aux = [latent.aux for latent in latents.values()]
    return {name: torch.stack([a[name] for a in aux]).mean(0) for name in aux[0]}


def state_loss(lam: LAM, clip: Clip, latents: Mapping[Pair, Latent]) -> dict[str, Float[Tensor, "b"]]:
    """The proprioceptive forward model's loss under the name "state", averaged over the pairs; empty for a LAM without one.

    Raises LaminaError if the clip has no proprioception.
    """
    if lam.state is None:
        return {}
    if clip.proprio is None:
        raise LaminaError(
            "this LAM has a proprioceptive forward model, and the data gives no proprioception: name it in DataConfig"
        )
    q = clip.proprio
    terms = [lam.state.loss(q[:, i], latent.post, q[:, j]) for (i, j), latent in latents.items()]
    return {"state": torch.stack(terms).mean(0)}


def triplets(frames: int) -> list[tuple[int, int, int]]:
    """Neighbouring frames a < b < c of a clip. Raises LaminaError for a clip of fewer than three."""
    if frames < 3:
        raise LaminaError(f"this method needs clips of three frames or more, got {frames}: set --frames 3")
    return [(i, i + 1, i + 2) for i in range(frames - 2)]


def pair_losses(lam: LAM, view: ClipView, rng: Rng) -> LossOutput:
    """Reconstruction of every neighbouring pair of a clip through a drawn prefix, the bottleneck's terms and the state's.

    The whole objective of FlexLAM (Eq. 1), Fixed-K, LAPO, LAPA and villa-X.
    """
    latents = lam.encode(view, neighbours(view.length))
    keep = lam.prefix.draw(rng, len(view))
    reconstruction = lam.reconstruction(view, latents.own, keep, rng)
    terms = {"reconstruction": reconstruction, **mean_aux(latents.own), **state_loss(lam, view.clip, latents.own)}
    return LossOutput(terms, latents)
