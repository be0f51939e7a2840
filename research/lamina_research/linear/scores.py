"""Scores of a linear LAM's latents: action error, exogenous share, and the bound of Prop. 4.8.

They do not change when z is multiplied by an invertible matrix.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lamina_research.linear.closed_form import cholesky, regression
from lamina_research.linear.ex_bmdp import Moments
from lamina_research.linear.lam import LinearLAM, Target, trace


def nmse(fit: Moments, test: Moments, target: str = "a") -> Float[Tensor, "*g"]:
    """Squared error on ``test`` of a linear probe from z that is fitted on ``fit``, divided by the target's energy: 0 perfect, 1 useless.

    Both are moments with latents (:meth:`LinearLAM.latents`). There is no intercept because all variables have mean zero.
    """
    probe = regression(fit("z", "z"), fit("z", target), "z")
    energy = test.energy(target)
    error = energy + trace(probe @ test("z", "z") - 2 * test(target, "z"), probe.mT)
    return error / energy


def normalized_variance(lam: LinearLAM, moments: Moments, exogenous: Moments) -> Float[Tensor, "*g"]:
    """Share of z's variance that comes from the exogenous state, in [0, 1]; mean over the dimensions of whitened z.

    ``exogenous``: the observed moments of ``ex_bmdp.leaking`` (o' alone) or ``ex_bmdp.context`` (o and o').
    The paper divides Var(z | context) by |z|^2; whitening makes the share independent of the scale and rotation of z.
    """
    maps = {"o": lam.C, "o'": lam.D}
    varied = exogenous.combine({"z": {name: maps[name] for name in exogenous.sizes}})("z", "z")
    whole = lam.latents(moments)("z", "z")
    share = torch.cholesky_solve(varied, cholesky(whole, "z"))
    return share.diagonal(dim1=-2, dim2=-1).mean(-1)


def told(latents: Moments, variable: str) -> Float[Tensor, "*g"]:
    """Share of z's variance that a variable explains linearly, in [0, 1]; mean over the dimensions of whitened z.

    z is linear in s, in a, and in what the exogenous states add, which are uncorrelated: the shares that s and a explain and the share
    of both frames' exogenous states (:func:`normalized_variance`) sum to 1. If z has the width of the action, its probe's error is
    1 minus the share that a explains: the share of s plus the exogenous share.
    """
    head = regression(latents(variable, variable), latents(variable, "z"), variable)
    explained = head @ latents(variable, "z")
    return torch.cholesky_solve(explained, cholesky(latents("z", "z"), "z")).diagonal(dim1=-2, dim2=-1).mean(-1)


def bound(
    lam: LinearLAM, fit: Moments, test: Moments, target: Target
) -> tuple[Float[Tensor, "*g"], Float[Tensor, "*g"]]:
    """Both sides of Eq. 20 on ``test``, E|W(z - ~z)|^2 and 6 L + 3 eta, with the head W that fits the target best on ``fit``.

    Prop. 4.8 requires eta >= |y - ~y|^2 everywhere. Its proof uses only E|y - ~y|^2, so this smaller eta gives the sharpest bound.
    """
    seen = lam.latents(fit)
    head = regression(seen("z", "z"), seen("z", target), "z")
    parts = lam.latents(test).combine(
        {
            "gap": {"z": head, "~z": -head},
            "error": {target: 1.0, "z": -head},
            **({"eta": {"q": 1.0, "~q": -1.0}} if target == "q" else {}),  # the action is the same in both views
        }
    )
    eta = parts.energy("eta") if target == "q" else 0.0
    return parts.energy("gap"), 6 * parts.energy("error") + 3 * eta
