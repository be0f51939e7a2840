"""The flow policy's model: context, latents and actions in units of their spread; losses and sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lamina.data.augment import shifted
from lamina.models.heads import ActionHead
from lamina.policies.flow.backbone import VisionLanguageEncoder
from lamina.policies.flow.config import FlowConfig, FlowShapes, Intervention
from lamina.policies.flow.context import Context, ConvObservationEncoder
from lamina.policies.flow.framework import framework_of
from lamina.policies.flow.network import FlowNetwork, Memory
from lamina.rng import Rng
from lamina.types import TensorRecord

SMALLEST_DEVIATION = 1e-6
FARTHEST = 5.0  # deviations of the proprioception from its mean; beyond it is clipped
HIDDEN_LATENT = 0.5  # villa-X §3.2: the share of latents that is hidden from the actions where not all are


@dataclass(frozen=True)
class FlowBatch(TensorRecord):
    """Contexts with what followed. Latents and actions that are unknown or lie behind the episode's end are not ``valid``."""

    context: Context
    action: Float[Tensor, "b h a"]
    action_valid: Bool[Tensor, "b h"]
    latent: Float[Tensor, "b n v l"] | None = None
    latent_valid: Bool[Tensor, "b n"] | None = None
    #: Rows with actions, in units of their usual number: small parts of a batch have more of them, fewer or none (None: as many).
    action_weight: Float[Tensor, "b"] | None = None

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True)
class Statistics(TensorRecord):
    """Of the training data: mean and standard deviation, and the range of the labelled actions."""

    action: Float[Tensor, "m a"]  # the labelled actions themselves
    latent_mean: Float[Tensor, "v l"]
    latent_std: Float[Tensor, "v l"]
    proprio_mean: Float[Tensor, "p"]
    proprio_std: Float[Tensor, "p"]


