"""Labelled transitions: their number, their encoding, and their division by episode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamina.data.dataset import Data
from lamina.data.sampling import ActionsOf, DataConfig, SampleIndex
from lamina.errors import LaminaError, warn
from lamina.inference.encode import encode_clip, still
from lamina.models.config import Side
from lamina.models.hub import LatentActionModel
from lamina.models.lam import LAM
from lamina.records import non_negative
from lamina.types import ActionSpec, Clip, TensorRecord


@dataclass(frozen=True)
class LabelledTransitions(TensorRecord):
    """Labelled transitions with their latents. ``z`` holds all slots, before any prefix is cut; ``clip`` keeps the frames."""

    z: Float[Tensor, "n k d"]
    previous: Float[Tensor, "n a1"]
    action: Float[Tensor, "n a"]
    episode: Int[Tensor, "n"]
    clip: Clip | None = None
    observation: Float[Tensor, "n o"] | None = None

    def __len__(self) -> int:
        return len(self.z)

    @classmethod
    def encoded(
        cls, clip: Clip, encode: Callable[[Clip], Float[Tensor, "n k d"]], observed: bool = False
    ) -> LabelledTransitions:
        """A clip with actions, encoded once for all translators that are trained on it; ``observed``: with features of o_t too, which are
        the latent of o_t paired with itself. Raises LaminaError without actions."""
        if clip.action is None or clip.previous_action is None:
            raise LaminaError("this data has no actions: --data must be a LeRobot dataset with an action feature")
        observation = encode(still(clip)).flatten(1) if observed else None
        return cls(encode(clip), clip.previous_action[:, 0], clip.action[:, 0], clip.episode, clip, observation)


class Minibatches:
    """Endless shuffled minibatches of something that fits in memory; epoch order is a function of (seed, epoch)."""

    def __init__(self, items: Any, batch: int, seed: int):
        self.items, self.batch, self.seed, self.drawn = items, min(batch, len(items)), seed, 0

    def __iter__(self) -> Iterator[Any]:
        per_epoch = len(self.items) // self.batch
        while True:
            epoch, number = divmod(self.drawn, per_epoch)
            order = torch.randperm(
                len(self.items), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            )
            self.drawn += 1
            yield self.items[order[number * self.batch : (number + 1) * self.batch]]

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = non_negative(state, "drawn")

    def close(self) -> None:
        """Nothing is open."""


def parse_labels(text: str, transitions: int) -> int:
    """ "120" or "5%" as a number of labelled transitions. Raises LaminaError for anything else, or more than there are."""
    try:
        share = text.endswith("%")
        number = round(float(text[:-1]) / 100 * transitions) if share else int(text)
    except (ValueError, OverflowError) as error:
        raise LaminaError(f"--labels {text}: give a number of transitions (120) or a share (5%)") from error
    if not 8 <= number <= transitions:
        raise LaminaError(
            f"--labels {text}: is {number} of {transitions} transitions; give at least 8 and no more than there are"
        )
    return number


def encode_labels(lam: LAM, clip: Clip, side: Side | None = None, observed: bool = False) -> LabelledTransitions:
    """:meth:`LabelledTransitions.encoded` by a LAM."""
    return LabelledTransitions.encoded(clip, lambda given: encode_clip(lam, given, side), observed)


def split_labels(
    items: LabelledTransitions, seed: int = 0, held: float = 0.25
) -> tuple[LabelledTransitions, LabelledTransitions]:
    """Divide the labelled transitions by episode: about ``held`` of them choose the checkpoint, the rest train.

    The labels that choose are part of the budget: a translator that had a validation set for free would not have few labels.
    """
    episodes = items.episode.unique()
    order = episodes[torch.randperm(len(episodes), generator=torch.Generator().manual_seed(seed))]
    chosen: list[Tensor] = []
    for episode in order[:-1]:
        if sum(int(m.sum()) for m in chosen) >= held * len(items):
            break
        chosen.append(items.episode == episode)
    by_time = torch.arange(len(items)) >= round((1 - held) * len(items))
    mask = torch.stack(chosen).any(0) if chosen else by_time  # a single episode is divided by time
    return items[~mask], items[mask]


def probe_data(
    model: LatentActionModel,
    path: Data,
    camera: str | None = None,
    action: str = "action",
    actions: ActionsOf = "first",
) -> DataConfig:
    """How a model reads data for labels and probes: its own picture size, pairs at its one label gap.

    Raises LaminaError for a model of pictures that are not RGB.
    """
    if model.config.image[0] != 3:
        raise LaminaError(f"this model reads pictures of {model.config.image[0]} channels, and videos have 3")
    gap = model.provenance.label_gap
    return DataConfig((path,), model.config.image[1:], gap=(gap, gap), camera=camera, action=action, actions=actions)


@dataclass(frozen=True)
class ActionTarget:
    """The content of a label: ``steps`` actions of ``spec``; ``spanned``: number of actions in the gap of a latent."""

    spec: ActionSpec
    steps: int
    spanned: int

    @property
    def label(self) -> ActionSpec:
        """The layout of one label."""
        return self.spec.chunk(self.steps)


def actions_of(data: DataConfig) -> ActionTarget:
    """The actions of ``data``. Raises LaminaError if it has none."""
    plan = SampleIndex(data, "train")
    if plan.step is None:
        raise LaminaError(f"{data.names[0]}: has no actions; --data must be a LeRobot dataset with an action feature")
    return ActionTarget(plan.step, plan.steps if data.actions == "chunk" else 1, plan.steps)


def warn_multi_action(data: DataConfig, actions: ActionTarget) -> None:
    """Warn where a gap spans several actions and its latent is tied to the first alone."""
    if actions.spanned > 1 and data.actions == "first":
        warn(
            f"{data.names[0]}: a latent spans {data.gap[0]:g} s, in which {actions.spanned} actions are taken; it is tied to the first of "
            "them. --actions mean or --actions chunk ties it to all"
        )
