"""What the structural probes measure: any function of two frames, ours or a foreign one, as vectors; with a decoder if there is one.

subject = of_model(model, "post")                      # a checkpoint of ours
subject = Subject("theirs", lambda src, dst: f(src, dst))   # a foreign encoder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.draws import Draws
from lamina.lam import LAM, LatentActionModel
from lamina.shapes import to_uint8

Images = UInt8[Tensor, "n c h w"]
Vectors = Float[Tensor, "n d"]
Place = Literal["pre", "post"]

BATCH = 128


@dataclass(frozen=True)
class Subject:
    """``encode(o_i, o_j)`` gives z as vectors. ``predict(o_i, z)`` gives the predicted o_j as the model knows it (pixels in [-1, 1], or
    features), ``observe`` turns frames into what is to be predicted; without them only what needs no decoder is measured.
    ``pictures``: predictions are pixels.
    """

    name: str
    encode: Callable[[Images, Images], Vectors]
    predict: Callable[[Images, Vectors], Float[Tensor, "n c h w"]] | None = None
    observe: Callable[[Images], Float[Tensor, "n c h w"]] | None = None
    pictures: bool = True

    def latents(self, src: Images, dst: Images) -> Vectors:
        """z of every pair, a batch at a time."""
        parts = zip(src.split(BATCH), dst.split(BATCH), strict=True)
        return torch.cat([self.encode(a, b).detach().flatten(1).float().cpu() for a, b in parts])

    def error(self, src: Images, z: Vectors, dst: Images) -> Float[Tensor, "n"]:
        """Mean squared error of each prediction, in the model's own space."""
        assert self.predict is not None and self.observe is not None
        parts = zip(src.split(BATCH), z.split(BATCH), dst.split(BATCH), strict=True)
        errors = [(self.predict(a, v) - self.observe(b)).square().flatten(1).mean(1) for a, v, b in parts]
        return torch.cat(errors).double().cpu()

    def draw(self, src: Images, z: Vectors) -> Images:
        """Predicted pictures, uint8."""
        assert self.predict is not None and self.pictures
        return torch.cat(
            [to_uint8(self.predict(a, v)).cpu() for a, v in zip(src.split(BATCH), z.split(BATCH), strict=True)]
        )


def of_model(
    model: LatentActionModel, place: Place = "post", slots: Sequence[int] | None = None, name: str | None = None
) -> Subject:
    """A checkpoint as a subject. ``place``: latents before the quantiser (``pre``: ALAM's; the decoder then reads them quantised) or
    after it (``post``: AC-LAM's; read as they are). ``slots``: which of them are the latent action; then there is no decoder, which
    needs all.
    """
    lam = model.lam

    @torch.no_grad()
    def encode(src: Images, dst: Images) -> Vectors:
        latent = model.encode(src, dst)
        z = latent.pre if place == "pre" else latent.post
        return z if slots is None else z[:, list(slots)]

    @torch.no_grad()
    def observe(frames: Images) -> Float[Tensor, "n c h w"]:
        return lam.space.target(model._checked(frames))

    @torch.no_grad()
    def predict(src: Images, z: Vectors) -> Float[Tensor, "n c h w"]:
        seen = lam.space(model._checked(src))
        slotted = z.to(seen.device).view(len(z), model.config.slots, lam.dim)
        if place == "pre":
            slotted = lam.bottleneck(slotted).post
        # Every call draws the same noise, so that predictions differ by their latents alone.
        return lam.decoder.sample(seen, slotted, Draws(0, device=seen.device))  # type: ignore[operator]

    name = name or model.provenance.method
    if slots is not None:
        return Subject(name, encode)
    return Subject(name, encode, predict, observe, model.config.space == "pixels")


def untrained(
    model: LatentActionModel, place: Place = "post", seed: int = 1, name: str = "random-weights encoder"
) -> Subject:
    """An encoder of the same shape with random weights, as a control; it has no decoder."""
    torch.manual_seed(seed)
    random = LatentActionModel(model.config, model.provenance)
    random.lam = LAM(model.config)
    return replace(of_model(random.eval(), place, name=name), predict=None)
