"""The exogenous state of a MuJoCo scene: colours, camera and background that drift whatever is done (Stone et al. 2021).

*Why Latent Actions Fail* (App. D) perturbs cheetah-run with (colour, camera) = (0.5, 0.05): the largest change of a colour's channel, and
the scale of the camera's pose and zoom. Both drift. The paper says no more; here, as in the Distracting Control Suite, a
camera of scale c turns about what it looks at by up to c pi/2 sideways, up or down and about its own axis, and comes nearer by up to c/2 or
goes away by up to 3c/2 of its distance. Behind the scene, where the suite shows videos (which cannot be had here), a smooth pattern of the
colour's strength drifts. With ``p_switch`` the state is at some steps drawn wholly anew, as in the paper's linear world.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from lamina.envs.rendering import Camera  # first: it decides how MuJoCo will draw
from lamina.errors import LaminaError
from lamina.types import ImageSize

import mujoco  # isort: skip

DRIFT = 0.03  # standard deviation of a step of every number of the state, which stays in [-1, 1]
WAVES = 4  # of the background
SPEED = 0.1  # radians that a wave moves in a step, at most


@dataclass(frozen=True)
class Strength:
    """How far an exogenous state may go from the plain picture; both 0: not at all."""

    colour: float = 0.5  # of a channel whose range is 1
    camera: float = 0.05
    p_switch: float = 0.0  # probability that a step draws the state anew instead of moving it a little

    def __post_init__(self) -> None:
        if not all(0 <= part <= 1 for part in (self.colour, self.camera, self.p_switch)):
            raise LaminaError(
                f"a distraction's colour, camera and p_switch must be between 0 and 1, got {self.colour}, {self.camera} and {self.p_switch}"
            )


class Exogenous:
    """One exogenous state, which draws the scene as it looks under it. Its path is a function of ``rng`` alone."""

    def __init__(
        self, model: mujoco.MjModel, camera: Camera, strength: Strength, size: ImageSize, rng: np.random.Generator
    ):
        self._model, self._camera, self._strength, self._size, self._rng = model, camera, strength, size, rng
        self._draw()

    def _draw(self) -> None:
        rng, model = self._rng, self._model
        self._view = rng.uniform(-1, 1, 4)  # turn sideways, turn up, roll, distance
        self._tint = rng.uniform(-1, 1, (model.nmat + model.nlight, 3))
        angle, length = rng.uniform(0, 2 * np.pi, WAVES), rng.uniform(0.5, 2.0, WAVES)  # wavelengths: waves a picture
        y, x = (np.linspace(0, 1, n)[:, None, None] for n in self._size)
        self._place = 2 * np.pi * length * (np.cos(angle) * x.transpose(1, 0, 2) + np.sin(angle) * y)  # [h w waves]
        self._phase = rng.uniform(0, 2 * np.pi, (WAVES, 3))
        self._pace = rng.uniform(-SPEED, SPEED, (WAVES, 3))

    def drift(self) -> None:
        """One step on: a random walk that turns back at the bounds, or a new state."""
        if self._strength.p_switch and self._rng.random() < self._strength.p_switch:
            self._draw()
            return
        for state in (self._view, self._tint):
            moved = state + self._rng.normal(0, DRIFT, state.shape)
            state[:] = np.where(np.abs(moved) > 1, np.sign(moved) * (2 - np.abs(moved)), moved)
        self._phase += self._pace

    def picture(self, data: mujoco.MjData) -> UInt8[np.ndarray, "h w 3"]:
        """The scene of ``data`` under this exogenous state. Model and data are afterwards as they were."""
        model, camera = self._model, self._camera
        kept = [array.copy() for array in (model.mat_rgba, model.light_diffuse)]
        with camera.looking(data, self._turned):
            try:
                change = self._strength.colour * self._tint
                model.mat_rgba[:, :3] = np.clip(model.mat_rgba[:, :3] + change[: model.nmat], 0, 1)
                model.light_diffuse[:] = np.clip(model.light_diffuse + change[model.nmat :] / 2, 0, 1)
                frame = camera.picture(data)
            finally:
                model.mat_rgba[:], model.light_diffuse[:] = kept
            return self._painted(frame, camera.background(data)) if self._strength.colour else frame

    def _turned(
        self, position: Float[np.ndarray, "3"], axes: Float[np.ndarray, "3 3"], centre: Float[np.ndarray, "3"]
    ) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3 3"]]:
        """Pose of the camera: axes as columns (right, up, back)."""
        scale = self._strength.camera
        sideways, up, roll = scale * np.pi / 2 * self._view[:3]
        distance = 1 + scale * (1.5 if self._view[3] > 0 else 0.5) * self._view[3]
        turn = _about(axes[:, 1], sideways) @ _about(axes[:, 0], up)
        return centre + distance * turn @ (position - centre), turn @ axes @ _about(np.array([0.0, 0, 1]), roll)

    def _painted(self, frame: UInt8[np.ndarray, "h w 3"], sky: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
        pattern = np.sin(self._place[..., None] + self._phase).mean(2)  # [h w 3]
        painted = np.clip(frame + 255 * self._strength.colour * pattern * sky[..., None], 0, 255)
        return np.round(painted).astype(np.uint8)


def _about(axis: Float[np.ndarray, "3"], angle: float) -> Float[np.ndarray, "3 3"]:
    """The turn by ``angle`` (radians) about a unit vector (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
