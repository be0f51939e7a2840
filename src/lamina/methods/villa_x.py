"""villa-X's latent action model: a proprioceptive forward model grounds the latent (arXiv 2507.23682).

    lamina train villa_x --data DATASET --out RUN

Four tokens of a codebook of 32, a transformer that predicts the second frame, and an MLP that predicts the robot's state q_j from
(q_i, z_ij). Sizes of the code are those of the authors' released model; the proprioceptive part is as AC-LAM's App. A.1 describes it.

Deviations: the state alone is predicted, not the actions too (no action labels here), and without an embodiment context; pairs in
the place of windows of eight frames; latents are whitened by the batch; codes are moved by EMA; frames are embedded once and meet in
query slots; no random crops; one option, `--size`, sets all widths and depths.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamina.methods.base import DecoderName, MethodConfig, MethodLosses, pair_losses
from lamina.models.bottlenecks.vq import VQ
from lamina.models.bottlenecks.whitening import Whitening
from lamina.models.config import LAMConfig


@dataclass(frozen=True)
class Config(MethodConfig):
    decoder: DecoderName = "pixel"
    whiten: Whitening = "batch"
    slots: int = 4
    codebook_size: int = 32
    code_dim: int = 32
    commitment: float = 0.25
    state: float = 1.0
    proprio: str | None = "observation.state"
    """feature that holds the proprioception, where the data has it"""
    proprio_width: int = 0
    """its size; filled in from the data"""


def build(config: Config) -> LAMConfig:
    bottleneck = VQ.Config(config.codebook_size, config.code_dim)
    return LAMConfig(**config.parts(), bottleneck=bottleneck, state=config.proprio_width)


def weights(config: Config) -> dict[str, float]:
    terms = {"reconstruction": 1.0, "commitment": config.commitment}
    return terms | ({"state": config.state} if config.proprio_width else {})


def losses(config: Config) -> MethodLosses:
    return pair_losses
