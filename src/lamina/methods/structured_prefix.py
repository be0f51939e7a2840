"""Structured prefixes: retained prefixes that compose and reverse (ours: FlexLAM, arXiv 2606.19408, §4.1, with the algebra of ALAM,
arXiv 2605.10819, Eq. 2, 3 and 7).

    lamina train structured_prefix --data DATASET --out RUN

Frame triplets a < b < c and one k ~ Unif{0..K} for all pairs of a sample. The neighbouring pairs are reconstructed from their first k
slots, which is FlexLAM. Three terms make every prefix compose and reverse. With x the continuous code and Q the quantiser, slot by slot:

- direct: o_c from o_a, and o_a from o_b, through the first k slots of their own codes Q(x_ac) and Q(x_ba);
- composition: o_c from o_a through the first k slots of Q(x_ab + x_bc);
- reversal: o_a from o_b through the first k slots of Q(-x_ab).

Codes add up before the quantiser and are quantised again: FSQ codes lie in [-1, 1], so the sum of two of them is mostly no code, and
rounding would count twice. What the quantiser makes of a large sum is the outermost level of each channel: a step that is longer than the
code can say is cut off, not wrapped around. Slots add up one by one, so the prefix of a sum is the sum of the prefixes.

Composition and reversal are asked of the pictures, as AC-LAM does (arXiv 2604.03340, Eq. 5), and not of the numbers. ALAM's errors of the
numbers can be met by directions that add up and that the decoder ignores (LOG.md); an error of the picture cannot, and latents that shrink
do not lower it. `--form latent` is ALAM's form, on the first k slots of x, for comparison; there ALAM's weights of 0.01 are the ones to
take. All three weights 0: FlexLAM, to the last bit. Deviations from FlexLAM: those of flexlam.py, and latents are scaled by the first batch
(`--whiten first`), because a constant part of x would count twice in a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from lamina.losses.algebra import composition, prefixes, reversal
from lamina.methods import flexlam
from lamina.methods.base import LossOutput, MethodLosses, mean_aux, neighbours, pair_losses, triplets
from lamina.models.bottlenecks.whitening import Whitening
from lamina.models.config import LAMConfig, Side
from lamina.models.features import ClipView
from lamina.models.lam import LAM, Pair
from lamina.rng import Rng
from lamina.types import Latent

OBJECTIVE_FRAMES = 3
SUMS: Side = "continuous"  # the side of the quantiser on which codes add up


@dataclass(frozen=True)
class Config(flexlam.Config):
    whiten: Whitening = "first"
    frames: int = 3
    """frames of one training sample; every neighbouring triplet is trained on"""
    form: Literal["decoder", "latent"] = "decoder"
    """what composes and reverses: the decoder's predictions, or the numbers before the quantiser (with the weights 0.01)"""
    direct: float = 1.0
    """weight of the long and the reversed pair, decoded from their own codes"""
    composition: float = 1.0
    reversal: float = 1.0


def build(config: Config) -> LAMConfig:
    return flexlam.build(config)


def weights(config: Config) -> dict[str, float]:
    asked = {"direct": config.direct, "composition": config.composition, "reversal": config.reversal}
    return flexlam.weights(config) | {name: weight for name, weight in asked.items() if weight}


def losses(config: Config) -> MethodLosses:
    asked = weights(config).keys() - flexlam.weights(config).keys()
    if not asked:
        return pair_losses
    latent = config.form == "latent"

    def terms(lam: LAM, view: ClipView, rng: Rng) -> LossOutput:
        groups, steps = triplets(view.length), neighbours(view.length)
        long: list[Pair] = [(a, c) for a, _, c in groups]
        back: list[Pair] = [(b, a) for a, b in steps]
        extra = long * ("direct" in asked or (latent and "composition" in asked))
        extra += back * ("direct" in asked or (latent and "reversal" in asked))
        latents = lam.encode(view, [*steps, *extra])
        own = latents.own
        keep = lam.prefix.draw(rng, len(view))

        def decoded(codes: dict[Pair, Latent]) -> torch.Tensor:
            return lam.reconstruction(view, codes, keep, rng)

        found = {"reconstruction": decoded({pair: own[pair] for pair in steps}), **mean_aux(own)}
        if "direct" in asked:
            found["direct"] = decoded({pair: own[pair] for pair in (*long, *back)})
        x = {pair: code.pre for pair, code in own.items()}
        if latent:
            x = {pair: prefixes(code, keep) for pair, code in x.items()}
        if "composition" in asked and latent:
            errors = [composition(x[a, b], x[b, c], x[a, c]) for a, b, c in groups]
            found["composition"] = torch.stack(errors).mean(0)
        elif "composition" in asked:
            found["composition"] = decoded({(a, c): lam.quantise(x[a, b] + x[b, c]) for a, b, c in groups})
        if "reversal" in asked and latent:
            found["reversal"] = torch.stack([reversal(x[a, b], x[b, a]) for a, b in steps]).mean(0)
        elif "reversal" in asked:
            found["reversal"] = decoded({(b, a): lam.quantise(-x[a, b]) for a, b in steps})
        return LossOutput(found, latents)

    return terms
