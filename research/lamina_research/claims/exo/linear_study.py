"""What the experiments on the linear LAM share: worlds, data, trained LAMs and their scores, for all seeds x alpha x p_switch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from lamina_research.experiment import Experiment
from lamina_research.linear import closed_form, lam, scores
from lamina_research.linear import ex_bmdp as worlds
from lamina_research.linear.ex_bmdp import LinearExBMDP, Moments
from lamina_research.linear.lam import LinearLAM, Objective
from lamina_research.seeds import Interval, interval

Values = Float[Tensor, "k x p"]  # one for each seed, alpha and p_switch


@dataclass(frozen=True)
class LinearSetup:
    world: LinearExBMDP
    width: int  # d_z
    p: tuple[float, ...]  # of every claim but sensitivity
    alpha: tuple[float, ...]  # of sensitivity; the others have alpha = 1
    few_p: tuple[float, ...]  # of sensitivity
    steps: int  # of gradient descent
    held_out: int  # trajectories that probes are scored on
    lr: float = 2e-2


#: The sizes of cpu are the paper's own (Table 1). It does not give d_z; here it is that of the action, so that nothing is to spare.
SETUPS = {
    "smoke": LinearSetup(
        LinearExBMDP(states=4, state=2, observation=12, trajectories=500), width=2, p=(0.0, 0.4), alpha=(0.5, 2.0), few_p=(0.4,),
        steps=800, held_out=250,
    ),
    "cpu": LinearSetup(
        LinearExBMDP(), width=8, p=(0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0), alpha=(0.25, 0.5, 1.0, 2.0, 4.0), few_p=(0.1, 0.4, 0.8),
        steps=1500, held_out=2000,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The worlds of one curve, one for each seed, alpha and p_switch; their emissions, data and moments without sampling error."""

    world: LinearExBMDP
    p: tuple[float, ...]
    alpha: tuple[float, ...]
    seeds: tuple[int, ...]

    @cached_property
    def probabilities(self) -> Float[Tensor, "p"]:
        return worlds.probabilities(self.p)

    @cached_property
    def emission(self) -> Float[Tensor, "k x 1 r l"]:
        return worlds.emissions(self.world, worlds.sensitivities(self.alpha), self.seeds)[:, :, None]

    def observed(self, lifted: Moments) -> Moments:
        return worlds.observe(lifted, self.emission)

    @cached_property
    def exact(self) -> Moments:
        return self.observed(worlds.exact(self.world, self.probabilities))

    def sampled(self, trajectories: int, split: int) -> Moments:
        """Moments of simulated data; each ``split`` is another draw of trajectories in the same world."""
        world = LinearExBMDP(**{**vars(self.world), "trajectories": trajectories})
        seeds = [1_000 * split + seed for seed in self.seeds]
        lifted = worlds.sampled(world, self.probabilities, seeds)
        return self.observed(Moments(lifted.matrix[:, None], lifted.sizes))

    def measure(self, model: LinearLAM, fit: Moments, test: Moments) -> dict[str, Values]:
        """Action NMSE of a probe (fitted on one set of moments, scored on another), and shares of exogenous variance (exact)."""
        leaking, context = (
            self.observed(moments(self.world, self.probabilities)) for moments in (worlds.leaking, worlds.context)
        )
        return {
            "nmse": scores.nmse(model.latents(fit), model.latents(test)),
            "leakage": scores.normalized_variance(model, fit, leaking),
            "context": scores.normalized_variance(model, fit, context),
        }


class LinearStudy:
    """An experiment with its setup: data and models of a grid, trained at most once and found again."""

    def __init__(self, experiment: Experiment, setup: LinearSetup | None = None):
        self.experiment = experiment
        self.setup = setup or SETUPS[experiment.scale]

    def grid(self, p: Sequence[float] | None = None, alpha: Sequence[float] = (1.0,)) -> Grid:
        return Grid(self.setup.world, tuple(self.setup.p if p is None else p), tuple(alpha), self.experiment.seeds)

    def data(self, grid: Grid) -> tuple[Moments, Moments]:
        """Second moments of the training trajectories and of the held-out ones."""
        return grid.sampled(self.setup.world.trajectories, 0), grid.sampled(self.setup.held_out, 1)

    def train(self, name: str, grid: Grid, moments: Moments, objective: Objective) -> LinearLAM:
        """Trained on ``moments``; ``name`` tells them apart from other moments of the same grid."""
        s = self.setup
        worlds_of = {f.name: getattr(grid, f.name) for f in fields(grid)}
        key = {"data": name, **worlds_of, "objective": objective, "width": s.width, "steps": s.steps, "lr": s.lr}

        def build(path: Path) -> None:
            model = lam.train(moments, objective, s.width, s.steps, s.lr)
            save_file({name: part.contiguous() for name, part in model.parts().items()}, path / "lam.safetensors")

        run = self.experiment.cached(key, (lam, closed_form), build)
        return LinearLAM(**load_file(run / "lam.safetensors"))


def below(values: Values, others: Values) -> bool:
    """Whether the first are lower at every alpha and p, beyond the 95% interval of the difference paired over seeds."""
    gaps = [interval(column) for column in (values - others).flatten(1).T.tolist()]
    return all(gap.high is not None and gap.high < 0 for gap in gaps)


def intervals(values: Float[Tensor, "k n"]) -> list[Interval]:
    """The interval over seeds of each column."""
    return [interval(column) for column in values.T.tolist()]


def per_point(name: str, axis: str, points: Sequence[float], values: Float[Tensor, "k n"]) -> dict[str, list[float]]:
    """Metrics of a record, one for each point: {"NMSE at p = 0.2": one value a seed}."""
    return {f"{name} at {axis} = {x:g}": column for x, column in zip(points, values.T.tolist(), strict=True)}
