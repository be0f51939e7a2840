"""One loop for every stage: draw a batch, take a step, log, checkpoint, resume.

A killed run that is resumed writes the same losses, bit for bit on a CPU, as one that was never killed: random numbers are keyed by
(seed, step, shard), the data stream continues at the exact sample, and a checkpoint appears whole or not at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from lamina.device import autocast
from lamina.errors import LaminaError
from lamina.losses.reconstruction import total
from lamina.methods.base import Losses
from lamina.models.layers import recompute, repeated
from lamina.progress import progress_bar
from lamina.rng import Rng
from lamina.training.average import HOST, WeightAverage, as_saved, state_of
from lamina.training.checkpoints import Checkpoints, Counting, Stream, TrainingState, full
from lamina.training.distributed import Processes, replicate, shard, unsynchronised
from lamina.training.log import Log
from lamina.training.muon import MOMENTS, Muon, matrices
from lamina.training.parts import storage
from lamina.training.settings import TrainConfig
from lamina.weights import first_non_finite

#: What a validation returns: figures for the log, and warnings for the user.
Validation = tuple[dict[str, float], list[str]]


class Diverged(LaminaError):
    """The loss of a training is not finite."""


class _Step(nn.Module):
    """The losses of a step as a module's forward, which DDP and FSDP2 hook into."""

    def __init__(self, module: nn.Module, losses: Losses):
        super().__init__()
        self.module = module
        self.losses = losses

    def forward(self, batch: Any, rng: Rng) -> dict[str, Float[Tensor, "b"]]:
        return self.losses(self.module, batch, rng)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up (at most a tenth of the run), then cosine decay to a tenth of ``lr``. ``step`` counts from 0."""
    warmup = min(config.warmup, max(1, config.steps // 10))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW on the trained parameters, or Muon on weight matrices and AdamW on the rest. Norms, biases and embeddings of one axis are not
    decayed.

    A group's learning rate is a factor of the schedule's (:func:`learning_rate`). A group whose optimiser keeps another state than AdamW
    names it under "moments" (:mod:`lamina.training.checkpoints`).
    """
    orthogonal = matrices(module) if config.optimizer == "muon" else []
    of_muon = {id(p) for p in orthogonal}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in of_muon]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if orthogonal:
        decay = config.weight_decay
        groups.append({"params": orthogonal, "weight_decay": decay, "orthogonal": True, "moments": MOMENTS})
    kind = Muon if orthogonal else torch.optim.AdamW
    # Without groups that are empty: torch loses their options when it loads an optimiser's state.
    return kind([{**g, "initial_lr": 1.0} for g in groups if g["params"]], lr=1.0, betas=(0.9, 0.99), fused=True)


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed torch's global generator, from which dropout draws."""
    if device.type == "cpu":
        # torch.manual_seed would also format the stack, once for each kind of accelerator.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def accumulate_gradients(
    module: nn.Module,
    batches: Iterator[Any],
    weights: Mapping[str, float],
    config: TrainConfig,
    step: int,
    shards: Sequence[int],
    device: torch.device,
) -> tuple[dict[str, Tensor], float]:
    """Gradients of one optimiser step, summed over its micro-batches.

    Returns the mean of the loss and of each term on this process, and the seconds that were spent waiting for data.
    """
    terms: dict[str, Tensor] = {}
    waited = 0.0
    for micro in range(config.accumulate):
        asked = time.perf_counter()
        batch = next(batches).to(device)
        waited += time.perf_counter() - asked
        rng = Rng(config.seed, step * config.accumulate + micro, shards, device)
        seed_dropout(rng.seed, device)
        with unsynchronised(module) if micro < config.accumulate - 1 else nullcontext():
            with autocast(device, config.precision):
                parts = module(batch, rng)
                loss = total(parts, weights)
            (loss / config.accumulate).backward()
        for name, value in {"loss": loss, **parts}.items():
            terms[name] = terms.get(name, 0) + value.detach().float().mean() / config.accumulate
    return terms, waited


