"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers"): AdamW, with orthogonalised momentum for weight matrices.

All directions of a matrix are updated by the same amount, however small their gradients. Features with small gradients, such as those of a
FlexLAM's later slots, are then learned together with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

#: Of the quintic iteration X <- a X + b (X X^T) X + c (X X^T)^2 X, which drives every singular value to about 1.
A, B, C, ITERATIONS = 3.4445, -4.7750, 2.0315, 5
#: What it keeps of each of its parameters.
MOMENTS = ("momentum", "step")


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon updates: those of linear layers and convolutions, not embeddings, norms and biases."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    weights: list[nn.Parameter] = [part.weight for part in module.modules() if isinstance(part, layers)]  # type: ignore[misc]
    return list(dict.fromkeys(weight for weight in weights if weight.requires_grad))


def orthogonalised(x: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to ``x`` [n rows columns], rows <= columns, roughly: singular values within 0.7 to 1.2."""
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x


class Muon(torch.optim.AdamW):
    """AdamW, except for parameter groups with ``orthogonal`` set, which take Muon's step.

    A step has the root mean square of a typical AdamW step (0.2 per weight, Liu et al. 2025), so that both share one learning rate.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.95, **adamw: Any):
        super().__init__([{"orthogonal": False, **group} for group in groups], **adamw)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        held = []
        for group in self.param_groups:
            if group["orthogonal"]:
                moved = [p for p in group["params"] if p.grad is not None]
                self._move(moved, group["lr"], group["weight_decay"])
                held += [(p, p.grad) for p in moved]
        for p, _ in held:  # AdamW skips parameters without a gradient
            p.grad = None
        loss = super().step(closure)
        for p, grad in held:
            p.grad = grad
        return loss

    def _move(self, weights: list[nn.Parameter], lr: float, decay: float) -> None:
        if not weights:
            return
        for p in weights:
            if not self.state[p]:
                self.state[p] |= {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
            self.state[p]["step"] += 1
        grads: list[Tensor] = [p.grad for p in weights]  # type: ignore[misc]
        momenta = [self.state[p]["momentum"] for p in weights]
        torch._foreach_lerp_(momenta, grads, 1 - self.momentum)
        ahead = torch._foreach_lerp(grads, momenta, self.momentum)  # Nesterov's
        torch._foreach_mul_(list[Tensor](weights), 1 - lr * decay)
        alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
        for p, step in zip(weights, ahead, strict=True):
            flat = step.flatten(1).float()
            wide = flat if flat.shape[0] <= flat.shape[1] else flat.mT
            alike.setdefault(wide.shape, []).append((p, wide))
        # One call for all matrices of a shape: small ones cost more to call than to compute.
        for shape, members in alike.items():
            steps = orthogonalised(torch.stack([wide for _, wide in members])) * (0.2 * max(shape) ** 0.5)
            for (p, _), step in zip(members, steps, strict=True):
                upright = step if p.flatten(1).shape == shape else step.mT
                p.sub_(upright.reshape(p.shape).to(p.dtype), alpha=lr)
