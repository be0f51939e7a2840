"""A check that paired views show the same states, which cross-exogenous training and its probes assume."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError
from lamina.images import to_float
from lamina.intervals import Estimate, bootstrap_mean
from lamina.types import Clip

SIDE = 12  # pixels along each side of the small pictures that are compared
MIN_TRANSITIONS = 64  # fewer transitions do not allow a decision
LEAST = 0.05  # share of the variance by which views of the same states predict each other better, at least


def same_states(clip: Clip, seed: int = 0) -> Estimate:
    """How much better the change in one view predicts the change in its paired view than that of another moment.

    The held-out squared error of a ridge regression to the paired view is subtracted from that to the view of a moment half the samples
    away, in units of the target's variance; :func:`are_related` reads it. Fitted on every second sample, scored on the others. Raises
    LaminaError without paired views, or with too few samples to decide.
    """
    if clip.paired is None:
        raise LaminaError("this data has no paired views to compare")
    if len(clip) < MIN_TRANSITIONS:
        raise LaminaError(f"{len(clip)} transitions are too few to tell whether paired views show the same states")
    from sklearn.linear_model import RidgeCV  # here: it takes a second to import, and every training reads this file

    x, y = (_change(to_float(frames)) for frames in (clip.frames, clip.paired))
    fit, held = torch.arange(0, len(clip), 2), torch.arange(1, len(clip), 2)

    def error(target: Float[Tensor, "n f"]) -> Float[np.ndarray, "m"]:
        ridge = RidgeCV(alphas=[1.0, 10.0, 100.0, 1000.0, 10_000.0]).fit(x[fit].numpy(), target[fit].numpy())
        return np.square(ridge.predict(x[held].numpy()) - target[held].numpy()).sum(1)

    right, wrong = error(y), error(y.roll(len(y) // 2, 0))
    # Each error over its own target's spread: the shifted targets are the same numbers in other places.
    spread = float((y - y.mean(0)).square().sum(1).mean())
    return bootstrap_mean((wrong - right) / max(spread, 1e-12), clip.episode[held].numpy(), seed)


def are_related(alike: Estimate) -> bool:
    """Whether an estimate of :func:`same_states` says that two views show the same states.

    The interval alone does not: resampled from two or three episodes it is too narrow, and a quarter of unrelated pairs of views had one
    above 0, with means of up to 0.035. Views of the same states had 0.3 to 0.5.
    """
    return alike.low > 0 and alike.mean > LEAST


def _change(frames: Float[Tensor, "n t c h w"]) -> Float[Tensor, "n f"]:
    """The first pair's difference, grey and small, for each sample of one length: views differ in colour and contrast."""
    grey = frames[:, :2].mean(2)
    change = F.interpolate((grey[:, 1] - grey[:, 0])[:, None], (SIDE, SIDE), mode="area").flatten(1).double()
    return change / change.norm(dim=1, keepdim=True).clamp_min(1e-6)
