"""Global minimisers of the linear LAM's objectives, CCA and linear probes, from second moments; for a whole sweep at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lamina.errors import LaminaError
from lamina_research.linear.ex_bmdp import Moments
from lamina_research.linear.lam import LinearLAM, Objective, check_width

TOLERANCE = 1e-11  # smallest eigenvalue over the largest, below which moments count as rank-deficient
#: The transitions of both views as combinations of frames.
CHANGES: dict[str, dict[str, Tensor | float]] = {"u": {"o'": 1.0, "o": -1.0}, "~u": {"~o'": 1.0, "~o": -1.0}}


def cholesky(moments: Float[Tensor, "*g i i"], what: str) -> Float[Tensor, "*g i i"]:
    """The lower factor L with L L^T = moments. Raises LaminaError, naming ``what``, if they are not finite or do not have full rank."""
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
    """y ~ decode encode x, of the given rank; ``decode`` has orthonormal columns. The squared error is E|y|^2 minus the sum of squares of
    the first ``rank`` singular values in ``spectrum``, which has all of them."""

    decode: Float[Tensor, "*g y z"]
    encode: Float[Tensor, "*g z x"]
    spectrum: Float[Tensor, "*g i"]


def reduced_rank(xx: Float[Tensor, "*g x x"], xy: Float[Tensor, "*g x y"], rank: int) -> LowRank:
    """Reduced-rank regression (Izenman 1975): the linear map of that rank from x to y with the least squared error, of minimum norm.

    The map is zero in directions in which x does not vary. With a paired view there are some if o determines s.
    """
    values, vectors = torch.linalg.eigh(xx)
    used = values > TOLERANCE * values[..., -1:]
    half = vectors * torch.where(used, values, 1.0).rsqrt().mul(used)[..., None, :]  # w = half^T x is white
    u, s, vt = torch.linalg.svd((half.mT @ xy).mT, full_matrices=False)  # of E[y w^T]
    return LowRank(u[..., :rank], s[..., :rank, None] * vt[..., :rank, :] @ half.mT, s)


def prediction(moments: Moments) -> Float[Tensor, "*g o o"]:
    """The best linear prediction of o' from o, o' ~ P o. The rest, r = o' - P o, is the innovation."""
    return regression(moments("o", "o"), moments("o", "o'"), "o")


def solve(moments: Moments, objective: Objective, width: int) -> LinearLAM:
    """The global minimiser of the objective whose latents have minimum norm.

    - Reconstruction, from one view or two: A is free, so o is partialled out (Frisch-Waugh); the rest is a reduced-rank regression.
      With one view its solution is the first principal components of the innovation.
    - With a robust target: reduced-rank regression of (innovation, target) on the innovation; C then fits the part of the target that o
      predicts. Exact if o predicts nothing of it, as in the population, or if d_y <= d_z.

    Raises LaminaError for rank-deficient moments, for a width that is no bottleneck, and for a cross-exogenous objective with a robust
    target, which has no closed form here.
    """
    check_width(width, moments.sizes["o"])
    if objective.target is None:
        views = _views(moments, objective)
        fit = reduced_rank(views.rest, views.xy, width)
        C, D = fit.encode.chunk(2, -1)
        A = prediction(moments) - fit.decode @ fit.encode @ views.on_o
        return minimum_norm(LinearLAM(A, fit.decode, C, D), moments, objective)
    if objective.cross:
        raise LaminaError("cross-exogenous reconstruction with a robust target has no closed form here; train it")
    t, (own, weight) = objective.target, (objective.own**0.5, objective.weight**0.5)
    predict, on_o = prediction(moments), regression(moments("o", "o"), moments("o", t), "o")
    parts = moments.combine({"r": {"o'": 1.0, "o": -predict}, t: {t: 1.0}})
    fit = reduced_rank(parts("r", "r"), torch.cat([own * parts("r", "r"), weight * parts("r", t)], -1), width)
    o = moments.sizes["o"]
    B, W, D = fit.decode[..., :o, :] / own, fit.decode[..., o:, :] / weight, fit.encode
    from_o = torch.linalg.pinv(W) @ on_o  # the part of z that o determines
    return LinearLAM(predict - B @ from_o, B, from_o - D @ predict, D, W)


def solve_without(moments: Moments, objective: Objective, width: int, variable: str) -> LinearLAM:
    """The minimiser among the LAMs whose latents are uncorrelated with a variable in every view; for objectives without a robust target."""
    check_width(width, moments.sizes["o"])
    views = _views(moments, objective)
    told = torch.cat([moments(pair, variable) for pair in objective.views], -1)
    left, size, _ = torch.linalg.svd(told, full_matrices=False)
    held = left * (size > 1e-9 * size[..., :1])[..., None, :]
    free = torch.eye(told.shape[-2], dtype=told.dtype) - held @ held.mT
    fit = reduced_rank(free @ views.rest @ free, free @ views.xy, width)
    encode = fit.encode @ free
    C, D = encode.chunk(2, -1)
    return LinearLAM(prediction(moments) - fit.decode @ encode @ views.on_o, fit.decode, C, D)


class _Views(NamedTuple):
    """Moments of the encoder's input x = (o, o'), a weighted sum over views, with the o that the decoder reads."""

    xx: Float[Tensor, "*g x x"]
    on_o: Float[Tensor, "*g x o"]  # the best linear prediction of x from o
    rest: Float[Tensor, "*g x x"]  # moments of x minus that prediction
    xy: Float[Tensor, "*g x o"]  # ... and o'


