"""Options of the training loop, and which settings a resumed run must share with the one that it goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lamina.device import DeviceName, Precision
from lamina.errors import LaminaError
from lamina.files import read_json, write_text
from lamina.options import check_options
from lamina.records import differences

OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the same for every stage."""

    steps: int = 5_000
    batch: int = 64
    """samples of one optimiser step, over all processes and accumulation steps"""
    lr: float = 3e-4
    warmup: int = 200
    """steps of linear warm-up, at most a tenth of all; then cosine decay to a tenth"""
    weight_decay: float = 0.01
    optimizer: OptimizerName = "adamw"
    """muon: orthogonalised momentum for weight matrices, AdamW for the rest; small models reach a given loss in fewer steps"""
    clip: float = 1.0
    """largest gradient norm"""
    accumulate: int = 1
    """micro-batches of one optimiser step"""
    ema: float = 0.999
    """decay of the averaged weights that are saved as the model; 0 turns averaging off"""
    seed: int = 0
    device: DeviceName = "auto"
    precision: Precision = "fp32"
    compile: bool = False
    """torch.compile of every transformer and residual block"""
    recompute: bool = False
    """activation checkpointing: the backward pass computes every block again instead of keeping its activations; needs less memory and
    about a third more time"""
    ema_offload: bool = False
    """keep the averaged weights in the host's memory, not the accelerator's"""
    parallel: Literal["ddp", "fsdp2"] = "ddp"
    """how torchrun's processes share the work"""
    shards: int | None = None
    """independent data streams that one batch is made of; default: the number of processes. A run resumes on as many processes as
    divide them evenly"""
    checkpoint_every: int = 500
    keep: int = 2
    """checkpoints kept"""
    validate_every: int = 250
    log_every: int = 10
    resume: bool = False
    tensorboard: bool = False
    wandb: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        if self.optimizer == "muon" and self.parallel == "fsdp2":
            raise LaminaError("--optimizer muon needs whole weight matrices, which fsdp2 splits: choose --parallel ddp")
        parts = self.accumulate * (1 if self.shards is None else self.shards)
        if self.batch % parts:
            raise LaminaError(f"--batch {self.batch} does not split into {parts} equal parts")


#: Training options that a resumed run may change: where it runs, and how often it logs, validates and saves.
RESUMABLE_OPTIONS = {
    "resume", "checkpoint_every", "keep", "tensorboard", "wandb", "compile", "recompute", "ema_offload", "parallel", "device",
    "log_every", "validate_every"
}  # fmt: skip


def fixed_options(config: TrainConfig) -> dict[str, Any]:
    """The options that a resumed run may not change."""
    return {name: value for name, value in vars(config).items() if name not in RESUMABLE_OPTIONS}


def keep_settings(path: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Keep a stage's settings beside its checkpoints, in the JSON file ``path``. Raises LaminaError if a resumed run had others."""
    settings = json.loads(json.dumps(settings))  # as they will be read back
    if resume and path.exists():
        before = read_json(path, f"delete {path.parent} and start again")
        if changed := differences(before, settings):
            raise LaminaError(
                f"{path.parent}: was started with other settings ({', '.join(changed)}); resume with the same ones, or delete that "
                "folder and start again"
            )
    write_text(path, json.dumps(settings, indent=2) + "\n")
