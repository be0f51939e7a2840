"""What the latents of a linear LAM hold of the action and of the exogenous state, and the bound of Prop. 4.8.

None of it changes when z is recoded by an invertible matrix.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lamina_research.linear.closed_form import cholesky, regression
from lamina_research.linear.ex_bmdp import Moments
from lamina_research.linear.lam import LinearLAM, Target, trace


def nmse(fit: Moments, test: Moments, target: str = "a") -> Float[Tensor, "*g"]:
    """Squared error of a linear probe from z, least squares on ``fit``, on ``test``, over the target's energy: 0 perfect, 1 knows nothing.

    Both are moments with latents (:meth:`LinearLAM.latents`). No intercept: everything has mean zero.
    """
    probe = regression(fit("z", "z"), fit("z", target), "z")
    energy = test(target, target).diagonal(dim1=-2, dim2=-1).sum(-1)
    error = energy + trace(probe @ test("z", "z") - 2 * test(target, "z"), probe.mT)
    return error / energy


def normalized_variance(lam: LinearLAM, moments: Moments, exogenous: Moments) -> Float[Tensor, "*g"]:
    """Share of z's variance that the exogenous state makes, in [0, 1]; mean over the dimensions of whitened z.

    ``exogenous``: the covariance of o' (or of o and o') at a fixed context, ``worlds.linear.leaking`` or ``context``, observed.
    The paper divides Var(z | context) by |z|^2; whitening first makes that independent of how z is scaled and rotated.
    """
    maps = {"o": lam.C, "o'": lam.D}
    varied = exogenous.combine({"z": {name: maps[name] for name in exogenous.sizes}})("z", "z")
    whole = lam.latents(moments)("z", "z")
    share = torch.cholesky_solve(varied, cholesky(whole, "z"))
    return share.diagonal(dim1=-2, dim2=-1).mean(-1)


def bound(
    lam: LinearLAM, fit: Moments, test: Moments, target: Target
) -> tuple[Float[Tensor, "*g"], Float[Tensor, "*g"]]:
    """Both sides of Eq. 20 on ``test``, E|W(z - ~z)|^2 and 6 L + 3 eta, with the head W that fits the target best on ``fit``.

    Prop. 4.8 wants eta >= |y - ~y|^2 everywhere; its proof uses E|y - ~y|^2 alone, so that smallest eta is taken: the sharpest form.
    """
    twin = {"a": "a", "q": "~q"}[target]
    seen = lam.latents(fit)
    head = regression(seen("z", "z"), seen("z", target), "z")
    parts = lam.latents(test).combine(
        {
            "gap": {"z": head, "~z": -head},
            "error": {target: 1.0, "z": -head},
            **({} if twin == target else {"eta": {target: 1.0, twin: -1.0}}),
        }
    )
    energy = {name: parts(name, name).diagonal(dim1=-2, dim2=-1).sum(-1) for name in parts.sizes}
    eta = energy.get("eta", torch.zeros((), dtype=test.matrix.dtype))
    return energy["gap"], 6 * energy["error"] + 3 * eta
