"""Behaviour cloning pi(a | o), and latent behaviour cloning pi(z | o) whose latents a translator turns into actions.

Both read two frames, the present one and the one before, because a single frame shows no velocity.

Latent behaviour cloning is how *Why Latent Actions Fail* (App. D) evaluates latents: it is trained on every frame, by regression to the
latent of the next transition, and a translator trained on few labels maps its predictions to actions. Behaviour cloning on all labels is
its upper bound. Here both are trained on transitions in memory; ``lamina policy --kind latent`` trains the same network on a dataset
(:mod:`lamina.policies.latent`).

    policy = latent_policy(lam.config, train, held, translator, head_training(2000, seed=0), batch=8)  # train, held: encode_labels(...)
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
from lamina.models.features import fit_space, scratch_space
from lamina.models.heads import ActionHead, Translator
from lamina.policies.base import Observations, Policy
from lamina.rng import Rng
from lamina.training.heads import fit_head
from lamina.training.labelled import LabelledTransitions
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec, Clip

WIDTH = 64  # channels of a slot of the frame's features


@dataclass(frozen=True)
class FramePairs:
    """Pairs of successive frames, and the target to be predicted from each pair."""

    frames: UInt8[Tensor, "n 2 c h w"]
    target: Float[Tensor, "n o"]

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: Any) -> FramePairs:
        return FramePairs(self.frames[rows], self.target[rows])

    def to(self, device: Any) -> FramePairs:
        return FramePairs(self.frames.to(device), self.target.to(device))


def previous_transition(clip: Clip) -> Int[Tensor, "n"]:
    """For each transition the row of the one that ends where it begins, or its own row where there is none."""
    ends = {place: row for row, place in enumerate(zip(clip.episode.tolist(), clip.index[:, 1].tolist(), strict=True))}
    begins = enumerate(zip(clip.episode.tolist(), clip.index[:, 0].tolist(), strict=True))
    return torch.tensor([ends.get(place, row) for row, place in begins])


def frame_pair_targets(items: LabelledTransitions, target: Float[Tensor, "n ..."]) -> FramePairs:
    """The first frame of each transition and the one before it (itself, where an episode begins), with their targets.

    Transitions are as long as a decision. Raises LaminaError if the frames were not kept.
    """
    if items.clip is None:
        raise LaminaError("a policy of frames needs the frames: these transitions were kept without them")
    present = items.clip.frames[:, 0]
    return FramePairs(torch.stack([present[previous_transition(items.clip)], present], 1), target.flatten(1).float())


class FramePairRegressor(nn.Module):
    """Two frames -> o numbers: the encoder of a LAM, newly initialised, and a linear head."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: LAMConfig, outputs: int):
        super().__init__()
        self.space = scratch_space(config.space, config.image[0])
        observation = self.space.observation(config.image)
        self.encoder = ENCODERS[ENCODERS.name_of(config.encoder)](config.encoder, observation, config.slots, WIDTH)
        self.head = nn.Linear(config.slots * WIDTH, outputs)
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("std", torch.ones(outputs))

    def calibrate(self, target: Float[Tensor, "n o"]) -> None:
        """Take mean and standard deviation of the targets."""
        self.mean.copy_(target.mean(0))
        self.std.copy_(target.std(0, correction=0).clamp_min(1e-6))

    def standardise(self, target: Float[Tensor, "b o"]) -> Float[Tensor, "b o"]:
        """Targets in the units in which they are predicted."""
        return (target - self.mean) / self.std

    def standardised(self, frames: UInt8[Tensor, "b 2 c h w"]) -> Float[Tensor, "b o"]:
        """The prediction in standardised units: (target - mean) / std."""
        observed = self.space(to_float(frames).flatten(0, 1))
        before, present = self.encoder.embed(observed).unflatten(0, (-1, 2)).unbind(1)
        return self.head(self.encoder.compare(before, present).flatten(1))

    def forward(self, frames: UInt8[Tensor, "b 2 c h w"]) -> Float[Tensor, "b o"]:
        return self.standardised(frames) * self.std + self.mean


