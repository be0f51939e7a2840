"""Any Gymnasium environment (Towers et al. 2024) that can draw itself, ``gym/CartPole-v1`` for example.

Pictures, squashed to ``size``, are those that the environment observes under the key "pixels" (one, or several by the names of
cameras), else its own rendering. What it observes as "agent_pos" is proprioception, and "is_success" of its info says whether the goal
was reached: those are the keys of LeRobot's environments. Others are named in the variant, beside arguments of the environment itself:
``gym/ID?camera=image&proprio=state&success=solved&obs_type=pixels``; an argument that Python can read as a value is one
(``is_slippery=False``), any other is text. There is no scripted expert; the random policy draws as the
environment's action space does. An environment from elsewhere is named with the module that registers it, which is how Gymnasium
writes it: ``gym/my_package:Task-v0``.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from jaxtyping import UInt8

from lamina.envs.base import Action, Observation, World, resize
from lamina.errors import LaminaError
from lamina.types import ActionSpec, ImageSize

with suppress(ModuleNotFoundError, LaminaError):
    import lamina.envs.rendering  # noqa: F401 (decides how MuJoCo will draw, in those environments that use it)
if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a display and complains

try:
    import gymnasium
    from gymnasium import spaces
except ModuleNotFoundError as error:
    raise LaminaError("Gymnasium's environments need gymnasium: pip install 'lamina[doom]'") from error

FPS = 10  # where an environment does not say
MAX_STEPS = 1000  # where an environment has no limit of its own


KEYS = {"camera": "pixels", "proprio": "agent_pos", "success": "is_success"}


class GymWorld(World):
    """An environment made with ``render_mode="rgb_array"``, whatever its observations are.

    A discrete choice is numbered from 0 here, wherever the environment starts. A vector of real numbers must lie in the
    environment's box. An episode is done where the environment says so, and after ``max_steps``: its own limit, else 1000.
    """

    cameras: tuple[str, ...] = ("render",)

    def __init__(
        self,
        env: gymnasium.Env,
        name: str,
        size: ImageSize | None = (64, 64),
        keys: Mapping[str, str] = {},
    ):
        """``keys``: those of KEYS that the environment calls otherwise, and then must have."""
        if env.render_mode != "rgb_array":
            raise LaminaError(f"{name}: cannot be seen, its render_mode is {env.render_mode} and not rgb_array")
        self.name, self.task, self._env, self._size = "gym", name, env, size
        self.action = action_spec(env.action_space, name)
        self.fps = max(1, round(env.metadata.get("render_fps") or FPS))
        self.max_steps = (env.spec.max_episode_steps if env.spec else None) or MAX_STEPS
        self._keys, self._named = {**KEYS, **keys}, keys
        pictures = self._observed("camera")
        if isinstance(pictures, spaces.Dict):
            self.cameras = tuple(pictures.spaces)
        elif pictures is not None:
            self.cameras = (self._keys["camera"],)
        self._observes = pictures is not None
        self.proprio = int(np.prod(found.shape or ())) if (found := self._observed("proprio")) is not None else 0

    def _observed(self, part: str) -> spaces.Space | None:
        """What the environment observes under a key. Raises LaminaError if that was named and is not there."""
        found = self._env.observation_space
        inner = found.spaces if isinstance(found, spaces.Dict) else {}
        if part in self._named and self._named[part] not in inner:
            raise LaminaError(f"{self.task}: observes no '{self._named[part]}', but {', '.join(inner) or found}")
        return inner.get(self._keys[part])

    def reset(self, seed: int) -> None:
        self._seen, _ = self._env.reset(seed=seed)
        self.success = None

    def step(self, action: Action) -> tuple[float, bool]:
        self._seen, reward, terminated, truncated, info = self._env.step(self._outward(action))
        key = self._keys["success"]
        if key in info:
            self.success = bool(info[key]) or bool(self.success)
        elif "success" in self._named:
            raise LaminaError(f"gym/{self.task}: its info has no '{key}', but {', '.join(info) or 'nothing'}")
        self.truncated = bool(truncated and not terminated)
        return float(reward), bool(terminated or truncated)

    def expert(self, rng: np.random.Generator) -> Action:
        raise LaminaError(f"gym/{self.task} has no scripted expert: play it with an agent or at random")

    def random(self, rng: np.random.Generator) -> Action:
        space = self._env.action_space
        space.seed(int(rng.integers(2**31)))
        chosen = np.asarray(space.sample()).reshape(-1)
        if isinstance(space, spaces.Box):
            return chosen.astype(np.float32)
        return chosen.astype(np.int64) - np.asarray(space.start).reshape(-1)  # type: ignore[attr-defined]

    def close(self) -> None:
        self._env.close()

    def _outward(self, action: Action) -> Any:
        """``action`` as the environment takes it. Raises LaminaError where it is outside the space."""
        space = self._env.action_space
        if isinstance(space, spaces.Discrete):
            outward: Any = space.start + space.dtype.type(action[0])
        elif isinstance(space, spaces.MultiDiscrete):
            outward = (space.start + action.reshape(space.shape)).astype(space.dtype)
        else:
            outward = action.reshape(space.shape).astype(space.dtype)
        if not space.contains(outward):
            raise LaminaError(
                f"gym/{self.task}: action {action.tolist()} is outside its space, {space}; clip it in the agent"
            )
        return outward

    def observe(self) -> Observation:
        shown = self._seen[self._keys["camera"]] if self._observes else self._env.render()
        pictures = shown if isinstance(shown, dict) else {self.cameras[0]: shown}
        proprio = np.asarray(self._seen[self._keys["proprio"]], np.float32).reshape(-1) if self.proprio else None
        return Observation({camera: self._picture(pictures[camera]) for camera in self.cameras}, proprio)

    def _picture(self, drawn: Any) -> UInt8[np.ndarray, "h w 3"]:
        picture = np.asarray(drawn)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise LaminaError(f"gym/{self.task}: draws {picture.dtype} of {picture.shape}, not one colour picture")
        return resize(picture, self._size)


def action_spec(space: spaces.Space, name: str) -> ActionSpec:
    """What an action of ``space`` holds. Raises LaminaError for a space that is not Discrete, MultiDiscrete or a Box of floats."""
    if isinstance(space, spaces.Discrete) and space.n > 1:
        return ActionSpec((int(space.n),), names=tuple(map(str, range(space.n))))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.size and space.nvec.min() > 1:
        return ActionSpec(tuple(space.nvec.reshape(-1).tolist()))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and np.prod(space.shape):
        return ActionSpec(continuous=int(np.prod(space.shape)))
    raise LaminaError(
        f"{name}: its actions ({space}) cannot be used; they must be Discrete, MultiDiscrete (of two choices or more) or a Box of floats"
    )


def _value(text: str) -> Any:
    """An argument of an environment: a number, True, None, ... as Python writes it, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def make(name: str, variant: str, size: ImageSize | None) -> GymWorld:
    """``gym/ID`` or ``gym/ID?KEY=VALUE&...``, see above.

    Raises LaminaError for an unknown id or key, a missing simulator, and an environment that cannot draw itself.
    """
    variant, _, query = variant.partition("?")
    given = dict(parse_qsl(query))
    keys = {part: given.pop(part) for part in KEYS if part in given}
    options = {name: _value(text) for name, text in given.items()}
    if not variant:
        raise LaminaError(f"world '{name}' needs the id of an environment: {name}/CartPole-v1, for example")
    try:
        env = gymnasium.make(variant, render_mode="rgb_array", disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:  # TypeError: it takes no render_mode
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise LaminaError(f"world '{name}/{variant}' cannot be made: {reason}") from error
    try:
        return GymWorld(env, variant, size, keys)
    except LaminaError:
        env.close()
        raise
