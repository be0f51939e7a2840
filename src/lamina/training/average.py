"""Averaged weights: what is validated, and saved as the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import AveragedModel

#: The memory of the processor.
HOST = torch.device("cpu")


class WeightAverage:
    """Exponential moving average of a module's trained parameters. All other state is copied: codebooks, statistics, frozen weights.

    The decay of update n is min(``decay``, n / (n + 9)), so that the random weights of the start do not linger. ``module`` is the
    averaged copy, on ``device`` (None: that of the original); it must be made before FSDP2 shards the original, and sharded likewise.
    """

    def __init__(self, module: nn.Module, decay: float, device: torch.device | None = None):
        def average(averaged: Any, current: Any, n: Any) -> None:
            torch._foreach_lerp_(averaged, current, 1 - min(decay, int(n) / (9 + int(n))))

        self._averaged = AveragedModel(module, device, multi_avg_fn=average)
        self.resume(0)

    @property
    def module(self) -> nn.Module:
        return self._averaged.module

    def resume(self, step: int) -> None:
        """Go on after ``step`` updates. The copy's own weights are those of the start, so its first update is an average already."""
        self._averaged.n_averaged.fill_(step + 1)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the weights of ``module``."""
        self._averaged.update_parameters(module)
        for averaged, current in zip(self.module.parameters(), module.parameters(), strict=True):
            if not current.requires_grad:
                averaged.copy_(current)


@contextmanager
def as_saved(module: nn.Module, recalibrate: Callable[[Any], None] | None, device: torch.device) -> Iterator[nn.Module]:
    """Within, a module is as it will be saved: in evaluation mode, with statistics that ``recalibrate`` has fitted to its weights.

    Parameters that FSDP2 has sharded are gathered meanwhile, since only a module's forward would gather them. A copy that is kept in the
    host's memory is on ``device`` meanwhile.
    """
    buffers = {name: value.clone() for name, value in module.named_buffers()} if recalibrate else {}
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    home = next(module.parameters()).device
    for part in sharded:
        part.unshard()
    if not sharded:  # what is sharded is gathered on the device already
        module.to(device)
    try:
        if recalibrate is not None:
            recalibrate(module)
        module.eval()
        yield module
    finally:
        for part in sharded:
            part.reshard()
        if not sharded:
            module.to(home)
        for name, value in module.named_buffers():
            if name in buffers:
                value.copy_(buffers[name])
        module.train()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's state, without gradients; the tensors are its own."""
    return {name: value.detach() for name, value in module.state_dict().items()}
