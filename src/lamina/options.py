"""Limits of the options of commands and configs, checked before a command starts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lamina.errors import LaminaError

INTEGER = 2**31 - 1  # the largest seed that all simulators accept

#: Minimum and maximum of each option, for all commands and methods. Conditions on several options (a batch size that is a multiple of the
#: shards, a width that is a multiple of the heads) are checked where these options are used.
LIMITS: dict[str, tuple[float, float]] = {
    # training
    "steps": (1, 10**9), "batch": (1, 10**7), "accumulate": (1, 10**5), "shards": (1, 10**5), "warmup": (0, 10**9),
    "lr": (1e-12, 100), "weight_decay": (0, 100), "clip": (1e-12, 1e12), "ema": (0, 1 - 1e-9), "seed": (0, INTEGER), "seeds": (0, INTEGER),
    "checkpoint_every": (1, 10**9), "validate_every": (1, 10**9), "log_every": (1, 10**9), "keep": (1, 10**6),
    # data
    "gap": (1e-6, 86_400), "span": (1e-6, 86_400), "frames": (1, 10**9), "size": (1, 8192), "shuffle": (1, 10**6), "workers": (0, 1024),
    "max_bad": (0, 10**9), "gpus": (0, 1024),
    # models
    "image": (1, 1024), "slots": (1, 1024), "code_dim": (1, 65536), "codebook_size": (2, 2**20), "levels": (2, 1024), "width": (1, 65536),
    "heads": (1, 1024), "kv_heads": (1, 1024), "layers": (1, 256), "channels": (1, 8192), "patch": (1, 8192), "hidden": (1, 2**20),
    "narrow": (1, 65536), "dropout": (0, 0.99), "flow_steps": (1, 10**4), "augment": (0, 0.99), "context": (1, 10**5),
    "stride": (1, 10**5), "grid": (1, 1024), "local": (1, 10**5), "window": (1, 10**5), "theta": (1, 1e12), "target_share": (1e-9, 1),
    # flow policy
    "chunk": (1, 1024), "replan": (1, 1024), "latent_steps": (1, 1024), "latent_gap": (1e-6, 86_400), "latent_numbers": (1, 65536),
    "tokens": (1, 1024), "most": (2, 1024),
    "labels": (1, 10**8), "share": (0, 1), "hide": (0, 1), "shift": (0, 0.5), "lora_rank": (1, 1024),
    # weights of losses
    "latent_weight": (0, 1e6), "action_weight": (0, 1e6),
    "reconstruction": (0, 1e6), "commitment": (0, 1e6), "composition": (0, 1e6), "reversal": (0, 1e6), "perception": (0, 1e6),
    "algebra_warmup": (0, 10**9),
    "cross_exogenous": (0, 1e6), "robust_target": (0, 1e6), "shared_slots": (1, 1024), "direct": (0, 1e6),
    # derived from the data
    "target_width": (0, 10**5), "target_classes": (1, 10**5), "target_mean": (-1e15, 1e15), "target_deviation": (0, 1e15),
    "proprio_width": (0, 10**5),
    "max_rotation": (1e-6, 10), "rotation": (0, 10**6),
    # evaluation
    "transitions": (2, 10**8), "reconstructions": (1, 10**7), "linear": (2, 10**8), "structure": (0, 10**7), "scratch_steps": (1, 10**9),
    "translator_steps": (1, 10**9), "align_steps": (1, 10**9), "decoded": (2, 10**7), "policy_steps": (1, 10**9),
    # simulators
    "episodes": (1, 10**8), "hold": (1, 10**6), "noise": (0, 1), "k": (0, 1024), "parallel": (1, 4096), "temperature": (0, 100),
    "max_steps": (1, 10**9),
    # claims
    "jobs": (1, 4096),
    # play
    "port": (0, 65_535),
    # the linear Ex-BMDP
    "p_switch": (0, 1), "alpha": (0, 1e6), "states": (2, 10**4), "state": (0, 10**4), "observation": (1, 10**5), "latent": (1, 10**4),
    "weight": (1e-12, 1e6), "draws": (1, 10**4),
}  # fmt: skip

#: Options of a training and of its data. The Config of a method cannot have options of these names: they would hide one another.
TRAINING_OPTIONS = {
    "steps", "batch", "lr", "warmup", "weight_decay", "optimizer", "clip", "accumulate", "ema", "seed", "device", "precision", "compile",
    "recompute", "ema_offload", "parallel", "shards", "checkpoint_every", "keep", "validate_every", "log_every", "resume",
    "tensorboard", "wandb",
    "data", "out", "gap", "camera", "paired", "tasks", "shots", "shuffle", "workers", "max_bad", "init", "plan",
}  # fmt: skip


def check_options(options: Any) -> None:
    """Check that every number in ``options``, a dataclass that may contain others, is finite and within the limits of its name.

    Raises LaminaError for the first number that is not. None is always accepted.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            check_options(value)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check(field.name, number)


def _check(name: str, number: float) -> None:
    option = f"--{name.replace('_', '-')}"
    if not math.isfinite(number):
        raise LaminaError(f"{option} must be a finite number, got {number}")
    least, most = LIMITS.get(name, (-math.inf, math.inf))
    if number < least:
        raise LaminaError(f"{option} must be at least {least:g}, got {number}")
    if number > most:
        raise LaminaError(f"{option} must be at most {most:g}, got {number}")
