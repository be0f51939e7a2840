"""UniVLA's latent action model: task-centric latents in two stages, in feature space (arXiv 2505.06111, §3.1).

    lamina train univla --data DATASET --out RUN1
    lamina train univla --stage 2 --init RUN1 --data DATASET --out RUN

`--space facebook/dinov2-base` reads and predicts DINOv2's patches, as the paper does; `--space efficientnet-lite0` the features of a
smaller network, whose weights can be installed (docs/spaces.md). Both stages need the same.

Slots are two halves with a codebook of 16 each. Stage 1: an instruction vector replaces the first half in the decoder's input, so the
second half learns what the instruction does not determine (task-irrelevant codes). Stage 2: task-centric codes replace the instruction
vector, and the codebook of the second half is frozen. The latent action is the second half after stage 1, the first half after stage 2.

Deviations: by default features of a frozen random network stand in for DINOv2's; a fixed random vector for each word stands in for T5's
embeddings; the instruction enters the decoder only, not the encoder too; latents are scaled by the first batch; codes are moved by EMA;
frames are embedded once and meet in query slots; one option, `--size`, sets all widths and depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lamina.errors import LaminaError
from lamina.methods.base import (
    DecoderName,
    EncoderName,
    LossOutput,
    MethodConfig,
    MethodLosses,
    mean_aux,
    neighbours,
    pair_losses,
)
from lamina.models.bottlenecks.vq import SplitVQ
from lamina.models.bottlenecks.whitening import Whitening
from lamina.models.config import LAMConfig
from lamina.models.features import ClipView, SpaceName
from lamina.models.lam import LAM
from lamina.rng import Rng


@dataclass(frozen=True)
class Config(MethodConfig):
    space: SpaceName = "features"
    encoder: EncoderName = "transformer"
    decoder: DecoderName = "pixel"
    whiten: Whitening = "first"
    slots: int = 8
    """the first half is task-centric, the second task-irrelevant"""
    codebook_size: int = 16
    code_dim: int = 32
    commitment: float = 0.25
    stage: Literal[1, 2] = 1
    """1: task-irrelevant codes, with the instruction vector; 2: task-centric codes (start from a run of stage 1)"""


def task_slots(config: Config) -> int:
    """Slots of the task-centric half: replaced by the instruction vector in stage 1, the latent action after stage 2."""
    return -(-config.slots // 2)


def build(config: Config) -> LAMConfig:
    if config.slots < 2:
        raise LaminaError(f"univla shares its slots between two halves: --slots must be at least 2, got {config.slots}")
    half, first = task_slots(config), config.stage == 1
    bottleneck = SplitVQ.Config(2, config.codebook_size, config.code_dim, frozen=() if first else (1,))
    # Stage 1 trains no code but the second half's.
    action = (half, config.slots) if first else (0, half)
    return LAMConfig(**config.parts(), bottleneck=bottleneck, task=half if first else 0, action_slots=action)


def weights(config: Config) -> dict[str, float]:
    terms = {"reconstruction": 1.0, "commitment_1": config.commitment}
    return terms if config.stage == 1 else terms | {"commitment_0": config.commitment}


def losses(config: Config) -> MethodLosses:
    return language_losses if config.stage == 1 else pair_losses


def language_losses(lam: LAM, view: ClipView, rng: Rng) -> LossOutput:
    """Stage 1: the instruction vector fills the first half of the slots. Raises LaminaError for data without task descriptions."""
    language = view.clip.task
    if language is None:
        raise LaminaError("this LAM reads the words of the task, and this data names none")
    latents = lam.encode(view, neighbours(view.length), language)
    keep = lam.prefix.draw(rng, len(view))
    reconstruction = lam.reconstruction(view, latents.own, keep, rng)
    return LossOutput(
        {"reconstruction": reconstruction, "commitment_1": mean_aux(latents.own)["commitment_1"]}, latents
    )
