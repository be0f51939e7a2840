"""MuJoCo rendering without a display, and without effects that are invisible at 64 pixels and take nine tenths of the time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes.util import find_library

import numpy as np
from jaxtyping import Bool, UInt8

from lamina.errors import LaminaError
from lamina.types import ImageSize

if sys.platform == "linux":  # MuJoCo chooses a window system when it is imported, and there may be none
    os.environ.setdefault("MUJOCO_GL", "egl" if find_library("EGL") or not find_library("OSMesa") else "osmesa")

NO_GL = (
    "MuJoCo cannot draw, no OpenGL library works here ({reason}): apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri "
    "libosmesa6 (Debian)"
)

try:
    import mujoco
except ModuleNotFoundError:
    raise
except Exception as error:  # PyOpenGL reports a missing library as whatever it stumbled over first
    raise LaminaError(NO_GL.format(reason=error)) from error


Turned = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Camera:
    """Draws a model from one of its cameras. Raises LaminaError where no OpenGL library can be loaded."""

    def __init__(self, model: mujoco.MjModel, camera: str, size: ImageSize):
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        model.mat_reflectance[:] = 0
        model.vis.global_.offheight, model.vis.global_.offwidth = size
        self._camera, self._number = camera, model.camera(camera).id
        try:
            self._renderer = mujoco.Renderer(model, *size)
        except Exception as error:  # as above
            raise LaminaError(NO_GL.format(reason=error)) from error

    def picture(self, data: mujoco.MjData, camera: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """What it sees; or, by the same renderer, what another ``camera`` of the model does."""
        self._renderer.update_scene(data, camera=camera or self._camera)
        return self._renderer.render()

    def background(self, data: mujoco.MjData) -> Bool[np.ndarray, "h w"]:
        """Where nothing is to be seen but the sky."""
        self._renderer.enable_segmentation_rendering()
        try:
            return self.picture(data)[..., 0] == -1
        finally:
            self._renderer.disable_segmentation_rendering()

    @contextmanager
    def looking(self, data: mujoco.MjData, turned: Turned) -> Iterator[None]:
        """Within, the camera stands elsewhere: ``turned`` gets its position, its axes (columns) and the scene's centre of mass."""
        position, axes = data.cam_xpos[self._number], data.cam_xmat[self._number]
        kept = position.copy(), axes.copy()
        moved, towards = turned(kept[0], kept[1].reshape(3, 3), data.subtree_com[0])
        position[:], axes[:] = moved, towards.ravel()
        try:
            yield
        finally:
            position[:], axes[:] = kept

    def close(self) -> None:
        self._renderer.close()
