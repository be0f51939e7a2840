"""Squared error per sample [b], and the weighted sum of loss terms.

A decoder's own loss (``decoder.loss``) is not here: rectified flow regresses a velocity, whose error depends on the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError


def squared_error(prediction: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """Mean squared error of each sample, in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def total(losses: Mapping[str, Float[Tensor, "b"]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """The weighted sum of all terms, averaged over the batch.

    Raises LaminaError unless losses and weights name the same terms.
    """
    if losses.keys() != weights.keys():
        raise LaminaError(f"losses {sorted(losses)} and weights {sorted(weights)} name different terms")
    return torch.stack([weights[name] * loss.float().mean() for name, loss in losses.items()]).sum()
