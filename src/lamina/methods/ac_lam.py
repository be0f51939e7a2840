"""AC-LAM: additively compositional latent actions (arXiv 2604.03340, §3, Eq. 5-6, App. A.1), on villa-X's design.

    lamina train ac_lam --data DATASET --out RUN --gap 0.1 3

Triplets i < j < k of one trajectory, gaps in seconds, at most `--span` seconds from i to k (§4.1). The three forward pairs are
reconstructed; and o_k once more from o_i and the SUM z_ij + z_jk of the quantised latents (Eq. 5). Where the data has proprioception,
an MLP predicts q_j from (q_i, z_ij).

`--form` gives the ablations of Table 5: `fdm` is the default; `fdm-pre` sums before the quantiser, and the decoder reads that sum as it
is; `idm` asks for z_ik = z_ij + z_jk directly (Eq. 4); `idm-stop-direct` stops the gradient at z_ik, `idm-stop-sum` at z_ij + z_jk. A run
whose latents collapse or explode is stopped by the validation, which names what happened.

Deviations:
- `--rotation 3 4 5` names the columns of the state that hold roll, pitch and yaw; triples that turn by more than `--max-rotation` radians
  then have no composition term, but their pairs are still reconstructed (the paper drops them from the data).
- The state's change is predicted, in units of its spread, by one head (the paper: two, unnamed).
- Latents are whitened by the batch (`--whiten batch`); scaled by the first batch alone, or not at all, the decoder learned to ignore them
  on data without a robot's state.
- Codes are moved by EMA; frames are embedded once and meet in query slots; no colour jitter.
- One option, `--size`, sets all widths and depths.
- `--mixture` (ours) decodes o_k from lambda z_ik + (1 - lambda)(z_ij + z_jk), lambda uniform on [0, 1]: between the two latents the decoder
  finds no place at which to tell a sum from a pair.
- With a bottleneck of K slots, sums are taken slot by slot and truncated after: ours, no paper does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError
from lamina.losses.algebra import composition
from lamina.methods.base import DecoderName, LossOutput, MethodConfig, MethodLosses, mean_aux, state_loss, triplets
from lamina.models.bottlenecks.vq import VQ
from lamina.models.bottlenecks.whitening import Whitening
from lamina.models.config import LAMConfig
from lamina.models.features import ClipView
from lamina.models.lam import LAM, Pair
from lamina.rng import Rng
from lamina.types import Clip, Latent

Form = Literal["fdm", "fdm-pre", "idm", "idm-stop-direct", "idm-stop-sum"]


OBJECTIVE_FRAMES = 3


@dataclass(frozen=True)
class Config(MethodConfig):
    decoder: DecoderName = "pixel"
    whiten: Whitening = "batch"
    frames: int = 3
    """frames of one training sample; every neighbouring triplet is trained on"""
    slots: int = 4
    codebook_size: int = 32
    code_dim: int = 32
    form: Form = "fdm"
    """where and how composition is asked for (Table 5)"""
    mixture: bool = False
    """decode a random mixture of z_ik and z_ij + z_jk in place of the sum (ours)"""
    composition: float = 1.0
    commitment: float = 0.25
    state: float = 1.0
    proprio: str | None = "observation.state"
    """feature that holds the proprioception, where the data has it"""
    proprio_width: int = 0
    """its size; filled in from the data"""
    rotation: tuple[int, ...] = ()
    """columns of the proprioception that hold roll, pitch and yaw, radians"""
    max_rotation: float = 0.5
    """radians from o_i to o_k beyond which a triple does not compose"""
    span: float | None = 3.0
    """longest time from o_i to o_k, seconds, whatever --gap allows (§4.1: 3 for robots, 2 for people)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture and not self.form.startswith("fdm"):
            raise LaminaError(
                f"--mixture is of latents that are decoded, which --form {self.form} does not do: use fdm or fdm-pre"
            )
        if len(self.rotation) not in (0, 3):
            raise LaminaError(
                f"--rotation names three columns of the proprioception (roll, pitch, yaw), not {len(self.rotation)}"
            )


