"""Scenes that look otherwise and are the same: surfaces and light drawn anew, and objects that can be seen but not touched.

In the place of AC-LAM's two tests out of distribution (§4.3), which change a scene's background (OOD-B) and add distractor objects
(OOD-D). Its scenes cannot be had; here the surroundings of a MuJoCo model get new textures, and its pictures more objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from lamina.envs.rendering import Camera, Object  # first: it decides how MuJoCo will draw

import mujoco  # isort: skip

WAVES = 3  # of a texture
OBJECTS = 5
#: Metres that objects keep from what the task is about, and from each other. On a table of 0.7 x 0.4 m there is always room left.
CLEAR, APART = 0.12, 0.08
SHAPES = (mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_SPHERE)


@dataclass
class Surroundings:
    """Surfaces and light of a model: ``textures`` are the names of those that are painted over."""

    model: mujoco.MjModel
    camera: Camera
    textures: Sequence[str]

    def __post_init__(self) -> None:
        self._light = self.model.light_diffuse.copy()

    def draw(self, rng: np.random.Generator) -> None:
        """New patterns in new colours, and light of another strength and tint."""
        for name in self.textures:
            texture = self.model.tex(name)
            height, width, channels = int(texture.height[0]), int(texture.width[0]), int(texture.nchannel[0])
            start = int(self.model.tex_adr[texture.id])
            picture = _pattern(height, width, rng)
            self.model.tex_data[start : start + height * width * channels] = picture[..., :channels].ravel()
            self.camera.upload(texture.id)
        strength, tint = rng.uniform(0.4, 1.6), rng.uniform(0.8, 1.2, 3)
        self.model.light_diffuse[:] = np.clip(self._light * strength * tint, 0, 1)


def _pattern(height: int, width: int, rng: np.random.Generator) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Between two colours, along the sum of some waves: smooth, or with hard edges."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    angle, turns, phase = rng.uniform(0, 2 * np.pi, WAVES), rng.uniform(1, 8, WAVES), rng.uniform(0, 2 * np.pi, WAVES)
    waves = [
        np.sin(2 * np.pi * n * (np.cos(a) * x + np.sin(a) * y) + p) for a, n, p in zip(angle, turns, phase, strict=True)
    ]
    share = np.clip(0.5 + rng.choice([0.5, 5.0]) * np.mean(waves, 0), 0, 1)[..., None]
    one, other = rng.uniform(0, 255, (2, 3))
    return np.round(one + share * (other - one)).astype(np.uint8)


def distractors(
    rng: np.random.Generator,
    low: Float[np.ndarray, "2"],
    high: Float[np.ndarray, "2"],
    keep_clear: Float[np.ndarray, "n 2"],
    ground: float,
) -> list[Object]:
    """OBJECTS things of random shape, size (2 to 4 cm) and colour that stand on ``ground`` (z, metres) between ``low`` and ``high``
    (x, y), away from the places to be kept clear."""
    found: list[Object] = []
    while len(found) < OBJECTS:
        place = rng.uniform(low, high)
        near = [np.hypot(*(other.position[:2] - place)) < APART for other in found]
        near += [np.hypot(*(point - place)) < CLEAR for point in keep_clear]
        if any(near):
            continue
        size = rng.uniform(0.02, 0.04, 3)
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        half = {"BOX": size[2], "CYLINDER": size[1], "SPHERE": size[0]}[shape.name.removeprefix("mjGEOM_")]
        angle = rng.uniform(0, 2 * np.pi)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        colour = np.append(rng.uniform(0, 1, 3), 1)
        found.append(Object(shape, size, np.append(place, ground + half), turn, colour))
    return found
