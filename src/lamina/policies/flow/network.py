"""The transformer that predicts the velocities of latents and actions.

Tokens are N v latents (v views) and H actions, each with the embedding of its step and of what it is. Which token sees which, beside the
context, which all see:

    alam      a latent: the latents of its step and of the steps before; an action: those, and the actions up to its own (ALAM §3.3)
    villa_x   a latent: all latents; an action: all latents and all actions (block-wise causal, villa-X §3.2)

So no latent depends on an action, and the order [z_1, u_1, z_2, u_2, ...] of the papers is in the mask, not in the layout. Latents and
actions have one set of weights in alam and one each (two experts) in villa_x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lamina.models.decoders.flow import timestep_embedding
from lamina.models.layers import MLP, AdaLNBlock, attend, position_embedding
from lamina.policies.flow.config import Dimensions, FlowConfig, FlowShapes, Form

Stage = Literal["joint", "latents"]


@dataclass(frozen=True)
class Memory:
    """The context as the network's layers read it."""

    layers: list[Float[Tensor, "b m e2"]]  # keys and values of its tokens
    valid: Bool[Tensor, "#b m"]  # which tokens may be seen


def structure(form: Form, latent_steps: int, views: int, actions: int) -> Bool[Tensor, "n n"]:
    """Which of the N v latents (step after step) and H actions each of them sees: the table above."""
    step = torch.cat([torch.arange(latent_steps).repeat_interleave(views), torch.arange(actions)])
    is_action = torch.arange(len(step)) >= latent_steps * views
    seen = ~is_action[None, :] | is_action[:, None]  # nothing but an action sees an action
    return seen if form == "villa_x" else seen & (step[None, :] <= step[:, None])


class FlowLayer(nn.Module):
    """One layer: every expert's tokens attend to the context and to one another."""

    def __init__(self, size: Dimensions, experts: int):
        super().__init__()
        self.heads = size.heads
        self.experts = nn.ModuleList(AdaLNBlock(size.width, size.heads, size.expansion) for _ in range(experts))

    def forward(
        self,
        groups: list[Float[Tensor, "b _ d"]],
        condition: Float[Tensor, "#b d"],
        memory: Float[Tensor, "b c e2"],
        mask: Bool[Tensor, "#b k m"],
    ) -> list[Float[Tensor, "b _ d"]]:
        """``groups``: the tokens of each expert."""
        experts: list[Any] = list(self.experts)[: len(groups)]
        parts = [block.modulate(condition) for block in experts]
        projected = [
            block.attention.qkv(block.before(x, part)) for block, x, part in zip(experts, groups, parts, strict=True)
        ]
        q, k, v = torch.cat(projected, dim=1).chunk(3, dim=-1)
        seen_k, seen_v = memory.chunk(2, dim=-1)
        out = attend(q, torch.cat([seen_k, k], 1), torch.cat([seen_v, v], 1), self.heads, mask)
        attended = out.split([x.shape[1] for x in groups], dim=1)
        return [
            block.after(x, block.attention.out(y), part)
            for block, x, y, part in zip(experts, groups, attended, parts, strict=True)
        ]


