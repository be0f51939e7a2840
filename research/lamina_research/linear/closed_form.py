"""Global minimisers of the linear LAM's objectives, of CCA and of linear probes, from second moments; all worlds of a grid at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError
from lamina_research.linear.ex_bmdp import Moments
from lamina_research.linear.lam import LinearLAM, Objective, check_width

TOLERANCE = 1e-11  # smallest eigenvalue over the largest, below which moments count as rank-deficient


def cholesky(moments: Float[Tensor, "*g i i"], what: str) -> Float[Tensor, "*g i i"]:
    """The lower factor L, L L^T = moments. Raises LaminaError where they are not finite or have no full rank; ``what`` names them."""
    if not moments.isfinite().all():
        raise LaminaError(f"the second moments of {what} are not finite: check the data for NaN, infinity and overflow")
    values = torch.linalg.eigvalsh(moments)
    rank = (values > TOLERANCE * values[..., -1:]).sum(-1).min()
    if rank < moments.shape[-1]:
        raise LaminaError(
            f"the second moments of {what} are rank-deficient: {int(rank)} of {moments.shape[-1]} dimensions; "
            "give more data, or fewer dimensions"
        )
    return torch.linalg.cholesky(moments)


def regression(
    xx: Float[Tensor, "*g x x"], xy: Float[Tensor, "*g x y"], what: str = "the regressors"
) -> Float[Tensor, "*g y x"]:
    """The least-squares map from x to y, E[y x^T] E[x x^T]^-1. Raises LaminaError for rank-deficient regressors."""
    return torch.cholesky_solve(xy, cholesky(xx, what)).mT


class LowRank(NamedTuple):
    """y ~ decode encode x, of the given rank; ``decode`` has orthonormal columns. ``spectrum``: all singular values; those that are
    kept explain the squared error, E|y|^2 - sum(kept^2)."""

    decode: Float[Tensor, "*g y z"]
    encode: Float[Tensor, "*g z x"]
    spectrum: Float[Tensor, "*g i"]


def reduced_rank(xx: Float[Tensor, "*g x x"], xy: Float[Tensor, "*g x y"], rank: int) -> LowRank:
    """Reduced-rank regression (Izenman 1975): the best linear map from x to y of that rank in squared error, and of the least norm.

    Directions in which x does not vary are left alone: a twin view adds some, where s can be read off o.
    """
    values, vectors = torch.linalg.eigh(xx)
    used = values > TOLERANCE * values[..., -1:]
    half = vectors * torch.where(used, values, 1.0).rsqrt().mul(used)[..., None, :]  # w = half^T x is white
    u, s, vt = torch.linalg.svd((half.mT @ xy).mT, full_matrices=False)  # of E[y w^T]
    return LowRank(u[..., :rank], s[..., :rank, None] * vt[..., :rank, :] @ half.mT, s)


def innovation(moments: Moments) -> Float[Tensor, "*g o o"]:
    """The best linear prediction of o' from o alone. What it leaves, r = o' - (it) o, is the innovation."""
    return regression(moments("o", "o"), moments("o", "o'"), "o")


def solve(moments: Moments, objective: Objective, width: int) -> LinearLAM:
    """A global minimiser of the objective, the one of the smallest latents. Raises LaminaError for rank-deficient moments, for a width that
    is no bottleneck, and for a cross-exogenous objective with a robust target, which has no closed form here.

    - Reconstruction, from one view or two: A o is free, so o is partialled out (Frisch-Waugh) and reduced-rank regression finds the rest.
      From one view that is the principal components of the innovation.
    - With a robust target: reduced-rank regression of (innovation, target) on the innovation; C then fits what o tells of the target.
      Exact where that is nothing, as in the population, or where d_y <= d_z.
    """
    check_width(width, moments)
    if objective.target is None:
        views = _views(moments, objective)
        fit = reduced_rank(views.rest, views.xy, width)
        C, D = fit.encode.chunk(2, -1)
        on_target, on_latent = innovation(moments), fit.decode @ fit.encode @ views.on_o
        return minimum_norm(LinearLAM(on_target - on_latent, fit.decode, C, D), moments, objective)
    if objective.cross:
        raise LaminaError("cross-exogenous reconstruction with a robust target has no closed form here; train it")
    t, (own, weight) = objective.target, (objective.own**0.5, objective.weight**0.5)
    predict, on_o = innovation(moments), regression(moments("o", "o"), moments("o", t), "o")
    parts = moments.combine({"r": {"o'": 1.0, "o": -predict}, t: {t: 1.0}})
    fit = reduced_rank(parts("r", "r"), torch.cat([own * parts("r", "r"), weight * parts("r", t)], -1), width)
    o = moments.sizes["o"]
    B, W, D = fit.decode[..., :o, :] / own, fit.decode[..., o:, :] / weight, fit.encode
    told = torch.linalg.pinv(W) @ on_o
    return LinearLAM(predict - B @ told, B, told - D @ predict, D, W)


class _Views(NamedTuple):
    """What the encoder reads, x = (o, o') over all weighted views, beside the o that the prediction starts from."""

    xx: Float[Tensor, "*g x x"]
    on_o: Float[Tensor, "*g x o"]  # best prediction of x from o
    rest: Float[Tensor, "*g x x"]  # moments of x without it
    xy: Float[Tensor, "*g x o"]  # ... with o'


def _views(moments: Moments, objective: Objective) -> _Views:
    def mixed(columns: str | None) -> Tensor:
        return torch.stack([w * moments(pair, columns or pair) for pair, w in objective.views.items()]).sum(0)

    weight, xo = sum(objective.views.values()), mixed("o")
    on_o = regression(moments("o", "o"), xo.mT / weight, "o")
    return _Views(mixed(None), on_o, mixed(None) - on_o @ xo.mT, mixed("o'") - weight * on_o @ moments("o", "o'"))


def minimum_norm(lam: LinearLAM, moments: Moments, objective: Objective) -> LinearLAM:
    """Of all LAMs that predict what ``lam`` predicts, the one whose latents are smallest.

    What o tells of x = (o, o') can travel through A as well as through z, so the reconstruction losses leave that part of C to the
    initialisation, and with it what a probe finds in z. The smallest latent is what any penalty on z, or noise in it, would select: for
    Eq. 5 it is z = D (o' - E[o' | o]). A robust target's head reads z, so there C is determined and stays.
    """
    if objective.target is not None:
        return lam
    views = _views(moments, objective)
    values, vectors = torch.linalg.eigh(views.rest)
    free = (vectors * (values <= TOLERANCE * values[..., -1:])[..., None, :]) @ vectors.mT  # onto what o tells
    encode = torch.cat([lam.C, lam.D], -1)
    seen = torch.linalg.pinv(free @ views.xx @ free, rtol=1e-9, hermitian=True)
    spare = encode @ views.xx @ seen @ free
    C, D = (encode - spare).chunk(2, -1)
    return LinearLAM(lam.A + lam.B @ spare @ views.on_o, lam.B, C, D)


def blind_loss(moments: Moments, emission: Float[Tensor, "... o l"], states: int, width: int) -> Float[Tensor, "*g"]:
    """The least reconstruction loss of any z that does not depend on xi' (what Prop. 4.2 says is above the minimum).

    Such a z reads o' only along directions in which all H_xi agree.
    """
    parts = moments.combine({"r": {"o'": 1.0, "o": -innovation(moments)}})
    unexplained = parts("r", "r").diagonal(dim1=-2, dim2=-1).sum(-1)
    maps = emission.unflatten(-1, (states, -1))  # o n s
    apart = (maps[..., 1:, :] - maps[..., :1, :]).flatten(-2)
    common = torch.linalg.svd(apart)[0][..., min(apart.shape[-2:]) :]
    if not common.shape[-1]:
        return unexplained
    seen = parts.combine({"r": {"r": 1.0}, "x": {"r": common.mT}})
    fit = reduced_rank(seen("x", "x"), seen("x", "r"), width)
    return unexplained - fit.spectrum[..., :width].square().sum(-1)


class Canonical(NamedTuple):
    """Canonical correlation analysis: correlations, descending, and the directions (rows) of both sides."""

    correlations: Float[Tensor, "*g i"]
    first: Float[Tensor, "*g i x"]
    second: Float[Tensor, "*g i y"]


def canonical(
    xx: Float[Tensor, "*g x x"], xy: Float[Tensor, "*g x y"], yy: Float[Tensor, "*g y y"], what: str = "the two views"
) -> Canonical:
    """CCA by whitening both sides (Eq. 25). Raises LaminaError where one of them has no full rank: it cannot be whitened."""
    one, other = cholesky(xx, what), cholesky(yy, what)
    half = torch.linalg.solve_triangular(one, xy, upper=False)
    u, s, vt = torch.linalg.svd(torch.linalg.solve_triangular(other, half.mT, upper=False).mT, full_matrices=False)
    first = torch.linalg.solve_triangular(one.mT, u, upper=True).mT
    second = torch.linalg.solve_triangular(other.mT, vt.mT, upper=True).mT
    return Canonical(s, first, second)


def transitions(moments: Moments) -> Moments:
    """Moments of u = o' - o and ~u = ~o' - ~o."""
    return moments.combine({"u": {"o'": 1.0, "o": -1.0}, "~u": {"~o'": 1.0, "~o": -1.0}})


def whitened(moments: Moments, apart: bool) -> Moments:
    """The same frames with whitened transitions: o' = o + u, ~o' = ~o + ~u, Cov(u) = Cov(~u) = I.

    ``apart``: u and ~u without what o and ~o tell of them, so that Assumption 4.4 holds exactly; else as they are.
    Raises LaminaError where they have no full rank.
    """
    before, size = ("o", "~o"), moments.sizes["o"]
    parts = moments.combine(
        {**{n: {n: 1.0} for n in before}, "u": {"o'": 1.0, "o": -1.0}, "~u": {"~o'": 1.0, "~o": -1.0}}
    )
    new: dict[str, dict[str, Tensor | float]] = {n: {n: 1.0} for n in before}
    for change, start in (("u", "o"), ("~u", "~o")):
        told = torch.zeros(1, 2 * size, dtype=moments.matrix.dtype)
        if apart:
            fit = reduced_rank(parts(before, before), parts(before, change), size)
            told = fit.decode @ fit.encode
        own, twin = told.expand(*moments.matrix.shape[:-2], size, 2 * size).split(size, -1)
        left = parts.combine({change: {change: 1.0, "o": -own, "~o": -twin}})(change, change)
        white = torch.linalg.inv(cholesky(left, "the transitions"))
        from_o, from_twin = -white @ own, -white @ twin
        unit = torch.eye(size, dtype=moments.matrix.dtype)
        new[f"{start}'"] = {
            change: white,
            "o": from_o + unit if start == "o" else from_o,
            "~o": from_twin + unit if start == "~o" else from_twin,
        }
    return parts.combine(new)


def principal_angles(one: Float[Tensor, "*g o i"], other: Float[Tensor, "*g o i"]) -> Float[Tensor, "*g i"]:
    """Angles between two column spaces, radians, ascending (Björck & Golub 1973; by sines where cosines lose precision)."""
    q, p = (torch.linalg.qr(x).Q for x in (one, other))
    cosines = torch.linalg.svdvals(q.mT @ p).clamp(max=1.0)
    sines = torch.linalg.svdvals(p - q @ (q.mT @ p)).clamp(max=1.0).flip(-1)
    return torch.where(cosines > 0.7, sines.asin(), cosines.acos())
