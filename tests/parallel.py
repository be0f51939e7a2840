"""Trainings that test_train.py runs under torchrun: the same as in one process, on this process's shard of the data."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from lamina import methods
from lamina.data.sampling import DataConfig
from lamina.models.lam import LAM
from lamina.training.distributed import Processes
from lamina.training.loop import fit
from lamina.training.pretraining import pretrain
from lamina.training.recipe import recipe
from lamina.training.settings import TrainConfig

SETTINGS = TrainConfig(
    steps=6, batch=8, lr=1e-3, device="cpu", shards=2, checkpoint_every=4, validate_every=3, log_every=1
)


def options(method: str):
    return methods.load(method).Config(size="debug", image=(16, 16), slots=3)


def data(dataset: Path) -> DataConfig:
    return DataConfig((str(dataset),), (16, 16), gap=(0.1, 0.1), shuffle=32, workers=0)


def train(run: Path, dataset: Path, method: str = "flexlam", stop: int | None = None, **settings) -> Path:
    """Pretrain; ``stop`` interrupts before that step (from 0)."""
    module = methods.load(method)
    plan = recipe(method, module, options(method))
    calls = iter(range(1000))

    def losses(lam, batch, rng):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return objective(lam, batch, rng)

    objective = plan.losses
    plan = plan if stop is None else dataclasses.replace(plan, losses=losses)
    return pretrain(run, plan, data(dataset), dataclasses.replace(SETTINGS, **settings))


def codebooks(run: Path, dataset: Path) -> None:
    """Train LAPO (VQ) and let every process save the codebook that it ends with."""
    from lamina.data.stream import ClipStream

    plan = recipe("lapo", methods.load("lapo"), options("lapo"))
    torch.manual_seed(0)
    lam = LAM(plan.lam)
    fit(
        run,
        lam,
        plan.losses,
        plan.weights,
        lambda shards, shard: ClipStream(data(dataset), SETTINGS.batch, 0, shards=shards, shard=shard),
        SETTINGS,
    )
    save_file(
        {name: value.clone() for name, value in lam.bottleneck.state_dict().items()},
        run / f"codebook-{Processes.here().rank}.safetensors",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    dataset, out = Path(sys.argv[1]), Path(sys.argv[2])
    for parallel in ("ddp", "fsdp2"):
        train(out / parallel, dataset, parallel=parallel)
        with contextlib.suppress(KeyboardInterrupt):
            train(out / f"{parallel}-cut", dataset, parallel=parallel, stop=5)
        train(out / f"{parallel}-cut", dataset, parallel=parallel, resume=True)
    codebooks(out / "vq", dataset)
    torch.distributed.destroy_process_group()
