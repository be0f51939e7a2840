"""Device and floating-point precision: the options ``--device`` and ``--precision`` of every command."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

from lamina.errors import LaminaError

if TYPE_CHECKING:  # the command line reads the names below; importing torch would slow down --help
    import torch

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16"]


def pick_device(name: str) -> str:
    """The torch device for ``name``; ``auto``: CUDA, else MPS, else the CPU. Raises LaminaError if it is not available."""
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, there in here.items() if there)
    if name not in here:
        raise LaminaError(f"--device {name}: choose auto, {', '.join(here)}")
    if not here[name]:
        raise LaminaError(f"--device {name}: this machine has none that torch can use; try --device cpu")
    return name


def memory(device: str) -> float:
    """Total memory of a device (from :func:`pick_device`) in bytes; infinity if the system does not report it."""
    import torch

    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """A context manager: networks on ``device`` compute in ``precision``. Raises LaminaError for an unknown precision."""
    import torch

    if precision not in ("fp32", "bf16"):
        raise LaminaError(f"--precision {precision}: choose fp32 or bf16")
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context manager: networks on ``device`` compute in float32, also inside :func:`autocast`."""
    import torch

    # The meta device has no autocast to switch off, and torch refuses to.
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
