"""Forward dynamics: (o_i, latent) -> o_j. Every decoder has the same methods:

    loss(src, z, dst, rng) -> [b]     what training minimises; a pixel error, or the error of a flow's velocity
    attempt(...) -> [b], frames         the same, and the guess that it is the loss of (a flow's: the clean frame it sees in noise)
    sample(src, z, rng) -> frames     a prediction of the second frame, float in about [-1, 1]

``src``, ``dst``: [b c h w] in [-1, 1]; ``z``: [b k d], null-filled; ``rng``: the step's randomness, which only a flow uses.
"""

from __future__ import annotations

from torch import nn

from lamina.models.decoders.flow import FlowDecoder
from lamina.models.decoders.pixel import PixelDecoder
from lamina.models.decoders.unet import UNetDecoder

DECODERS: dict[str, type[nn.Module]] = {"pixel": PixelDecoder, "flow": FlowDecoder, "unet": UNetDecoder}
