"""Statistics that belong to weights: those of whitening and of normalisation, and the codebook of a vector quantiser.

They are learned by seeing data, not by gradients, so weights that are averaged after the fact, or never trained at all, have none that fit
them until data has passed through once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lamina.models.bottlenecks.vq import VQ, SplitVQ
from lamina.models.bottlenecks.whitening import FirstBatchNorm
from lamina.models.config import LAMConfig
from lamina.models.lam import LAM
from lamina.types import Clip

BATCH = 64


def has_statistics(module: nn.Module) -> bool:
    """Whether anything in ``module`` is learned by seeing data."""
    return any(isinstance(part, VQ | FirstBatchNorm | _BatchNorm) for part in module.modules())


@contextmanager
def calibrating(module: nn.Module) -> Iterator[None]:
    """Within, batches that pass through ``module`` fill its statistics: each the plain mean over these batches, whatever they were before.

    Codes move to the mean of what falls on them (one pass of k-means); a code that nothing falls on stays. A codebook that was never
    trained is filled from the first batch, and whitening by the first batch is set only where it was not. Frozen codebooks stay.
    The module is in evaluation mode afterwards; no gradients are computed.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    books = [part for part in module.modules() if isinstance(part, VQ)]
    module.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches
    for book in books:
        book.calibration = 0
    try:
        with torch.no_grad():
            yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for book in books:
            book.calibration = None
        module.eval()


def random_weights(config: LAMConfig, clip: Clip, seed: int) -> LAM:
    """The control of a LAM that was never trained: fresh weights, and statistics filled by one pass over the pairs of ``clip``, so that it
    differs from a trained one by its training alone. In evaluation mode, on the CPU."""
    torch.manual_seed(seed)
    lam = LAM(config)
    if isinstance(lam.bottleneck, SplitVQ):
        lam.bottleneck.frozen = ()  # nothing was trained before that could be kept
    if has_statistics(lam):
        # In an order of its own: neighbouring samples are of one episode, and the first batch fills a codebook.
        order = torch.randperm(len(clip), generator=torch.Generator().manual_seed(seed))
        with calibrating(lam):
            for rows in order.split(BATCH):
                if len(rows) > 1 or len(clip) == 1:  # one sample has no variance
                    lam.encode(lam.view(clip[rows]), [(0, 1)])
    return lam.eval()
