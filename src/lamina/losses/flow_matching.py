"""Rectified flow: time direction, interpolation, sampling of t, and the ODE step.

t = 0 is data, t = 1 is noise:   x_t = (1 - t) x + t e,   velocity v = dx_t/dt = e - x   (Liu et al. 2023; ALAM Eq. 12).

``shift`` s moves all times towards the noise, t -> s t / (1 + (s - 1) t), in training and sampling alike: pictures of more pixels need
more noise to be hidden as well (Esser et al. 2024, Eq. 23). 1 changes nothing; Stable Diffusion 3 has 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lamina.rng import Rng

#: Below this t the velocity of a data prediction, (x_t - x) / t, is not divided further: it would amplify rounding.
SMALLEST_T = 0.05


def _like(t: Float[Tensor, "b"], x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    return rearrange(t, "b -> b" + " 1" * (x.ndim - 1))


Time = TypeVar("Time", float, Tensor)


def shifted(t: Time, shift: float) -> Time:
    """The time t in [0, 1], moved towards the noise by ``shift``, as diffusers' FlowMatchEulerDiscreteScheduler does it."""
    return shift * t / (1 + (shift - 1) * t)


def sample_time(rng: Rng, batch: int, shift: float = 1.0) -> Float[Tensor, "b"]:
    """t in (0, 1), logit-normal(0, 1): more weight in the middle, where the task is hardest (Esser et al. 2024, §3.1); then shifted."""
    return shifted(torch.sigmoid(rng.normal(batch)), shift)


def sample_late_time(rng: Rng, batch: int) -> Float[Tensor, "b"]:
    """t = 0.001 + 0.999 Beta(1.5, 1): more weight near the noise, where an action has to be decided (pi0; ALAM Eq. 12)."""
    return 0.001 + 0.999 * rng.uniform(batch) ** (1 / 1.5)  # the inverse of the distribution function x^1.5


def interpolate(
    x: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], t: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """The point x_t on the straight line from data to noise."""
    t = _like(t, x)
    return (1 - t) * x + t * noise


def velocity(x: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """The velocity of that line, which the flow model regresses."""
    return noise - x


def velocity_of_data(
    x_t: Float[Tensor, "b ..."], x: Float[Tensor, "b ..."], t: Float[Tensor, "b"], smallest: float = SMALLEST_T
) -> Float[Tensor, "b ..."]:
    """The velocity that a prediction ``x`` of the data implies at x_t. ``smallest``: a t below it counts as that; 0 where the step to t = 0
    must reach ``x``."""
    return (x_t - x) / _like(t, x).clamp_min(smallest)


def integrate(
    field: Callable[[Float[Tensor, "b ..."], Float[Tensor, "b"]], Float[Tensor, "b ..."]],
    noise: Float[Tensor, "b ..."],
    steps: int,
    shift: float = 1.0,
) -> Float[Tensor, "b ..."]:
    """Euler steps from noise (t = 1) to data (t = 0) along ``field(x_t, t)``, of equal length before the ``shift``."""
    x = noise
    times = [shifted(1 - i / steps, shift) for i in range(steps + 1)]
    for now, then in itertools.pairwise(times):
        t = torch.full((len(x),), now, device=x.device, dtype=x.dtype)
        x = x - (now - then) * field(x, t)
    return x


def data_of_velocity(
    x_t: Float[Tensor, "b ..."], v: Float[Tensor, "b ..."], t: Float[Tensor, "b"]
) -> Float[Tensor, "b ..."]:
    """The data that a predicted velocity ``v`` at x_t implies."""
    return x_t - _like(t, x_t) * v