class FlowModel(nn.Module):
    """Context -> N v latents and H actions, generated together or one after the other.

    Inside, proprioception, latents and actions are standardised (classes one-hot); what comes in and goes out is as in the data. Raises
    LaminaError for options that do not go together, a picture that the encoder cannot read, and diffusion without its library.
    """

    latent_mean: Tensor
    latent_std: Tensor
    proprio_mean: Tensor
    proprio_std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, config: FlowConfig, shapes: FlowShapes):
        super().__init__()
        config.check()
        self.config, self.shapes = config, shapes
        self.framework = framework_of(config)
        encoder = ConvObservationEncoder if config.backbone == "conv" else VisionLanguageEncoder
        self.encoder: Any = encoder(config, shapes)
        self.network = FlowNetwork(config, shapes, self.encoder.width)
        self.action = ActionHead(shapes.spec)
        for name, size in (
            ("latent", (len(shapes.cameras), shapes.latent)), ("proprio", (shapes.proprio,))
        ):  # fmt: skip
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.register_buffer("low", torch.zeros(shapes.continuous))
        self.register_buffer("high", torch.zeros(shapes.continuous))

    @property
    def place(self) -> Tensor:
        """A tensor on the model's device."""
        return self.low

    def calibrate(self, statistics: Statistics) -> None:
        """Take units and ranges from the training data."""
        self.action.calibrate(statistics.action)
        numbers = statistics.action[:, len(self.shapes.discrete) :]
        self.low.copy_(numbers.amin(0))
        self.high.copy_(numbers.amax(0))
        for name in ("latent", "proprio"):
            getattr(self, f"{name}_mean").copy_(getattr(statistics, f"{name}_mean"))
            getattr(self, f"{name}_std").copy_(getattr(statistics, f"{name}_std").clamp_min(SMALLEST_DEVIATION))

    # ------------------------------------------------------------------------------------------- units

    def embed_action(self, action: Float[Tensor, "b h a"]) -> Float[Tensor, "b h e"]:
        return self.action.embed(action.flatten(0, 1)).unflatten(0, action.shape[:2])

    def read_action(self, output: Float[Tensor, "b h e"]) -> Float[Tensor, "b h a"]:
        """The actions of a sample: the largest class, and numbers within the range of the data."""
        action = self.action.read(output.flatten(0, 1)).unflatten(0, output.shape[:2])
        return self.shapes.spec.clip(action, self.low, self.high)

    def observe(self, context: Context) -> Memory:
        """The context as the network reads it, in every layer."""
        if context.proprio is not None:
            standard = (context.proprio - self.proprio_mean) / self.proprio_std
            # A joint that hardly moved in training would be thousands of deviations away when it moves.
            context = Context(context.frames, standard.clamp(-FARTHEST, FARTHEST), context.words)
        return self.network.memory(*self.encoder(context))

    # ------------------------------------------------------------------------------------------- training

    def losses(self, batch: FlowBatch, draws: Rng) -> dict[str, Float[Tensor, "b"]]:
        """The error of what the framework predicts, of the actions and of each view's latents (ALAM Eq. 13, villa-X Eq. 5).

        Its mean over the batch is that over all valid actions (latents): rows without them do not dilute it.
        """
        config, b = self.config, len(batch)
        context = batch.context
        if self.training and config.shift:
            context = Context(shifted(context.frames, config.shift, draws), context.proprio, context.words)
        memory, time = self.observe(context), self.framework.time(draws, b)
        u = self.embed_action(batch.action)
        u_noise = draws.normal(b, *u.shape[1:])
        u_noised, u_valid = self.framework.noised(u, u_noise, time), batch.action_valid
        u_target = self.framework.target(u, u_noise)
        if not self.network.views:
            _, predicted = self.network(memory, time, None, u_noised, self.network.mask(memory, valid=u_valid))
            return {"action": self._action_error(batch, predicted, u_target)}
        assert batch.latent is not None and batch.latent_valid is not None
        z = (batch.latent - self.latent_mean) / self.latent_std
        z_noise = draws.normal(b, *z.shape[1:])
        z_noised, z_valid = self.framework.noised(z, z_noise, time), batch.latent_valid
        visible = self._visible(draws, b)
        valid = torch.cat([z_valid.repeat_interleave(z.shape[2], dim=1), u_valid], dim=1)
        mask = self.network.mask(memory, "joint", valid, visible)
        if config.generation == "joint":
            z_predicted, predicted = self.network(memory, time, z_noised, u_noised, mask)
        else:
            z_predicted, _ = self.network(memory, time, z_noised, None, self.network.mask(memory, "latents", valid))
            _, predicted = self.network(memory, time, z, u_noised, mask, finished=True)
        z_target = self.framework.target(z, z_noise)
        terms = {
            f"latent_{i}": self._error(z_predicted[:, :, i], z_target[:, :, i], z_valid) for i in range(z.shape[2])
        }
        return {"action": self._action_error(batch, predicted, u_target), **terms}

    def weights(self) -> dict[str, float]:
        """Of the terms of :meth:`losses`."""
        views = {f"latent_{i}": self.config.latent_weight for i in range(self.network.views)}
        return {"action": self.config.action_weight, **views}

    def _action_error(
        self, batch: FlowBatch, predicted: Float[Tensor, "b h e"], target: Float[Tensor, "b h e"]
    ) -> Float[Tensor, "b"]:
        """The error of the actions, such that its mean over the parts of a batch is that over all of the batch's actions."""
        error = self._error(predicted, target, batch.action_valid)
        return error if batch.action_weight is None else error * batch.action_weight

    def _error(
        self, predicted: Float[Tensor, "b h e"], target: Float[Tensor, "b h e"], valid: Bool[Tensor, "b h"]
    ) -> Float[Tensor, "b"]:
        difference = predicted.float() - target
        error = (difference.square() if self.framework.squared else difference.abs()).mean(-1)
        # Not a product: what is not valid may be anything.
        return torch.where(valid, error, 0.0).sum(1) * (len(valid) / valid.sum().clamp_min(1))

    def _visible(self, draws: Rng, batch: int) -> Bool[Tensor, "b n v"] | None:
        """The latents that the actions see in training (None: all): none in some rows, and villa-X hides single ones in the others."""
        if not self.config.hidden and self.config.form == "alam":
            return None
        shape = (self.config.steps_of_latents, self.network.views)
        plan = draws.uniform(batch, 1, 1) >= self.config.hidden
        if self.config.form == "alam":
            return plan.expand(batch, *shape)
        return plan & (draws.uniform(batch, *shape) >= HIDDEN_LATENT)

    # ------------------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample(
        self,
        context: Context,
        z_noise: Float[Tensor, "b n v l"] | None,
        u_noise: Float[Tensor, "b h e"],
        intervention: Intervention = "none",
        order: Float[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b n v l"] | None, Float[Tensor, "b h a"]]:
        """Latents and actions from noise, in the data's units.

        ``intervention`` on the latents that the actions see (ALAM App. F): freeze leaves them at their noise; block hides them; shuffle
        permutes their steps, in the order of ``order``'s numbers.
        """
        memory, steps, network = self.observe(context), self.config.flow_steps, self.network
        u_shape = u_noise.shape[1:]
        if z_noise is None:
            mask = network.mask(memory)

            def alone(x: Tensor, time: Tensor) -> Tensor:
                return network(memory, time[:1], None, x.unflatten(1, u_shape), mask)[1].flatten(1).float()

            u = self.framework.sample(alone, u_noise.flatten(1), steps)
            return None, self.read_action(u.unflatten(1, u_shape))

        z_shape, numbers = z_noise.shape[1:], z_noise[0].numel()
        visible = torch.zeros_like(z_noise[:1, :, :, 0], dtype=torch.bool) if intervention == "block" else None
        mask = network.mask(memory, "joint", visible=visible)

        def shown(z: Tensor) -> Tensor:
            """What the actions see of the latents ``z``."""
            if intervention == "freeze":
                return z_noise
            if intervention == "shuffle":
                assert order is not None
                return torch.take_along_dim(z, order.argsort(1)[:, :, None, None], dim=1)
            return z

        if self.config.generation == "joint":

            def both(x: Tensor, time: Tensor) -> Tensor:
                z, u = x[:, :numbers].unflatten(1, z_shape), x[:, numbers:].unflatten(1, u_shape)
                z_velocity, u_velocity = network(memory, time[:1], z, u, mask)
                if intervention in (
                    "freeze",
                    "shuffle",
                ):  # no latent depends on an action: only the actions see other latents
                    u_velocity = network(memory, time[:1], shown(z), u, mask)[1]
                return torch.cat([z_velocity.flatten(1), u_velocity.flatten(1)], dim=1).float()

            x = self.framework.sample(both, torch.cat([z_noise.flatten(1), u_noise.flatten(1)], dim=1), steps)
            z, u = x[:, :numbers].unflatten(1, z_shape), x[:, numbers:].unflatten(1, u_shape)
        else:
            planning = network.mask(memory, "latents")

            def plan(x: Tensor, time: Tensor) -> Tensor:
                return network(memory, time[:1], x.unflatten(1, z_shape), None, planning)[0].flatten(1).float()

            z = self.framework.sample(plan, z_noise.flatten(1), steps).unflatten(1, z_shape)
            seen = shown(z)

            def then(x: Tensor, time: Tensor) -> Tensor:
                u = x.unflatten(1, u_shape)
                return network(memory, time[:1], seen, u, mask, finished=True)[1].flatten(1).float()

            u = self.framework.sample(then, u_noise.flatten(1), steps).unflatten(1, u_shape)
        return z * self.latent_std + self.latent_mean, self.read_action(u)

    def noise(self, draws: Rng, batch: int) -> tuple[Float[Tensor, "b n v l"] | None, Float[Tensor, "b h e"]]:
        """What :meth:`sample` begins with."""
        config, views = self.config, self.network.views
        u = draws.normal(batch, config.actions, self.shapes.spec.width)
        z = draws.normal(batch, config.steps_of_latents, views, self.shapes.latent) if views else None
        return z, u

    def action_error(self, batch: FlowBatch, draws: Rng) -> float:
        """Mean squared error of sampled actions where they are known: numbers in units of their variance, classes one-hot."""
        _, actions = self.sample(batch.context, *self.noise(draws, len(batch)))
        error = (self.embed_action(actions) - self.embed_action(batch.action)).square().mean(-1)
        return float(error[batch.action_valid].mean())


def flow_losses(model: FlowModel, batch: FlowBatch, draws: Rng) -> dict[str, Float[Tensor, "b"]]:
    """:meth:`FlowModel.losses`, in the form that the training loop calls."""
    return model.losses(batch, draws)
