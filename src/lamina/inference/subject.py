"""A model under evaluation: an encoder of frame pairs, and optionally a decoder, prefixes, a codebook and controls.

subject = subject_of(model)                    # a checkpoint of ours
subject = Subject("theirs", encode)            # any encoder: uint8 [n c h w] twice -> [n ...]
subject = Subject("theirs", encode, decode)    # ... with its decoder: (o_i, z) -> the predicted o_j in [-1, 1]
subject = load_subject("my_module:function")   # returned by a function of one's own
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lamina.errors import LaminaError
from lamina.images import to_float, to_uint8
from lamina.inference.directions import decoder_gradients, read_by_decoder
from lamina.inference.encode import in_batches
from lamina.models.bottlenecks.prefix import RetainedPrefix
from lamina.models.calibration import random_weights
from lamina.models.config import LAMConfig, Side
from lamina.models.hub import LatentActionModel
from lamina.rng import Rng
from lamina.types import Clip, ImageSize

Images = UInt8[Tensor, "n c h w"]
FloatImages = Float[Tensor, "n c h w"]
Vectors = Float[Tensor, "n d"]

BATCH = 128
RANDOM = "random-weights encoder"


@dataclass(frozen=True)
class Subject:
    """A model under evaluation. ``encode`` alone is enough; each further ability opens further probes.

    Frames are uint8 [n c h w], read from the data at ``image``. Latents z are vectors of ``slots`` equal parts, slot by slot.
    """

    name: str
    encode: Callable[[Images, Images], Tensor | np.ndarray]
    """(o_i, o_j) -> z [n ...], which is flattened to vectors"""
    decode: Callable[..., Tensor] | None = None
    """(o_i, z [n d]) -> the predicted o_j, in the space of ``target``"""
    target: Callable[[Images], Tensor] = to_float
    """what ``decode`` predicts of frames o_j; default: their pixels in [-1, 1]"""
    predicts: str = "pixels"
    """what ``decode`` returns: pixels in [-1, 1], or the name of other features"""
    stochastic: bool = False
    """``decode`` takes a third argument, the seed of its noise"""
    slots: int = 1
    prefix: RetainedPrefix | None = None
    """replaces the slots behind the first k; without it only whole latents are measured"""
    action_slots: tuple[int, int | None] = (0, None)
    """first slot of the latent action, and the one after its last, where a decoder needs more slots than those"""
    index: Callable[[Images, Images], Int[Tensor, "n k"]] | None = None
    """(o_i, o_j) -> the codes of each slot"""
    codebook_size: int | None = None
    """number of codes that one slot can say"""
    read: Callable[[Images, Images], Float[Tensor, "d m"] | None] | None = None
    """(o_i, o_j) -> the linear map from a latent action to what the decoder reads of it
    (:func:`lamina.inference.directions.read_by_decoder`); it returns None for a decoder that reads nothing"""
    control: Callable[[Clip, int], Subject] | None = None
    """(transitions of the training split, seed) -> the same architecture with random weights"""
    sides: Mapping[Side, Subject] = field(default_factory=dict)
    """the model read before (continuous) and after (quantised) its quantiser; empty where there is one latent"""
    config: LAMConfig | None = None
    """the architecture of controls that train an encoder of their own; None: Lamina's tiny one"""
    image: ImageSize = (224, 224)
    """height and width of the frames, pixels"""
    gap_seconds: tuple[float, float] = (0.1, 0.2)
    """shortest and longest time between the two frames of a pair in training"""
    frames: int = 2
    """frames that the training objective ties together: 2 of a pair, 3 of a triplet"""
    span: float | None = None
    """longest time from the first of these frames to the last, seconds; None: as the gaps allow"""
    trained_on: tuple[str, ...] = ()
    checkpoint: str | None = None
    """sha256 of its weights, by which `lamina compare` knows what it has evaluated already; None: it is evaluated at every call"""

    @property
    def label_gap(self) -> float:
        """Seconds between the frames of a probed pair: the middle of the training range."""
        return sum(self.gap_seconds) / 2

    @property
    def pictures(self) -> bool:
        """Predictions are pictures."""
        return self.decode is not None and self.predicts == "pixels"

    @property
    def quantised(self) -> Subject:
        """The model read after its quantiser, as its decoder reads it."""
        return self.sides.get("quantised", self)

    @torch.no_grad()
    def latents(self, src: Images, dst: Images) -> Vectors:
        """z of every pair, on the CPU. Raises LaminaError where ``encode`` does not return one latent for each pair."""

        def vectors(a: Images, b: Images) -> Vectors:
            z = torch.as_tensor(self.encode(a, b))
            if z.ndim < 2 or len(z) != len(a) or z[0].numel() % self.slots:
                raise LaminaError(
                    f"{self.name}: encode returned {tuple(z.shape)} for {len(a)} pairs of frames; expected one latent of {self.slots} "
                    "equal slots for each pair"
                )
            return z.flatten(1).float().cpu()

        return in_batches(vectors, src, dst, size=BATCH)

    def slotted(self, src: Images, dst: Images) -> Float[Tensor, "n k d"]:
        """The slots of z that are the latent action, of every pair."""
        z = self.latents(src, dst)
        return z.view(len(z), self.slots, -1)[:, slice(*self.action_slots)]

    def actions(self, src: Images, dst: Images) -> Vectors:
        """The latent action of every pair: the part of z that encodes what was done."""
        return self.slotted(src, dst).flatten(1)

    def truncated(self, z: Vectors, k: int) -> Vectors:
        """z with the slots behind the first ``k`` replaced; z itself for a subject without ``prefix``."""
        if self.prefix is None:
            return z
        with torch.no_grad():
            return self.prefix(z.view(len(z), self.slots, -1).to(self.prefix.null.device), k).flatten(1)

    @torch.no_grad()
    def error(self, src: Images, z: Vectors, dst: Images) -> Float[Tensor, "n"]:
        """Mean squared error of each prediction, in the space of ``target``."""

        def squared(a: Images, v: Vectors, b: Images) -> Float[Tensor, "n"]:
            predicted = self._predict(a, v)
            return (predicted - self.target(b).to(predicted.device)).square().flatten(1).mean(1)

        return in_batches(squared, src, z, dst, size=BATCH).double().cpu()

    @torch.no_grad()
    def picture(self, src: Images, z: Vectors, seed: int = 0) -> Images:
        """Predicted pictures of one batch, on the CPU. ``seed``: of the noise of a stochastic decoder."""
        assert self.pictures
        return to_uint8(self._predict(src, z, seed)).cpu()

    def draw(self, src: Images, z: Vectors) -> Images:
        """Predicted pictures. Every call draws the same noise, so that predictions differ by their latents alone."""
        return in_batches(self.picture, src, z, size=BATCH)

    @torch.no_grad()
    def predicted(self, src: Images, z: Vectors) -> Float[Tensor, "n ..."]:
        """Predictions as they are, in the space of ``target``, on the CPU; of pictures, :meth:`draw` has the pixels."""
        return in_batches(lambda a, v: self._predict(a, v).cpu(), src, z, size=BATCH)

    def _predict(self, src: Images, z: Vectors, seed: int = 0) -> Tensor:
        assert self.decode is not None
        predicted = self.decode(src, z, seed) if self.stochastic else self.decode(src, z)
        if self.predicts == "pixels" and predicted.shape != src.shape:
            raise LaminaError(
                f"{self.name}: decode returned {tuple(predicted.shape)} for frames {tuple(src.shape)}; set the subject's image to the "
                "height and width that it decodes"
            )
        return predicted


