"""The linear LAM (Eq. 8-9) and its objectives (Eq. 5, 16, 19), trained by gradient descent, for a whole sweep at once.

    z = C o + D o'        prediction of o' = A o + B z        head: W z

The loss of a linear model is a function of second moments, so a step has the gradient of the whole dataset, without batches, and costs
the same for any number of transitions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError
from lamina_research.linear.ex_bmdp import Moments

Target = Literal["a", "q"]


@dataclass(frozen=True)
class Objective:
    """``own`` x Eq. 5 + ``cross`` x Eq. 16 + ``weight`` x Eq. 19 on ``target`` (the action, or the controllable change q)."""

    own: float = 1.0
    cross: float = 0.0
    target: Target | None = None
    weight: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.own, self.cross, self.weight)
        if not all(0 <= w < math.inf for w in weights) or self.own + self.cross == 0:
            raise LaminaError(
                f"weights {weights} of an objective: finite numbers of at least 0, and a reconstruction among them"
            )
        if (self.target is None) != (self.weight == 0):
            raise LaminaError("a robust target and its weight are given together")

    @property
    def views(self) -> dict[tuple[str, str], float]:
        """The weight of each frame pair from which the encoder's latent predicts o'."""
        views = {("o", "o'"): self.own, ("~o", "~o'"): self.cross}
        return {pair: weight for pair, weight in views.items() if weight}


#: The objectives that the paper compares (§4.4, §4.5, Fig. 4), with lambda = 1.
OBJECTIVES = {
    "reconstruction": Objective(),
    "cross-exogenous": Objective(cross=1.0),
    "action prediction": Objective(target="a", weight=1.0),
    "q prediction": Objective(target="q", weight=1.0),
}


@dataclass(frozen=True)
class LinearLAM:
    A: Float[Tensor, "*g o o"]
    B: Float[Tensor, "*g o z"]
    C: Float[Tensor, "*g z o"]
    D: Float[Tensor, "*g z o"]
    W: Float[Tensor, "*g y z"] | None = None  # the head of a robust target

    def parts(self) -> dict[str, Tensor]:
        """The matrices by name, without a missing head."""
        return {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None}

    def latents(self, moments: Moments) -> Moments:
        """Moments of z, the paired view's ~z, and all variables of ``moments``."""
        kept: dict[str, dict[str, Tensor | float]] = {name: {name: 1.0} for name in moments.sizes}
        return moments.combine({"z": {"o": self.C, "o'": self.D}, "~z": {"~o": self.C, "~o'": self.D}, **kept})


def trace(a: Float[Tensor, "*g i j"], b: Float[Tensor, "*g j i"]) -> Float[Tensor, "*g"]:
    """tr(a b) without the product."""
    return (a * b.mT).sum((-2, -1))


def loss(lam: LinearLAM, moments: Moments, objective: Objective) -> Float[Tensor, "*g"]:
    """The objective, expected over the data with these moments: squared errors, summed over dimensions.

    ``lam`` and ``moments`` must have the same precision.
    """
    encode = torch.cat([lam.C, lam.D], -1)

    def error(on_o: Tensor | None, on_z: Tensor, pair: tuple[str, str], target: str) -> Float[Tensor, "*g"]:
        """E|target - on_o o - on_z z|^2."""
        zz = encode @ moments(pair, pair) @ encode.mT
        total = trace(on_z @ zz - 2 * (encode @ moments(pair, target)).mT, on_z.mT)
        total = total + moments.energy(target)
        if on_o is None:
            return total
        across = on_z @ (encode @ moments(pair, "o")) - moments(target, "o")
        return total + trace(on_o @ moments("o", "o") + 2 * across, on_o.mT)

    terms = [weight * error(lam.A, lam.B, pair, "o'") for pair, weight in objective.views.items()]
    if objective.target is not None:
        assert lam.W is not None, "a robust target needs a head"
        terms.append(objective.weight * error(None, lam.W, ("o", "o'"), objective.target))
    return torch.stack(terms).sum(0)


def train(
    moments: Moments, objective: Objective, width: int, steps: int = 4000, lr: float = 1e-2, seed: int = 0
) -> LinearLAM:
    """Adam with cosine decay, from A = 0 and small random B, C, D, W. ``width``: d_z.

    Raises LaminaError for a width that is no bottleneck.
    """
    check_width(width, moments)
    shape, o = moments.matrix.shape[:-2], moments.sizes["o"]
    y = 0 if objective.target is None else moments.sizes[objective.target]
    generator = torch.Generator().manual_seed(seed)

    def small(rows: int, columns: int) -> Tensor:
        start = torch.randn(rows, columns, generator=generator) / math.sqrt(o)
        return start.expand(*shape, rows, columns).clone().requires_grad_()

    lam = LinearLAM(
        A=torch.zeros(*shape, o, o, requires_grad=True), B=small(o, width), C=small(width, o), D=small(width, o),
        W=small(y, width) if y else None,
    )  # fmt: skip
    # The data is scaled to unit variance, because the size of Adam's steps does not depend on the scale of the data.
    scale = moments("o'", "o'").diagonal(dim1=-2, dim2=-1).mean(-1)
    unit = Moments((moments.matrix / scale[..., None, None]).float(), moments.sizes)
    optimizer = torch.optim.Adam(lam.parts().values(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(lam, unit, objective).sum().backward()
        optimizer.step()
        schedule.step()
    return LinearLAM(**{name: part.detach().double() for name, part in lam.parts().items()})


def check_width(width: int, moments: Moments) -> None:
    """Raises LaminaError unless 0 < d_z < d_o; a wider latent could hold the whole next frame."""
    if not 0 < width < moments.sizes["o"]:
        raise LaminaError(
            f"d_z = {width}: a bottleneck has at least 1 dimension and fewer than the {moments.sizes['o']} that observations span"
        )