def fit(
    run: Path,
    module: nn.Module,
    losses: Losses,
    weights: Mapping[str, float],
    open_stream: Callable[[int, Sequence[int]], Stream],
    config: TrainConfig,
    validate: Callable[[Any], Validation] | None = None,
    title: str | None = None,
    recalibrate: Callable[[Any], None] | None = None,
) -> dict[str, Tensor]:
    """Train ``module`` for ``config.steps`` steps and return its final (averaged) weights on the CPU.

    ``losses(module, batch, rng) -> {term: [b]}`` with a weight for each term; ``open_stream(shards, own)`` opens the data: of so many
    shards those of this process.
    ``validate(module)`` is called every ``validate_every`` steps and at the end, on the weights as they would be saved: averaged
    (``config.ema``), with statistics that ``recalibrate(module)`` has fitted to them. ``title`` names the progress bar (None: no bar).
    Log and checkpoints go to ``run``; ``config.resume`` continues from its last checkpoint. Parts of ``module`` with an ``after_step()``
    method are called after every optimiser step.
    Raises LaminaError for a loss or weights that are not finite, a damaged checkpoint, a disk that cannot be written.
    """
    processes = Processes.here()
    checkpoints = Checkpoints(run, config.keep)
    start = checkpoints.last(config.steps) if config.resume else 0
    shards, own = processes.shards(config, checkpoints.shards(start) if start else None)
    if processes.size > 1:
        storage()  # checkpoints come too late to notice what they need
    device = processes.join(config.device)
    step_module = _Step(module.train(), losses).to(device)
    average = WeightAverage(module, config.ema, HOST if config.ema_offload else None) if config.ema else None
    saved, recalibrate = (average.module, recalibrate) if average else (module, None)
    parallel = _parallel(step_module, average, config, processes, device)
    optimizer = make_optimizer(module, config)
    trained = [p for p in module.parameters() if p.requires_grad]
    following: list[Any] = [part for part in module.modules() if hasattr(part, "after_step")]

    stream = open_stream(shards, own)

    def state() -> TrainingState:
        averaged = state_of(average.module) if average else {}
        return TrainingState(processes, step_module, optimizer, averaged, stream, shards)

    if start:
        checkpoints.load(start, state())
    if average:
        average.resume(start)
    schedule = LambdaLR(optimizer, lambda step: learning_rate(config, step), last_epoch=start - 1)
    bar = _progress_bar(config, start, title if processes.rank == 0 else None)
    warned: set[str] = set()
    batches = iter(stream)
    with Log(run, config, processes, start) as log:
        for step in range(start, config.steps):
            began = time.perf_counter()
            terms, waited = accumulate_gradients(parallel, batches, weights, config, step, own, device)
            norm = torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            for part in following:
                part.after_step()
            if average:
                average.update(module)
            bar.update(config.batch)

            number = step + 1
            last = number == config.steps
            validating = validate is not None and (number % config.validate_every == 0 or last)
            if number % config.log_every == 0 or validating or last:
                row = {"step": number, **{name: processes.mean(value) for name, value in terms.items()}}
                if not math.isfinite(row["loss"]):
                    raise Diverged(f"{run}: the loss is {row['loss']} at step {number}; start again with a lower --lr")
                seconds = time.perf_counter() - began
                row |= {"lr": learning_rate(config, step), "gradient_norm": float(full(norm))}
                row |= {"samples_per_second": config.batch / seconds, "data_wait": waited / seconds}
                figures = stream.figures() if isinstance(stream, Counting) else {}
                row |= {name: processes.size * processes.mean(torch.tensor(value)) for name, value in figures.items()}
                if validating and validate is not None:
                    with as_saved(saved, recalibrate, device) as current:
                        figures, warnings = validate(current)
                    row |= {f"validation/{name}": value for name, value in figures.items()}
                    for text in sorted(set(warnings) - warned) if processes.rank == 0 else ():
                        bar.write(f"warning: step {number}: {text}")
                        warned.add(text)
                log.write(row)
                bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            if number % config.checkpoint_every == 0 or last:
                checkpoints.save(number, state())
    bar.close()
    stream.close()
    return _final_weights(run, saved, recalibrate, device)


def _parallel(
    step: _Step, average: WeightAverage | None, config: TrainConfig, processes: Processes, device: torch.device
) -> nn.Module:
    """The module whose forward and backward pass train ``step`` on all processes; its blocks are compiled, and computed again for their
    gradients instead of kept, if asked to."""
    for part in repeated(step):
        if config.recompute:
            recompute(part)
        if config.compile:
            part.compile()
    if processes.size == 1:
        return step
    if config.parallel == "ddp":
        return replicate(step, device)
    if average:
        shard(average.module, device, processes.size, config.ema_offload)
    shard(step, device, processes.size)
    return step


def _progress_bar(config: TrainConfig, start: int, title: str | None) -> tqdm:
    return progress_bar(
        config.steps * config.batch,
        title,
        "sample",
        initial=start * config.batch,
        unit_scale=True,
        disable=title is None,
    )


def _final_weights(
    run: Path, module: nn.Module, recalibrate: Callable[[Any], None] | None, device: torch.device
) -> dict[str, Tensor]:
    """The weights to save, on the CPU. Raises LaminaError for weights that are not finite."""
    with as_saved(module, recalibrate, device) as current:
        buffers = {name: value.clone() for name, value in current.named_buffers()}
    final = {name: full(buffers.get(name, value)).clone() for name, value in state_of(module).items()}
    if bad := first_non_finite(final):
        raise LaminaError(f"{run}: '{bad}' is not finite at the end; start again with a lower --lr")
    return final
