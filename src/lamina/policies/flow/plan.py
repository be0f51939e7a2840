"""What a flow policy would cost: parameters, FLOPs, memory and days, before any of it is built.

The policy is laid out on the meta device, and its parts are run there on one observation (:mod:`lamina.training.costs`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.policies.flow.backbone import VisionLanguageEncoder, picture_size
from lamina.policies.flow.config import FlowConfig, FlowShapes
from lamina.policies.flow.context import Context
from lamina.policies.flow.model import FlowModel
from lamina.policies.flow.network import Memory
from lamina.training import costs
from lamina.training.costs import GIGA, GPUS, UTILISATION, Cost, Part, days, measured, part_of, told_parts
from lamina.training.settings import TrainConfig

INSTRUCTION = 48  # tokens of a task in words: the most that pi0 reads


@dataclass(frozen=True)
class Plan(costs.Plan):
    """What a policy would cost."""

    tokens: int  # of the context, which the action expert reads
    flow_steps: int

    @property
    def decision(self) -> float:
        """FLOPs of one decision: the context is encoded once, the action expert runs at every Euler step."""
        return sum(part.cost.forward + (self.flow_steps - 1) * part.repeated for part in self.parts)

    def training_bytes(self, rows: int, average: bool) -> dict[str, float]:
        """Of one GPU, by what it holds, for ``rows`` observations at a time. Weights that are trained are float32, others bfloat16."""
        return {
            "weights": 4 * self.trained + 2 * (self.parameters - self.trained),
            "gradients": 4 * self.trained,
            "moments": 8 * self.trained,
            "average": (4 * self.trained + 2 * (self.parameters - self.trained)) * average,
            "activations": rows * self.cost.kept,
        }


def plan(config: FlowConfig, shapes: FlowShapes) -> Plan:
    """Lay out the policy and run its parts. Raises LaminaError for a backbone that cannot be opened or laid out."""
    with torch.device("meta"):
        model = FlowModel(config, shapes)
        if isinstance(model.encoder, VisionLanguageEncoder):
            parts, tokens = _vision_language(model.encoder, config.context * len(shapes.cameras))
            rest = nn.ModuleList([module for module in (model.encoder.proprio, model.encoder.norm) if module])
            parts.append(part_of("proprio, norm", [rest], Cost()))
            tokens += model.encoder.proprio is not None
        else:
            shape = (1, len(shapes.cameras), config.context, *shapes.image)
            proprio = torch.zeros(1, config.context, shapes.proprio) if shapes.proprio else None
            context = Context(torch.zeros(shape, dtype=torch.uint8), proprio, ("",))
            cost, states = measured(lambda: model.encoder(context)[0])
            parts, tokens = [part_of("encoder", [model.encoder], cost)], states.shape[1]
        parts += _expert(model, tokens)
    return Plan(tuple(parts), tokens, config.flow_steps)


def _vision_language(encoder: VisionLanguageEncoder, views: int) -> tuple[list[Part], int]:
    """The parts of a backbone, run one after the other, and how many tokens come out."""
    modules: dict[str, Any] = {name: found[0] for name, found in encoder.parts.items() if len(found) == 1}
    kind = next(encoder.model.parameters()).dtype
    with torch.set_grad_enabled(encoder.tune != "frozen"):
        try:
            vision, connector, language = modules["vision"], modules["connector"], modules["language"]
            pictures = torch.zeros(views, 3, *picture_size(encoder.settings), dtype=kind)
            stages: list[Cost] = []

            def run(stage: Callable[[], Tensor]) -> Tensor:
                cost, result = measured(stage)
                stages.append(cost)
                return result

            def look() -> Tensor:
                patches = vision.embeddings.patch_embedding(pictures).flatten(2).transpose(1, 2)
                return vision.encoder(inputs_embeds=patches).last_hidden_state.contiguous()

            seen = run(look)
            shown = run(lambda: connector(seen)).flatten(0, 1).unsqueeze(0)
            words = torch.zeros(1, INSTRUCTION, shown.shape[-1], dtype=shown.dtype)
            n = shown.shape[1] + INSTRUCTION
            # A mask that is complete is not looked into, which could not be done here.
            mask = torch.zeros(1, 1, n, n, dtype=kind)
            prompt = torch.cat([shown, words], dim=1)
            run(lambda: language(inputs_embeds=prompt, attention_mask=mask, use_cache=False).last_hidden_state)
        except (KeyError, AttributeError, TypeError, RuntimeError) as error:
            raise LaminaError(
                f"--plan knows no cost of {encoder.name}: a {encoder.settings.model_type} model has other parts"
            ) from error
    return [part_of(name, encoder.parts[name], cost) for name, cost in zip(modules, stages, strict=True)], n


def _expert(model: FlowModel, tokens: int) -> list[Part]:
    """The network that generates latents and actions: each layer's keys and values of the context, and the rest."""
    config, shapes, network = model.config, model.shapes, model.network
    context = torch.zeros(1, tokens, model.encoder.width, requires_grad=True)
    of_context, layers = measured(lambda: torch.stack(network.memory(context).layers))
    memory = Memory(list(layers.unbind()), torch.ones(1, tokens, dtype=torch.bool))
    time, u = torch.zeros(1), torch.zeros(1, config.actions, shapes.spec.width)
    z = torch.zeros(1, config.steps_of_latents, network.views, shapes.latent) if network.views else None

    def run(actions: Tensor | None) -> Tensor:
        mask = network.mask(memory, "joint" if actions is not None else "latents")
        return sum(out.sum() for out in network(memory, time, z, actions, mask) if out is not None)  # type: ignore[return-value]

    passes = [u] if z is None or config.generation == "joint" else [None, u]
    cost = sum((measured(lambda given=given: run(given))[0] for given in passes), Cost())  # type: ignore[misc]
    count = sum(value.numel() for name, value in network.named_parameters() if not name.startswith("context."))
    return [
        part_of("context projection", [network.context], of_context),
        Part("action expert", count, count, cost, cost.forward),
    ]


def told_plan(found: Plan, training: TrainConfig, gpus: int = 8) -> str:
    """The plan as text, for training on one GPU and on ``gpus``."""
    lines = told_parts(found)
    step = training.batch * (found.cost.forward + found.cost.backward)
    at_once = math.ceil(training.batch / gpus / training.accumulate)
    memory = found.training_bytes(at_once, training.ema > 0)
    lines += [
        "",
        "FLOPs and activations are those of one observation.",
        f"The action expert reads {found.tokens} tokens: the encoder's last layer (in pi0, every layer).",
        f"a decision ({found.flow_steps} Euler steps): {found.decision / 1e12:.3f} TFLOP; memory in bfloat16: "
        f"{2 * found.parameters / GIGA:.1f} GB of weights",
        f"a training step of {training.batch} observations: {step / 1e12:,.1f} TFLOP; {training.steps:,} steps: "
        f"{step * training.steps / 1e18:,.2f} EFLOP",
        f"memory of training, on each of {gpus} GPUs with {at_once} observations at a time, GB: "
        + ", ".join(f"{name} {size / GIGA:,.1f}" for name, size in memory.items())
        + f"; together {sum(memory.values()) / GIGA:,.1f}",
        f"days of training at {UTILISATION:.0%} of the peak (dense bfloat16):",
    ]
    for name, peak in GPUS.items():
        alone = days(step * training.steps, name)
        lines.append(
            f"  {name:<6}{peak / 1e12:>5,.0f} TFLOP/s   1 GPU {alone:>8,.2f}   {gpus} GPUs {alone / gpus:>8,.2f}"
        )
    return "\n".join(lines)
