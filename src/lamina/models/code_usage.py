"""How a codebook is used: per-slot usage, perplexity, dead codes, and warnings that say what to do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

#: Perplexity below which a slot is collapsed: it says one code almost always.
COLLAPSED = 1.5


@dataclass(frozen=True)
class SlotUse:
    """One slot's use of its codebook over a set of transitions.

    ``usage``: share of the reachable entries that occur; reachable = min(codes that a slot can say, number of transitions). ``dead`` = 1 -
    usage.
    ``perplexity``: exp of the entropy of the index, between 1 (constant) and the reachable number.
    """

    slot: int
    usage: float
    perplexity: float

    @property
    def dead(self) -> float:
        return 1 - self.usage


def slot_use(index: Int[Tensor, "n k"], slot_codes: int) -> list[SlotUse]:
    """Use of the codebook by each slot, slot numbers from 1. ``slot_codes``: those that one slot can say
    (:attr:`lamina.models.bottlenecks.base.Bottleneck.slot_codes`)."""
    reachable = min(slot_codes, len(index))
    uses = []
    for slot, column in enumerate(index.cpu().unbind(1), start=1):
        count = torch.bincount(column).double()
        share = count[count > 0] / count.sum()
        perplexity = float(torch.exp(-(share * share.log()).sum()))
        uses.append(SlotUse(slot, int((count > 0).sum()) / reachable, perplexity))
    return uses


def warnings(uses: list[SlotUse]) -> list[str]:
    """What a user should know and do about this use; empty when all is well. A slot is collapsed below perplexity COLLAPSED."""
    collapsed = [u.slot for u in uses if u.perplexity < COLLAPSED]
    if len(collapsed) == len(uses):
        return [
            "every slot says the same code for every transition: the latent carries nothing. Lengthen --gap so that copying the "
            "frame is a bad guess, check that the frames do change, or train longer with a lower --lr"
        ]
    if collapsed and collapsed[0] == 1:
        return [
            "slot 1, which every prefix holds, is constant: use fewer --slots, or --prefix short so that early slots are "
            "trained more"
        ]
    if len(collapsed) > len(uses) / 2:
        return [f"{len(collapsed)} of {len(uses)} slots are constant: {len(uses) - len(collapsed)} --slots would do"]
    return []
