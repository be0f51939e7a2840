"""Recalibrates data-dependent state for given weights: statistics of whitening and normalisation, and VQ codebooks.

That state is updated by passing data, not by gradients. Averaged weights, and weights that were never trained, need one pass of data to get
state that fits them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lamina.models.bottlenecks.vq import VQ, SplitVQ
from lamina.models.bottlenecks.whitening import FirstBatchNorm
from lamina.models.config import LAMConfig
from lamina.models.features import fit_space
from lamina.models.lam import LAM
from lamina.types import Clip

BATCH = 64


def has_statistics(module: nn.Module) -> bool:
    """Whether ``module`` has data-dependent state."""
    return any(isinstance(part, VQ | FirstBatchNorm | _BatchNorm) for part in module.modules())


@contextmanager
def calibrating(module: nn.Module) -> Iterator[None]:
    """Within, batches that pass through ``module`` recalibrate it: each statistic becomes the mean over these batches.

    Each code becomes the mean of its assigned vectors (one k-means pass); unassigned codes and frozen codebooks stay unchanged. A codebook
    that was never trained is filled from the first batch, and so is first-batch whitening that was never set. No gradients are computed;
    the module is in evaluation mode afterwards.
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


def even_batches(order: Int[Tensor, "n"], size: int) -> tuple[Tensor, ...]:
    """``order`` in batches of about ``size``, none of which has more than one row more than another: each of them counts the same in the
    mean of :func:`calibrating`. A batch has at least two rows where there are so many, as one has no variance."""
    return order.tensor_split(min(math.ceil(len(order) / size), max(1, len(order) // 2)))


def random_weights(config: LAMConfig, clip: Clip, seed: int) -> LAM:
    """An untrained LAM as a control: random weights, recalibrated on the pairs of ``clip``. In evaluation mode, on the CPU."""
    torch.manual_seed(seed)
    lam = LAM(config)
    fit_space(lam.space, clip.frames.flatten(0, 1))
    if isinstance(lam.bottleneck, SplitVQ):
        lam.bottleneck.frozen = ()  # nothing was trained before that could be kept
    if has_statistics(lam):
        # In an order of its own: neighbouring samples are of one episode, and the first batch fills a codebook.
        order = torch.randperm(len(clip), generator=torch.Generator().manual_seed(seed))
        with calibrating(lam):
            for rows in even_batches(order, BATCH):
                lam.encode(lam.view(clip[rows]), [(0, 1)])
    return lam.eval()
