"""What a training would cost: parameters, FLOPs, memory and days, from the meta device, where tensors have shapes and no content.

torch counts the FLOPs of matrix products, convolutions and attention (a multiplication and an addition are 2). Activations are the tensors
that autograd keeps, at 2 bytes a number; a fused attention keeps less. With activation checkpointing a repeated unit keeps its input, and
one unit at a time the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from lamina.errors import LaminaError

UTILISATION = 0.4  # of a GPU's peak that training reaches
#: Peak of dense bfloat16 matrix products by the makers' data sheets, FLOP/s; and memory, bytes.
GPUS = {"H20": 148e12, "A100": 312e12, "H100": 989e12}
GPU_MEMORY = {"H20": 96e9, "A100": 80e9, "H100": 80e9}
GIGA = 1e9


@dataclass(frozen=True)
class Cost:
    """Of one part and one sample."""

    forward: float = 0.0  # FLOPs
    backward: float = 0.0  # FLOPs
    kept: float = 0.0  # bytes from forward to backward
    again: float = 0.0  # FLOPs that activation checkpointing adds
    kept_then: float = 0.0  # bytes that are kept with it, but for those of the one unit that is computed again
    kept_by_unit: float = 0.0  # bytes of that unit, the largest

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forward + other.forward, self.backward + other.backward, self.kept + other.kept, self.again + other.again,
            self.kept_then + other.kept_then, max(self.kept_by_unit, other.kept_by_unit),
        )  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One part of a model. ``repeated``: what a sample of a flow runs at each of its Euler steps; it runs the rest of ``cost`` once."""

    name: str
    parameters: int
    trained: int
    cost: Cost
    repeated: float = 0.0  # FLOPs


def part_of(name: str, modules: Sequence[nn.Module], cost: Cost, repeated: float = 0.0) -> Part:
    """The part that ``modules`` are."""
    weights = [value for module in modules for value in module.parameters()]
    trained = sum(value.numel() for value in weights if value.requires_grad)
    return Part(name, sum(value.numel() for value in weights), trained, cost, repeated)


@dataclass(frozen=True)
class Plan:
    """What a model would cost, part by part."""

    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def trained(self) -> int:
        return sum(part.trained for part in self.parts)

    @property
    def cost(self) -> Cost:
        """Of a training step, a sample."""
        return sum((part.cost for part in self.parts), Cost())


def measured(stage: Callable[[], Tensor], units: Sequence[nn.Module] = ()) -> tuple[Cost, Tensor]:
    """The cost of what ``stage`` computes, and its result, from which no gradient reaches it any more.

    ``units``: the modules that activation checkpointing would compute again.
    """
    kept: dict[int, tuple[float, int]] = {}
    inputs: dict[int, float] = {}
    again: dict[int, float] = {}
    running: list[int] = [0]

    def keep(value: Tensor) -> Tensor:
        if not isinstance(value, nn.Parameter) and not isinstance(value._base, nn.Parameter):
            storage = value.untyped_storage()
            size = storage.nbytes()
            own = size / value.element_size() * 2 if value.is_floating_point() else size
            kept.setdefault(storage._cdata, (own, running[-1]))
        return value

    def enter(unit: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = [v for v in (*given, *named.values()) if isinstance(v, Tensor)]
        inputs[id(unit)] = sum(2.0 * v.numel() for v in tensors)
        again[id(unit)] = -float(forward.get_total_flops())
        running.append(id(unit))

    def leave(unit: nn.Module, *_: Any) -> None:
        running.pop()
        again[id(unit)] += forward.get_total_flops()

    forward = FlopCounterMode(display=False)
    with _hooked(units, enter, leave), forward, saved_tensors_hooks(keep, lambda value: value):
        result = stage()
    backward = FlopCounterMode(display=False)
    if result.requires_grad:
        with backward:
            result.sum().backward()
    else:
        again.clear()
    outside = sum(size for size, unit in kept.values() if not unit)
    by_unit = [sum(size for size, own in kept.values() if own == unit) for unit in inputs]
    cost = Cost(
        forward.get_total_flops(), backward.get_total_flops(), sum(size for size, _ in kept.values()), sum(again.values()),
        outside + sum(inputs.values()) if units else 0.0, max(by_unit, default=0.0),
    )  # fmt: skip
    return cost, result.detach().requires_grad_(result.requires_grad)


@contextmanager
def _hooked(units: Sequence[nn.Module], enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    hooks = [unit.register_forward_pre_hook(enter, with_kwargs=True) for unit in units]
    hooks += [unit.register_forward_hook(leave) for unit in units]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def parse_gpus(text: str) -> tuple[int, str]:
    """("8", "H100") of "8xH100". Raises LaminaError for another form and for a GPU that is not known."""
    found = re.fullmatch(r"([1-9]\d{0,5})x(\w+)", text)
    if found is None or found[2] not in GPUS:
        raise LaminaError(
            f"--plan {text}: give a number of GPUs and their kind, as in 8xH100 (kinds: {', '.join(GPUS)})"
        )
    return int(found[1]), found[2]


def told_parts(found: Plan) -> list[str]:
    """A table of the parts, as lines of text."""
    head = f"{'part':<22}{'parameters':>14}{'trained':>14}{'forward':>12}{'backward':>12}{'activations':>14}"
    rows = [*found.parts, Part("total", found.parameters, found.trained, found.cost)]
    lines = [f"{head}\n{'':<22}{'million':>14}{'million':>14}{'GFLOP':>12}{'GFLOP':>12}{'MB':>14}"]
    lines += [
        f"{row.name:<22}{row.parameters / 1e6:>14,.1f}{row.trained / 1e6:>14,.1f}{row.cost.forward / GIGA:>12,.1f}"
        f"{row.cost.backward / GIGA:>12,.1f}{row.cost.kept / 1e6:>14,.1f}"
        for row in rows
    ]
    return lines


def days(flops: float, kind: str, gpus: int = 1) -> float:
    """Of computing, at :data:`UTILISATION` of the peak."""
    return flops / (UTILISATION * GPUS[kind] * gpus) / 86_400
