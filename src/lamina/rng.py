"""Counter-based random numbers.

Every random number of a training step is a function of (seed, step, shard), so no generator state is saved. A resumed run draws the
same numbers as an uninterrupted one, and one process with two shards draws the same numbers as two processes with one shard each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _mix(*numbers: int) -> int:
    """A 63-bit seed from several integers (splitmix64 over each, so that seeds of consecutive steps do not correlate)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF


class Rng:
    """Random numbers of one step. The first axis of every draw is the batch, divided evenly among ``shards``.

    Draws raise ValueError if the batch size is not a multiple of the number of shards.
    """

    def __init__(self, seed: int, step: int = 0, shards: Sequence[int] = (0,), device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        # Drawn on the device: a draw on the CPU would make the accelerator wait.
        self._generators = [torch.Generator(self.device).manual_seed(_mix(seed, step, shard)) for shard in shards]

    @property
    def seed(self) -> int:
        """An integer that is unique to this step and process, to seed torch's global generator (dropout)."""
        return self._generators[0].initial_seed()

    def _each(self, batch: int) -> list[tuple[torch.Generator, int]]:
        parts, rest = divmod(batch, len(self._generators))
        if rest:
            raise ValueError(f"a batch of {batch} does not split over {len(self._generators)} shards")
        return [(generator, parts) for generator in self._generators]

    def previous(self, rows: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Each row of a batch replaced by the one before it, the first of a shard by its last; a row that is alone stays."""
        return torch.cat([part.roll(1, 0) for part in rows.split([n for _, n in self._each(len(rows))])])

    def uniform(self, batch: int, *shape: int) -> Float[Tensor, "b ..."]:
        """Uniform on [0, 1)."""
        return torch.cat([torch.rand(n, *shape, generator=g, device=self.device) for g, n in self._each(batch)])

    def normal(self, batch: int, *shape: int) -> Float[Tensor, "b ..."]:
        """Standard normal."""
        return torch.cat([torch.randn(n, *shape, generator=g, device=self.device) for g, n in self._each(batch)])

    def categorical(self, batch: int, weights: Float[Tensor, "n"]) -> Int[Tensor, "b"]:
        """Integers 0..n-1 with probabilities proportional to ``weights``."""
        edges = torch.cumsum(weights.to(self.device, torch.float64), 0)
        picked = torch.searchsorted(edges / edges[-1], self.uniform(batch).double(), right=True)
        return picked.clamp_(max=len(weights) - 1)
