"""`lamina/leaderboard`: all methods by every probe, on one backbone, data set and budget, in one table made by one command."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType

from lamina import methods
from lamina.comparison import run as comparison
from lamina.comparison.plan import CompareConfig
from lamina.comparison.run import Comparison, run_comparison
from lamina.data.sampling import DataConfig
from lamina.errors import LaminaError
from lamina.evaluation.settings import EvaluateConfig
from lamina.training.settings import TrainConfig
from lamina_research.experiment import Experiment, Outcome
from lamina_research.seeds import Metrics
from lamina_research.study import Collection, Study, StudySetup

#: Figures that every method must have, whatever its decoder is; and those of a decoder that predicts pictures.
NEEDED = ("loss", "linear", "addition", "reversal", "used", "perplexity", "latency", "cost")
OF_PICTURES = ("psnr", "ssim")
REFERENCES = (
    "inverse dynamics model",
    "plain pixels of the pair",
    "copy-frame",
    "random-weights encoder",
    "observation-only",
    "shuffled latents",
    "mean latent",
)


@dataclass(frozen=True)
class BoardSetup(StudySetup):
    """The data sets by their short names, and the options of `lamina compare`, the same on each."""

    sets: Mapping[str, Collection]
    compare: CompareConfig
    evaluate: EvaluateConfig


GRID = Collection("grid", 400, noise=0.4, size=(32, 32))
DOOM = Collection("doom-suite", 18_000, noise=0.5)
ARMS = Collection("metaworld-suite", 14_000, noise=0.4, hold=12)
SMALL = EvaluateConfig(
    transitions=24,
    reconstructions=16,
    linear=40,
    structure=8,
    action="action",
    labels="40",
    scratch_steps=4,
    device="cpu",
)
SETUPS = {
    "smoke": BoardSetup(
        GRID, {}, TrainConfig(), {"grid": GRID},
        CompareConfig(
            ("flexlam", "alam"), 1, "12steps", "debug", (32, 32), batch=8, align_steps=12,
        ),
        SMALL,
    ),
    "cpu": BoardSetup(
        DOOM, {}, TrainConfig(), {"doom": DOOM, "metaworld": ARMS},
        CompareConfig((), 3, "1500steps", "tiny", (32, 32), lr=2e-3, optimizer="muon", parallel=2),
        EvaluateConfig(action="action", labels="5%", scratch_steps=600, device="cpu"),
    ),
    "gpu": BoardSetup(
        DOOM, {}, TrainConfig(),
        {"doom": replace(DOOM, frames=200_000), "metaworld": replace(ARMS, frames=200_000)},
        CompareConfig((), 3, "40000steps", "small", (64, 64), batch=128, lr=5e-4, parallel=1),
        EvaluateConfig(action="action", labels="5%", device="cuda", precision="bf16"),
    ),
}  # fmt: skip


class LeaderboardStudy(Study[BoardSetup]):
    """Data sets and comparisons of one scale."""

    setups = SETUPS

    def data(self) -> DataConfig:
        return DataConfig((str(self.dataset()),), self.setup.compare.image)

    def compared(self, name: str) -> Comparison:
        """The comparison on a data set, gone on with where it stopped."""
        s, seeds = self.setup, self.experiment.seeds
        config, recipe = replace(s.compare, seeds=max(seeds) + 1), s.sets[name]
        data = self.dataset(recipe)
        key = {"leaderboard": recipe, "compare": asdict(config), "evaluate": asdict(s.evaluate)}
        own = [f"lamina.methods.{method}" for method in config.methods or methods.names()]
        code: tuple[ModuleType | str, ...] = (comparison, "lamina.comparison.worker", *own, *self.code(recipe))

        def build(path: Path) -> None:
            run_comparison(str(data), path / "compared", config, s.evaluate)

        folder = self.experiment.cached(key, code, build) / "compared"
        return run_comparison(str(data), folder, config, s.evaluate)


def needed(method: str) -> tuple[str, ...]:
    """The figures of a method's row that its latent and its decoder allow."""
    return NEEDED + (OF_PICTURES if methods.load(method).Config().space == "pixels" else ())


def leaderboard(experiment: Experiment) -> Outcome:
    """Every method has its row, complete or with the reason why it failed; the order is reported and decides nothing."""
    study = LeaderboardStudy(experiment)
    metrics: Metrics = {}
    missing, failed, order, picture = [], [], [], None
    for name in study.setup.sets:
        result = study.compared(name)
        models = [row for row in result.rows if row.role == "model"]
        losses = [f"{row.name} {row.of('loss').mean:.3f}" for row in models if row.values]
        order.append(f"{name}: {', '.join(losses)}")
        for row in models:
            if row.state == "failed":  # not what the method did, as when its training diverges, but a fault
                raise LaminaError(f"{row.name} on {name}: {row.reason}")
            if row.state != "ok":
                failed.append(f"{row.name} on {name} ({row.state})")
                continue
            figures = needed(row.name)
            missing += [f"{key} of {row.name} on {name}" for key in figures if not math.isfinite(row.of(key).mean)]
        there = {row.name for row in result.rows}
        asked = study.setup.compare.methods or methods.names()
        missing += [f"{row} on {name}" for row in (*asked, *REFERENCES) if row not in there]
        for row in result.rows:
            own = metrics.setdefault(row.name, {})
            own |= {f"{key}, {name}": [v[seed] for seed in experiment.seeds] for key, v in row.values.items()}
        if picture is None and result.facts["picture"]:
            picture = result.path / result.facts["picture"]
    told = f"translator loss, {'; '.join(order)}"
    told += f"; failed: {', '.join(failed)}" if failed else ""
    told += f"; missing: {', '.join(missing)}" if missing else "; every figure is there"
    return Outcome({n: m for n, m in metrics.items() if m}, not missing, told, picture=picture)
