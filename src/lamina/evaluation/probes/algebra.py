"""Structure metrics: composition, inverse and identity error, and the correlation of the latent's norm with displacement.

Scaling all latents down lowers every raw error, so each error is also divided by the mean latent norm. An encoder that returns the same
latent for every transition is flagged as collapsed. The scores of a collapsed encoder are invalid, and so are those of a model whose
decoder ignores the latent (:func:`lamina.evaluation.probes.usage.latent_use`).

Two more readings tell where an error comes from. Without the offset: the mean latent of two identical frames is subtracted from every
latent. For z = c + additive, with |c|^2 a share m of the mean squared length, Eq. 7 is m, Eq. 9 sqrt(m) and Eq. 10 2 sqrt(m) (these two for
latents of one length); without the offset all are 0. As the decoder reads it: each difference of latents is measured by its effect on the
decoder's loss (:func:`lamina.inference.directions.read_by_decoder`), so that numbers which the decoder ignores do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    addition_read: Error | None = None  # the same two as the decoder reads the latents; None where that is not known
    reversal_read: Error | None = None


def horizons(
    subject: Subject, frames: Frames, episode: Rows, seen: int, read: Float[Tensor, "d m"] | None = None
) -> list[Horizon]:
    """Add(t) and Rev(t) for t = 1 .. T on windows of T + 1 frames, a stride apart; strides up to ``seen`` were trained on.

    ``read``: the map to what the decoder reads of a latent.
    """
    steps = [subject.actions(frames[:, i], frames[:, i + 1]) for i in range(frames.shape[1] - 1)]
    found = []
    for t in range(1, frames.shape[1]):
        direct = steps[0] if t == 1 else subject.actions(frames[:, 0], frames[:, t])
        back = subject.actions(frames[:, t], frames[:, 0])
        residuals = {"addition": direct - torch.stack(steps[:t]).sum(0), "reversal": direct + back}
        errors = {name: error(residual, direct, episode) for name, residual in residuals.items()}
        if read is not None:
            errors |= {f"{name}_read": error(r @ read, direct @ read, episode) for name, r in residuals.items()}
        found.append(Horizon(t, t <= seen, length=bootstrap_mean(direct.norm(dim=1), episode.numpy()), **errors))
    return found


# ------------------------------------------------------------------------------------------------ AC-LAM, section 4.2


@dataclass(frozen=True)
class Errors:
    """The three errors of AC-LAM's Table 1."""

    composition: Error  # Eq. 7, squared lengths: E |z_ik - z_ij - z_jk|^2 / E |z_ij|^2
    identity: Error  # Eq. 9: E |z_ii| / E |z_ij|
    inverse: Error  # Eq. 10: E |z_ij + z_ji| / E |z_ij|


@dataclass(frozen=True)
class Structure(Errors):
    """The four metrics of AC-LAM's Table 1, and its errors in two other readings. ``displacement`` is None where the data has no
    proprioception."""

    displacement: Estimate | None  # Eq. 8: r(|z_ij|, |s_j - s_i|)
    spread: float
    offset: Estimate  # the offset's share: |E z_ii|^2 / E |z_ij|^2
    centred: Errors  # without the offset: of z - E z_ii
    read: Errors | None = None  # as the decoder reads the latents; None where that is not known

    @property
    def collapsed(self) -> bool:
        """All transitions have the same latent."""
        return self.spread < MIN_DISPERSION


def errors(z: Mapping[str, Vectors], episode: Rows) -> Errors:
    """The three errors of the latents of the pairs ij, jk, ik, ji and ii."""
    return Errors(
        composition=error(z["ik"] - z["ij"] - z["jk"], z["ij"], episode, power=2),
        identity=error(z["ii"], z["ij"], episode),
        inverse=error(z["ij"] + z["ji"], z["ij"], episode),
    )


def structure(
    subject: Subject,
    frames: Frames,
    episode: Rows,
    state: Float[Tensor, "n t q"] | None = None,
    read: Float[Tensor, "d m"] | None = None,
) -> Structure:
    """The metrics on triplets i < j < k (the first three frames of each sample).

    The displacement of each of the pairs ij, jk and ik counts, so that there are short and long ones. ``read``: the map to what the decoder
    reads of a latent.
    """
    i, j, k = (frames[:, n] for n in range(3))
    pairs = {"ij": (i, j), "jk": (j, k), "ik": (i, k), "ji": (j, i), "ii": (i, i)}
    z = {pair: subject.actions(a, b) for pair, (a, b) in pairs.items()}
    displacement = None
    if state is not None:
        change = torch.cat([state[:, b] - state[:, a] for a, b in ((0, 1), (1, 2), (0, 2))])
        lengths = torch.cat([z[pair].norm(dim=1) for pair in ("ij", "jk", "ik")])
        displacement = correlation(lengths.numpy(), rescaled(change.numpy()), episode.repeat(3).numpy())
    plain, offset = errors(z, episode), z["ii"].mean(0)
    return Structure(
        composition=plain.composition,
        identity=plain.identity,
        inverse=plain.inverse,
        displacement=displacement,
        spread=spread(z["ij"]),
        offset=error(offset.expand_as(z["ij"]), z["ij"], episode, power=2).relative,
        centred=errors({pair: latent - offset for pair, latent in z.items()}, episode),
        read=None if read is None else errors({pair: latent @ read for pair, latent in z.items()}, episode),
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
