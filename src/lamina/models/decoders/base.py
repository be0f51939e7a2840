"""The interface of a decoder, and the base class of those that predict in one pass."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina.losses.reconstruction import squared_error
from lamina.rng import Rng

Frames = Float[Tensor, "b c h w"]


class Decoder(nn.Module):
    """Forward dynamics: (o_i, latent) -> o_j. A subclass defines :meth:`predict_and_loss` and :meth:`sample`.

    ``src``, ``dst``: first and second frame, [b c h w] in [-1, 1]; ``z``: [b k d], masked to the prefix; ``rng``: random numbers of the
    step, which only a flow needs.
    """

    Config: ClassVar[Any]

    def __init__(self, config: Any, image: tuple[int, int, int], slots: int, dim: int):
        super().__init__()

    def predict_and_loss(
        self, src: Frames, z: Float[Tensor, "b k d"], dst: Frames, rng: Rng
    ) -> tuple[Float[Tensor, "b"], Frames]:
        """The training loss of each sample, and the predicted second frame that it was computed from.

        The loss is a pixel error, or the velocity error of a flow, whose prediction is the clean frame.
        """
        raise NotImplementedError

    def sample(self, src: Frames, z: Float[Tensor, "b k d"], rng: Rng) -> Frames:
        """A prediction of the second frame, float in about [-1, 1]."""
        raise NotImplementedError

    def loss(self, src: Frames, z: Float[Tensor, "b k d"], dst: Frames, rng: Rng) -> Float[Tensor, "b"]:
        """The training loss of each sample."""
        return self.predict_and_loss(src, z, dst, rng)[0]

    def latent_gradient(self, src: Frames, z: Float[Tensor, "b k d"], dst: Frames, rng: Rng) -> Float[Tensor, "b k d"]:
        """The gradient of each sample's loss with respect to its latent, taken where each sample has the latent of the one before it in its
        shard.

        There the loss is large along what tells transitions apart, and any decoder has such a gradient; at the right latent a good decoder
        has hardly any. No parameter gets a gradient.
        """
        wrong = rng.previous(z.detach()).requires_grad_()
        with torch.enable_grad():
            loss = self.loss(src, wrong, dst, rng)
            (gradient,) = torch.autograd.grad(loss.sum(), wrong)
        return gradient.float()


class DirectDecoder(Decoder):
    """A decoder whose ``forward(src, z)`` is its prediction, made in one pass without random numbers."""

    def predict_and_loss(
        self, src: Frames, z: Float[Tensor, "b k d"], dst: Frames, rng: Rng
    ) -> tuple[Float[Tensor, "b"], Frames]:
        predicted = self(src, z)
        return squared_error(predicted, dst), predicted

    def sample(self, src: Frames, z: Float[Tensor, "b k d"], rng: Rng) -> Frames:
        return self(src, z)
