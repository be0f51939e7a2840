"""What a comparison trains: methods, seeds, the common backbone, and the steps that each method's budget gives it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lamina import methods
from lamina.api import data_config, prepared
from lamina.data.sampling import DataConfig, count_transitions, open_source
from lamina.data.stream import sample_split
from lamina.device import pick_device
from lamina.errors import LaminaError
from lamina.evaluation.settings import EvaluateConfig
from lamina.methods.base import DecoderName, EncoderName
from lamina.models.config import LAMConfig, SizeName
from lamina.models.lam import LAM
from lamina.options import check_options
from lamina.training.labelled import parse_labels
from lamina.training.pretraining import seconds_a_step
from lamina.training.recipe import Recipe
from lamina.training.settings import OptimizerName, TrainConfig

LEAST = 10  # steps of a training
STAGES = (1, 2)
UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class CompareConfig:
    """Options of a comparison: what all methods share."""

    methods: tuple[str, ...] = ()
    """methods by name, or files of your own; default: every built-in and installed one"""
    seeds: int = 3
    """trainings of each method, with seeds 0, 1, ..."""
    budget: str = "3000steps"
    """of each training: a number of steps (5000steps), or CPU time (90s, 20m, 2h), from which each method's steps are found by a trial"""
    size: SizeName = "tiny"
    image: tuple[int, int] = (64, 64)
    """height and width that frames are resized to, pixels"""
    encoder: EncoderName = "auto"
    decoder: DecoderName = "auto"
    frames: int = 3
    """frames of a training sample, the same samples for every method: those that learn from pairs get each neighbouring pair"""
    gap: tuple[float, float] = (0.1, 0.2)
    """shortest and longest time between two of these frames, seconds"""
    batch: int = 32
    lr: float = 1e-3
    optimizer: OptimizerName = "adamw"
    """muon reaches a given loss in fewer steps (see `lamina train --help`)"""
    align_steps: int = 600
    """training steps of translators"""
    world: str | None = None
    """environment or suite in which policies on the latents are played; default: none"""
    policy_steps: int = 1000
    """training steps of these policies, which clone latents"""
    episodes: int = 20
    """episodes that each policy plays in each environment"""
    parallel: int | None = None
    """trainings at a time, each in its own process; default: as many as there are cores, one on an accelerator"""

    def __post_init__(self) -> None:
        check_options(self)
        if self.seeds < 1:
            raise LaminaError(f"--seeds must be at least 1, got {self.seeds}")
        parse_budget(self.budget)


