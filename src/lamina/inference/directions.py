"""The directions of a latent action that the decoder's pictures depend on.

A latent can vary most where no picture depends on it. A loss on the algebra of latents that are whitened channel by channel asks for
just that: any number that is a difference of two functions of the frames adds up and reverses, fills the variance that whitening demands,
and costs nothing as long as the decoder ignores it. Whoever predicts latents, such as a policy, would spend most of its loss there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError
from lamina.models.lam import LAM
from lamina.rng import Rng

BATCH = 32  # pictures that are decoded at once
SMALLEST = 1e-6  # variance of a direction, as a share of the largest, below which it counts as constant


@dataclass(frozen=True)
class Directions:
    """Coordinates of latents of l numbers, on the CPU: uncorrelated, of variance 1, ordered by their effect on the decoder's loss."""

    mean: Float[Tensor, "l"]
    matrix: Float[Tensor, "l m"]  # columns are directions
    effect: Float[Tensor, "m"]  # of a change by one deviation; adds up to 1
    variance: Float[Tensor, "m"]  # of the latents' total variance, the share that lies along each; adds up to 1

    def project(self, latents: Float[Tensor, "*b l"], numbers: int) -> Float[Tensor, "*b n"]:
        """The first ``numbers`` coordinates; zero where the latents have fewer directions."""
        projected = (latents - self.mean) @ self.matrix[:, :numbers]
        return torch.nn.functional.pad(projected, (0, numbers - projected.shape[-1]))

    def ignored(self, share: float = 0.99) -> float:
        """The share of the latents' variance that lies along none of the directions that together have ``share`` of the effect."""
        used = int((self.effect.cumsum(0) < share).sum()) + 1
        return float(1 - self.variance[:used].sum())


def decoder_gradients(
    lam: LAM,
    src: Float[Tensor, "b c h w"],
    dst: Float[Tensor, "b c h w"],
    pre: Float[Tensor, "b k d"],
    rng: Rng,
) -> Float[Tensor, "b l"]:
    """The gradient of the decoder's loss with respect to the l numbers of each pair's latent action, on the CPU.

    It is taken where each pair has the latent of another, randomly drawn one (:meth:`lamina.models.decoders.base.Decoder.latent_gradient`).
    ``src`` and ``dst``: the pictures of b pairs in the observation space; ``pre``: their whole continuous latents.
    """
    found = []
    for rows in rng.uniform(len(src)).argsort().split(BATCH):
        gradient = lam.decoder.latent_gradient(src[rows], lam.quantise(pre[rows]).post, dst[rows], rng)
        found.append(gradient[:, lam.config.latent_action].flatten(1).cpu())
    return torch.cat(found)


def read_by_decoder(gradients: Float[Tensor, "b l"]) -> Float[Tensor, "l m"]:
    """A linear map after which the length of a latent, or of a difference of latents, is its effect on the decoder's loss.

    ``|v @ map|^2 = mean (g v)^2`` over the gradients g, divided by the mean of |g|^2, so that the map never lengthens a latent. What the
    decoder ignores has no length. Raises LaminaError where all gradients are zero.
    """
    g = gradients.double()
    values, axes = torch.linalg.eigh(g.T @ g)
    if not values[-1] > 0:
        raise LaminaError("the decoder ignores the latents, so no direction of them has an effect")
    kept = values > SMALLEST * values[-1]
    return (axes[:, kept] * (values[kept] / values.sum()).sqrt()).float()


def decoder_directions(
    lam: LAM,
    src: Float[Tensor, "b c h w"],
    dst: Float[Tensor, "b c h w"],
    pre: Float[Tensor, "b k d"],
    latents: Float[Tensor, "n k d"],
    rng: Rng,
) -> Directions:
    """The directions of continuous latent actions, by their effect on the prediction of ``dst`` from ``src``.

    The effect is the mean square of the gradient of the decoder's loss (:func:`decoder_gradients`). ``src`` and ``dst``: the pictures of b
    pairs, ``pre`` their whole continuous latents (``Latent.pre``); ``latents``: the latent actions of many pairs, whose covariance sets the
    units.
    Raises LaminaError if the decoder ignores them.
    """
    flat = latents.flatten(1).cpu().double()
    mean, deviations = flat.mean(0), flat - flat.mean(0)
    variance, axes = torch.linalg.eigh(deviations.T @ deviations / len(flat))
    kept = variance > SMALLEST * variance[-1]
    whiten, colour = axes[:, kept] * variance[kept].rsqrt(), axes[:, kept] * variance[kept].sqrt()
    gradients = decoder_gradients(lam, src, dst, pre, rng).double()
    along = gradients @ colour  # by one deviation along each principal axis
    effect, turn = torch.linalg.eigh(along.T @ along / len(along))
    effect, turn = effect.flip(0).clamp_min(0), turn.flip(1)
    if not effect.sum() > 0:
        raise LaminaError(
            "the decoder ignores the latents, so it uses no direction of them: train the LAM longer, or leave out --latent-numbers"
        )
    # The share of the total variance along uncorrelated coordinates y: column j of the map y -> z has the variance of what y_j moves.
    share = (colour @ turn).square().sum(0)
    return Directions(
        mean.float(),
        (whiten @ turn).float(),
        (effect / effect.sum()).float(),
        (share / share.sum()).float(),
    )
