"""What a LAM may learn beside pictures: how proprioception follows from a latent action, and what a task's words stand for."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamina.objectives import squared_error


class StateDynamics(nn.Module):
    """The proprioceptive forward model (q_i, z_ij) -> q_j, an MLP of two layers (villa-X, arXiv 2507.23682; AC-LAM App. A.1).

    It predicts the change of the state in units of each channel's spread, which running statistics hold: metres, radians and
    gripper openings count alike.
    """

    def __init__(self, state: int, latent: int, width: int = 256):
        super().__init__()
        self.scale = nn.BatchNorm1d(state, affine=False, momentum=0.01)
        self.net = nn.Sequential(nn.Linear(state + latent, width), nn.GELU(), nn.Linear(width, state))

    def loss(
        self, first: Float[Tensor, "b q"], z: Float[Tensor, "b k d"], second: Float[Tensor, "b q"]
    ) -> Float[Tensor, "b"]:
        """Mean squared error of each sample."""
        q, target = self.scale(torch.cat([first, second])).chunk(2)
        return squared_error(self.net(torch.cat([q, z.flatten(1)], dim=1)), target - q)


def rotation(first: Float[Tensor, "b 3"], second: Float[Tensor, "b 3"]) -> Float[Tensor, "b"]:
    """Angle between two orientations, radians in [0, pi]; each as roll, pitch and yaw in radians (R = Rz Ry Rx)."""
    turn = _matrix(first).transpose(1, 2) @ _matrix(second)
    return torch.acos(((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))


def _matrix(angles: Float[Tensor, "b 3"]) -> Float[Tensor, "b 3 3"]:
    (sr, sp, sy), (cr, cp, cy) = angles.double().sin().unbind(1), angles.double().cos().unbind(1)
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
