"""Latent usage: the gain in dB of the right latent over other ones. If the decoder ignores the latent, its structure scores are invalid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lamina.inference.subject import Images, Subject
from lamina.intervals import Estimate, bootstrap_mean

#: Gain in dB that the interval of both gains must lie above.
MIN_USAGE_DB = 0.1


@dataclass(frozen=True)
class LatentUse:
    """Gain of the right latent, dB: over another transition's latent, over the mean latent, and over predicting no change."""

    another: Estimate
    mean: Estimate
    copy: Estimate

    @property
    def used(self) -> bool:
        return min(self.another.low, self.mean.low) > MIN_USAGE_DB

    def text(self) -> str:
        """The gains in words."""
        gains = (
            f"the right latent predicts {self.another.mean:+.2f} dB ({self.another.low:+.2f} to {self.another.high:+.2f}) better than "
            f"another transition's and {self.mean.mean:+.2f} dB ({self.mean.low:+.2f} to {self.mean.high:+.2f}) better than the mean latent"
        )
        return gains if self.used else f"the latent is ignored ({gains})"


def latent_use(subject: Subject, src: Images, dst: Images, episode: Int[Tensor, "n"]) -> LatentUse:
    """Gains on the pairs (src, dst). Another transition's latent: of the pair half the set away, so mostly of another episode."""
    z = subject.latents(src, dst)
    right = subject.error(src, z, dst)
    baselines = {
        "another": subject.error(src, z.roll(len(z) // 2, 0), dst),
        "mean": subject.error(src, z.mean(0, keepdim=True).expand_as(z), dst),
        "copy": (subject.target(src) - subject.target(dst)).square().flatten(1).mean(1).double().cpu(),
    }
    gains = {name: 10 * torch.log10(e.clamp_min(1e-12) / right.clamp_min(1e-12)) for name, e in baselines.items()}
    return LatentUse(**{name: bootstrap_mean(gain, episode) for name, gain in gains.items()})