def _views(moments: Moments, objective: Objective) -> _Views:
    def mixed(columns: str | None) -> Tensor:
        return torch.stack([w * moments(pair, columns or pair) for pair, w in objective.views.items()]).sum(0)

    weight, xo = sum(objective.views.values()), mixed("o")
    on_o = regression(moments("o", "o"), xo.mT / weight, "o")
    return _Views(mixed(None), on_o, mixed(None) - on_o @ xo.mT, mixed("o'") - weight * on_o @ moments("o", "o'"))


def minimum_norm(lam: LinearLAM, moments: Moments, objective: Objective) -> LinearLAM:
    """Of all LAMs with the same predictions as ``lam``, the one whose latents have minimum norm.

    The part of z that is a function of o can be moved into A, so the reconstruction losses do not determine that part of C, but a probe
    of z depends on it. Any penalty on z, and any noise in z, selects the minimum norm: for Eq. 5, z = D (o' - E[o' | o]). With a robust
    target C is determined, because the head reads z.
    """
    if objective.target is not None:
        return lam
    views = _views(moments, objective)
    values, vectors = torch.linalg.eigh(views.rest)
    free = (
        vectors * (values <= TOLERANCE * values[..., -1:])[..., None, :]
    ) @ vectors.mT  # onto the part that o determines
    encode = torch.cat([lam.C, lam.D], -1)
    seen = torch.linalg.pinv(free @ views.xx @ free, rtol=1e-9, hermitian=True)
    spare = encode @ views.xx @ seen @ free
    C, D = (encode - spare).chunk(2, -1)
    return LinearLAM(lam.A + lam.B @ spare @ views.on_o, lam.B, C, D)


def blind_loss(moments: Moments, emission: Float[Tensor, "... o l"], states: int, width: int) -> Float[Tensor, "*g"]:
    """The least reconstruction loss of a z that does not depend on xi', which by Prop. 4.2 is above the minimum.

    Such a z reads o' only along directions in which all H_xi agree.
    """
    parts = moments.combine({"r": {"o'": 1.0, "o": -prediction(moments)}})
    unexplained = parts.energy("r")
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
    """CCA by whitening both sides (Eq. 25). Raises LaminaError if one of them does not have full rank."""
    one, other = cholesky(xx, what), cholesky(yy, what)
    half = torch.linalg.solve_triangular(one, xy, upper=False)
    u, s, vt = torch.linalg.svd(torch.linalg.solve_triangular(other, half.mT, upper=False).mT, full_matrices=False)
    first = torch.linalg.solve_triangular(one.mT, u, upper=True).mT
    second = torch.linalg.solve_triangular(other.mT, vt.mT, upper=True).mT
    return Canonical(s, first, second)


def transitions(moments: Moments) -> Moments:
    """Moments of u = o' - o and ~u = ~o' - ~o."""
    return moments.combine(CHANGES)


def transition_cca(moments: Moments) -> Canonical:
    """CCA of the two views' transitions u and ~u (Prop. 4.6)."""
    pairs = transitions(moments)
    return canonical(pairs("u", "u"), pairs("u", "~u"), pairs("~u", "~u"))


def whitened(moments: Moments, apart: bool) -> Moments:
    """The same frames with whitened transitions: o' = o + u, ~o' = ~o + ~u, Cov(u) = Cov(~u) = I.

    ``apart``: without the part of u and ~u that o and ~o predict, so that Assumption 4.4 holds exactly.
    Raises LaminaError if the transitions do not have full rank.
    """
    before, size = ("o", "~o"), moments.sizes["o"]
    kept: dict[str, dict[str, Tensor | float]] = {name: {name: 1.0} for name in before}
    parts = moments.combine({**kept, **CHANGES})
    unit = torch.eye(size, dtype=moments.matrix.dtype)
    new = dict(kept)
    for change, start in (("u", "o"), ("~u", "~o")):
        predicted = dict.fromkeys(before, torch.zeros_like(unit))  # of the transition, from each first frame
        if apart:
            fit = reduced_rank(parts(before, before), parts(before, change), size)
            predicted = dict(zip(before, (fit.decode @ fit.encode).split(size, -1), strict=True))
        rest = parts.combine({change: {change: 1.0, **{name: -predicted[name] for name in before}}})(change, change)
        white = torch.linalg.inv(cholesky(rest, "the transitions"))
        new[f"{start}'"] = {
            change: white,
            **{name: unit * (name == start) - white @ predicted[name] for name in before},
        }
    return parts.combine(new)


def principal_angles(one: Float[Tensor, "*g o i"], other: Float[Tensor, "*g o i"]) -> Float[Tensor, "*g i"]:
    """Angles between two column spaces, radians, ascending (Björck & Golub 1973; from sines where cosines lose precision)."""
    q, p = (torch.linalg.qr(x).Q for x in (one, other))
    cosines = torch.linalg.svdvals(q.mT @ p).clamp(max=1.0)
    sines = torch.linalg.svdvals(p - q @ (q.mT @ p)).clamp(max=1.0).flip(-1)
    return torch.where(cosines > 0.7, sines.asin(), cosines.acos())
