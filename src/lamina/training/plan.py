"""What the training of a LAM would cost on given GPUs (`lamina train METHOD --plan 8xH100`), before any of it is built or any data read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lamina.errors import LaminaError
from lamina.files import reason
from lamina.models.config import LAMConfig
from lamina.models.decoders.sd3 import SD3Decoder
from lamina.models.lam import LAM
from lamina.models.layers import repeated
from lamina.rng import Rng
from lamina.training.costs import (
    GIGA,
    GPU_MEMORY,
    GPUS,
    UTILISATION,
    Cost,
    Part,
    Plan,
    days,
    measured,
    parse_gpus,
    part_of,
    told_parts,
)
from lamina.training.settings import TrainConfig

RESERVED = 0.1  # of a GPU's memory: for the library's own use, and for what does not fit between other tensors


class NoRandomNumbers(Rng):
    """Draws that have a shape only, for the meta device, which has no generator."""

    def __init__(self) -> None:
        super().__init__(0)

    def normal(self, batch: int, *shape: int) -> Tensor:
        return torch.empty(batch, *shape, device="meta")

    def uniform(self, batch: int, *shape: int) -> Tensor:
        return self.normal(batch, *shape)


def plan(config: LAMConfig) -> Plan:
    """Lay out a LAM and run it on one pair. Raises LaminaError for a LAM whose parts the meta device cannot run."""
    try:
        with torch.device("meta"):
            lam: Any = LAM(config)
            frames = torch.zeros(2, *config.image)
            pictures = lam.space(frames)
            cost, z = measured(lambda: lam.pair(*lam.embed(frames).halves()).post, repeated(lam.encoder))
            rest = [lam.bottleneck, lam.prefix, lam.whiten, lam.space]
            parts = [part_of("encoder", [lam.encoder], cost), part_of("bottleneck", rest, Cost())]
            src, dst = pictures.split(1)
            whole, _ = measured(lambda: lam.decoder.loss(src, z, dst, NoRandomNumbers()), repeated(lam.decoder))
            parts += _decoder(lam, pictures, whole)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise LaminaError(f"--plan knows no cost of this model: {reason(error)}") from error
    return Plan(tuple(parts))


def _decoder(lam: Any, pictures: Tensor, whole: Cost) -> list[Part]:
    """The decoder, and apart from it a frozen autoencoder, if it has one."""
    decoder = part_of("decoder", [lam.decoder], whole)
    if not isinstance(lam.decoder, SD3Decoder):
        return [decoder]
    autoencoder = part_of(
        "autoencoder", [lam.decoder.autoencoder], measured(lambda: lam.decoder.autoencoder(pictures))[0]
    )
    cost = replace(whole, forward=whole.forward - autoencoder.cost.forward)
    return [replace(decoder, parameters=decoder.parameters - autoencoder.parameters, cost=cost), autoencoder]


def training_bytes(found: Plan, training: TrainConfig, gpus: int, rows: int, unit: int) -> dict[str, float]:
    """Of one GPU, by what it holds, for ``rows`` pairs at a time. All is float32, but for activations.

    ``unit``: parameters that FSDP2 gathers at a time, in float32 and in bfloat16, and once more for their gradients.
    """
    share = gpus if training.parallel == "fsdp2" else 1
    cost, whole = found.cost, found.parameters
    activations = rows * (cost.kept_then + cost.kept_by_unit) if training.recompute else rows * cost.kept
    copies = 2 * whole if training.precision == "bf16" else 0  # that autocast makes
    gathered = 10 * unit if share > 1 else copies
    return {
        "weights": 4 * whole / share,
        "gradients": 4 * found.trained / share,
        "moments": 8 * found.trained / share,
        "average": 0.0 if training.ema_offload or not training.ema else 4 * whole / share,
        "gathered" if share > 1 else "bfloat16 copies": gathered,
        "activations": activations,
    }


def told_plan(config: LAMConfig, training: TrainConfig, machine: str) -> str:
    """The plan as text, for training on ``machine``, such as 8xH100."""
    gpus, kind = parse_gpus(machine)
    found = plan(config)
    with torch.device("meta"):
        lam = LAM(config)
    unit = max((sum(p.numel() for p in part.parameters()) for part in repeated(lam)), default=0)
    if training.batch % gpus:
        raise LaminaError(f"--batch {training.batch} does not divide among {gpus} GPUs")
    cost, each = found.cost, training.batch // gpus

    def memory(settings: TrainConfig) -> dict[str, float]:
        return training_bytes(found, settings, gpus, math.ceil(each / settings.accumulate), unit)

    limit = (1 - RESERVED) * GPU_MEMORY[kind]
    step = training.batch * (cost.forward + cost.backward + cost.again * training.recompute)
    needed, room = sum(memory(training).values()), GPU_MEMORY[kind]
    lines = [
        *told_parts(found),
        "",
        "FLOPs and activations are those of one pair; a fused attention keeps less.",
        f"a training step of {training.batch:,} pairs: {step / 1e12:,.1f} TFLOP, {step / gpus / 1e12:,.1f} a GPU"
        + (
            f" ({training.batch * cost.again / 1e12:,.1f} of all for activations that are computed again)"
            if training.recompute
            else ""
        ),
        f"memory of each of {gpus} {kind} ({room / GIGA:.0f} GB), {training.parallel}, {math.ceil(each / training.accumulate)} pairs at a "
        "time, GB: "
        + ", ".join(f"{name} {size / GIGA:,.1f}" for name, size in memory(training).items())
        + f"; together {needed / GIGA:,.1f}",
    ]
    if needed > limit:
        lines.append(_advice(training, each, memory, limit))
    total = days(step * training.steps, kind, gpus)
    lines.append(
        f"{training.steps:,} steps on {gpus} {kind} at {UTILISATION:.0%} of the peak ({GPUS[kind] / 1e12:,.0f} TFLOP/s, dense bfloat16): "
        f"{total:,.2f} days ({24 * total:,.1f} hours)"
    )
    return "\n".join(lines)


def _advice(training: TrainConfig, each: int, memory: Callable[[TrainConfig], dict[str, float]], limit: float) -> str:
    """Options with which the training fits, those that cost the least time first."""
    tried = [
        replace(training, parallel="fsdp2", optimizer="adamw", ema_offload=offload, recompute=recompute)
        for recompute in (False, True)
        for offload in (False, True)
    ]
    for settings in tried:
        for accumulate in (n for n in range(1, each + 1) if each % n == 0):
            chosen = replace(settings, accumulate=accumulate)
            # Fewer than eight pairs at a time leave a GPU waiting: computing activations again is cheaper.
            if each // accumulate < min(8, each) and not settings.recompute:
                break
            if sum(memory(chosen).values()) <= limit:
                options = ["--parallel fsdp2", f"--accumulate {accumulate}"]
                options += ["--recompute"] * chosen.recompute + ["--ema-offload"] * chosen.ema_offload
                return (
                    f"that does not fit; this does: {' '.join(options)} ({sum(memory(chosen).values()) / GIGA:,.1f} GB)"
                )
    return "that does not fit, and no option of the training makes it fit: take more GPUs"
