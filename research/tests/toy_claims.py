"""Claims that train tiny models in a moment, for the tests of the queue; and the queue and its workers with these claims alone.

    python toy_claims.py worker THREADS                 what the queue starts
    python toy_claims.py cli reproduce toy/pair ...     the command line

Every training step appends a line to WORKDIR/steps: process, model, seed, step. TOY names what goes wrong, in JSON: {"kill": [MODEL, SEED,
STEP, TIMES]} kills the process before a step, {"fail": [MODEL, SEED]} raises an error, {"sleep": SECONDS} slows every step down.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from lamina import cli
from lamina.training import loop
from lamina.training.settings import TrainConfig
from lamina_research import reproduce, scheduler, worker
from lamina_research.experiment import Claim, Experiment, Outcome
from lamina_research.figures import LinePlot
from lamina_research.seeds import Metrics, over_seeds

MODELS = ("wide", "narrow", "none")
STEPS = 6
WIDTH = {"wide": 8, "narrow": 2, "none": 1}


class Batches:
    """Random numbers, the same for the same step."""

    def __init__(self, seed: int):
        self.seed, self.drawn = seed, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            self.drawn += 1
            yield torch.randn(16, 4, generator=torch.Generator().manual_seed(1000 * self.seed + self.drawn))

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]

    def close(self) -> None:
        pass


def trained(experiment: Experiment, model: str, seed: int) -> Path:
    """An autoencoder of random numbers."""
    plan = json.loads(os.environ.get("TOY", "{}"))
    train = TrainConfig(
        steps=STEPS, batch=16, lr=1e-2, seed=seed, device="cpu", checkpoint_every=1, validate_every=2, log_every=1, resume=True
    )  # fmt: skip

    def build(path: Path) -> None:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(4, WIDTH[model]), nn.Linear(WIDTH[model], 4))
        batches = Batches(seed)

        def losses(module: nn.Module, batch: torch.Tensor, rng: object) -> dict[str, torch.Tensor]:
            told = json.loads((path / "dead").read_text()) if (path / "dead").exists() else 0
            kill = plan.get("kill")
            if kill and kill[:3] == [model, seed, batches.drawn] and told < kill[3]:
                (path / "dead").write_text(str(told + 1))
                os.kill(os.getpid(), signal.SIGKILL)
            if plan.get("fail") == [model, seed]:
                raise ZeroDivisionError("no numbers are left")
            time.sleep(plan.get("sleep", 0.0))
            with (experiment.workdir / "steps").open("a") as file:
                file.write(f"{os.getpid()} {model} {seed} {batches.drawn}\n")
            return {"error": (module(batch) - batch).square().mean(1)}

        test = torch.randn(64, 4, generator=torch.Generator().manual_seed(5))

        def validate(module: nn.Module) -> loop.Validation:
            with torch.no_grad():
                return {"reconstruction": float((module(test) - test).square().mean())}, []

        state = loop.fit(path, module, losses, {"error": 1.0}, lambda shards, shard: batches, train, validate)
        torch.manual_seed(seed)
        weight = sum(float(value.double().sum()) for value in state.values())
        (path / "score.json").write_text(json.dumps({"weight": weight}))

    key = {"toy": model, "seed": seed, "train": train}
    return experiment.cached(key, (loop,), build, f"{model}, seed {seed}")


def score(experiment: Experiment, model: str, seed: int) -> float:
    return float(json.loads((trained(experiment, model, seed) / "score.json").read_text())["weight"])


def outcome(metrics: Metrics) -> Outcome:
    series = {name: [row["weight"]] for name, row in metrics.items()}
    return Outcome(metrics, True, "Weights were added.", (LinePlot("weights", "sum", [1], series),))


def pair(experiment: Experiment) -> Outcome:
    """Two models of each seed, which may be trained in any order, and a value."""

    def scores(seed: int) -> dict[str, dict[str, float]]:
        wide, narrow = experiment.each(lambda model: score(experiment, model, seed), MODELS[:2])
        both = experiment.cached_value({"value": seed}, (loop,), lambda: wide + narrow)
        return {name: {"weight": x} for name, x in (("wide", wide), ("narrow", narrow), ("both", both))}

    return outcome(over_seeds(map(scores, experiment.seeds)))


def shared(experiment: Experiment) -> Outcome:
    """One of the other claim's models, in a plain loop."""
    return outcome(
        over_seeds({m: {"weight": score(experiment, m, seed)}} for seed in experiment.seeds for m in ("wide", "none"))
    )


def together(experiment: Experiment) -> Outcome:
    """One computation for all seeds."""
    seeds = experiment.seeds

    def build(path: Path) -> None:
        with (experiment.workdir / "steps").open("a") as file:
            file.write(f"{os.getpid()} together {len(seeds)} 1\n")
        (path / "sums.json").write_text(json.dumps([float(seed) for seed in seeds]))

    run = experiment.cached({"toy": "together", "seeds": seeds}, (loop,), build)
    return outcome({"seeds": {"weight": json.loads((run / "sums.json").read_text())}})


def claim(name: str, **options: object) -> Claim:
    return Claim(f"toy/{name}", f"The {name} claim.", "none", "Nothing.", **options)  # type: ignore[arg-type]


CLAIMS = {
    c.id: c
    for c in (
        claim("pair", run=pair),
        claim("shared", run=shared),
        claim("together", run=together, together=True),
        claim("planned"),
        claim("small", run=shared, scales=("smoke",)),
    )
}


if __name__ == "__main__":
    reproduce.CLAIMS.clear()
    reproduce.CLAIMS.update(CLAIMS)
    scheduler.WORKER = (__file__, "worker")
    kind, *rest = sys.argv[1:]
    if kind == "worker":
        sys.argv[1:] = rest
        worker.main()
    sys.exit(cli.main(rest))
