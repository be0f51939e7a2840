"""Trainings that test_train.py and test_resume_elsewhere.py run under torchrun: the same as in one process, on this process's shards of
the data.

    parallel.py DATASET OUT                    those of test_train.py's fixture two_processes
    parallel.py DATASET OUT '{"run": ...}' ... these, one after the other: arguments of :func:`train`
    parallel.py DATASET OUT methods            three steps of every method
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import lamina.data.stream as data_stream
import lamina.training.checkpoints as checkpoints
from lamina import methods
from lamina.data.sampling import DataConfig
from lamina.models.lam import LAM
from lamina.training.distributed import Processes
from lamina.training.loop import fit
from lamina.training.pretraining import pretrain
from lamina.training.recipe import filled_in, recipe
from lamina.training.settings import TrainConfig
from processes import dies_in

SETTINGS = TrainConfig(
    steps=6, batch=8, lr=1e-3, device="cpu", shards=2, checkpoint_every=4, validate_every=3, log_every=1
)


#: Every method, and options with which a sample's losses depend on the rest of its batch (statistics, codebooks, noise, other samples):
#: the method, its options, and --parallel.
METHODS = {
    **{name: (name, {}, "ddp") for name in methods.names() if name not in ("flexlam", "flexlam_real")},
    "flexlam, whitened by the first batch": ("flexlam", {"whiten": "first"}, "ddp"),
    "flexlam, with paired views": ("flexlam", {"cross_exogenous": 1.0}, "ddp"),
    "lapo, in a learned space": ("lapo", {"space": "ema"}, "ddp"),
    "alam, by gradients of other latents": ("alam", {"algebra": "read"}, "ddp"),
    "villa_x, sharded": ("villa_x", {}, "fsdp2"),
}


def options(method: str, **more):
    return methods.load(method).Config(**{"size": "debug", "image": (16, 16), "slots": 3, **more})


def data(dataset: Path) -> DataConfig:
    return DataConfig((str(dataset),), (16, 16), gap=(0.1, 0.1), shuffle=512, workers=0)


def train(
    run: Path, dataset: Path, method: str = "flexlam", stop: int | None = None, dies: tuple = (), **settings
) -> Path:
    """Pretrain; ``stop`` interrupts before that step (from 0). ``dies``: (rank, function of checkpoints.py, number of the call from 0) at
    which that process is killed with -9."""
    if dies and dies[0] == Processes.here().rank:
        dies_in(checkpoints, dies[1], dies[2], after=half_a_part if dies[1] == "write_parts" else lambda *args: None)
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


def train_method(folder: Path, dataset: Path, case: str) -> Path:
    """Three steps of one of METHODS -> its run."""
    method, more, parallel = METHODS[case]
    chosen = options(method, slots=4, **more)
    chosen, reading = filled_in(chosen, dataclasses.replace(data(dataset), frames=chosen.frames))
    plan = recipe(method, methods.load(method), chosen)
    training = dataclasses.replace(SETTINGS, steps=3, parallel=parallel)
    return pretrain(folder / case, plan, reading, training).parent


def half_a_part(folder: Path, *rest) -> None:
    """What a process leaves that is killed while it writes."""
    (folder / "shard-00002-model-00001-of-00001.safetensors").write_bytes(b"half")


@contextlib.contextmanager
def noting_episodes(path: Path):
    """Within, ``path`` gets the numbers of the episodes that this process decodes for training."""
    decode, seen = data_stream.decoded_segments, set()

    def noting(*given):
        for found in decode(*given):
            seen.add(found[1].episode)
            yield found

    data_stream.decoded_segments = noting
    yield
    data_stream.decoded_segments = decode
    path.write_text(json.dumps(sorted(seen)))


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
        lambda shards, own: ClipStream(data(dataset), SETTINGS.batch, 0, shards=shards, own=own),
        SETTINGS,
    )
    save_file(
        {name: value.clone() for name, value in lam.bottleneck.state_dict().items()},
        run / f"codebook-{Processes.here().rank}.safetensors",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    dataset, out = Path(sys.argv[1]), Path(sys.argv[2])
    which = sys.argv[3:]
    for case in METHODS if which == ["methods"] else ():
        train_method(out, dataset, case)
    for job in map(json.loads, which if which != ["methods"] else ()):
        train(out / job.pop("run"), dataset, **job)
    for parallel in ("ddp", "fsdp2") if not which else ():
        with noting_episodes(out / f"{parallel}-episodes-{Processes.here().rank}.json"):
            train(out / parallel, dataset, parallel=parallel)
        with contextlib.suppress(KeyboardInterrupt):
            train(out / f"{parallel}-cut", dataset, parallel=parallel, stop=5)
        train(out / f"{parallel}-cut", dataset, parallel=parallel, resume=True)
    if not which:
        codebooks(out / "vq", dataset)
    torch.distributed.destroy_process_group()
