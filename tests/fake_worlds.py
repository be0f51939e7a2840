"""Small faulty environments for test_rollout.py. They are in a separate file that worker processes import quickly."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np

import lamina.envs
from lamina.envs.base import Action, ActionFunction, Observation, World
from lamina.types import ActionSpec, ImageSize


class Fake(World):
    """An episode of 4 to 9 steps. A frame tells the seed and the step; the right action is their sum modulo 3 and earns 1.

    ``special`` is the seed of the episode in which something happens.
    """

    name = "fake"
    task = "add"
    fps = 10
    cameras = ("fake",)
    action = ActionSpec(discrete=(3,), names=("zero", "one", "two"))
    max_steps = 20
    reference = (8.0, 2.0)

    def __init__(self, size: ImageSize, special: int = -1):
        self.size, self.special = size, special

    def reset(self, seed: int) -> None:
        self.seed, self.steps = seed, 0

    def step(self, action: Action) -> tuple[float, bool]:
        reward = float(action[0] == (self.seed % 256 + self.steps) % 3)
        self.steps += 1
        if self.seed == self.special and self.steps == 3:
            self.happen()
        return reward, self.over()

    def over(self) -> bool:
        return self.steps == 4 + self.seed % 6

    def happen(self) -> None:
        pass

    def observe(self) -> Observation:
        frame = np.zeros((*self.size, 3), dtype=np.uint8)
        frame[..., 0], frame[..., 1] = self.seed % 256, self.steps % 256
        return Observation({"fake": frame})

    def expert(self, rng: np.random.Generator) -> Action:
        return np.array([(self.seed % 256 + self.steps) % 3])

    def random(self, rng: np.random.Generator) -> Action:
        return rng.integers(3, size=1)


class Seeing(Fake):
    """Shows a second camera and says where its hand is: (seed, step). Its goal is reached in short episodes."""

    cameras = ("fake", "left")
    proprio = 2
    tier = "easy"

    def observe(self) -> Observation:
        left = np.zeros((*self.size, 3), dtype=np.uint8)
        left[..., 2] = 255
        return Observation(super().observe().frames | {"left": left}, np.array([self.seed, self.steps], np.float32))

    def over(self) -> bool:
        self.success = super().over() and self.steps < 6
        return super().over()


class Hard(Seeing):
    tier = "hard"

    def over(self) -> bool:
        over = super().over()
        self.success = False
        return over


class Forgetful(Fake):
    """Its rewards are other ones when it is opened again: larger pictures earn nothing."""

    def step(self, action: Action) -> tuple[float, bool]:
        _, over = super().step(action)
        return (1.0 if self.size[0] < 100 else 0.0), over


class Raises(Fake):
    def happen(self) -> None:
        raise RuntimeError("the simulator\nis in pieces")


class Dies(Fake):
    def happen(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(Fake):
    def happen(self) -> None:
        time.sleep(100)


class Immeasurable(Fake):
    def step(self, action: Action) -> tuple[float, bool]:
        _, over = super().step(action)
        return float("nan") if self.seed == self.special else 1.0, over


class Endless(Fake):
    def over(self) -> bool:
        return False


class Slow(Fake):
    def step(self, action: Action) -> tuple[float, bool]:
        time.sleep(0.02)
        return super().step(action)


class Hurried(Fake):
    fps = 30


class Large(Fake):
    def observe(self) -> Observation:
        return Observation({"fake": np.zeros((9, 9, 3), dtype=np.uint8)})


class Broken(Fake):
    def __init__(self, size: ImageSize, special: int = -1):
        raise RuntimeError("no engine")


class Engine(Endless):
    """It has a process of its own, whose number is in ``folder``/engine; closing it ends that one and says so there."""

    max_steps = 10**9

    def __init__(self, size: ImageSize, folder: str):
        super().__init__(size)
        self.folder = Path(folder)
        self.engine = subprocess.Popen(["sleep", "1000"])
        partial = self.folder / "partial"
        partial.write_text(str(self.engine.pid))
        partial.replace(self.folder / "engine")

    def close(self) -> None:
        self.engine.kill()
        self.engine.wait()
        (self.folder / "closed").touch()


def returns(world: World, policy: ActionFunction, episodes: int, seed: int = 0) -> np.ndarray:
    """The return of each episode, by the plain loop."""
    return np.array([sum(s.reward for s in lamina.envs.play(world, policy, seed, n)) for n in range(episodes)])


def make(world: str, size: ImageSize) -> World:
    """``CLASS``, ``CLASS:SPECIAL`` or what ``lamina.envs.registry.make`` knows."""
    name, _, special = world.partition(":")
    if name == "Engine":
        return Engine(size, special)
    if name in globals():
        return globals()[name](size, int(special or -1))
    return lamina.envs.registry.make(world, size)
