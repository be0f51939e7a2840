"""What the structural probes measure: any function of two frames, ours or a foreign one, as vectors; with a decoder if there is one.

subject = of_model(model, "post")                          # a checkpoint of ours
subject = Subject("theirs", f)                              # a foreign encoder: uint8 [n c h w] twice -> [n ...]
subject = Subject("theirs", f, predict=g, observe=to_float)   # ... with its decoder g(o_i, z) -> o_j in [-1, 1]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.errors import LaminaError
from lamina.images import to_float, to_uint8
from lamina.models.calibration import random_weights
from lamina.models.hub import LatentActionModel
from lamina.rng import Rng
from lamina.types import Clip

Images = UInt8[Tensor, "n c h w"]
Vectors = Float[Tensor, "n d"]
Place = Literal["pre", "post"]

BATCH = 128


@dataclass(frozen=True)
class Subject:
    """``encode(o_i, o_j)`` gives z as vectors. ``predict(o_i, z)`` gives the predicted o_j as the model knows it (pixels in [-1, 1], or
    features), ``observe`` turns frames into what is to be predicted; without them only what needs no decoder is measured.
    ``pictures``: predictions are pixels. ``part``: where a decoder needs more of z than the latent action, the first number that is of the
    latent action and the one after its last.
    """

    name: str
    encode: Callable[[Images, Images], Vectors]
    predict: Callable[[Images, Vectors], Float[Tensor, "n c h w"]] | None = None
    observe: Callable[[Images], Float[Tensor, "n c h w"]] | None = None
    pictures: bool = True
    part: tuple[int, int | None] = (0, None)

    def __post_init__(self) -> None:
        if self.predict is not None and self.observe is None:
            raise LaminaError(f"{self.name}: predictions need an observe() that turns frames into what is predicted")

    @torch.no_grad()
    def latents(self, src: Images, dst: Images) -> Vectors:
        """z of every pair, a batch at a time."""
        parts = zip(src.split(BATCH), dst.split(BATCH), strict=True)
        return torch.cat([torch.as_tensor(self.encode(a, b)).flatten(1).float().cpu() for a, b in parts])

    def actions(self, src: Images, dst: Images) -> Vectors:
        """The latent action of every pair: the part of z that says what was done."""
        return self.latents(src, dst)[:, slice(*self.part)]

    @torch.no_grad()
    def error(self, src: Images, z: Vectors, dst: Images) -> Float[Tensor, "n"]:
        """Mean squared error of each prediction, in the model's own space."""
        assert self.predict is not None and self.observe is not None  # else nothing is to be predicted
        parts = zip(src.split(BATCH), z.split(BATCH), dst.split(BATCH), strict=True)
        errors = [(self.predict(a, v) - self.observe(b)).square().flatten(1).mean(1) for a, v, b in parts]
        return torch.cat(errors).double().cpu()

    @torch.no_grad()
    def draw(self, src: Images, z: Vectors) -> Images:
        """Predicted pictures, uint8."""
        assert self.predict is not None and self.pictures
        return torch.cat(
            [to_uint8(self.predict(a, v)).cpu() for a, v in zip(src.split(BATCH), z.split(BATCH), strict=True)]
        )


def subject_of(model: LatentActionModel, place: Place | None = None, name: str | None = None) -> Subject:
    """A checkpoint as a subject. ``place``: latents before the quantiser (``pre``: ALAM's; the decoder then reads them quantised) or
    after it (``post``: AC-LAM's; read as they are); None: the side that is the model's latent action. Where only some slots are the latent
    action, ``part`` says which. A model whose decoder reads a task's words has no decoder here: pairs of frames name no task.
    """
    lam, config = model.lam, model.config
    place = place or ("pre" if config.action_side == "continuous" else "post")

    def encode(src: Images, dst: Images) -> Vectors:
        latent = model.encode(src, dst)
        return latent.pre if place == "pre" else latent.post

    def observe(frames: Images) -> Float[Tensor, "n c h w"]:
        return lam.space.target(model.read(frames))

    def predict(src: Images, z: Vectors) -> Float[Tensor, "n c h w"]:
        seen = lam.space(model.read(src))
        slotted = z.to(seen.device).view(len(z), config.slots, lam.dim)
        if place == "pre":
            slotted = lam.quantise(slotted).post
        # Every call draws the same noise, so that predictions differ by their latents alone.
        return lam.decoder.sample(seen, slotted, Rng(0, device=seen.device))

    slots = config.latent_action.indices(config.slots)
    part = (slots[0] * lam.dim, slots[1] * lam.dim)
    name = name or model.provenance.method
    if config.task:
        return Subject(name, encode, part=part)
    return Subject(name, encode, predict, observe, config.space == "pixels", part)


def random_weights_subject(
    model: LatentActionModel,
    clip: Clip,
    place: Place | None = None,
    seed: int = 1,
    name: str = "random-weights encoder",
) -> Subject:
    """An encoder of the same shape with random weights, as a control; it has no decoder. ``clip``: transitions of the training split, which
    fill its statistics (:func:`lamina.models.calibration.random_weights`)."""
    random = LatentActionModel(model.config, model.provenance)
    random.lam = random_weights(model.config, clip, seed)
    return replace(subject_of(random.eval(), place, name), predict=None)


def pixel_change(name: str = "change of the pixels") -> Subject:
    """z = o_j - o_i, as a reference: it adds up and reverses exactly and knows nothing of actions, so that no error says much by itself."""
    return Subject(name, lambda src, dst: to_float(dst) - to_float(src))
