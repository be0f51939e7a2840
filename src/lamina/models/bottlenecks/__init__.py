"""Bottlenecks by name: encoder output [b k d] -> :class:`Latent`. None, VQ with EMA (VQ-VAE; NSVQ as LAPA uses it), FSQ.

>>> FSQ(levels=(7, 5, 5, 5, 5))(torch.randn(8, 16, 5)).index.shape
torch.Size([8, 16])
"""

from __future__ import annotations

from lamina.models.bottlenecks.base import Bottleneck, Identity
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.bottlenecks.vq import VQ, SplitVQ
from lamina.models.registry import Registry

BOTTLENECKS: Registry[Bottleneck] = Registry(
    "bottleneck", {"none": Identity, "vq": VQ, "fsq": FSQ, "split_vq": SplitVQ}
)
