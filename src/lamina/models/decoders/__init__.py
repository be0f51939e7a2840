"""Decoders by name (:class:`lamina.models.decoders.base.Decoder`): forward dynamics (o_i, latent) -> o_j."""

from __future__ import annotations

from lamina.models.decoders.base import Decoder
from lamina.models.decoders.flow import FlowDecoder
from lamina.models.decoders.pixel import PixelDecoder
from lamina.models.decoders.sd3 import SD3Decoder
from lamina.models.decoders.unet import UNetDecoder
from lamina.models.registry import Registry

DECODERS: Registry[Decoder] = Registry(
    "decoder", {"pixel": PixelDecoder, "flow": FlowDecoder, "unet": UNetDecoder, "sd3": SD3Decoder}
)
