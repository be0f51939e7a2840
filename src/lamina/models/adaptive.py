"""A prefix length for each latent action, chosen by what its code says (ours; no paper has it).

    rule = open_rule(Path("runs/doom"))          # what `lamina adaptive-k` left there
    keep = rule.lengths(latent.post)             # [b], for codes that are known whole: labels
    stop = rule.enough(codes, k=3)               # [b], for codes of which the first 3 slots are known: a policy that generates them

A small network reads the first k slots of a code, and nothing else, and predicts how much the slots behind them would still change what is
made of the code: the action that a translator reads (:meth:`lamina.models.heads.ActionHead.change`) or, without labels, the decoder's
picture, E[ |D(o, z^(K)) - D(o, z^(k))|^2 | z_1 .. z_k ]. K is the longest prefix that the rule may choose, by default all slots; k is the
first length at which that is below a threshold. Whether a code ends after slot k thus depends on its first k slots alone. So one rule
serves labels, whose frames are known, and policies, which generate a code slot by slot: they need no token that ends a code, and decode no
picture.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from lamina.device import full_precision
from lamina.errors import LaminaError
from lamina.files import checkpoint_hash, sha256, write_text
from lamina.models.config import LAMConfig
from lamina.models.hub import model_folder, translator_folder
from lamina.records import Extent, read_note
from lamina.weights import digest, load_module, save_weights

FORMAT = 1  # of rule.json and rule.safetensors; raised when an old file can no longer be read
NAME = "adaptive_k"  # the rule's folder in a run
FLOOR = 1e-3  # share of the mean change that is added to every change, so that a picture without any has a logarithm
WIDTH = 128

Changed = Literal["action", "picture"]


class RemainingChange(nn.Module):
    """log of the change that the slots behind the first k still make, given these k; for k = 1 .. K-1.

    ``scale`` [K-1]: the mean change at each k.
    """

    scale: Tensor

    def __init__(self, slots: int, dim: int):
        super().__init__()
        self.slots, self.dim = slots, dim
        self.read = nn.Linear(slots * dim, WIDTH)
        self.place = nn.Parameter(torch.zeros(slots, WIDTH))
        self.net = nn.Sequential(nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(WIDTH, 1))
        self.register_buffer("scale", torch.ones(slots - 1))

    def relative(self, z: Float[Tensor, "b k d"], k: int) -> Float[Tensor, "b"]:
        """log of the expected change over the mean change at ``k``. What is behind the first k slots of ``z`` is not read."""
        known, weight = z[:, :k].float().flatten(1), self.read.weight[:, : k * self.dim]
        return self.net(F.linear(known, weight, self.read.bias + self.place[k])).squeeze(1)

    def forward(self, z: Float[Tensor, "b k d"]) -> Float[Tensor, "b n"]:
        """:meth:`relative` for every k = 1 .. K-1: n = K-1."""
        return torch.stack([self.relative(z, k) for k in range(1, self.slots)], dim=1)


@dataclass(frozen=True)
class AdaptiveK:
    """The rule of one LAM.

    ``threshold``: the change that a prefix may leave out; 0 keeps all slots that the network knows, infinity one. ``tokens``: mean length
    at this threshold, on the data that it was calibrated on. ``checkpoint``: sha256 of the LAM's weights. ``of``: what changes, in which
    unit: the action (nats, or squared error over the labels' variance) or the picture (mean square of the space that the LAM predicts).
    ``translator``: sha256 of the weights of the translator that reads the action; None for the picture.
    """

    head: RemainingChange
    threshold: float
    tokens: float
    checkpoint: str
    of: Changed = "picture"
    translator: str | None = None

    @cached_property
    def limits(self) -> list[float]:
        """The threshold for what the network predicts at each k: the log of its ratio to the mean change there."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return list(np.log(np.float64(self.threshold)) - np.log(self.head.scale.cpu().double().numpy()))

    @torch.no_grad()
    def remaining(self, z: Float[Tensor, "b k d"], k: int) -> Float[Tensor, "b"]:
        """The expected change that the slots behind the first ``k`` < K still make, given these."""
        return self.head.relative(z, k).exp() * self.head.scale[k - 1]

    @torch.no_grad()
    def enough(self, z: Float[Tensor, "b k d"], k: int) -> Bool[Tensor, "b"]:
        """Whether each code ends after its first ``k`` slots, if it has not ended before; the others are not read."""
        if k >= self.head.slots:
            return torch.ones(len(z), dtype=torch.bool, device=z.device)
        with full_precision(z.device):  # a policy in bf16 must not cut where labels do not
            return self.head.relative(z, k) < self.limits[k - 1]

    def lengths(self, z: Float[Tensor, "b k d"]) -> Int[Tensor, "b"]:
        """The prefix length of each quantised latent, from 1 to the longest that the rule knows."""
        ends = torch.stack([self.enough(z, k) for k in range(1, self.head.slots + 1)], dim=1)
        return ends.int().argmax(1) + 1

    def to(self, device: torch.device | str) -> AdaptiveK:
        """The same rule with a copy of its network on ``device``."""
        return dataclasses.replace(self, head=copy.deepcopy(self.head).to(device))

    def record(self) -> dict[str, Any]:
        """What the lengths depend on, for JSON."""
        return {
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "tokens": self.tokens,
            "checkpoint": self.checkpoint,
            "of": self.of,
            "network": digest({name: value.cpu() for name, value in self.head.state_dict().items()}, None),
        }


#: The length of a latent action: a number for all, a rule, the rule of the run ("auto"), or None for all slots.
Length = int | AdaptiveK | Literal["auto"] | None


@dataclass(frozen=True)
class _Note:
    """RUN/adaptive_k/rule.json."""

    format: int
    slots: Extent
    dim: Annotated[int, Field(ge=1, le=65_536)]
    threshold: Annotated[float, Field(gt=0)]
    tokens: Annotated[float, Field(ge=1)]
    checkpoint: str
    of: Changed
    translator: str | None

    def meaning(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def save_rule(folder: Path, rule: AdaptiveK) -> None:
    """FOLDER/rule.safetensors, then rule.json, whose presence says that both are whole."""
    head = rule.head
    note = _Note(FORMAT, head.slots, head.dim, rule.threshold, rule.tokens, rule.checkpoint, rule.of, rule.translator)
    save_weights(folder / "rule.safetensors", head.state_dict(), note.meaning())
    write_text(folder / "rule.json", json.dumps(note.meaning(), indent=2) + "\n")


def open_rule(run: Path) -> AdaptiveK:
    """The rule of a run, on the CPU. Raises LaminaError if there is none, if it is damaged, or if it was made for other weights or
    another translator."""
    folder = run / NAME
    path = folder / "rule.json"
    again = f"delete {folder} and run: lamina adaptive-k {run} --data DATA"
    if not path.exists():
        raise LaminaError(f"{run}: has no rule for k = auto; run: lamina adaptive-k {run} --data DATA")
    note, _ = read_note(path, _Note, {"format": FORMAT}, again)
    if note.checkpoint != checkpoint_hash(model_folder(run)):
        raise LaminaError(f"{folder}: was made for other weights than those of {run}; {again}")
    reader = translator_folder(run) / "translator.safetensors"
    if note.translator and (not reader.exists() or sha256(reader) != note.translator):
        raise LaminaError(f"{folder}: was made for another translator than that of {run}; {again}")
    head = load_module(
        lambda: RemainingChange(note.slots, note.dim), path, folder / "rule.safetensors", note.meaning()
    ).eval()
    return AdaptiveK(head, note.threshold, note.tokens, note.checkpoint, note.of, note.translator)


def check_prefixes(config: LAMConfig) -> None:
    """Raises LaminaError for a LAM whose prefixes are no latent actions."""
    if config.prefix == "full":
        raise LaminaError(
            f"this LAM was trained with all of its {config.slots} slots, so a shorter prefix is no latent action; "
            "train one with retained prefixes, such as flexlam"
        )
    if config.slots < 2:
        raise LaminaError("this LAM has a single slot: there is no shorter prefix")


def check_length(k: Length, config: LAMConfig, dim: int, run: Path | None) -> int | AdaptiveK | None:
    """``k`` as a number or a rule, for a LAM of ``dim`` channels; "auto" is read from ``run``.

    Raises LaminaError for a length that the LAM does not have, and for a rule that is missing or another LAM's.
    """
    if k is None:
        return None
    if k == "auto":
        check_prefixes(config)
        if run is None:
            raise LaminaError('k="auto" reads the rule of a run: give its folder, or an AdaptiveK')
        k = open_rule(run)
    if isinstance(k, AdaptiveK):
        check_prefixes(config)
        if k.head.slots > config.slots or k.head.dim != dim:
            raise LaminaError(
                f"this rule reads codes of {k.head.slots} slots of {k.head.dim} numbers, this LAM has {config.slots} of {dim}"
            )
        return k
    slots = config.action_length
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= slots:
        raise LaminaError(f'k must be "auto" or a whole number from 1 to the model\'s {slots} slots, got {k!r:.60}')
    if k < slots:
        check_prefixes(config)
    return k
