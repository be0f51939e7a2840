"""UniVLA's latent action model: task-centric latents in two stages, in feature space (arXiv 2505.06111, §3.1).

    lamina train univla --data DATASET --out RUN1
    lamina train univla --stage 2 --init RUN1 --data DATASET --out RUN

Slots are two halves with a codebook of 16 each. Stage 1: the decoder reads the words of the task in the place of the first half,
so the second half learns what the task does not tell (task-irrelevant codes). Stage 2: task-centric codes take the place of the
words, and the codebook of the other half stays frozen. The first half of a model of stage 2 is the latent action.

Deviations: features of a frozen random network stand in for DINOv2's, and a fixed random vector for each word for T5 (neither can
be had here); the words enter the decoder only, not the encoder too; latents are scaled by the first
batch; codes are moved by EMA; frames are embedded once and meet in query slots; sizes by one dial.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.bottleneck import SplitVQ, Whitening
from lamina.draws import Draws
from lamina.errors import LaminaError
from lamina.lam import LAM, LAMConfig, pair_losses
from lamina.shapes import Clip, to_float
from lamina.sizes import Backbone, DecoderName, EncoderName
from lamina.train import Losses


@dataclass(frozen=True)
class Config(Backbone):
    encoder: EncoderName = "transformer"
    decoder: DecoderName = "pixel"
    whiten: Whitening = "first"
    slots: int = 8
    """the first half is task-centric, the second task-irrelevant"""
    codebook_size: int = 16
    code_dim: int = 32
    commitment: float = 0.25
    stage: Literal[1, 2] = 1
    """1: task-irrelevant codes beside the task's words; 2: task-centric codes (start from a run of stage 1)"""


def task_slots(config: Config) -> int:
    """Slots of the task-centric half: what the words fill in stage 1, and what the latent action is after stage 2."""
    return -(-config.slots // 2)


def build(config: Config) -> LAMConfig:
    if config.slots < 2:
        raise LaminaError(f"univla shares its slots between two halves: --slots must be at least 2, got {config.slots}")
    first = config.stage == 1
    bottleneck = SplitVQ.Config(2, config.codebook_size, config.code_dim, frozen=() if first else (1,))
    return LAMConfig(**config.parts(), bottleneck=bottleneck, space="features", task=task_slots(config) if first else 0)


def weights(config: Config) -> dict[str, float]:
    terms = {"reconstruction": 1.0, "commitment_1": config.commitment}
    return terms if config.stage == 1 else terms | {"commitment_0": config.commitment}


def losses(config: Config) -> Losses:
    return worded_losses if config.stage == 1 else pair_losses


def worded_losses(lam: LAM, clip: Clip, draws: Draws) -> dict[str, Float[Tensor, "b"]]:
    """Stage 1: the task's words fill the first half of the slots."""
    frames = lam.observed(to_float(clip.frames))
    latents = lam.encode(frames, [(i, i + 1) for i in range(frames.shape[1] - 1)])
    worded = {pair: lam.worded(latent, clip.task) for pair, latent in latents.items()}
    commitment = torch.stack([latent.aux["commitment_1"] for latent in latents.values()]).mean(0)
    keep = lam.prefix.draw(draws, len(frames))
    return {"reconstruction": lam.reconstruction(frames, worded, keep, draws), "commitment_1": commitment}