def subject_of(model: LatentActionModel, side: Side | None = None, name: str | None = None) -> Subject:
    """A checkpoint of ours as a subject.

    ``side``: latents before the quantiser (``continuous``: ALAM's; the decoder then reads them quantised) or after it (``quantised``:
    AC-LAM's; read as they are); None: the side that is the model's latent action. A model whose decoder reads a task's instruction vector
    has no decoder here: pairs of frames name no task.
    """
    lam, config = model.lam, model.config
    name = name or model.provenance.method
    read_side = side or config.action_side

    def encode(src: Images, dst: Images) -> Tensor:
        latent = model.encode(src, dst)
        return latent.pre if read_side == "continuous" else latent.post

    def target(frames: Images) -> Tensor:
        return lam.space.target(model.read(frames))

    def decode(src: Images, z: Vectors, seed: int) -> Tensor:
        inputs = lam.space(model.read(src))
        slotted = z.to(inputs.device).view(len(z), config.slots, lam.dim)
        if read_side == "continuous":
            slotted = lam.quantise(slotted).post
        return lam.decoder.sample(inputs, slotted, Rng(seed, device=inputs.device))

    def index(src: Images, dst: Images) -> Tensor:
        codes = model.encode(src, dst).index
        assert codes is not None  # there is a codebook
        return codes.cpu()

    def read(src: Images, dst: Images) -> Tensor | None:
        pictures = lam.space(model.read(src)), lam.space.target(model.read(dst))
        pre = in_batches(lambda a, b: model.encode(a, b).pre, src, dst, size=BATCH)
        gradients = decoder_gradients(lam, *pictures, pre, Rng(0, device=model.device))
        return read_by_decoder(gradients) if gradients.any() else None

    def control(clip: Clip, seed: int) -> Subject:
        return random_weights_subject(model, clip, side, seed)

    size = lam.bottleneck.slot_codes
    both: tuple[Side, ...] = ("continuous", "quantised") if side is None and size is not None else ()
    return Subject(
        name,
        encode,
        decode=None if config.task else decode,
        target=target,
        predicts=config.space,
        stochastic=True,
        slots=config.slots,
        prefix=lam.prefix,
        action_slots=config.action_slots or (0, None),
        index=index if size else None,
        codebook_size=size,  # type: ignore[arg-type]
        read=None if config.task else read,
        control=control,
        sides={each: subject_of(model, each, name) for each in both},
        config=config,
        image=config.image[1:],
        gap_seconds=model.provenance.gap_seconds,
        frames=model.provenance.frames,
        span=model.provenance.span,
        trained_on=model.provenance.data,
    )


