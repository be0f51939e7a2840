"""The generative framework: what is predicted at a time between data (t = 0) and noise (t = 1), and how a sample is made from noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError
from lamina.losses.flow_matching import integrate, interpolate, sample_late_time, velocity
from lamina.policies.flow.config import FlowConfig
from lamina.rng import Rng

Field = Callable[[Float[Tensor, "b d"], Float[Tensor, "b"]], Float[Tensor, "b d"]]


class FlowMatching:
    """The velocity of the straight line from data to noise; Euler steps (ALAM Eq. 12-15).

    The error is absolute in ALAM (Eq. 13) and squared in villa-X (Eq. 5).
    """

    def __init__(self, squared: bool):
        self.squared = squared

    def time(self, draws: Rng, batch: int) -> Float[Tensor, "b"]:
        """Times of training, the same for latents and actions."""
        return sample_late_time(draws, batch)

    def noised(self, x: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], time: Float[Tensor, "b"]) -> Tensor:
        """What lies between data and noise at ``time``."""
        return interpolate(x, noise, time)

    def target(self, x: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """What the network predicts."""
        return velocity(x, noise)

    def sample(self, field: Field, noise: Float[Tensor, "b d"], steps: int) -> Float[Tensor, "b d"]:
        """Data from noise, by ``steps`` calls of the network."""
        return integrate(field, noise, steps)


class Diffusion:
    """The noise itself (DDPM with a cosine schedule, as in Diffusion Policy, Chi et al. 2023); DDIM steps. Needs the diffusers library."""

    TIMES = 100  # of training
    RANGE = (
        5.0  # of data, in standard deviations: near the noise the data's estimate is a quotient of two small numbers
    )
    squared = True

    def __init__(self) -> None:
        try:
            from diffusers import DDIMScheduler
        except ImportError as error:
            raise LaminaError(
                "--framework diffusion needs the diffusers library: pip install lamina[diffusion]"
            ) from error
        self.scheduler: Any = DDIMScheduler(
            num_train_timesteps=self.TIMES, beta_schedule="squaredcos_cap_v2", clip_sample_range=self.RANGE
        )

    def time(self, draws: Rng, batch: int) -> Float[Tensor, "b"]:
        """Uniform over the schedule's times 1/T, 2/T, ..., 1."""
        return (1 + (draws.uniform(batch) * self.TIMES).long()) / self.TIMES

    def noised(self, x: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], time: Float[Tensor, "b"]) -> Tensor:
        """What lies between data and noise at ``time``."""
        return self.scheduler.add_noise(x, noise, (time * self.TIMES).round().long() - 1)

    def target(self, x: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """What the network predicts."""
        return noise

    def sample(self, field: Field, noise: Float[Tensor, "b d"], steps: int) -> Float[Tensor, "b d"]:
        """Data from noise, by ``steps`` calls of the network."""
        self.scheduler.set_timesteps(steps)
        x = noise
        for step in self.scheduler.timesteps.tolist():
            time = torch.full((len(x),), (step + 1) / self.TIMES, device=x.device, dtype=x.dtype)
            x = self.scheduler.step(field(x, time), step, x).prev_sample
        return x


def framework_of(config: FlowConfig) -> FlowMatching | Diffusion:
    """The one that ``config`` names. Raises LaminaError for diffusion without its library."""
    return Diffusion() if config.framework == "diffusion" else FlowMatching(config.form == "villa_x")
