"""cheetah-run of the DeepMind Control Suite (Tassa et al. 2018), with an expert that needs no training.

The expert is a linear gait: torques that are a function of the present state, so that a policy of the state can learn them (found by
``lamina_research/gait.py``). An action, six torques in [-1, 1], is held for four steps of 10 ms. The reward is that of the suite,
added over those steps: an episode's return is between 0 and 1000.

``cheetah/COLOUR,CAMERA`` draws it under an exogenous state that drifts (``distraction.py``; 0.5,0.05 is the paper's); its camera
``paired`` shows the same states under another one. ``cheetah/COLOUR,CAMERA,P_SWITCH`` draws each state anew with that probability a step.
"""

from __future__ import annotations

import numpy as np

from lamina.envs.base import Action, Observation, World
from lamina.envs.distraction import Exogenous, Strength
from lamina.envs.rendering import Camera  # first: it decides how MuJoCo will draw
from lamina.errors import LaminaError
from lamina.types import ActionSpec, ImageSize

from dm_control.suite import cheetah  # isort: skip

REPEAT = 4  # steps an action is held
#: Torques = clip(GAIT @ [state, 1], -1, 1).
GAIT = np.array(
[[-0.1411, -0.7965, -1.0708, -0.7454, -0.4024,  0.3651,  0.4954, -1.436 ,  0.4004,  1.0804,  0.0277,  0.1135, -0.063 ,  0.0168,
   0.1311, -0.0608,  0.0868, -1.3673],
 [-8.5446, -1.0807, -0.5111,  0.4222, -0.1751,  1.2451,  0.1543, -0.0324, -0.0032, -0.4772,  0.0009,  0.0364, -0.0296, -0.0026,
  -0.0062, -0.0154,  0.0179, -0.1313],
 [ 3.7462,  0.6715, -0.7923, -1.037 ,  0.884 , -0.7988,  0.6734,  0.3697, -0.1991,  0.1606,  0.046 ,  0.0667,  0.0497, -0.0458,
  -0.0035, -0.0552,  0.0711,  0.7753],
 [ 0.0818, -0.3718, -0.7254, -0.0408,  0.4725, -0.7934,  0.454 , -0.3995,  0.0823,  0.51  , -0.487 ,  0.0013, -0.0485,  0.0132,
  -0.1415, -0.0351,  0.0103, -0.3286],
 [-4.94  , -0.1318,  0.8075,  0.6044,  0.371 , -2.832 ,  0.631 , -0.4909,  0.0153, -0.8106,  0.1242, -0.074 ,  0.025 , -0.0168,
  -0.1038,  0.0166, -0.0646, -0.621 ],
 [ 0.0129,  0.2724, -0.4669, -0.2112, -0.7564,  2.2262,  0.0589, -0.744 ,  0.2202,  0.6539,  0.1112, -0.019 ,  0.0612,  0.0096,
  -0.052 , -0.0025, -0.0376, -0.5147]]
)  # fmt: skip
TORQUES = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")


class Cheetah(World):
    """The running half of a cheetah, seen from the side. Proprioception is the suite's observation."""

    name = "cheetah"
    task = "run"
    cameras: tuple[str, ...] = ("side",)
    action = ActionSpec(continuous=len(TORQUES), names=TORQUES)
    max_steps = 250
    proprio = 17
    reference = (480.9, 13.2)

    def __init__(self, size: ImageSize = (64, 64), strength: Strength | None = None):
        self._size, self._strength = size, strength
        if strength:
            self.cameras = ("side", "paired")
        self._env = cheetah.run(time_limit=10)
        self.fps = round(1 / (REPEAT * self._env.control_timestep()))
        self._model, self._data = self._env.physics.model.ptr, self._env.physics.data.ptr
        self._camera = Camera(self._model, "side", size)

    def reset(self, seed: int) -> None:
        self._env.task._random = np.random.RandomState(seed)
        if self._strength:
            streams = np.random.SeedSequence(seed).spawn(len(self.cameras))
            self._exogenous = [
                Exogenous(self._model, self._camera, self._strength, self._size, np.random.default_rng(stream))
                for stream in streams
            ]
        self._remember(self._env.reset().observation)

    def step(self, action: Action) -> tuple[float, bool]:
        reward = 0.0
        for _ in range(REPEAT):
            moment = self._env.step(action)
            reward += moment.reward
        if self._strength:
            for exogenous in self._exogenous:
                exogenous.drift()
        self._remember(moment.observation)
        self.truncated = moment.last() and moment.discount == 1  # 0 where the task itself ends
        return reward, moment.last()

    def observe(self) -> Observation:
        if self._strength:
            pictures = [exogenous.picture(self._data) for exogenous in self._exogenous]
        else:
            pictures = [self._camera.picture(self._data)]
        return Observation(dict(zip(self.cameras, pictures, strict=True)), self._state.astype(np.float32))

    def expert(self, rng: np.random.Generator) -> Action:
        return np.clip(GAIT @ np.append(self._state, 1), -1, 1).astype(np.float32)

    def random(self, rng: np.random.Generator) -> Action:
        return rng.uniform(-1, 1, self.action.dim).astype(np.float32)

    def close(self) -> None:
        self._camera.close()
        self._env.close()

    def _remember(self, observation: dict[str, np.ndarray]) -> None:
        self._state = np.concatenate([observation["position"], observation["velocity"]])


def make(name: str, variant: str, size: ImageSize | None) -> Cheetah:
    """``cheetah``, or ``cheetah/COLOUR,CAMERA[,P_SWITCH]``. Raises LaminaError for a variant that isn't numbers between 0 and 1."""
    strength = None
    if variant:
        try:
            colour, camera, *p_switch = map(float, variant.split(","))
            (switch,) = p_switch or [0.0]
        except ValueError:
            raise LaminaError(
                f"'{name}/{variant}': the variant of '{name}' is COLOUR,CAMERA or COLOUR,CAMERA,P_SWITCH, as in '{name}/0.5,0.05'"
            ) from None
        strength = Strength(colour, camera, switch)
    return Cheetah(size or (64, 64), strength)