def train_regressor(
    config: LAMConfig, train: FramePairs, held: FramePairs, training: TrainConfig
) -> tuple[FramePairRegressor, float]:
    """A :class:`FramePairRegressor` by mean squared error, and its error on ``held`` in units of the targets' variance."""
    torch.manual_seed(training.seed)
    regressor = FramePairRegressor(config, train.target.shape[1])
    regressor.calibrate(train.target)
    fit_space(regressor.space, train.frames.flatten(0, 1))

    def losses(module: FramePairRegressor, batch: FramePairs, draws: Rng) -> dict[str, Tensor]:
        return {"action": squared_error(module.standardised(batch.frames), module.standardise(batch.target))}

    with Scratch() as scratch:
        loss = fit_head(regressor, losses, train, held, training, Path(scratch))
    return regressor.eval(), loss


class FramePolicy(Policy):
    """Acts on the present frame and the one of its last decision; reads one camera.

    ``read`` maps the regressor's predictions for a batch, the previous actions [b a] and the present frames [b c h w] to ``chunk`` actions
    of every row, packed as :meth:`ActionSpec.pack` does.
    """

    def __init__(
        self,
        regressor: FramePairRegressor,
        read: Callable[[Tensor, Tensor, Tensor], Tensor],
        spec: ActionSpec,
        image: tuple[int, int, int],
        batch: int = 1,
        decision_seconds: float | None = None,
        chunk: int = 1,
        device: torch.device | str = "cpu",
        cameras: tuple[str, ...] = (),
    ):
        self.regressor, self.read, self.spec, self.image, self.batch = regressor, read, spec, image, batch
        self.decision_seconds, self.chunk, self.device = decision_seconds, chunk, torch.device(device)
        self.cameras = cameras
        self.previous = torch.zeros(batch, spec.dim, device=device)
        self.before = torch.zeros(batch, *image, dtype=torch.uint8, device=device)
        self.begins = torch.ones(batch, dtype=torch.bool, device=device)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """See :meth:`Policy.reset`."""
        rows = range(self.batch) if rows is None else rows
        self.previous[list(rows)] = 0
        self.begins[list(rows)] = True

    @torch.no_grad()
    def act_batch(self, observations: Observations | UInt8[np.ndarray, "b h w 3"]) -> Shaped[np.ndarray, "b *n a"]:
        """See :meth:`Policy.act_batch`.

        Raises LaminaError for frames that do not fit, and an output that is not finite.
        """
        frames = self.first_camera(observations)
        present = torch.from_numpy(resize_frames(frames, self.image[1:])).permute(0, 3, 1, 2).to(self.device)
        before = torch.where(self.begins[:, None, None, None], present, self.before)
        packed = self.read(self.regressor(torch.stack([before, present], 1)), self.previous, present)
        if not bool(packed.isfinite().all()):
            raise LaminaError("the policy's output is not finite: one of its parts is damaged; train that again")
        actions = self.spec.unpack(packed.cpu().numpy())
        self.before, self.begins = present.clone(), torch.zeros_like(self.begins)
        self.previous = torch.from_numpy(actions[:, -1]).to(self.device)
        actions = actions.astype(np.float32 if self.spec.continuous else np.int64)
        return actions[:, 0] if self.chunk == 1 else actions


def cloning(
    config: LAMConfig,
    train: LabelledTransitions,
    held: LabelledTransitions,
    spec: ActionSpec,
    training: TrainConfig,
    **options: Any,
) -> FramePolicy:
    """Behaviour cloning on all labels, by squared error on the actions' embedding (one-hot for classes, of which the largest is taken)."""
    head = ActionHead(spec)
    head.calibrate(train.action)
    regressor, _ = train_regressor(
        config,
        frame_pair_targets(train, head.embed(train.action)),
        frame_pair_targets(held, head.embed(held.action)),
        training,
    )
    return FramePolicy(regressor, lambda output, previous, present: head.choose(output), spec, config.image, **options)


def latent_policy(
    config: LAMConfig,
    train: LabelledTransitions,
    held: LabelledTransitions,
    translator: Translator,
    training: TrainConfig,
    **options: Any,
) -> FramePolicy:
    """Latent behaviour cloning: pi(z | o), trained on every transition without labels, and the translator of its latents."""
    regressor, _ = train_regressor(
        config, frame_pair_targets(train, train.z), frame_pair_targets(held, held.z), training
    )
    translator.eval()

    def read(z: Tensor, previous: Tensor, present: Tensor) -> Tensor:
        return translator.action.choose(translator(z, previous))

    return FramePolicy(regressor, read, translator.action.spec, config.image, **options)