def random_weights_subject(
    model: LatentActionModel, clip: Clip, side: Side | None = None, seed: int = 1, name: str = RANDOM
) -> Subject:
    """The control of a checkpoint: an encoder of its architecture with random weights; it has no decoder.

    ``clip``: transitions of the training split, which fill its statistics (:func:`lamina.models.calibration.random_weights`).
    """
    lam = random_weights(model.config, clip, seed).to(model.device)
    subject = subject_of(LatentActionModel(model.config, model.provenance, lam), side, name)
    return replace(subject, decode=None, read=None, sides={}, control=None)


def pixel_change(name: str = "change of the pixels") -> Subject:
    """z = o_j - o_i, a reference: exactly additive and reversible without any knowledge of actions, so a low error alone proves little."""
    return Subject(name, lambda src, dst: to_float(dst) - to_float(src))


def load_subject(name: str) -> Subject:
    """The Subject that ``module:function`` returns when it is called without arguments.

    The module is imported, which runs its code; the working directory is searched too.
    Raises LaminaError for another form of name, a module or function that is missing or fails, and a result that is no Subject.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise LaminaError(f"--subject {name}: give module:function, such as villa_x:subject")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        subject: Any = getattr(importlib.import_module(module), function)()
    except Exception as error:  # whatever goes wrong in code of the user's own
        raise LaminaError(f"--subject {name}: {type(error).__name__}: {error}") from error
    if not isinstance(subject, Subject):
        raise LaminaError(f"--subject {name}: returned {type(subject).__name__}, not a lamina Subject")
    return subject
