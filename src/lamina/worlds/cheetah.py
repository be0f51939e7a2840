"""cheetah-run of the DeepMind Control Suite (Tassa et al. 2018), with an expert that needs no training.

The expert is model predictive path integral control (MPPI, Williams et al. 2017, Algorithm 2): it tries noisy versions of its
plan in the simulator itself and moves the plan towards those that ran fastest. An action, six torques in [-1, 1], is held for
four steps of 10 ms. The reward is that of the suite, added over those steps: an episode's return is between 0 and 1000.
The expert's is 519 and that of random actions 12 (mean of 5 episodes of seed 0).

``cheetah/COLOUR,CAMERA`` draws it under an exogenous state that drifts (``worlds/distraction.py``; 0.5,0.05 is the paper's); its camera
``paired`` shows the same states under another one.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lamina.errors import LaminaError
from lamina.shapes import ActionSpec
from lamina.worlds.base import Action, Observation, Size, World
from lamina.worlds.distraction import Exogenous, Strength
from lamina.worlds.rendering import Camera  # first: it decides how MuJoCo will draw

import mujoco  # isort: skip
from dm_control.suite import cheetah  # isort: skip
from mujoco import rollout  # isort: skip

REPEAT = 4  # steps an action is held
HORIZON = 15  # actions of a plan
PLANS = 64  # noisy versions of it, in each decision
SPREAD = 0.8  # standard deviation of their noise
TEMPERATURE = 0.15  # in units of reward: how much better a plan must be to weigh e times as much
TORQUES = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")


class Cheetah(World):
    """The running half of a cheetah, seen from the side. Proprioception is the suite's observation."""

    name = "cheetah"
    task = "run"
    cameras: tuple[str, ...] = ("side",)
    action = ActionSpec(continuous=len(TORQUES), names=TORQUES)
    max_steps = 250
    proprio = 17

    def __init__(self, size: Size = (64, 64), strength: Strength | None = None):
        self._size, self._strength = size, strength
        if strength:
            self.cameras = ("side", "paired")
        self._env = cheetah.run(time_limit=10)
        self.fps = round(1 / (REPEAT * self._env.control_timestep()))
        self._model, self._data = self._env.physics.model.ptr, self._env.physics.data.ptr
        self._scratch = mujoco.MjData(self._model)
        self._speed = self._model.sensor("torso_subtreelinvel").adr[0]
        self._camera = Camera(self._model, "side", size)

    def reset(self, seed: int) -> Observation:
        self._env.task._random = np.random.RandomState(seed)
        self._plan = np.zeros((HORIZON, self.action.dim))
        if self._strength:
            streams = np.random.SeedSequence(seed).spawn(len(self.cameras))
            self._exogenous = [
                Exogenous(self._model, self._camera, self._strength, self._size, np.random.default_rng(stream))
                for stream in streams
            ]
        return self._observe(self._env.reset().observation)

    def step(self, action: Action) -> tuple[Observation, float, bool]:
        reward = 0.0
        for _ in range(REPEAT):
            moment = self._env.step(action)
            reward += moment.reward
        self._plan = np.roll(self._plan, -1, axis=0)
        self._plan[-1] = 0
        if self._strength:
            for exogenous in self._exogenous:
                exogenous.drift()
        return self._observe(moment.observation), reward, moment.last()

    def expert(self, rng: np.random.Generator) -> Action:
        noise = rng.normal(0, SPREAD, (PLANS, *self._plan.shape))
        noise[0] = 0
        plans = np.clip(self._plan + noise, -1, 1)
        returns = self._returns(plans)
        weights = np.exp((returns - returns.max()) / TEMPERATURE)
        self._plan = np.tensordot(weights / weights.sum(), plans, 1)
        return self._plan[0].astype(np.float32)

    def random(self, rng: np.random.Generator) -> Action:
        return rng.uniform(-1, 1, self.action.dim).astype(np.float32)

    def close(self) -> None:
        self._camera.close()
        self._env.close()

    def _returns(self, plans: Float[np.ndarray, "n t a"]) -> Float[np.ndarray, "n"]:
        """The rewards that each plan would bring, added up."""
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        state = np.empty(mujoco.mj_stateSize(self._model, kind))
        mujoco.mj_getState(self._model, self._data, state, kind)
        states = np.tile(state, (len(plans), 1))
        _, sensors = rollout.rollout(self._model, self._scratch, states, np.repeat(plans, REPEAT, axis=1))
        return np.clip(sensors[..., self._speed] / cheetah._RUN_SPEED, 0, 1).sum(1)

    def _observe(self, observation: dict[str, np.ndarray]) -> Observation:
        proprio = np.concatenate([observation["position"], observation["velocity"]]).astype(np.float32)
        if self._strength:
            pictures = [exogenous.picture(self._data) for exogenous in self._exogenous]
        else:
            pictures = [self._camera.picture(self._data)]
        return Observation(dict(zip(self.cameras, pictures, strict=True)), proprio)


def make(name: str, variant: str, size: Size | None) -> Cheetah:
    """``cheetah``, or ``cheetah/COLOUR,CAMERA``. Raises LaminaError for a variant that isn't two numbers between 0 and 1."""
    strength = None
    if variant:
        try:
            colour, camera = map(float, variant.split(","))
        except ValueError:
            raise LaminaError(
                f"'{name}/{variant}': the variant of '{name}' is COLOUR,CAMERA, two numbers, as in '{name}/0.5,0.05'"
            ) from None
        strength = Strength(colour, camera)
    return Cheetah(size or (64, 64), strength)
