"""What every decoder is: see the package's docstring."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from lamina.losses.reconstruction import squared_error
from lamina.rng import Rng

Frames = Float[Tensor, "b c h w"]


class Decoder(nn.Module):
    """A forward model. A subclass defines :meth:`predict_and_loss` and ``sample``."""

    def predict_and_loss(
        self, src: Frames, z: Float[Tensor, "b k d"], dst: Frames, rng: Rng
    ) -> tuple[Float[Tensor, "b"], Frames]:
        """The loss, and the guess at ``dst`` that it is the loss of: what a perceptual term may look at."""
        raise NotImplementedError

    def loss(self, src: Frames, z: Float[Tensor, "b k d"], dst: Frames, rng: Rng) -> Float[Tensor, "b"]:
        return self.predict_and_loss(src, z, dst, rng)[0]


class DirectDecoder(Decoder):
    """A decoder whose ``forward(src, z)`` is its prediction, made in one pass; it needs no randomness."""

    def predict_and_loss(
        self, src: Frames, z: Float[Tensor, "b k d"], dst: Frames, rng: Rng
    ) -> tuple[Float[Tensor, "b"], Frames]:
        predicted = self(src, z)
        return squared_error(predicted, dst), predicted

    def sample(self, src: Frames, z: Float[Tensor, "b k d"], rng: Rng) -> Frames:
        return self(src, z)
