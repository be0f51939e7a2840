"""Composition and reversal of latents before quantisation (ALAM, Eq. 2 and 3), in full or as far as the decoder reads them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamina import collective
from lamina.losses.reconstruction import squared_error

Latents = Float[Tensor, "b k d"]


def composition(ab: Latents, bc: Latents, ac: Latents) -> Float[Tensor, "b"]:
    """|z_ac - (z_ab + z_bc)|^2, mean over slots and channels: two steps in a row are the long step (ALAM Eq. 7; AC-LAM Eq. 4)."""
    return squared_error(ac, ab + bc)


def reversal(ab: Latents, ba: Latents) -> Float[Tensor, "b"]:
    """|z_ab + z_ba|^2, mean over slots and channels: the way back undoes the way there (ALAM Eq. 7)."""
    return squared_error(ab, -ba)


def read_error(error: Latents, scale: Latents, gradients: Float[Tensor, "n k d"]) -> Float[Tensor, "b"]:
    """The effect of each ``error`` on the decoder's loss, over the mean effect of ``scale``: a relative error that no scaling changes, and
    to which what the decoder ignores adds nothing (ours).

    An effect is the mean of (g v)^2 over ``gradients`` g of that loss with respect to latents, which are constants here.
    """
    read = collective.whole(gradients.detach().flatten(1))

    def effect(v: Latents) -> Float[Tensor, "b"]:
        return (v.flatten(1) @ read.T).square().mean(1)

    return effect(error) / collective.mean(effect(scale)).clamp_min(1e-12)


def prefixes(z: Latents, keep: Int[Tensor, "b"]) -> Latents:
    """The first ``keep`` slots of each latent and zeros behind them, scaled so that a mean square over all slots is one over those that are
    kept; all zeros for a prefix of no slot."""
    kept = torch.arange(z.shape[1], device=z.device) < keep.unsqueeze(1)
    return z * kept.unsqueeze(2) * (z.shape[1] / keep.clamp_min(1)).sqrt()[:, None, None]
