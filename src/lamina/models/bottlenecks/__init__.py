"""Bottlenecks: encoder output [b k d] -> :class:`Latent`. None, VQ with EMA (VQ-VAE; NSVQ as LAPA uses it), FSQ.

>>> FSQ(levels=(7, 5, 5, 5, 5))(torch.randn(8, 16, 5)).index.shape
torch.Size([8, 16])
"""

from __future__ import annotations

from torch import nn

from lamina.models.bottlenecks.base import Identity
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.bottlenecks.vq import VQ, SplitVQ

BOTTLENECKS: dict[str, type[nn.Module]] = {"none": Identity, "vq": VQ, "fsq": FSQ, "split_vq": SplitVQ}
