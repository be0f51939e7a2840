"""Unrelated pairs: does the decoder also reconstruct a frame that never follows, such as one behind a cut?

A latent of the change cannot describe another scene. Where it does, its code has room for the whole next frame, and the encoder need not
look for what the agent did.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamina.evaluation.probes.horizon import other_episode
from lamina.inference.subject import Images, Subject
from lamina.intervals import Estimate, bootstrap_ratio
from lamina.types import Clip


@dataclass(frozen=True)
class Unrelated:
    """Share of the squared error that the right latent takes off the error with another transition's: of frames of other episodes, and of
    the frames that follow. 1: drawn without error; 0: no better than with a wrong latent."""

    unrelated: Estimate
    following: Estimate


def unrelated(subject: Subject, clip: Clip) -> Unrelated:
    """Scores of the first pairs of ``clip``, and of each first frame with a frame of another episode (half the samples away where there is
    only one)."""
    src, dst = clip.frames[:, 0], clip.frames[:, 1]
    elsewhere = dst[other_episode(clip.episode, clip.episode)]

    def explained(target: Images) -> Estimate:
        z = subject.latents(src, target)
        right, wrong = subject.error(src, z, target), subject.error(src, z.roll(len(z) // 2, 0), target)
        return bootstrap_ratio(right.numpy(), wrong.numpy(), clip.episode.numpy()).complement()

    return Unrelated(explained(elsewhere), explained(dst))
