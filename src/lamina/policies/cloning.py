"""Policies that see the present frame and the one before: behaviour cloning pi(a | o), and a latent policy pi(z | o) whose latents a
translator reads. Two frames, because one shows no velocity: whoever must run cannot be cloned from it.

The latent policy is what *Why Latent Actions Fail* (App. D) evaluates latents with: it is trained on every frame, by regression to the
latent of the transition that follows, and a translator of few labels turns what it predicts into actions. Behaviour cloning on every label
is its upper bound.

    policy = latent_policy(lam.config, train, held, translator, quick(2000, seed=0), batch=8)  # train, held: labelled(...)
    record = rollout_worlds(policy, ["cheetah"], episodes=10, parallel=8)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.files import Scratch
from lamina.images import resize_frames, to_float
from lamina.losses.reconstruction import squared_error
from lamina.models.config import LAMConfig
from lamina.models.encoders import ENCODERS
from lamina.models.heads import ActionHead, Translator
from lamina.rng import Rng
from lamina.training.heads import fit_head
from lamina.training.labelled import LabelledTransitions
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec, Clip

WIDTH = 64  # channels of a slot of the frame's features


@dataclass(frozen=True)
class FramePairs:
    """Frames, each after the one before it, and what is to be predicted from both."""

    frames: UInt8[Tensor, "n 2 c h w"]
    target: Float[Tensor, "n o"]

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: Any) -> FramePairs:
        return FramePairs(self.frames[rows], self.target[rows])

    def to(self, device: Any) -> FramePairs:
        return FramePairs(self.frames.to(device), self.target.to(device))


def preceding(clip: Clip) -> Int[Tensor, "n"]:
    """The row of the transition that ends where each begins, or its own row where none does."""
    ends = {place: row for row, place in enumerate(zip(clip.episode.tolist(), clip.index[:, 1].tolist(), strict=True))}
    begins = enumerate(zip(clip.episode.tolist(), clip.index[:, 0].tolist(), strict=True))
    return torch.tensor([ends.get(place, row) for row, place in begins])


def frame_pair_targets(items: LabelledTransitions, target: Float[Tensor, "n ..."]) -> FramePairs:
    """The first frame of each transition and the one before it (itself, where an episode begins), with what is to be predicted.

    Transitions are as long as a decision. Raises LaminaError if the frames were not kept.
    """
    if items.clip is None:
        raise LaminaError("a policy of frames needs the frames: these transitions were kept without them")
    present = items.clip.frames[:, 0]
    return FramePairs(torch.stack([present[preceding(items.clip)], present], 1), target.flatten(1).float())


class FramePairRegressor(nn.Module):
    """Two frames -> o numbers, by the encoder of a LAM, from scratch."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: LAMConfig, outputs: int):
        super().__init__()
        self.encoder = ENCODERS[ENCODERS.name_of(config.encoder)](config.encoder, config.image, config.slots, WIDTH)
        self.head = nn.Linear(config.slots * WIDTH, outputs)
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("std", torch.ones(outputs))

    def standardised(self, frames: UInt8[Tensor, "b 2 c h w"]) -> Float[Tensor, "b o"]:
        """What is predicted, in units of the targets' spread."""
        before, present = self.encoder.embed(to_float(frames).flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
        return self.head(self.encoder.compare(before, present).flatten(1))

    def forward(self, frames: UInt8[Tensor, "b 2 c h w"]) -> Float[Tensor, "b o"]:
        return self.standardised(frames) * self.std + self.mean


def train_regressor(
    config: LAMConfig, train: FramePairs, held: FramePairs, training: TrainConfig
) -> tuple[FramePairRegressor, float]:
    """A :class:`FramePairRegressor` by mean squared error, and its error on ``held`` in units of the targets' variance."""
    torch.manual_seed(training.seed)
    seer = FramePairRegressor(config, train.target.shape[1])
    seer.mean.copy_(train.target.mean(0))
    seer.std.copy_(train.target.std(0, correction=0).clamp_min(1e-6))

    def losses(module: FramePairRegressor, batch: FramePairs, draws: Rng) -> dict[str, Tensor]:
        return {"action": squared_error(module.standardised(batch.frames), (batch.target - module.mean) / module.std)}

    with Scratch() as scratch:
        loss = fit_head(seer, losses, train, held, training, Path(scratch))
    return seer.eval(), loss


class FramePolicy:
    """An agent for :func:`lamina.policies.rollout.rollout_worlds` that decides by the present frame and the one of its last decision.

    ``read`` turns what the seer predicts for the rows of a batch, and their previous actions, into actions [b a].
    """

    def __init__(
        self,
        seer: FramePairRegressor,
        read: Callable[[Float[Tensor, "b o"], Float[Tensor, "b a"]], Float[Tensor, "b a"]],
        spec: ActionSpec,
        image: tuple[int, int, int],
        batch: int = 1,
        decision_seconds: float | None = None,
    ):
        self.seer, self.read, self.spec, self.image, self.batch = seer, read, spec, image, batch
        self.decision_seconds = decision_seconds
        self.previous = torch.zeros(batch, spec.dim)
        self.before = torch.zeros(batch, *image, dtype=torch.uint8)
        self.begins = torch.ones(batch, dtype=torch.bool)

    def reset(self, rows: Sequence[int]) -> None:
        """In these rows an episode begins."""
        self.previous[list(rows)] = 0
        self.begins[list(rows)] = True

    @torch.no_grad()
    def act_batch(self, frames: UInt8[np.ndarray, "b h w 3"]) -> Shaped[np.ndarray, "b a"]:
        """Actions within the space's bounds of [-1, 1] where they are continuous. Raises LaminaError for frames of another shape."""
        if frames.ndim != 4 or (len(frames), frames.shape[3]) != (self.batch, 3) or frames.dtype != np.uint8:
            raise LaminaError(
                f"this policy reads uint8 frames of shape ({self.batch}, height, width, 3), got {frames.dtype} {frames.shape}"
            )
        present = torch.from_numpy(resize_frames(frames, self.image[1:])).permute(0, 3, 1, 2)
        self.before[self.begins] = present[self.begins]
        output = self.seer(torch.stack([self.before, present], 1))
        self.before, self.begins = present.clone(), torch.zeros_like(self.begins)
        action = self.read(output, self.previous)
        discrete = len(self.spec.discrete)
        action[:, discrete:].clamp_(-1, 1)
        self.previous = action
        return action.numpy().astype(np.float32 if self.spec.continuous else np.int64)


def cloning(
    config: LAMConfig,
    train: LabelledTransitions,
    held: LabelledTransitions,
    spec: ActionSpec,
    training: TrainConfig,
    **options: Any,
) -> FramePolicy:
    """Behaviour cloning on every label. Squared error on the actions' embedding: for a discrete one the likeliest class is read."""
    head = ActionHead(spec)
    head.calibrate(train.action)
    seer, _ = train_regressor(
        config,
        frame_pair_targets(train, head.embed(train.action)),
        frame_pair_targets(held, head.embed(held.action)),
        training,
    )
    return FramePolicy(seer, lambda output, previous: head.read(output), spec, config.image, **options)


def latent_policy(
    config: LAMConfig,
    train: LabelledTransitions,
    held: LabelledTransitions,
    translator: Translator,
    training: TrainConfig,
    **options: Any,
) -> FramePolicy:
    """pi(z | o) on every transition, which needs no label, and the translator that reads its latents."""
    seer, _ = train_regressor(config, frame_pair_targets(train, train.z), frame_pair_targets(held, held.z), training)
    translator.eval()

    def read(z: Tensor, previous: Tensor) -> Tensor:
        return translator.action.read(translator(z, previous))

    return FramePolicy(seer, read, translator.action.spec, config.image, **options)
