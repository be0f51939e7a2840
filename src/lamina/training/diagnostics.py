"""Validation of a LAM in training: use of the latent by the decoder, collapse and explosion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError
from lamina.models import code_usage as codes
from lamina.models.features import ClipView
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina.training.loop import Validation
from lamina.types import Clip, Latent


class DegenerateLatents(LaminaError):
    """Training was stopped because the latents degenerated; ``kind``: collapse or explosion."""

    def __init__(self, kind: str, how: str):
        super().__init__(f"{kind}: {how}")
        self.kind = kind


#: Gain in dB over another transition's latent, or the mean latent, below which the decoder is said to ignore it: 1% of its loss.
MIN_GAIN_DB = 10 * math.log10(1.01)
#: Length and spread, in units of those at the start, below which an ignored latent has collapsed; and length above which it has exploded.
COLLAPSED, EXPLODED = 0.01, 100.0


def length_and_spread(latent: Float[Tensor, "b k d"]) -> tuple[float, float]:
    """Mean length of latents, and their mean distance from their mean."""
    flat = latent.detach().float().flatten(1)
    return float(flat.norm(dim=1).mean()), float((flat - flat.mean(0)).norm(dim=1).mean())


def latent_diagnostics(lam: LAM, clip: Clip, seed: int) -> Callable[[LAM], Validation]:
    """A function ``validate(lam)``: use and norm of the latent on ``clip``. ``lam``: the model before training.

    Reconstruction loss with the right latent, with another transition's and with the mean latent, and the gains over those in dB;
    use of the codes; mean length of the latent. Raises DegenerateLatents, which ends the run, if the latent has collapsed (its length
    or its spread is a hundredth of what it was at the start, and the decoder ignores it) or exploded (it is a hundred times as long).
    """

    @torch.no_grad()
    def encode(lam: LAM) -> tuple[ClipView, Latent]:
        on_device = clip.to(next(lam.parameters()).device)
        view = lam.view(on_device)
        return view, lam.encode(view, [(0, 1)], on_device.task).own[0, 1]

    was_training = lam.training
    before = length_and_spread(encode(lam.eval())[1].pre)
    lam.train(was_training)
    if lam.config.whiten != "none":  # what the first batch will be scaled to: variance 1 in every channel
        before = (math.sqrt(lam.config.slots * lam.dim),) * 2

    @torch.no_grad()
    def validate(lam: LAM) -> Validation:
        view, latent = encode(lam)
        device = view.frames.device
        full = torch.full((len(view),), lam.config.slots, device=device)
        instruction, z = latent.post.split([lam.config.task, lam.config.slots - lam.config.task], dim=1)
        candidates = {
            "": z,
            # Half the set away: neighbouring transitions are of one episode and move alike.
            "_with_another_latent": z.roll(len(view) // 2, 0),
            "_with_the_mean_latent": z.mean(0, keepdim=True).expand_as(z),
        }
        # The same random numbers for each: a flow gets the same noise.
        loss = {
            name: float(
                lam.reconstruction(
                    view, {(0, 1): replace(latent, post=torch.cat([instruction, z], 1))}, full, Rng(seed, device=device)
                ).mean()
            )
            for name, z in candidates.items()
        }
        right, other, mean = loss.values()
        gains = [10 * math.log10(max(rival, 1e-12) / max(right, 1e-12)) for rival in (other, mean)]
        length, spread = length_and_spread(latent.pre)
        figures = {f"reconstruction{name}": value for name, value in loss.items()}
        figures |= {
            "gain_over_another_latent_db": gains[0],
            "gain_over_the_mean_latent_db": gains[1],
            "latent_length": length,
        }
        warnings = []
        if latent.index is not None:
            assert lam.bottleneck.slot_codes is not None
            uses = codes.slot_use(latent.index, lam.bottleneck.slot_codes)
            figures |= {f"perplexity/slot_{use.slot}": use.perplexity for use in uses}
            figures |= {f"usage/slot_{use.slot}": use.usage for use in uses}
            warnings += codes.warnings(uses)
        ignored = min(gains) < MIN_GAIN_DB
        if ignored:
            warnings.append(
                f"the decoder ignores the latent: the right one reconstructs {gains[0]:+.2f} dB better than another transition's, "
                f"{gains[1]:+.2f} dB better than the mean latent. Lengthen --gap, train longer, or check that what happens between two "
                "frames is visible at --image size"
            )
        if ignored and (length < COLLAPSED * before[0] or spread < COLLAPSED * before[1]):
            raise DegenerateLatents(
                "collapse",
                f"latents have length {length:.2g} and spread {spread:.2g}, {before[0]:.2g} and {before[1]:.2g} before training, and the "
                "decoder ignores them",
            )
        longest = length_and_spread(latent.post)[0]
        if longest > EXPLODED * before[0]:
            raise DegenerateLatents("explosion", f"latents have length {longest:.2g}, {before[0]:.2g} before training")
        return figures, warnings

    return validate
