"""What is computed from a whole batch of which each process of a torchrun job has a part: sums, rows and random numbers.

Without a process group a process has the whole batch, and nothing here communicates.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def several() -> bool:
    """Whether this process has but a part of each batch."""
    return dist.is_initialized() and dist.get_world_size() > 1


class _Sum(torch.autograd.Function):
    """A change of one process's addend changes the sum of every process, so the gradients add up too."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(context: Any, *gradient: Tensor) -> Tensor:
        return _Sum.apply(*gradient)  # type: ignore[no-any-return,no-untyped-call]


def total(value: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The sum over all processes, through which gradients flow."""
    return _Sum.apply(value) if several() else value  # type: ignore[no-any-return,no-untyped-call]


def mean(value: Float[Tensor, "n"]) -> Float[Tensor, ""]:
    """The mean over the rows of all processes, through which gradients flow."""
    return total(value.mean()) / (dist.get_world_size() if several() else 1)


def whole(part: Float[Tensor, "n *s"]) -> Float[Tensor, "m *s"]:
    """The rows of all processes in the order of their ranks, without gradients. Each process has the same number of them."""
    if not several():
        return part
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def normal(shape: torch.Size, seed: int, device: torch.device) -> Float[Tensor, "n ..."]:
    """Standard normal numbers for this process's rows of a batch: the rows that they are of the whole batch's, whose seed it is."""
    size, rank = (dist.get_world_size(), dist.get_rank()) if several() else (1, 0)
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.randn(size * shape[0], *shape[1:], generator=generator, device=device)
    return drawn[rank * shape[0] : (rank + 1) * shape[0]]
