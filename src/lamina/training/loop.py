"""One loop for every stage: draw a batch, take a step, log, checkpoint, resume.

A killed run that is resumed writes the same losses, bit for bit on a CPU, as one that was never killed: randomness is addressed by
(seed, step, shard), the data stream continues at the exact sample, and a checkpoint appears whole or not at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tqdm import tqdm

from lamina.device import pick_device
from lamina.errors import LaminaError
from lamina.losses.reconstruction import total
from lamina.methods.base import Losses
from lamina.models.layers import BLOCKS
from lamina.rng import Rng
from lamina.training.checkpoints import Checkpoints, Stream, full
from lamina.training.distributed import Processes
from lamina.training.log import Log
from lamina.training.settings import TrainConfig
from lamina.weights import infinite

#: What a validation returns: figures for the log, and warnings that tell the user what to do.
Validation = tuple[dict[str, float], list[str]]


class _Step(nn.Module):
    """The losses of a step as a module's forward: what DDP and FSDP2 hook into."""

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


def _accelerator(config: TrainConfig) -> Accelerator:
    device = pick_device(config.device)
    # Accelerate keeps its settings for the life of the process; stages and tests ask for different ones.
    AcceleratorState._reset_state()
    return Accelerator(cpu=device == "cpu", mixed_precision="bf16" if config.precision == "bf16" else "no")


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def _average(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the current ones; what is not trained (codebooks) is copied."""
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    state = module.state_dict()
    names = [name for name in state if name in trained]
    torch._foreach_lerp_([average[n] for n in names], [state[n] for n in names], 1 - decay)
    for name in state.keys() - trained:
        average[name].copy_(state[name])


@contextmanager
def _as_saved(
    module: nn.Module, average: Mapping[str, Tensor], settle: Callable[[Any], None] | None, sharded: Any
) -> Iterator[None]:
    """Within, the module is what will be saved: averaged weights with statistics that ``settle`` fits to them; then what it was before.

    ``sharded``: the FSDP2 module whose parameters are gathered meanwhile, since its parts' methods gather nothing; None: there is none.
    """
    own = _state(module) if average else {}
    _fill(module, average)
    if sharded is not None:
        sharded.unshard()
    try:
        if average and settle is not None:
            settle(module)
        module.eval()
        yield
    finally:
        if sharded is not None:
            sharded.reshard()
        _fill(module, own)
        module.train()


@torch.no_grad()
def _fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = module.state_dict() if state else {}
    for name, value in own.items():
        value.copy_(state[name])


def _shard(module: nn.Module, device: torch.device, size: int) -> None:
    """FSDP2: each block a unit, the rest one unit."""
    mesh = init_device_mesh(device.type, (size,))
    for part in module.modules():
        if isinstance(part, BLOCKS):
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def fit(
    run: Path,
    module: nn.Module,
    losses: Losses,
    weights: Mapping[str, float],
    open_stream: Callable[[int, int | None], Stream],
    config: TrainConfig,
    validate: Callable[[Any], Validation] | None = None,
    title: str | None = None,
    settle: Callable[[Any], None] | None = None,
) -> dict[str, Tensor]:
    """Train ``module`` for ``config.steps`` steps and return its final (averaged) weights on the CPU.

    ``losses(module, batch, rng) -> {term: [b]}``; ``open_stream(shards, shard)`` opens the data; ``validate(module)`` is called
    every ``validate_every`` steps with the module as it would be saved then: with averaged weights (``config.ema``), to which
    ``settle(module)`` has fitted its statistics. ``title`` names the progress bar (None: no bar). Logs and checkpoints go to ``run``;
    with ``config.resume`` it goes on from the last checkpoint there.
    Parts of ``module`` with an ``after_step()`` are told of every step of the optimiser.
    Raises LaminaError for a loss or weights that are not finite, a damaged checkpoint, a disk that cannot be written.
    """
    accelerator = _accelerator(config)
    world = Processes.here()
    shards, shard = world.shards(config)
    device = accelerator.device
    module.train()
    if config.compile:
        for part in module.modules():
            if isinstance(part, BLOCKS):
                part.compile()
    step_module = _Step(module, losses).to(device)
    sharded = config.parallel == "fsdp2" and world.size > 1
    if sharded:
        _shard(step_module, device, world.size)
    trained = [p for p in module.parameters() if p.requires_grad]
    # Norms, biases and embeddings of one axis are not decayed.
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    following: list[Any] = [part for part in module.modules() if hasattr(part, "after_step")]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), foreach=True)
    wrapped = step_module if sharded else accelerator.prepare_model(step_module)

    stream = open_stream(shards, shard)
    average = _state(module) if config.ema else {}
    checkpoints = Checkpoints(run, config.keep)
    start = checkpoints.last(config.steps) if config.resume else 0
    if start:
        checkpoints.load(start, world, step_module, optimizer, average, stream)
    log = Log(run, config, world, start)
    mine = range(shards) if shard is None else [shard]
    batches = iter(stream)
    warned: set[str] = set()
    bar = tqdm(
        total=config.steps * config.batch,
        initial=start * config.batch,
        unit="sample",
        unit_scale=True,
        desc=title,
        disable=world.rank > 0 or title is None,
        mininterval=0.5,
        dynamic_ncols=True,
    )
    for step in range(start, config.steps):
        began, waited = time.perf_counter(), 0.0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        terms: dict[str, Tensor] = {}
        for micro in range(config.accumulate):
            asked = time.perf_counter()
            batch = next(batches).to(device)
            waited += time.perf_counter() - asked
            rng = Rng(config.seed, step * config.accumulate + micro, mine, device)
            torch.manual_seed(rng.seed)  # for dropout
            waiting = micro < config.accumulate - 1 and not sharded
            with accelerator.no_sync(wrapped) if waiting else nullcontext(), accelerator.autocast():
                parts = wrapped(batch, rng)
                loss = total(parts, weights)
                accelerator.backward(loss / config.accumulate)
            for name, value in {"loss": loss, **parts}.items():
                terms[name] = terms.get(name, 0) + value.detach().float().mean() / config.accumulate
        norm = torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for part in following:
            part.after_step()
        number = step + 1
        if average:
            _average(average, module, min(config.ema, (1 + step) / (10 + step)))
        bar.update(config.batch)
        last = number == config.steps
        validating = validate is not None and (number % config.validate_every == 0 or last)
        if number % config.log_every == 0 or validating or last:
            row = {"step": number, **{name: float(accelerator.reduce(v, "mean")) for name, v in terms.items()}}
            if not math.isfinite(row["loss"]):
                raise LaminaError(f"{run}: the loss is {row['loss']} at step {number}; start again with a lower --lr")
            seconds = time.perf_counter() - began
            row |= {"lr": learning_rate(config, step), "gradient_norm": float(full(norm))}
            row |= {"samples_per_second": config.batch / seconds, "data_wait": waited / seconds}
            if validating and validate is not None:
                with _as_saved(module, average, settle, step_module if sharded else None):
                    figures, told = validate(module)
                row |= {f"validation/{name}": value for name, value in figures.items()}
                for text in sorted(set(told) - warned) if world.rank == 0 else ():
                    bar.write(f"warning: step {number}: {text}")
                    warned.add(text)
            log.write(row)
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        if number % config.checkpoint_every == 0 or last:
            checkpoints.save(number, world, step_module, optimizer, average, stream)
    bar.close()
    stream.close()
    with _as_saved(module, average, settle, step_module if sharded else None):
        settled = {name: value.clone() for name, value in module.named_buffers()} if average else {}
    final = {name: full(settled.get(name, value)) for name, value in (average or _state(module)).items()}
    if bad := infinite(final):
        raise LaminaError(f"{run}: '{bad}' is not finite at the end; start again with a lower --lr")
    return final
