"""A Gymnasium environment whose process is killed in its third episode. In a separate file, which worker processes import quickly."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import gymnasium
import numpy as np


class Mortal(gymnasium.Env):
    """Three steps that show what the episode began with. Each process that dies of it leaves a file in ``folder``; ``lives`` of them do."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own way)
    action_space, observation_space = gymnasium.spaces.Discrete(5), gymnasium.spaces.Discrete(2)

    def __init__(self, folder: str, victim: int, lives: int, render_mode: str | None = None):
        self.folder, self.victim, self.lives, self.render_mode = Path(folder), victim, lives, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        deaths = len(list(self.folder.iterdir()))
        if seed == self.victim and deaths < self.lives and multiprocessing.parent_process() is not None:
            (self.folder / str(deaths)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0, {}

    def step(self, action):
        self.steps += 1
        return 0, float(self.seed % 100 + action), self.steps == 3, False, {}

    def render(self):
        return np.full((8, 8, 3), self.seed % 256, np.uint8)


gymnasium.register("Mortal-v0", Mortal, disable_env_checker=True)
