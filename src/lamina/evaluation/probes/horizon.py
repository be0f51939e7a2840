"""Decoded composition: direct and summed latents decoded over growing horizons (ALAM §4.1, Fig. 4B), and from another start frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lamina.evaluation.probes.reconstruction import load_lpips, psnr, ssim
from lamina.inference.subject import Images, Subject

Frames = UInt8[Tensor, "n t c h w"]
#: Scores of each sample by metric: psnr (dB), ssim, and lpips where its weights are on the machine.
Scores = dict[str, Float[np.ndarray, "n"]]


@dataclass(frozen=True)
class HorizonScore:
    """Predictions of the frame t strides ahead: D(o_0, z_0^t), D(o_0, z_0^1 + ... + z_(t-1)^t), and no change."""

    t: int
    seen: bool  # training has met this horizon
    direct: Scores
    cumulative: Scores
    copy: Scores


def scores(predicted: Images, target: Images) -> Scores:
    """PSNR, SSIM, and LPIPS where its weights are on this machine."""
    found = {"psnr": psnr(predicted, target).numpy(), "ssim": ssim(predicted, target).numpy()}
    lpips = load_lpips()
    return found | ({"lpips": lpips(predicted, target).numpy()} if lpips else {})


def reconstruct_horizons(subject: Subject, frames: Frames, seen: int) -> list[HorizonScore]:
    """Scores for t = 1 .. T on windows of T + 1 frames, a stride apart; strides up to ``seen`` were trained on."""
    start, found = frames[:, 0], []
    total = torch.zeros(1)
    for t in range(1, frames.shape[1]):
        total = total + subject.latents(frames[:, t - 1], frames[:, t])
        direct = subject.latents(start, frames[:, t])
        pictures = (subject.draw(start, direct), subject.draw(start, total), start)
        found.append(HorizonScore(t, t <= seen, *(scores(picture, frames[:, t]) for picture in pictures)))
    return found


@dataclass(frozen=True)
class Transfer:
    """Latents of triplets i < j < k decoded from a start frame o' of another episode: agreement of the direct and the composed prediction,
    and as its chance level the agreement of the direct one with the prediction from another triplet's latent."""

    agreement: Float[np.ndarray, "n"]  # PSNR of D(o', z_ik) and D(o', z_ij + z_jk)
    by_chance: Float[np.ndarray, "n"]  # PSNR of D(o', z_ik) and D(o', z_ik of another triplet)
    moved: Float[np.ndarray, "n"]  # PSNR of D(o', z_ik) and o': 60 dB: no change

    @property
    def margin(self) -> Float[np.ndarray, "n"]:
        """Agreement above chance, dB."""
        return self.agreement - self.by_chance


def transfer(subject: Subject, frames: Frames, start: Images) -> Transfer:
    """``frames``: triplets; ``start``: o' of each, from another episode (AC-LAM App. E.1; ALAM App. E)."""
    i, j, k = (frames[:, n] for n in range(3))
    z = subject.latents(i, k)
    direct = subject.draw(start, z)
    composed = subject.draw(start, subject.latents(i, j) + subject.latents(j, k))
    other = subject.draw(start, z.roll(len(z) // 2, 0))
    pairs = ((direct, composed), (direct, other), (direct, start))
    return Transfer(*(psnr(a, b).numpy() for a, b in pairs))


def other_episode(pool: Int[Tensor, "m"], episode: Int[Tensor, "n"]) -> list[int]:
    """For each of ``episode`` a row of ``pool`` (episode numbers) of another episode; if there is none, the row half the pool away."""
    rows = []
    for n, number in enumerate(episode):
        others = (pool != number).nonzero().flatten()
        rows.append(int(others[(n * 7919) % len(others)]) if len(others) else (n + len(pool) // 2) % len(pool))
    return rows
