"""Exogenous probe: how far another exogenous state moves the latent, and the prediction after a swap of that state.

It compares paired views, which show the same states under two exogenous states:

    o -> o'      a transition under one exogenous state
    o~ -> o~'    the same states under another

- reconstruction: decode(o, z(o, o')) against o'.
- augmented reconstruction: decode(o~, z(o~, o~')) against o~'.
- swap: decode(o, z(o, o~')). It resembles o~' if the latent holds the next frame's exogenous state, and o' if it does not
  (*Why Latent Actions Fail*, §4.2, Fig. 2).

The probe needs neither labels nor training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.errors import LaminaError
from lamina.evaluation.probes.reconstruction import decoded, psnr
from lamina.inference.subject import Subject, Vectors
from lamina.intervals import Estimate, bootstrap_ratio
from lamina.types import Clip


@dataclass(frozen=True)
class PairedLatents:
    """The latents [n d] of transitions under two exogenous states: z(o, o'), z(o~, o~'), z(o, o~')."""

    own: Vectors
    paired: Vectors
    crossed: Vectors

    def future_change(self, episode: Tensor) -> Estimate:
        """How far another exogenous state of the NEXT frame moves the latent, relative to chance: half of E|z(o, o') - z(o, o~')|^2 over
        E|z - mean z|^2. 0: not at all; 1: as far apart as the latents of unrelated transitions; NaN for a latent that never varies. Above
        1 where the exchanged frame makes a pair that does not occur in the data. (§4.2 divides by |z|^2.)"""
        return _relative_change(self.own, self.crossed, episode)

    def inconsistency(self, episode: Tensor) -> Estimate:
        """The same with both frames under the other exogenous state: half of E|z(o, o') - z(o~, o~')|^2 over E|z - mean z|^2."""
        return _relative_change(self.own, self.paired, episode)


@dataclass(frozen=True)
class SwapScore(PairedLatents):
    """Per-transition PSNR (dB)."""

    reconstruction: Float[np.ndarray, "n"]  # of o', by z(o, o')
    augmented: Float[np.ndarray, "n"]  # of o~', by z(o~, o~')
    swap: Float[np.ndarray, "n"]  # of o', by z(o, o~')
    swap_as_paired: Float[np.ndarray, "n"]  # of o~', by z(o, o~')
    pictures: dict[str, UInt8[Tensor, "m c h w"]]  # of a few transitions, evenly spread

    def psnrs(self) -> dict[str, Float[np.ndarray, "n"]]:
        """The rows of Fig. 2b by their titles."""
        return {
            "reconstruction": self.reconstruction,
            "augmented reconstruction": self.augmented,
            "swap, against the next frame": self.swap,
            "swap, against the paired next frame": self.swap_as_paired,
        }


def _relative_change(z: Vectors, other: Vectors, episode: Tensor) -> Estimate:
    z, other = z.double(), other.double()
    centre = torch.cat([z, other]).mean(0)
    moved = (z - other).square().sum(1) / 2
    spread = ((z - centre).square().sum(1) + (other - centre).square().sum(1)) / 2
    if spread.mean() <= 1e-12 * z.square().sum(1).mean():  # rounding alone
        spread = torch.zeros_like(spread)
    return bootstrap_ratio(moved.numpy(), spread.numpy(), episode.numpy())


def views(subject: Subject, clip: Clip) -> PairedLatents:
    """The latents of the first pair of each sample under its two exogenous states, and across them.

    Raises LaminaError for a clip without paired views.
    """
    if clip.paired is None:
        raise LaminaError("exogenous states are compared on paired views, and this data has none: name one by --paired")
    (o, next_), (other, other_next) = ((x[:, 0], x[:, 1]) for x in (clip.frames, clip.paired))
    encode = subject.quantised.latents
    return PairedLatents(encode(o, next_), encode(other, other_next), encode(o, other_next))


def swap(subject: Subject, clip: Clip, shown: int = 4) -> SwapScore:
    """The PSNRs on the first pair of each sample, and pictures of ``shown`` of them. Raises LaminaError for a clip without paired views."""
    latents = views(subject, clip)
    assert clip.paired is not None
    (o, next_), (other, other_next) = ((x[:, 0], x[:, 1]) for x in (clip.frames, clip.paired))
    starts = ((o, latents.own), (other, latents.paired), (o, latents.crossed))
    predicted, augmented, swapped = (decoded(subject.quantised, src, z) for src, z in starts)
    pictures = {
        "frame": o, "paired frame": other, "next": next_, "paired next": other_next,
        "reconstruction": predicted, "augmented": augmented, "swap": swapped,
    }  # fmt: skip
    return SwapScore(
        latents.own, latents.paired, latents.crossed,
        psnr(predicted, next_).numpy(), psnr(augmented, other_next).numpy(),
        psnr(swapped, next_).numpy(), psnr(swapped, other_next).numpy(),
        {name: x[torch.linspace(0, len(x) - 1, min(shown, len(x))).long()] for name, x in pictures.items()},
    )  # fmt: skip
