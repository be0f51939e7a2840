"""The claim about a nonlinear LAM in the grid world: consistency and the exogenous region over the noise strength (§5, Fig. 5b)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from lamina.files import write_text
from lamina.training import loop
from lamina.training.settings import TrainConfig
from lamina_research.claims.exo import grid_lam
from lamina_research.claims.exo.grid_lam import Batches, Config, PracticalLAM, Variant
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import LinePlot
from lamina_research.seeds import below, interval, over_seeds
from lamina_research.text import listed

VARIANTS: tuple[Variant, ...] = get_args(Variant)
LABELS = 0.01  # Table 2
MIN_UNPREDICTED = 0.9  # the exogenous region is unpredicted from this share of the error without any noise in z


@dataclass(frozen=True)
class GridSetup:
    """The settings of one scale."""

    sigmas: tuple[float, ...]
    transitions: int  # for training; a hundredth is labelled
    held_out: int
    train: TrainConfig


def _train(steps: int) -> TrainConfig:
    """Table 2: Adam at 3e-4, batches of 128, gradients clipped at 5; it mentions neither warm-up nor averaging of weights."""
    return TrainConfig(
        steps=steps, batch=128, lr=3e-4, warmup=1, weight_decay=0.0, clip=5.0, ema=0.0, checkpoint_every=1000, keep=1, log_every=200
    )  # fmt: skip


SETUPS = {
    "smoke": GridSetup((0.0, 1.0), transitions=200, held_out=100, train=_train(10)),
    "cpu": GridSetup((0.0, 0.25, 0.5, 1.0), transitions=10_000, held_out=4_000, train=_train(4_000)),
    "gpu": GridSetup((0.0, 0.25, 0.5, 0.75, 1.0), transitions=50_000, held_out=4_000, train=_train(16_000)),
}


def scores(experiment: Experiment, setup: GridSetup, variant: Variant, sigma: float, seed: int) -> dict[str, float]:
    """Held-out scores of one LAM, trained at most once."""
    config = Config()
    key = {
        "grid": variant, "sigma": sigma, "seed": seed, "config": config, "train": setup.train,
        "transitions": setup.transitions, "held out": setup.held_out, "labels": LABELS,
    }  # fmt: skip

    def build(path: Path) -> None:
        experiment.progress(f"{variant}, sigma {sigma:g}, seed {seed}")
        clip, labelled = grid_lam.label(grid_lam.transitions(sigma, setup.transitions, 2 * seed), LABELS, seed)
        training = replace(setup.train, seed=seed, resume=True)
        torch.manual_seed(seed)
        model = PracticalLAM(config)
        state = loop.fit(
            path,
            model,
            lambda module, batch, draws: grid_lam.losses(module, batch, variant),
            grid_lam.weights(config, variant),
            lambda shards, shard: Batches(clip, labelled, training.batch, seed),
            training,
        )
        model.cpu().load_state_dict(state)
        test = grid_lam.transitions(sigma, setup.held_out, 2 * seed + 1)
        write_text(path / "scores.json", json.dumps(grid_lam.score(model, test)) + "\n")

    def run() -> Path:
        return experiment.cached(key, (__name__, grid_lam, loop), build)

    def compute() -> dict[str, float]:
        return json.loads((run() / "scores.json").read_text())

    return experiment.cached_value({"scores of": key}, (__name__, grid_lam, loop), compute, needs=run)


def gridworld(experiment: Experiment) -> Outcome:
    """Consistency loss and error in the exogenous region of the vanilla LAM and with either auxiliary loss, over sigma."""
    setup = SETUPS[experiment.scale]
    metrics = over_seeds(
        {f"{variant}, sigma = {sigma:g}": scores(experiment, setup, variant, sigma, seed)}
        for variant in VARIANTS
        for sigma in setup.sigmas
        for seed in experiment.seeds
    )

    def values(variant: Variant, metric: str, sigma: float) -> list[float]:
        return metrics[f"{variant}, sigma = {sigma:g}"][metric]

    def lower(one: Variant, other: Variant, metric: str) -> bool:
        """Significantly lower at every sigma above 0."""
        return all(below(values(one, metric, sigma), values(other, metric, sigma)) for sigma in noisy)

    noisy = [sigma for sigma in setup.sigmas if sigma > 0]
    plain, *auxiliary = VARIANTS
    # Half of the pixels are on: the error of a prediction from a z without the noise is sigma^2 / 4.
    consistent = [v for v in auxiliary if lower(v, plain, "consistency") and lower(v, plain, "consistency by spread")]
    less_predicted = [v for v in auxiliary if lower(plain, v, "exogenous")]
    unpredicted = [
        v
        for v in auxiliary
        if all(interval(values(v, "exogenous", sigma)).mean >= MIN_UNPREDICTED * sigma**2 / 4 for sigma in noisy)
    ]
    text = f"At sigma = {noisy[-1]:g} (without any noise in z a prediction errs by {noisy[-1] ** 2 / 4:g}): "
    for variant in VARIANTS:
        row = {metric: interval(x).mean for metric, x in metrics[f"{variant}, sigma = {noisy[-1]:g}"].items()}
        text += f"{variant} consistency {row['consistency']:.3f} ({row['consistency by spread']:.2f} of chance), exogenous region "
        text += f"{row['exogenous']:.3f}, codes in use {row['perplexity']:.1f}; "
    text += (
        f"more consistent than vanilla at every sigma above 0: {listed(consistent)}; exogenous region less predicted: "
        f"{listed(less_predicted)}; left unpredicted (at least {MIN_UNPREDICTED:.0%} of sigma^2 / 4): {listed(unpredicted)}."
    )
    plots = []
    for metric, title, label in (
        ("consistency", "Consistency loss", "|z - ~z|^2"),
        ("exogenous", "Exogenous region", "squared error"),
    ):
        series = {str(v): [values(v, metric, sigma) for sigma in setup.sigmas] for v in VARIANTS}
        plots.append(LinePlot(title, label, setup.sigmas, series, xlabel="sigma"))
    holds = len(consistent) == len(less_predicted) == len(unpredicted) == len(auxiliary)
    return Outcome(metrics, holds, text, plots)
