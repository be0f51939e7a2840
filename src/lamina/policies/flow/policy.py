"""The flow policy at work: observations in, the first r of H generated actions out.

policy = FlowPolicy.from_run("runs/alam")
policy.reset()
actions = policy.act(Observations({"corner2": frame, "gripperPOV": wrist}, proprio, ("open the drawer",)))   # [r a]
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from lamina.data.lerobot.writer import CAMERA_PREFIX
from lamina.device import autocast, pick_device
from lamina.errors import LaminaError, LaminaWarning
from lamina.images import resize_frames
from lamina.models.adaptive import Length
from lamina.models.hub import LatentActionModel
from lamina.policies.base import Observations, Policy, PolicyKind
from lamina.policies.flow.config import FlowConfig, Intervention
from lamina.policies.flow.context import Context
from lamina.policies.flow.model import FlowModel
from lamina.policies.flow.training import load_flow_policy, plan_flow_policy, train_flow_policy
from lamina.rng import Rng


class FlowPolicy(Policy):
    """Generates latents and actions together, for ``batch`` episodes at once, and carries out the first of the actions.

    The noise of a row's decision is a function of (seed, number of the decision, row): no row depends on the others. ``intervention``: on
    the latents, at test time (ALAM App. F).
    """

    def __init__(
        self,
        model: FlowModel,
        batch: int = 1,
        seed: int = 0,
        precision: str = "fp32",
        intervention: Intervention = "none",
    ):
        autocast("cpu", precision)  # refuses an unknown one
        if batch < 1:
            raise LaminaError(f"a policy needs a batch of at least 1, got {batch}")
        if intervention not in ("none", "freeze", "block", "shuffle"):
            raise LaminaError(f"unknown intervention {intervention!r}: choose none, freeze, block or shuffle")
        if intervention != "none" and not model.network.views:
            raise LaminaError(f"there is nothing to {intervention}: this policy generates no latents")
        self.model, self.seed, self.precision, self.intervention = model.eval(), seed, precision, intervention
        self.shapes, self.config = model.shapes, model.config
        self.image, self.spec, self.batch = model.shapes.image, model.shapes.spec, batch
        self.cameras = tuple(camera.removeprefix(CAMERA_PREFIX) for camera in model.shapes.cameras)
        self.proprio, self.chunk = model.shapes.proprio, model.config.executed
        self.decision_seconds = self.chunk / model.shapes.fps
        self.device = model.place.device
        self.decisions = np.zeros(batch, np.int64)  # of each row, ever
        self.fresh = np.ones(batch, bool)  # rows that begin an episode
        self.warned: set[str] = set()  # tasks
        c, h, w = self.image
        history = self.config.context
        self.frames = np.zeros((batch, len(self.cameras), history, h, w, c), np.uint8)
        self.states = np.zeros((batch, history, self.proprio), np.float32)

    @classmethod
    def from_run(
        cls,
        run: str | os.PathLike[str],
        *,
        k: Length = None,
        batch: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        device: str = "auto",
        precision: str = "fp32",
        intervention: Intervention = "none",
    ) -> FlowPolicy:
        """The policy of a run folder: RUN/policy, made for the LAM of RUN/model.

        Raises LaminaError for ``k`` or ``temperature``, which a flow policy does not have, and as :func:`load_flow_policy` does.
        """
        if k is not None or temperature:
            raise LaminaError("a flow policy has neither k nor a temperature; leave them out")
        run, place = Path(run), pick_device(device)
        lam = LatentActionModel.from_pretrained(str(run)).lam
        return cls(load_flow_policy(run / "policy", lam).to(place), batch, seed, precision, intervention)

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """These rows (all by default) begin a new episode with their next observation."""
        for row in range(self.batch) if rows is None else rows:
            if not 0 <= row < self.batch:
                raise LaminaError(f"no row {row} in a batch of {self.batch}")
            self.fresh[row] = True

    def act_batch(self, observations: Observations | UInt8[np.ndarray, "b h w 3"]) -> Shaped[np.ndarray, "b *r a"]:
        """The first r of the generated actions of every row: int64 where all dimensions are discrete, else float32, within the range of the
        data; [b a] for r = 1. Frames of another size than the model's are resized.

        Raises LaminaError for a camera that is missing, proprioception of another width, and values that are not finite; nothing
        has changed then.
        """
        if not isinstance(observations, Observations):
            observations = Observations({self.cameras[0]: observations})
        size = (self.image[1], self.image[2])
        pictures = np.stack([resize_frames(self.view(observations, c), size) for c in self.cameras], axis=1)
        state, words = self._state(observations), self._words(observations)
        new = self.fresh[:, None]
        self.frames = _remember(self.frames.swapaxes(1, 2), pictures, new).swapaxes(1, 2)
        self.states = _remember(self.states, state, new)
        frames = torch.from_numpy(np.ascontiguousarray(self.frames.transpose(0, 1, 2, 5, 3, 4)))
        context = Context(frames, torch.from_numpy(self.states) if self.proprio else None, words)
        z_noise, u_noise, order = self._draws()
        self.decisions += 1
        self.fresh[:] = False
        with torch.inference_mode(), autocast(self.device, self.precision):
            on_device = context.to(self.device)
            _, actions = self.model.sample(on_device, z_noise, u_noise, self.intervention, order)
        if not bool(actions.isfinite().all()):
            raise LaminaError("the policy's output is not finite: it is damaged; train it again")
        chosen = actions[:, : self.chunk].float().cpu().numpy()
        chosen = chosen.astype(np.float32 if self.spec.continuous else np.int64)
        return chosen[:, 0] if self.chunk == 1 else chosen

    def _draws(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """The noise of each row's decision, and an order of the latents' steps."""
        z, u, order = [], [], []
        for row, decision in enumerate(self.decisions.tolist()):
            rng = Rng(self.seed, decision, (row,), self.device)
            z_noise, u_noise = self.model.noise(rng, 1)
            z.append(z_noise)
            u.append(u_noise)
            order.append(rng.uniform(1, self.config.steps_of_latents))
        return (None if z[0] is None else torch.cat(z)), torch.cat(u), torch.cat(order)  # type: ignore[arg-type]

    def _state(self, observations: Observations) -> Shaped[np.ndarray, "b p"]:
        if not self.proprio:
            return np.zeros((self.batch, 0), np.float32)
        given = observations.proprio
        shape = None if given is None else np.shape(given)
        if shape != (self.batch, self.proprio):
            raise LaminaError(f"this policy reads proprioception of shape {(self.batch, self.proprio)}, got {shape}")
        state = np.asarray(given, np.float32)
        if not np.isfinite(state).all():
            raise LaminaError("the proprioception holds NaN or infinity")
        return state

    def _words(self, observations: Observations) -> tuple[str, ...]:
        """What is to be done in each row; the one task of the training data where none is given."""
        known, words = self.shapes.tasks, tuple(observations.task)
        if not words:
            if self.config.task and len(known) > 1:
                raise LaminaError(
                    f"this policy was trained on {len(known)} tasks, and needs to know which one is to be done"
                )
            return (known[0] if known else "",) * self.batch
        if len(words) != self.batch:
            raise LaminaError(f"{len(words)} tasks for a policy of {self.batch} episode(s)")
        for text in set(words) - {"", *known, *self.warned} if self.config.task else ():
            self.warned.add(text)
            warnings.warn(f"this policy was not trained on the task {text!r}", LaminaWarning, stacklevel=3)
        return words


def _remember(
    history: Shaped[np.ndarray, "b t *d"], now: Shaped[np.ndarray, "b *d"], fresh: Shaped[np.ndarray, "b 1"]
) -> Shaped[np.ndarray, "b t *d"]:
    """The history with ``now`` at its end; ``fresh`` rows have nothing else."""
    moved = np.concatenate([history[:, 1:], now[:, None]], axis=1)
    only = np.broadcast_to(now[:, None], moved.shape)
    return np.where(fresh.reshape(-1, *[1] * (moved.ndim - 1)), only, moved)


KIND = PolicyKind(
    title="flow matching of actions and latents together (ALAM §3.3; AC-LAM's by --form villa_x); cameras, proprioception, task",
    config=FlowConfig,
    training={"steps": 2500, "batch": 64, "lr": 1e-3, "optimizer": "muon", "ema": 0.999},
    train=train_flow_policy,
    plan=plan_flow_policy,
    policy=FlowPolicy,
)
