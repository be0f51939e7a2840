"""Inverse dynamics: two frames -> K slots. Each frame is embedded once, however many pairs it belongs to.

Both encoders split the work in two:

    embed(frames [n c h w]) -> features [n ...]                     once a frame
    compare(features, features) -> slots [b k d]                    once a pair
"""

from __future__ import annotations

from torch import nn

from lamina.models.encoders.conv import ConvEncoder
from lamina.models.encoders.transformer import TransformerEncoder

ENCODERS: dict[str, type[nn.Module]] = {"transformer": TransformerEncoder, "conv": ConvEncoder}
