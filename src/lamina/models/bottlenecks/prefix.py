"""Retained prefixes (FlexLAM §4.1): draw k, keep the first k slots, fill the rest with one learned null latent."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.rng import Rng

PrefixDistribution = Literal["full", "uniform", "short", "long"]


def prefix_weights(distribution: PrefixDistribution, slots: int) -> Float[Tensor, "n"]:
    """p(k) for k = 0..K, up to scale, [K + 1].

    ``full`` always keeps all K slots (Fixed-K). ``uniform`` is Unif{0..K} (FlexLAM §4.1). ``short`` weighs k by 1/(k+1) and
    ``long`` by (k+1): the two biased distributions of App. A.7; it gives no formula, these are ours.
    """
    k = torch.arange(slots + 1, dtype=torch.float64)
    match distribution:
        case "full":
            return (k == slots).double()
        case "uniform":
            return torch.ones_like(k)
        case "short":
            return 1 / (k + 1)
        case "long":
            return k + 1
    raise LaminaError(f"unknown prefix distribution {distribution!r}: choose full, uniform, short or long")


class RetainedPrefix(nn.Module):
    """Replaces slots j > k of a code by the null latent z_0 that all slots share."""

    weights: Tensor

    def __init__(self, slots: int, dim: int, distribution: PrefixDistribution = "uniform"):
        super().__init__()
        self.slots, self.distribution = slots, distribution
        self.register_buffer("weights", prefix_weights(distribution, slots), persistent=False)
        # A LAM that never drops a slot has no null latent to learn; a fixed zero keeps truncating it well defined.
        self.null = nn.Parameter(torch.zeros(dim), requires_grad=distribution != "full")

    def draw(self, rng: Rng, batch: int) -> Int[Tensor, "b"]:
        """One k for each sample, k ~ p(k)."""
        return rng.categorical(batch, self.weights)

    def forward(self, z: Float[Tensor, "b k d"], keep: Int[Tensor, "b"] | int) -> Float[Tensor, "b k d"]:
        """The null-filled prefix of length ``keep`` (a number for all, or one for each sample; 0..K)."""
        if isinstance(keep, int):
            if not 0 <= keep <= self.slots:
                raise LaminaError(f"a prefix keeps 0 to {self.slots} slots, got k = {keep}")
            keep = torch.full((len(z),), keep, device=z.device)
        # A code may be a part of the slots (LAMConfig.action_slots), of which K keeps all.
        kept = torch.arange(z.shape[1], device=z.device) < keep.unsqueeze(-1)
        return torch.where(kept.unsqueeze(-1), z, self.null.to(z.dtype))
