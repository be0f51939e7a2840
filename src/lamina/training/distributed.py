"""Processes of a torchrun job, and how they share the work of one training (DDP, FSDP2)."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lamina import collective
from lamina.device import pick_device
from lamina.errors import LaminaError
from lamina.models.layers import repeated
from lamina.training.settings import TrainConfig


@dataclass(frozen=True)
class Processes:
    """This process among the processes of the job (torchrun's RANK and WORLD_SIZE)."""

    rank: int
    size: int

    @staticmethod
    def here() -> Processes:
        return Processes(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def shards(self, config: TrainConfig, begun: int | None = None) -> tuple[int, range]:
        """The number of data shards, and those of this process. ``begun``: of the run that is resumed.

        Raises LaminaError where the processes do not divide the shards evenly, or these the batch.
        """
        n = config.shards or begun or self.size
        if n % self.size or config.batch % (n * config.accumulate):
            hint = f"; begin a run that {self.size} processes may resume with --shards {self.size}" if begun else ""
            raise LaminaError(
                f"{n} shards, {self.size} processes and --batch {config.batch} do not divide evenly{hint}"
            )
        each = n // self.size
        return n, range(self.rank * each, (self.rank + 1) * each)

    def join(self, device: str) -> torch.device:
        """The device of this process. If the job has several, joins their process group (nccl on CUDA, else gloo)."""
        kind = pick_device(device)
        if self.size == 1:
            return torch.device(kind)
        own = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(own)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        return own

    def mean(self, value: Tensor) -> float:
        """The mean of a scalar over all processes."""
        return float(collective.total(value) / self.size)


def shard(module: nn.Module, device: torch.device, processes: int, offload: bool = False) -> None:
    """FSDP2: the parameters of each block are one unit, all others another. ``offload``: kept in the host's memory between their uses."""
    mesh = init_device_mesh(device.type, (processes,))
    policy = CPUOffloadPolicy() if offload and device.type != "cpu" else OffloadPolicy()
    for part in repeated(module):
        fully_shard(part, mesh=mesh, offload_policy=policy)
    fully_shard(module, mesh=mesh, offload_policy=policy)


def replicate(module: nn.Module, device: torch.device) -> DistributedDataParallel:
    """DDP: each process has all parameters; gradients are averaged."""
    return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


def unsynchronised(module: nn.Module) -> AbstractContextManager[None]:
    """Within, the backward pass of a DDP module leaves gradients on their process; no effect on other modules."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