def build(config: Config) -> LAMConfig:
    bottleneck = VQ.Config(config.codebook_size, config.code_dim)
    return LAMConfig(**config.parts(), bottleneck=bottleneck, state=config.proprio_width)


def weights(config: Config) -> dict[str, float]:
    terms = {"reconstruction": 1.0, "commitment": config.commitment, "composition": config.composition}
    return terms | ({"state": config.state} if config.proprio_width else {})


def losses(config: Config) -> MethodLosses:
    def terms(lam: LAM, view: ClipView, rng: Rng) -> LossOutput:
        groups = triplets(view.length)
        pairs = dict.fromkeys(pair for i, j, k in groups for pair in ((i, j), (j, k), (i, k)))
        latents = lam.encode(view, list(pairs))
        keep = lam.prefix.draw(rng, len(view))
        composed = []
        for i, j, k in groups:
            steps = latents.own[i, j], latents.own[j, k], latents.own[i, k]
            loss = composition_loss(config.form, lam, view, steps, (i, k), keep, rng, config.mixture)
            composed.append(loss * _small_rotation(config, view.clip, i, k))
        found = {
            "reconstruction": lam.reconstruction(view, latents.own, keep, rng),
            "composition": torch.stack(composed).mean(0),
            **mean_aux(latents.own),
            **state_loss(lam, view.clip, latents.own),
        }
        return LossOutput(found, latents)

    return terms


def composition_loss(
    form: Form,
    lam: LAM,
    view: ClipView,
    steps: tuple[Latent, Latent, Latent],
    ends: Pair,
    keep: Tensor,
    rng: Rng,
    mixture: bool = False,
) -> Float[Tensor, "b"]:
    """The composition term of one triplet i < j < k (Eq. 5, Table 5).

    ``steps``: the latents z_ij, z_jk and z_ik; ``ends``: (i, k); ``keep``: each sample's prefix length. ``mixture``: decode a mixture of
    z_ik and the sum, of its own share for each sample.
    """
    ij, jk, ik = steps
    match form:
        case "fdm" | "fdm-pre":
            summed, direct = (ij.post + jk.post, ik.post) if form == "fdm" else (ij.pre + jk.pre, ik.pre)
            if mixture:
                summed = torch.lerp(summed, direct, rng.uniform(len(view), 1, 1))
            return lam.reconstruction(view, {ends: replace(ik, post=summed)}, keep, rng)
        case "idm":
            return composition(ij.post, jk.post, ik.post)
        case "idm-stop-direct":
            return composition(ij.post, jk.post, ik.post.detach())
        case "idm-stop-sum":
            return composition(ij.post.detach(), jk.post.detach(), ik.post)


def _small_rotation(config: Config, clip: Clip, i: int, k: int) -> Float[Tensor, "b"]:
    """1 where the turn from frame i to frame k is small enough to compose, 0 elsewhere."""
    if not config.rotation:
        return torch.ones(len(clip), device=clip.frames.device)
    if clip.proprio is None or max(config.rotation) >= clip.proprio.shape[2]:
        have = 0 if clip.proprio is None else clip.proprio.shape[2]
        raise LaminaError(
            f"--rotation {' '.join(map(str, config.rotation))}: the data's proprioception has {have} columns"
        )
    angles = clip.proprio[:, :, list(config.rotation)]
    return (rotation(angles[:, i], angles[:, k]) <= config.max_rotation).float()


def rotation(first: Float[Tensor, "b 3"], second: Float[Tensor, "b 3"]) -> Float[Tensor, "b"]:
    """Angle between two orientations, radians in [0, pi]; each as roll, pitch and yaw in radians (R = Rz Ry Rx)."""
    turn = _matrix(first).transpose(1, 2) @ _matrix(second)
    return torch.acos(((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))


def _matrix(angles: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    (sr, sp, sy), (cr, cp, cy) = angles.double().sin().unbind(1), angles.double().cos().unbind(1)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
