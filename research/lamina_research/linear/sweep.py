"""Linear LAMs over a sweep of seeds, alpha and p_switch at once: their data and scores, and plots over alpha and p_switch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from lamina_research.figures import LinePlot
from lamina_research.linear import ex_bmdp, scores
from lamina_research.linear.ex_bmdp import LinearExBMDP, Moments
from lamina_research.linear.lam import LinearLAM

Values = Float[Tensor, "k x p"]  # one for each seed, alpha and p_switch
Curves = Mapping[str, Float[Tensor, "k n"]]  # by name: for each seed one value per point


@dataclass(frozen=True)
class Sweep:
    """An Ex-BMDP for each seed, alpha and p_switch."""

    mdp: LinearExBMDP
    p: tuple[float, ...]
    alpha: tuple[float, ...]
    seeds: tuple[int, ...]

    @cached_property
    def probabilities(self) -> Float[Tensor, "p"]:
        return ex_bmdp.probabilities(self.p)

    @cached_property
    def _span(self) -> tuple[Float[Tensor, "k x o r"], Float[Tensor, "k x r l"]]:
        return ex_bmdp.span(self.mdp, ex_bmdp.sensitivities(self.alpha), self.seeds)

    @property
    def basis(self) -> Float[Tensor, "k x 1 o r"]:
        """Of the space that observations span, in whose coordinates moments are."""
        return self._span[0][:, :, None]

    @property
    def emission(self) -> Float[Tensor, "k x 1 r l"]:
        return self._span[1][:, :, None]

    def observed(self, lifted: Moments) -> Moments:
        return ex_bmdp.observe(lifted, self.emission)

    @cached_property
    def exact(self) -> Moments:
        """Moments without sampling error."""
        return self.observed(ex_bmdp.exact(self.mdp, self.probabilities))

    def sampled(self, trajectories: int, split: int) -> Moments:
        """Moments of simulated data; each ``split`` has its own trajectories in the same Ex-BMDPs."""
        world, seeds = self._split(trajectories, split)
        lifted = ex_bmdp.sampled(world, self.probabilities, seeds)
        return self.observed(Moments(lifted.matrix[:, None], lifted.sizes))

    def minibatches(
        self, names: Sequence[str], size: int, steps: int, trajectories: int, split: int
    ) -> Iterator[dict[str, Float[Tensor, "k x p b i"]]]:
        """Batches of the data of :meth:`sampled`, in the observation's own coordinates."""
        world, seeds = self._split(trajectories, split)
        emission = ex_bmdp.maps(world, ex_bmdp.sensitivities(self.alpha), self.seeds)
        return ex_bmdp.minibatches(ex_bmdp.simulate(world, self.probabilities, seeds), emission, names, size, steps)

    def _split(self, trajectories: int, split: int) -> tuple[LinearExBMDP, list[int]]:
        return replace(self.mdp, trajectories=trajectories), [1_000 * split + seed for seed in self.seeds]

    def measure(self, model: LinearLAM, fit: Moments, test: Moments) -> dict[str, Values]:
        """Action NMSE of a linear probe, fitted on ``fit`` and scored on ``test``, and shares of the latent's variance.

        ``leakage``: the share of the next exogenous state alone; ``context``: of both frames' exogenous states; ``state``: of s;
        ``frame``: of what o tells, s under xi.
        """
        leaking, context = (
            self.observed(moments(self.mdp, self.probabilities)) for moments in (ex_bmdp.leaking, ex_bmdp.context)
        )
        latents = model.latents(fit)
        return {
            "nmse": scores.nmse(latents, model.latents(test)),
            "leakage": scores.normalized_variance(model, fit, leaking),
            "context": scores.normalized_variance(model, fit, context),
            "state": scores.told(latents, "s"),
            "frame": scores.told(latents, "o"),
        }


def line_plot(
    title: str, xlabel: str, ylabel: str, x: Sequence[float], curves: Curves, log_x: bool = False
) -> LinePlot:
    series = {name: values.T.tolist() for name, values in curves.items()}
    return LinePlot(title, ylabel, x, series, xlabel=xlabel, log_x=log_x)


def leakage_plot(p: Sequence[float], curves: Curves) -> list[LinePlot]:
    return [line_plot("Leakage of the future exogenous state", "p_switch", "share of z, NMSE", p, curves)]


def sensitivity_plot(alpha: Sequence[float], curves: Curves) -> list[LinePlot]:
    title = "Sensitivity of the encoder to the exogenous state"
    return [line_plot(title, "alpha", "action NMSE", alpha, curves, log_x=True)]


def remedies_plot(p: Sequence[float], change: Curves, share: Curves) -> list[LinePlot]:
    return [
        line_plot("Change of the action error", "p_switch", "NMSE minus reconstruction's", p, change),
        line_plot("Latents at one (s, a)", "p_switch", "exogenous share of z", p, share),
    ]


def cca_plot(curves: Curves) -> list[LinePlot]:
    pairs = range(1, next(iter(curves.values())).shape[-1] + 1)
    return [
        line_plot(
            "Canonical correlations of the two views' transitions", "canonical pair", "correlation", pairs, curves
        )
    ]
