"""The networks that read actions: the translator, an Hourglass MLP on a latent, and the inverse dynamics model on frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamina.losses.reconstruction import squared_error
from lamina.models.config import LAMConfig, SizeName
from lamina.models.encoders import ENCODERS
from lamina.models.features import scratch_space
from lamina.models.layers import BatchNorm
from lamina.options import check_options
from lamina.types import ActionSpec

Condition = Literal["latent", "latent+previous", "latent+previous+observation"]


class HourglassMLP(nn.Module):
    """Hourglass MLP (Chen et al. 2025): residual stream at the wide width, each block narrows and widens again. [b i] -> [b o]."""

    def __init__(
        self, inputs: int, outputs: int, width: int = 512, narrow: int = 128, layers: int = 3, dropout: float = 0.1
    ):
        super().__init__()
        self.inputs = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, narrow), nn.GELU(), nn.Dropout(dropout), nn.Linear(narrow, width)
            )
            for _ in range(layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        x = self.inputs(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class ActionHead(nn.Module):
    """An action predictor's output: how actions are embedded, predicted, scored and decoded.

    Discrete dimensions: one-hot in, logits out, cross-entropy. Continuous ones are standardised by ``mean`` and ``std`` [a_c] of the labels
    and scored by squared error. ``low`` and ``high``: range of the labels, infinite where it isn't known; not among the weights.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, spec: ActionSpec):
        super().__init__()
        self.spec = spec
        self.width = spec.width
        self.register_buffer("mean", torch.zeros(spec.continuous))
        self.register_buffer("std", torch.ones(spec.continuous))
        self.register_buffer("low", torch.full((spec.continuous,), -torch.inf), persistent=False)
        self.register_buffer("high", torch.full((spec.continuous,), torch.inf), persistent=False)

    def calibrate(self, action: Float[Tensor, "n a"]) -> None:
        """Take mean, standard deviation and range of the continuous dimensions from the labels."""
        if not self.spec.continuous:
            return
        continuous = action[:, len(self.spec.discrete) :]
        self.mean.copy_(continuous.mean(0))
        self.std.copy_(continuous.std(0, correction=0).clamp_min(1e-6))
        self.low.copy_(continuous.amin(0))
        self.high.copy_(continuous.amax(0))

    def embed(self, action: Float[Tensor, "b a"]) -> Float[Tensor, "b e"]:
        """One-hot discrete and standardised continuous dimensions."""
        hot, continuous = self.spec.one_hot(action).tensor_split([sum(self.spec.discrete)], dim=-1)
        return torch.cat([hot, (continuous - self.mean) / self.std], dim=-1)

    def split(self, output: Float[Tensor, "b e"]) -> tuple[list[Float[Tensor, "b n"]], Float[Tensor, "b c"]]:
        """Logits of each discrete dimension, and the standardised continuous ones."""
        *logits, continuous = output.split([*self.spec.discrete, self.spec.continuous], dim=-1)
        return logits, continuous

    def loss(self, output: Float[Tensor, "b e"], action: Float[Tensor, "b a"]) -> Float[Tensor, "b"]:
        """Mean over the dimensions of cross-entropy (nats) and squared error (in units of the labels' variance)."""
        logits, continuous = self.split(output.float())
        terms = [F.cross_entropy(x, action[:, i].long(), reduction="none") for i, x in enumerate(logits)]
        if self.spec.continuous:
            target = self.embed(action)[:, sum(self.spec.discrete) :]
            terms += list((continuous - target).square().unbind(-1))
        return torch.stack(terms).mean(0)

    def change(self, output: Float[Tensor, "b e"], other: Float[Tensor, "b e"]) -> Float[Tensor, "b"]:
        """How far ``other`` is from ``output``: mean over the dimensions of KL(output || other) (nats) and squared difference (in units of
        the labels' variance). By so much the loss of ``other`` is expected to be higher, if ``output`` is right."""
        (logits, continuous), (others, moved) = self.split(output.float()), self.split(other.float())
        terms = [
            F.kl_div(b.log_softmax(-1), a.log_softmax(-1), reduction="none", log_target=True).sum(-1)
            for a, b in zip(logits, others, strict=True)
        ]
        return torch.stack([*terms, *(continuous - moved).square().unbind(-1)]).mean(0)

    def read(self, output: Float[Tensor, "b e"]) -> Float[Tensor, "b a"]:
        """The most likely action."""
        logits, continuous = self.split(output.float())
        best = [x.argmax(-1).float() for x in logits]
        return torch.cat([torch.stack(best, -1) if best else continuous[:, :0], continuous * self.std + self.mean], -1)

    def choose(self, output: Float[Tensor, "b e"]) -> Float[Tensor, "b a"]:
        """The most likely action within the range of the labels: what a policy does."""
        return self.spec.clip(self.read(output), self.low, self.high)


#: Width of the translator at each ``--size``; its blocks narrow to a quarter.
WIDTHS: dict[str, int] = {"debug": 64, "tiny": 256, "small": 512, "base": 1024}


