"""ALAM: algebraically consistent latent actions (arXiv 2605.10819, §3.2, Eq. 3-9, App. A.1).

    lamina train alam --data DATASET --out RUN

Frame triplets a < b < c. The pairs (a,b), (b,c), (a,c) and (b,a) are encoded in one batched call; the forward ones are decoded
(squared error and a perceptual term), and on the continuous latents, before the VQ (EMA, commitment), z_ac = z_ab + z_bc and z_ba = -z_ab
are asked for. The latent action is that continuous latent (§3.3). `--composition 0 --reversal 0` is the paper's unstructured LAM on the
same encoder.

Deviations:
- The perceptual term is a declared stand-in (multi-scale gradients) unless `--perceptual lpips` and its weights are on the machine.
- Squared norms are means over slots and channels, so a weight has the same effect at every size of the latent. The paper leaves it open.
- Latents are whitened by the batch before the VQ (`--whiten`); otherwise shrinking them minimises both algebraic losses.
- Weights: the paper has 1 for every term. With whitened latents, 1 or 0.1 for the algebraic terms gave latents that add up and that
  the decoder ignores: what a latent can take off the squared error is about 0.01.
- 32 slots of 4 channels (the paper: 256 of 128); gaps are in seconds. One option, `--size`, sets all widths and depths.
- Frames are embedded once and meet in query slots; up to 64 pixels the encoder is convolutional.
- Ours, each off by default, against a solution of both losses that says nothing, a direction of the latent that the decoder ignores:
  `--algebra read` measures both errors by their effect on the decoder's loss, relative to the effect of the long latent, `--algebra both`
  adds that to the paper's;
  `--algebra-warmup N` raises both weights from 0 within N batches; `--pairing difference` makes latents a difference of encodings of
  single frames plus a term of the pair, which reverses.
- `--decoded one` decodes one randomly drawn forward pair of a sample instead of all three: Eq. 8 in expectation, at a third of its cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.losses.algebra import composition, read_error, reversal
from lamina.losses.perceptual import DISTANCES, PerceptualName
from lamina.methods.base import DecoderName, LossOutput, MethodConfig, MethodLosses, mean_aux, triplets
from lamina.models.bottlenecks.vq import VQ
from lamina.models.bottlenecks.whitening import Whitening
from lamina.models.config import LAMConfig
from lamina.models.features import ClipView
from lamina.models.lam import LAM, Pair
from lamina.rng import Rng
from lamina.types import Clip, Latent

Algebra = Literal["latent", "read", "both"]

OBJECTIVE_FRAMES = 3


@dataclass(frozen=True)
class Config(MethodConfig):
    decoder: DecoderName = "pixel"
    whiten: Whitening = "batch"
    frames: int = 3
    """frames of one training sample; every neighbouring triplet is trained on"""
    slots: int = 32
    """K, tokens of a latent action: many and narrow, because a few wide ones of seven codes each can hardly add up"""
    codebook_size: int = 7
    code_dim: int = 4
    perceptual: PerceptualName = "gradient"
    """gradient: a declared stand-in; lpips: the real one, where its weights are on the machine"""
    decoded: Literal["all", "one"] = "all"
    """forward pairs of a sample that are decoded in a step"""
    reconstruction: float = 1.0
    perception: float = 0.1
    composition: float = 0.01
    reversal: float = 0.01
    commitment: float = 0.02
    algebra: Algebra = "latent"
    """what composition and reversal are asked of: latent: of every number of the latent; read (ours): of what the decoder reads of it; both
    (ours): of the one and the other, whose errors are added"""
    algebra_warmup: int = 0
    """batches within which the weights of composition and reversal rise from 0"""


def build(config: Config) -> LAMConfig:
    # §3.3: the quantiser is discarded after training; policies get the continuous latent.
    bottleneck = VQ.Config(config.codebook_size, config.code_dim)
    return LAMConfig(**config.parts(), bottleneck=bottleneck, action_side="continuous")


def weights(config: Config) -> dict[str, float]:
    return {
        "reconstruction": config.reconstruction,
        "perception": config.perception,
        "composition": config.composition,
        "reversal": config.reversal,
        "commitment": config.commitment,
    }


def losses(config: Config) -> MethodLosses:
    distance = DISTANCES[config.perceptual]

    def terms(lam: LAM, view: ClipView, rng: Rng) -> LossOutput:
        groups = triplets(view.length)
        forward = list(dict.fromkeys(pair for a, b, c in groups for pair in ((a, b), (b, c), (a, c))))
        latents = lam.encode(view, [*forward, *((b, a) for a, b, _ in groups)])
        keep = lam.prefix.draw(rng, len(view))
        decoded = {pair: latents.own[pair] for pair in forward}
        decoded_view = view
        if config.decoded == "one":
            clip, decoded = drawn_pair(view.clip, decoded, rng)
            decoded_view = lam.view(clip)
        predicted = lam.predict_pairs(decoded_view, decoded, keep, rng)
        perception = distance(predicted.prediction, predicted.target).view_as(predicted.loss)
        errors = [algebra_errors(config.algebra, lam, view, latents.own, group, rng) for group in groups]
        share = warmup(lam, config.algebra_warmup)
        found = {
            "reconstruction": predicted.loss.mean(1),
            "perception": perception.mean(1),
            "composition": share * torch.stack([added for added, _ in errors]).mean(0),
            "reversal": share * torch.stack([reversed_ for _, reversed_ in errors]).mean(0),
            **mean_aux(latents.own),
        }
        return LossOutput(found, latents)

    return terms


def algebra_errors(
    algebra: Algebra, lam: LAM, view: ClipView, latents: dict[Pair, Latent], group: tuple[int, int, int], rng: Rng
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """The terms of composition and reversal of one triplet a < b < c (Eq. 7); ``latents``: of (a, b), (b, c), (a, c) and (b, a)."""
    a, b, c = group
    ab, bc, ac, ba = (latents[pair].pre for pair in ((a, b), (b, c), (a, c), (b, a)))
    whole = composition(ab, bc, ac), reversal(ab, ba)
    if algebra == "latent":
        return whole
    gradients = lam.decoder.latent_gradient(view.inputs([a]), latents[a, c].post, view.targets([c]), rng)
    read = read_error(ac - ab - bc, ac, gradients), read_error(ab + ba, ac, gradients)
    return read if algebra == "read" else (whole[0] + read[0], whole[1] + read[1])


def warmup(lam: LAM, batches: int) -> Tensor | float:
    """The share of a weight that rises from 0 within ``batches`` batches of training. The quantiser counts them, so that a resumed run
    goes on where it was."""
    return (lam.bottleneck.get_buffer("updates") / batches).clamp(max=1) if batches else 1.0


def drawn_pair(clip: Clip, latents: dict[Pair, Latent], rng: Rng) -> tuple[Clip, dict[Pair, Latent]]:
    """One pair of each sample, drawn uniformly: a clip of its two frames (without paired views), and its latent under (0, 1)."""
    pairs = torch.tensor(list(latents), device=clip.frames.device)
    choice = rng.categorical(len(clip), torch.ones(len(pairs)))
    rows = torch.arange(len(clip), device=clip.frames.device)
    post = torch.stack([latent.post for latent in latents.values()])[choice, rows]

    def of_pair(values: Tensor) -> Tensor:
        return values[rows.unsqueeze(1), pairs[choice]]

    two = Clip(of_pair(clip.frames), of_pair(clip.time), of_pair(clip.index), clip.episode)
    return two, {(0, 1): Latent(post, post)}
