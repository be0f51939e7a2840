"""MuJoCo rendering without a display, and without effects that are invisible at 64 pixels and take nine tenths of the time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes.util import find_library
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

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


@dataclass(frozen=True)
class Object:
    """A thing that is drawn and is no part of the model: it touches nothing."""

    shape: mujoco.mjtGeom
    size: Float[np.ndarray, "3"]
    position: Float[np.ndarray, "3"]
    axes: Float[np.ndarray, "3 3"]
    colour: Float[np.ndarray, "4"]


class Camera:
    """Draws a model from one of its cameras. Raises LaminaError where no OpenGL library can be loaded."""

    def __init__(self, model: mujoco.MjModel, camera: str, size: ImageSize):
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        model.mat_reflectance[:] = 0
        model.vis.global_.offheight, model.vis.global_.offwidth = size
        self._model, self._camera, self._number = model, camera, model.camera(camera).id
        try:
            self._renderer = mujoco.Renderer(model, *size)
        except Exception as error:  # as above
            raise LaminaError(NO_GL.format(reason=error)) from error

    def picture(
        self, data: mujoco.MjData, camera: str | None = None, objects: Sequence[Object] = ()
    ) -> UInt8[np.ndarray, "h w 3"]:
        """What it sees; or, by the same renderer, what another ``camera`` of the model does; with ``objects`` that the model lacks."""
        self._renderer.update_scene(data, camera=camera or self._camera)
        scene, hidden = self._renderer.scene, self._out_of_view(data, camera or self._camera)
        for part in scene.geoms[: scene.ngeom]:
            if part.objtype == mujoco.mjtObj.mjOBJ_GEOM and hidden[part.objid]:
                part.type = mujoco.mjtGeom.mjGEOM_NONE
        for part, thing in zip(scene.geoms[scene.ngeom :], objects, strict=False):
            mujoco.mjv_initGeom(part, thing.shape, thing.size, thing.position, thing.axes.ravel(), thing.colour)
        scene.ngeom += len(objects)
        return self._renderer.render()

    def upload(self, texture: int) -> None:
        """Shows a texture of the model as it is now."""
        self._renderer._gl_context.make_current()
        mujoco.mjr_uploadTexture(self._model, self._renderer._mjr_context, texture)

    def _out_of_view(self, data: mujoco.MjData, camera: str) -> Bool[np.ndarray, "geoms"]:
        """Which geoms lie wholly outside what the camera sees. Their triangles would be transformed for nothing: without them, the view
        from a robot's hand takes a seventh of the time, and is the same."""
        model, number = self._model, self._model.camera(camera).id
        places = (data.geom_xpos - data.cam_xpos[number]) @ data.cam_xmat[number].reshape(3, 3)  # it looks along -z
        height = np.tan(np.radians(model.cam_fovy[number]) / 2)
        width = height * self._renderer.width / self._renderer.height
        outwards = np.array([[1, 0, width], [-1, 0, width], [0, 1, height], [0, -1, height], [0, 0, 1]])
        outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
        radius = model.geom_rbound
        return (radius > 0) & (places @ outwards.T > radius[:, None]).any(1)  # a plane has no radius and is everywhere

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