@dataclass(frozen=True)
class TranslatorConfig:
    """The translator's shape and what it reads."""

    condition: Condition = "latent+previous"
    """App. D.1; latent+previous is the paper's choice"""
    size: SizeName = "small"
    width: int | None = None
    """derived from --size"""
    narrow: int | None = None
    """derived: a quarter of the width"""
    layers: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_options(self)

    def widths(self) -> tuple[int, int]:
        """Wide and narrow width of the Hourglass MLP."""
        wide = self.width or WIDTHS[self.size]
        return wide, self.narrow or wide // 4


class Translator(nn.Module):
    """g(null-filled latent, previous action[, features of o_t]) -> action, or ``steps`` actions in a row (a chunk, laid out as
    :meth:`ActionSpec.chunk` says). ``spec``: of one action."""

    def __init__(
        self,
        latent: int,
        spec: ActionSpec,
        config: TranslatorConfig = TranslatorConfig(),
        observation: int = 0,
        steps: int = 1,
    ):
        super().__init__()
        self.spec, self.steps = spec, steps
        self.action = ActionHead(spec.chunk(steps))
        self._single = ActionHead(spec) if steps > 1 else None
        self.condition = config.condition
        inputs = latent
        inputs += self.previous.width if "previous" in config.condition else 0
        inputs += observation if "observation" in config.condition else 0
        self.mlp = HourglassMLP(inputs, self.action.width, *config.widths(), config.layers, config.dropout)

    @property
    def previous(self) -> ActionHead:
        """How the previous action is fed back: one action, also where a chunk is predicted."""
        return self._single or self.action

    def calibrate(self, action: Float[Tensor, "n a"]) -> None:
        """Take mean, standard deviation and range of the continuous dimensions from the labels."""
        self.action.calibrate(action)
        if self._single is not None:
            self._single.calibrate(torch.from_numpy(self.spec.unpack(action.cpu().numpy())).flatten(0, 1).to(action))

    def forward(
        self,
        z: Float[Tensor, "b ..."],
        previous: Float[Tensor, "b a"],
        observation: Float[Tensor, "b o"] | None = None,
    ) -> Float[Tensor, "b e"]:
        parts = [z.float().flatten(1)]
        if "previous" in self.condition:
            parts.append(self.previous.embed(previous))
        if "observation" in self.condition:
            assert observation is not None
            parts.append(observation.float().flatten(1))
        return self.mlp(torch.cat(parts, dim=-1))


class InverseDynamics(nn.Module):
    """IDM: the LAM's encoder from scratch, no bottleneck, the translator's head; trained on the labels alone (§6.3).

    ``pairs=False`` shows it the first frame twice: the observation-only control. It sees the frames, so of the translator's ``head`` it
    takes all but the observation.
    """

    def __init__(
        self,
        config: LAMConfig,
        spec: ActionSpec,
        pairs: bool = True,
        head: TranslatorConfig = TranslatorConfig(),
        steps: int = 1,
    ):
        super().__init__()
        self.pairs = pairs
        dim = 64
        self.space = scratch_space(config.space, config.image[0])
        observation = self.space.observation(config.image)
        self.encoder = ENCODERS[ENCODERS.name_of(config.encoder)](config.encoder, observation, config.slots, dim)
        condition: Condition = "latent+previous" if "previous" in head.condition else "latent"
        self.translator = Translator(config.slots * dim, spec, replace(head, condition=condition), steps=steps)

    @property
    def action(self) -> ActionHead:
        return self.translator.action

    def forward(self, frames: Float[Tensor, "b t c h w"], previous: Float[Tensor, "b a"]) -> Float[Tensor, "b e"]:
        first = self.encoder.embed(self.space(frames[:, 0]))
        second = self.encoder.embed(self.space(frames[:, 1])) if self.pairs else first
        return self.translator(self.encoder.compare(first, second), previous)


class ProprioDynamics(nn.Module):
    """The proprioceptive forward model (q_i, z_ij) -> q_j, an MLP of two layers (villa-X, arXiv 2507.23682; AC-LAM App. A.1).

    It predicts the change of the state in units of each channel's spread, which running statistics hold: metres, radians and
    gripper openings count alike.
    """

    def __init__(self, state: int, latent: int, width: int = 256):
        super().__init__()
        self.scale = BatchNorm(state, momentum=0.01)
        self.net = nn.Sequential(nn.Linear(state + latent, width), nn.GELU(), nn.Linear(width, state))

    def loss(
        self, first: Float[Tensor, "b q"], z: Float[Tensor, "b k d"], second: Float[Tensor, "b q"]
    ) -> Float[Tensor, "b"]:
        """Mean squared error of each sample."""
        q, target = self.scale(torch.cat([first, second])).chunk(2)
        return squared_error(self.net(torch.cat([q, z.flatten(1)], dim=1)), target - q)
