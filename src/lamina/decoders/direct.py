"""What is common to decoders that predict the frame in one pass: their loss is the squared error of that prediction."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from lamina.draws import Draws
from lamina.objectives import squared_error


class DirectDecoder(nn.Module):
    """A decoder whose ``forward(src, z)`` is its prediction; it needs no randomness."""

    def loss(
        self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k d"], dst: Float[Tensor, "b c h w"], draws: Draws
    ) -> Float[Tensor, "b"]:
        return squared_error(self(src, z), dst)

    def sample(
        self, src: Float[Tensor, "b c h w"], z: Float[Tensor, "b k d"], draws: Draws
    ) -> Float[Tensor, "b c h w"]:
        return self(src, z)