def parse_budget(text: str) -> tuple[int | None, float | None]:
    """(steps, None) of "5000steps", (None, seconds) of "90s", "20m", "2h". Raises LaminaError for anything else, and under LEAST steps."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(steps|s|m|h)", text.strip())
    if not found:
        raise LaminaError(f"--budget {text}: give steps (5000steps) or CPU time (90s, 20m, 2h)")
    if found[2] != "steps":
        return None, float(found[1]) * UNITS[found[2]]
    if not found[1].isdigit() or int(found[1]) < LEAST:
        raise LaminaError(f"--budget {text}: too small; give at least {LEAST}steps")
    return int(found[1]), None


@dataclass(frozen=True)
class Plan:
    """``steps`` of each method by its name; ``given``: what it was called by (a name or a file)."""

    data: str
    config: CompareConfig
    evaluate: EvaluateConfig
    given: Mapping[str, str]
    steps: Mapping[str, int] = field(default_factory=dict)

    def options(self, name: str, **more: Any) -> dict[str, Any]:
        """The options of a method on the common backbone. Its code (slots, codebook) and its objective are its own."""
        c = self.config
        encoder = c.encoder if c.encoder != "auto" else ("conv" if min(c.image) <= 64 else "transformer")
        decoder = (
            c.decoder if c.decoder != "auto" else ("flow" if pick_device(self.evaluate.device) == "cuda" else "unet")
        )
        return {
            "size": c.size, "image": c.image, "encoder": encoder, "decoder": decoder, "frames": c.frames, **more,
        }  # fmt: skip

    def training(self, seed: int, steps: int) -> TrainConfig:
        c, e = self.config, self.evaluate
        every = max(1, min(250, steps // 4))
        return TrainConfig(
            steps=steps, batch=c.batch, lr=c.lr, optimizer=c.optimizer, seed=seed, resume=True, device=e.device, precision=e.precision,
            validate_every=every, checkpoint_every=every,
        )  # fmt: skip

    def prepared(self, name: str, seed: int, steps: int, **more: Any) -> tuple[Recipe, DataConfig, TrainConfig]:
        """What trains a method: its recipe, its data, its training."""
        method, training = methods.load(self.given[name]), self.training(seed, steps)
        config = method.Config(**self.options(name, **more))
        reading = {"camera": self.evaluate.camera, "paired": self.evaluate.paired, "workers": 0}
        data = data_config(config, [self.data], self.config.gap, **reading)
        recipe, data = prepared(self.given[name], method, config, data, training)
        return recipe, data, training

    def stages(self, name: str) -> tuple[int, ...]:
        """The stages of a method that trains in several, each of which gets its part of the steps; empty for one that does not."""
        config = methods.load(self.given[name]).Config
        return STAGES if any(f.name == "stage" for f in dataclasses.fields(config)) else ()


def make_plan(
    data: str, config: CompareConfig, evaluate: EvaluateConfig, before: Mapping[str, int] | None = None
) -> Plan:
    """The plan of a comparison. ``before``: steps of methods that were found by an earlier call.

    Raises LaminaError for data that cannot be compared on (no actions, nothing held out, too few labels), an unknown method, and a budget
    that is too small.
    """
    check_data(data, config, evaluate)
    given = {methods.name_of(m): m for m in config.methods or methods.names()}
    if len(given) < len(config.methods):
        raise LaminaError(f"--methods {' '.join(config.methods)}: name each method once")
    plan = Plan(data, config, evaluate, given)
    for (
        name
    ) in given:  # a method that does not exist, or an option that does not fit it, is told before anything is trained
        recipe, _, _ = plan.prepared(name, 0, LEAST)
        if recipe.objective_frames > config.frames:
            raise LaminaError(
                f"{name} learns from {recipe.objective_frames} frames: set --frames {recipe.objective_frames}"
            )
    return dataclasses.replace(plan, steps={n: (before or {}).get(n) or steps_of(plan, n) for n in given})


def steps_of(plan: Plan, name: str) -> int:
    """The steps that a method's budget gives it. Raises LaminaError for fewer than LEAST."""
    steps, seconds = parse_budget(plan.config.budget)
    if steps is not None:
        return steps
    assert seconds is not None
    recipe, data, training = plan.prepared(name, 0, LEAST)
    torch.manual_seed(0)
    lam = LAM(LAMConfig.from_dict(recipe.lam.to_dict()))
    clip = sample_split(data, "validation", limit=training.batch)
    clock = time.process_time if pick_device(training.device) == "cpu" else time.perf_counter
    step = min(seconds_a_step(lam, recipe, clip, training, clock) for _ in range(2))
    found = int(seconds / step)
    if found < LEAST:
        least = math.ceil(LEAST * step) + 1
        raise LaminaError(
            f"--budget {plan.config.budget}: is {found} steps of {name}, too few to train; give at least {least}s, or {LEAST}steps"
        )
    return found


def check_data(data: str, config: CompareConfig, evaluate: EvaluateConfig) -> None:
    """Raises LaminaError for data on which methods cannot be compared."""
    assert evaluate.action is not None  # a comparison names it
    source = open_source(data)
    if source.action_spec(evaluate.action) is None:
        raise LaminaError(
            f"{data}: has no actions ('{evaluate.action}'), by which methods are compared; use lamina evaluate"
        )
    if config.world and evaluate.camera not in (None, "all", *source.cameras[:1]):
        raise LaminaError(
            f"--world {config.world}: its policies see the first camera alone; leave out --camera {evaluate.camera}, or --world"
        )
    if len(source.episodes) < 3:
        number = len(source.episodes)
        raise LaminaError(
            f"{data}: has {number} episode{'s' * (number > 1)}; training, validation and test need one each, and intervals many"
        )
    plain = DataConfig(
        (data,), config.image, gap=(sum(config.gap) / 2,) * 2, camera=evaluate.camera, action=evaluate.action
    )
    parse_labels(evaluate.labels or "5%", count_transitions(plain, "train"))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_folder(out: Path, name: str, seed: int) -> Path:
    """The run of a method and seed."""
    return out / "runs" / f"{name}-{seed}"


def stage_folder(out: Path, name: str, seed: int, stage: int | None) -> Path:
    """The run of one stage of a method's training; each has a folder of its own. The last stage (or the only one, None) is the method's."""
    run = run_folder(out, name, seed)
    return run if stage in (None, STAGES[-1]) else run.with_name(f"{run.name}-stage{stage}")
