"""The linear LAM (Eq. 8-9) and its objectives (Eq. 5, 16, 19), trained by gradient descent, for a whole sweep at once.

    z = C o + D o'        prediction of o' = A o + B z        head: W z

:func:`train` is the paper's training, on minibatches. :func:`descend` follows the exact gradient of a whole dataset, which is a function
of its second moments, and converges to the closed form: it checks closed forms, and proofs about the minimiser. The two reach the same
predictions and not the same z: the loss does not determine the part of C that o tells, and the noise of minibatches shrinks it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
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
    def reads(self) -> tuple[str, ...]:
        """The variables that the objective is a function of."""
        return ("o", "o'", *(("~o", "~o'") if self.cross else ()), *((self.target,) if self.target else ()))

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

    def inside(self, basis: Float[Tensor, "*g o r"]) -> LinearLAM:
        """The same LAM on observations in the coordinates of an orthonormal basis; what it predicts outside of it is dropped."""
        head = self.W
        if (
            head is not None and head.shape[-2] == basis.shape[-2]
        ):  # of the target q; the action is narrower (d_s < d_o)
            head = basis.mT @ head
        return LinearLAM(basis.mT @ self.A @ basis, basis.mT @ self.B, self.C @ basis, self.D @ basis, head)

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


Batch = Mapping[str, Float[Tensor, "*g b i"]]


def initial(objective: Objective, sizes: Mapping[str, int], width: int, seeds: Sequence[int]) -> LinearLAM:
    """A random start for each seed, each matrix uniform within 1 / sqrt(columns) as in ``torch.nn.Linear``. Axes: [k 1 1 i j]."""
    o, y = sizes["o"], sizes[objective.target] if objective.target else 0

    def draw(generator: torch.Generator) -> list[Tensor]:
        shapes = [(o, o), (o, width), (width, o), (width, o), *([(y, width)] if y else [])]
        return [(2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[1]) for shape in shapes]

    # Other than the seeds of the emissions and of the data.
    drawn = zip(*(draw(torch.Generator().manual_seed(2_000_003 * (seed + 1))) for seed in seeds), strict=True)
    return LinearLAM(*(torch.stack(parts)[:, None, None] for parts in drawn))


@torch.no_grad()
def set_gradient(lam: LinearLAM, batch: Batch, objective: Objective) -> None:
    """Sets ``grad`` of every matrix to the gradient of the objective's mean over a batch; ``lam`` and ``batch`` have one axis g.

    The loss is quadratic, so the gradient is written out: a step takes two thirds of the time that autograd needs.
    """
    o, following = batch["o"], batch["o'"]
    scale = 2 / o.shape[-2]
    without_z = torch.baddbmm(following, o, lam.A.mT, beta=-1)
    total = torch.zeros_like(without_z)
    on_B, on_C, on_D = (torch.zeros_like(part) for part in (lam.B, lam.C, lam.D))
    for (first, second), weight in {("o", "o'"): objective.own, **objective.views}.items():
        z = torch.baddbmm(batch[first] @ lam.C.mT, batch[second], lam.D.mT)
        error = torch.baddbmm(without_z, z, lam.B.mT, beta=scale * weight, alpha=scale * weight)
        on_z = error @ lam.B
        if objective.target is not None and first == "o":
            assert lam.W is not None, "a robust target needs a head"
            missed = scale * objective.weight * (z @ lam.W.mT - batch[objective.target])
            lam.W.grad = missed.mT @ z
            on_z.baddbmm_(missed, lam.W)
        total += error
        on_B.baddbmm_(error.mT, z)
        on_C.baddbmm_(on_z.mT, batch[first])
        on_D.baddbmm_(on_z.mT, batch[second])
    lam.A.grad, lam.B.grad, lam.C.grad, lam.D.grad = total.mT @ o, on_B, on_C, on_D


def train(
    batches: Iterable[Batch], objective: Objective, width: int, seeds: Sequence[int], lr: float = 1e-3
) -> LinearLAM:
    """Adam on minibatches [k x p b i] of each LAM's data, in single precision, from a random start for each seed. ``width``: d_z.

    The defaults are those of the paper (Table 1) and of PyTorch. Raises LaminaError for a width that is no bottleneck.
    """
    stream = iter(batches)
    first = next(stream)
    shape, sizes = first["o"].shape[:-2], {name: part.shape[-1] for name, part in first.items()}
    check_width(width, sizes["o"])
    start = initial(objective, sizes, width, seeds).parts()
    lam = LinearLAM(
        **{name: part.expand(*shape, -1, -1).flatten(0, -3).clone().requires_grad_() for name, part in start.items()}
    )
    optimizer = torch.optim.Adam(lam.parts().values(), lr=lr, fused=True)
    for batch in chain([first], stream):
        set_gradient(lam, {name: part.flatten(0, -3) for name, part in batch.items()}, objective)
        optimizer.step()
    return LinearLAM(**{name: part.detach().double().unflatten(0, shape) for name, part in lam.parts().items()})


def descend(
    moments: Moments, objective: Objective, width: int, steps: int = 4000, lr: float = 1e-2, seed: int = 0
) -> LinearLAM:
    """Adam with cosine decay on the exact gradient, from A = 0 and small random B, C, D, W. ``width``: d_z.

    Raises LaminaError for a width that is no bottleneck.
    """
    check_width(width, moments.sizes["o"])
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


def check_width(width: int, observed: int) -> None:
    """Raises LaminaError unless 0 < d_z < d_o; a wider latent could hold the whole next frame."""
    if not 0 < width < observed:
        raise LaminaError(
            f"d_z = {width}: a bottleneck has at least 1 dimension and fewer than the {observed} that observations span"
        )
