"""Training objectives as pure functions: per-sample losses [b], never reduced over the batch.

The losses that a decoder owns (`decoder.loss`) are not repeated here: rectified flow regresses a velocity, so only the decoder
knows what its error is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def squared_error(prediction: Float[Tensor, "b ..."], target: Float[Tensor, "b ..."]) -> Float[Tensor, "b"]:
    """Mean squared error of each sample, in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def total(losses: Mapping[str, Float[Tensor, "b"]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """The weighted sum of all terms, averaged over the batch.

    Raises ValueError unless every loss has a weight and every weight has a loss: a forgotten term must not pass in silence.
    """
    if losses.keys() != weights.keys():
        raise ValueError(f"losses {sorted(losses)} and weights {sorted(weights)} name different terms")
    return torch.stack([weights[name] * loss.float().mean() for name, loss in losses.items()]).sum()