class FlowNetwork(nn.Module):
    """Noised latents and actions at a time, and the context -> their velocities (or their noise: see lamina.policies.flow.framework)."""

    seen: Tensor

    def __init__(self, config: FlowConfig, shapes: FlowShapes, context: int):
        super().__init__()
        size, self.views = config.dimensions, len(shapes.cameras) if shapes.latent else 0
        self.width, steps, width = size.width, config.steps_of_latents if self.views else 0, size.width
        self.apart = config.form == "villa_x" and self.views > 0  # latents and actions have an expert each
        self.action_in, self.action_out = nn.Linear(shapes.spec.width, width), nn.Linear(width, shapes.spec.width)
        self.latent_in = nn.ModuleList(nn.Linear(shapes.latent, width) for _ in range(self.views))
        self.latent_out = nn.ModuleList(nn.Linear(width, shapes.latent) for _ in range(self.views))
        self.action_place = position_embedding(config.actions, width)
        self.latent_place = nn.Parameter(0.02 * torch.randn(steps, self.views, width)) if self.views else None
        two_stage = bool(self.views) and config.generation == "two_stage"
        self.finished = nn.Parameter(0.02 * torch.randn(width)) if two_stage else None
        self.context = nn.Linear(context, size.layers * 2 * width)
        self.time = MLP(width, width)
        self.layers = nn.ModuleList(FlowLayer(size, 1 + self.apart) for _ in range(size.layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        for layer in (self.modulation, self.action_out, *self.latent_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("seen", structure(config.form, steps, self.views, config.actions), persistent=False)

    def memory(self, context: Float[Tensor, "b m d"], valid: Bool[Tensor, "b m"] | None = None) -> Memory:
        """Keys and values of the context's tokens; they depend on nothing else, so a decision computes them once.

        ``valid``: which tokens may be seen (None: all).
        """
        if valid is None:
            valid = torch.ones_like(context[:1, :, 0], dtype=torch.bool)
        return Memory(list(self.context(context).chunk(len(self.layers), dim=-1)), valid)

    def mask(
        self,
        memory: Memory,
        stage: Stage = "joint",
        valid: Bool[Tensor, "#b all"] | None = None,
        visible: Bool[Tensor, "#b n v"] | None = None,
    ) -> Bool[Tensor, "#b k m"]:
        """Which of the context and the tokens each token sees; "latents": without the actions, on which no latent depends.

        ``valid``: which of all tokens, latents first, may be seen at all (None: each); ``visible``: which latents the actions may see
        (None: each).
        """
        latents = 0 if self.latent_place is None else self.latent_place.shape[0] * self.views
        tokens = latents if stage == "latents" else len(self.seen)
        seen = self.seen[None, :tokens, :tokens]
        if valid is not None:
            seen = seen & valid[:, None, :tokens]
        if visible is not None:
            shown = F.pad(visible.flatten(1), (0, tokens - latents), value=True)  # every action
            is_latent = torch.arange(tokens, device=seen.device) < latents
            seen = seen & (shown[:, None, :] | is_latent[:, None])
        batch = max(len(memory.valid), len(seen))
        of_context = memory.valid[:, None, :].expand(batch, tokens, -1)
        return torch.cat([of_context, seen.expand(batch, -1, -1)], dim=2)

    def forward(
        self,
        memory: Memory,
        time: Float[Tensor, "#b"],
        latents: Float[Tensor, "b n v l"] | None,
        actions: Float[Tensor, "b h e"] | None,
        mask: Bool[Tensor, "#b k m"],
        finished: bool = False,
    ) -> tuple[Float[Tensor, "b n v l"] | None, Float[Tensor, "b h e"] | None]:
        """The velocities of what is given. ``mask``: of :meth:`mask`; ``finished``: the latents are as they will be, not noised (the second
        stage of two)."""
        groups = []
        if latents is not None:
            assert self.latent_place is not None
            x = torch.stack([layer(latents[:, :, i]) for i, layer in enumerate(self.latent_in)], dim=2)
            x = x + self.latent_place
            if finished:
                assert self.finished is not None
                x = x + self.finished
            groups.append(x.flatten(1, 2))
        if actions is not None:
            groups.append(self.action_in(actions) + self.action_place)
        lengths = [group.shape[1] for group in groups]
        condition = self.time(timestep_embedding(time, self.width))
        if not self.apart:
            groups = [torch.cat(groups, dim=1)]
        for layer, kept in zip(self.layers, memory.layers, strict=True):
            groups = layer(groups, condition, kept, mask)
        shift, scale = self.modulation(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
        out = list((self.norm(torch.cat(groups, dim=1)) * (1 + scale) + shift).split(lengths, dim=1))
        u = self.action_out(out.pop()) if actions is not None else None
        if latents is None:
            return None, u
        y = out[0].unflatten(1, latents.shape[1:3])
        return torch.stack([layer(y[:, :, i]) for i, layer in enumerate(self.latent_out)], dim=2), u
