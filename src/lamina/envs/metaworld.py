"""MetaWorld (Yu et al. 2019, version 3): fifty tasks of a robot arm, with the scripted experts that it brings.

An action moves the hand by x, y, z and the gripper, each in [-1, 1]. The reward is 1 on success, which ends the episode, so a
return is a success rate: 0.98 for the experts, 0 for random actions (mean of all tasks, 3 and 1 episodes of each, seed 0).
Proprioception is the position of the hand and how far the gripper is open.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from difflib import get_close_matches

import numpy as np

from lamina.envs.base import Action, Observation, World
from lamina.envs.registry import METAWORLD_TIERS
from lamina.envs.rendering import Camera, Object  # first: it decides how MuJoCo will draw
from lamina.envs.scenery import Surroundings, distractors
from lamina.errors import LaminaError
from lamina.types import ActionSpec, ImageSize

import mujoco  # isort: skip
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # isort: skip
from metaworld.policies import ENV_POLICY_MAP  # isort: skip

TASKS = tuple(sorted(ENV_POLICY_MAP))
NAMES = ("x", "y", "z", "gripper")
CHANGES = ("surroundings", "objects")  # what can look otherwise than in training
SURFACES = ("T_table", "T_floor", "T_wallmetal")  # textures that all tasks have
TABLE = np.array([-0.35, 0.45]), np.array([0.35, 0.85])  # the part of it that corner2 sees, x and y


class MetaWorld(World):
    """One task. Where objects and goal are is drawn anew in each episode."""

    name = "metaworld"
    cameras = ("corner2", "gripperPOV")
    action = ActionSpec(continuous=len(NAMES), names=NAMES)
    max_steps = 300
    proprio = 4

    def __init__(self, task: str, size: ImageSize = (64, 64), changes: Collection[str] = ()):
        self._changes = changes
        self.tier = next(tier for tier, tasks in METAWORLD_TIERS.items() if task.removesuffix("-v3") in tasks)
        self.task = task.removesuffix("-v3").replace("-", " ")
        self._env = env = ALL_V3_ENVIRONMENTS[task]()
        env._partially_observable = False  # the experts need to know the goal
        env.__dict__.pop("sawyer_observation_space", None)  # was cached without it
        env._freeze_rand_vec = False
        env._set_task_called = True
        env.seeded_rand_vec = True
        self.fps = round(1 / env.dt)
        self._policy = ENV_POLICY_MAP[task]()  # type: ignore[abstract]
        # Its cameras are far off; this one is moved close, and hangs upside down.
        env.model.cam_pos[env.model.cam("corner2").id] = (0.75, 0.075, 0.7)
        self._camera = Camera(env.model, "corner2", size)
        self._surroundings = Surroundings(env.model, self._camera, SURFACES)
        self._objects: list[Object] = []

    def reset(self, seed: int) -> None:
        self._env.seed(seed)
        self._env.reset()
        for (
            site
        ) in self._env._target_site_config:  # else the goal is drawn in its place from the second picture on only
            self._env._set_pos_site(*site)
        mujoco.mj_forward(self._env.model, self._env.data)
        # MetaWorld reads objects that it has just moved where they were before; this is the state that the first picture shows.
        self._env._prev_obs = self._env._get_curr_obs_combined_no_goal()
        self._state = self._env._get_obs()
        rng = np.random.default_rng([seed, 1])  # not the simulator's: the same episode with and without changes
        if "surroundings" in self._changes:
            self._surroundings.draw(rng)
        if "objects" in self._changes:
            places = self._state[
                [[4, 5], [11, 12], [-3, -2]]
            ]  # of the objects, which are at 0 where there are none, and the goal
            self._objects = distractors(rng, *TABLE, places, ground=0.0)
        self.success = False

    def step(self, action: Action) -> tuple[float, bool]:
        self._state, _, _, longest, info = self._env.step(action)
        self.success = bool(info["success"])
        self.truncated = longest and not self.success
        return float(self.success), self.success or longest

    def expert(self, rng: np.random.Generator) -> Action:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Constant")  # the experts ask for more than 1; it is clipped here
            wanted = self._policy.get_action(self._state)
        return np.clip(wanted, -1, 1).astype(np.float32)

    def random(self, rng: np.random.Generator) -> Action:
        return rng.uniform(-1, 1, self.action.dim).astype(np.float32)

    def close(self) -> None:
        self._camera.close()

    def observe(self) -> Observation:
        data = self._env.data
        frames = {
            "corner2": self._camera.picture(data, objects=self._objects)[::-1, ::-1].copy(),
            "gripperPOV": self._camera.picture(data, "gripperPOV", self._objects),
        }
        return Observation(frames, self._state[: self.proprio].astype(np.float32))


def make(name: str, variant: str, size: ImageSize | None) -> MetaWorld:
    """``metaworld/TASK``, for example ``metaworld/drawer-open-v3``, or with what is to be changed: ``metaworld/TASK,surroundings,objects``.

    Raises LaminaError for an unknown task or change.
    """
    task, *changes = variant.split(",")
    if task not in TASKS:
        near = get_close_matches(task, TASKS, n=3) or TASKS[:3]
        raise LaminaError(f"there is no world '{name}/{variant}': {name}/TASK, TASK for example {', '.join(near)}")
    if unknown := [change for change in changes if change not in CHANGES]:
        raise LaminaError(f"world '{name}/{variant}': '{unknown[0]}' cannot be changed, only {' and '.join(CHANGES)}")
    return MetaWorld(task, size or (64, 64), changes)
