"""Structure metrics: composition, inverse and identity error, and the correlation of the latent's norm with displacement.

Scaling all latents down lowers every raw error, so each error is also divided by the mean latent norm. An encoder that returns the same
latent for every transition is flagged as collapsed. The scores of a collapsed encoder are invalid, and so are those of a model whose
decoder ignores the latent (:func:`lamina.evaluation.probes.usage.latent_use`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lamina.inference.subject import Subject, Vectors
from lamina.intervals import Estimate, bootstrap_correlation, bootstrap_mean, bootstrap_ratio

#: Share of a latent's mean length that varies over transitions, below which an encoder is called collapsed.
MIN_DISPERSION = 0.01

Frames = UInt8[Tensor, "n t c h w"]
Rows = Int[Tensor, "n"]


@dataclass(frozen=True)
class Error:
    """A mean error, and the same divided by a mean length of the latent; each with its interval."""

    raw: Estimate
    relative: Estimate


def spread(z: Vectors) -> float:
    """Mean distance of the latents from their mean, over their mean length: 0 for a constant encoder; 0 for all zeros."""
    length = float(z.norm(dim=1).mean())
    return float((z - z.mean(0)).norm(dim=1).mean()) / length if length > 0 else 0.0


def error(vector: Vectors, scale: Vectors, episode: Rows, power: int = 1) -> Error:
    """Mean length (``power`` 1) or squared length (2) of ``vector``, and the same over that of ``scale``."""
    above, below = (v.double().norm(dim=1).pow(power).numpy() for v in (vector, scale))
    return Error(bootstrap_mean(above, episode.numpy()), bootstrap_ratio(above, below, episode.numpy()))


# ------------------------------------------------------------------------------------------------------ ALAM, section 4.1


@dataclass(frozen=True)
class Horizon:
    """Errors at t strides. ``addition`` of one stride is zero by construction."""

    t: int
    seen: bool  # training has met this horizon
    addition: Error  # Add(t) = E |z_a^tk - Z_t|, Z_t the sum of t short latents
    reversal: Error  # Rev(t) = E |z_a^tk + z_tk^a|
    length: Estimate  # E |z_a^tk|


def horizons(subject: Subject, frames: Frames, episode: Rows, seen: int) -> list[Horizon]:
    """Add(t) and Rev(t) for t = 1 .. T on windows of T + 1 frames, a stride apart; strides up to ``seen`` were trained on."""
    steps = [subject.actions(frames[:, i], frames[:, i + 1]) for i in range(frames.shape[1] - 1)]
    found = []
    for t in range(1, frames.shape[1]):
        direct = steps[0] if t == 1 else subject.actions(frames[:, 0], frames[:, t])
        back = subject.actions(frames[:, t], frames[:, 0])
        found.append(
            Horizon(
                t,
                t <= seen,
                error(direct - torch.stack(steps[:t]).sum(0), direct, episode),
                error(direct + back, direct, episode),
                bootstrap_mean(direct.norm(dim=1), episode.numpy()),
            )
        )
    return found


# ------------------------------------------------------------------------------------------------ AC-LAM, section 4.2


@dataclass(frozen=True)
class Structure:
    """The four metrics of AC-LAM's Table 1. ``displacement`` is None where the data has no proprioception."""

    composition: Error  # Eq. 7, squared lengths: E |z_ik - z_ij - z_jk|^2 / E |z_ij|^2
    identity: Error  # Eq. 9: E |z_ii| / E |z_ij|
    inverse: Error  # Eq. 10: E |z_ij + z_ji| / E |z_ij|
    displacement: Estimate | None  # Eq. 8: r(|z_ij|, |s_j - s_i|)
    spread: float

    @property
    def collapsed(self) -> bool:
        """All transitions have the same latent."""
        return self.spread < MIN_DISPERSION


def structure(
    subject: Subject, frames: Frames, episode: Rows, state: Float[Tensor, "n t q"] | None = None
) -> Structure:
    """The metrics on triplets i < j < k (the first three frames of each sample).

    The displacement of each of the pairs ij, jk and ik counts, so that there are short and long ones.
    """
    i, j, k = (frames[:, n] for n in range(3))
    z = {pair: subject.actions(a, b) for pair, (a, b) in {"ij": (i, j), "jk": (j, k), "ik": (i, k)}.items()}
    displacement = None
    if state is not None:
        change = torch.cat([state[:, b] - state[:, a] for a, b in ((0, 1), (1, 2), (0, 2))])
        lengths = torch.cat([z[pair].norm(dim=1) for pair in ("ij", "jk", "ik")])
        displacement = correlation(lengths.numpy(), rescaled(change.numpy()), episode.repeat(3).numpy())
    return Structure(
        composition=error(z["ik"] - z["ij"] - z["jk"], z["ij"], episode, power=2),
        identity=error(subject.actions(i, i), z["ij"], episode),
        inverse=error(z["ij"] + subject.actions(j, i), z["ij"], episode),
        displacement=displacement,
        spread=spread(z["ij"]),
    )


def rescaled(change: Float[np.ndarray, "n q"]) -> Float[np.ndarray, "n"]:
    """|s_j - s_i| with each channel's change rescaled by the quantiles of the data (AC-LAM App. C): the 1st percentile of its size
    is 0, the 99th is 1, and what lies outside is clipped. A constant channel does not count.
    """
    size = np.abs(change)
    low, high = np.quantile(size, [0.01, 0.99], axis=0)
    reach = np.where(high > low, high - low, np.inf)
    return np.linalg.norm(np.clip((size - low) / reach, 0, 1), axis=1)


def balance(magnitude: Float[np.ndarray, "n"], bins: int = 10) -> Float[np.ndarray, "n"]:
    """Weights under which ``magnitude`` is uniform over its range, up to bins (AC-LAM App. C samples so; weights lose no data)."""
    edges = np.linspace(magnitude.min(), magnitude.max(), bins + 1)[1:-1]
    places = np.digitize(magnitude, edges)
    return 1.0 / np.bincount(places, minlength=bins)[places]


def correlation(
    length: Float[np.ndarray, "n"], magnitude: Float[np.ndarray, "n"], episode: Int[np.ndarray, "n"]
) -> Estimate:
    """Pearson's r of latent length and displacement, balanced over displacements (Eq. 8, 11); NaN if either never varies."""
    return bootstrap_correlation(length, magnitude, balance(magnitude), episode)
