"""Environment interface: reset, step, expert action, rendered frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from lamina.images import resize_frames
from lamina.types import ActionSpec, ImageSize

Action = Shaped[np.ndarray, "a"]  # int64 when every dimension is discrete, else float32
ActionFunction = Callable[[np.random.Generator], Action]


@dataclass(frozen=True)
class Observation:
    """What is observed in one state. The camera ``paired``, where a world has it, shows the same state under another exogenous state."""

    frames: dict[str, UInt8[np.ndarray, "h w 3"]]
    proprio: Float[np.ndarray, "d"] | None = None


@dataclass(frozen=True)
class Step:
    """An observation, the action taken on it, and the reward and end that followed."""

    observation: Observation
    action: Action
    reward: float
    done: bool


class World(ABC):
    """A simulator with a scripted expert. Use it as a context manager: some worlds own a process.

    An episode is done after ``max_steps`` at the latest. The names of the action are those of the classes where the
    action is one discrete choice, and those of the dimensions where it is continuous.
    """

    name: str
    task: str  # what the expert does, one plain phrase
    fps: int  # observations a second of simulated time
    cameras: tuple[str, ...]
    action: ActionSpec
    max_steps: int
    proprio: int = 0  # size of the proprioception, 0 = none
    reference: tuple[float, float] | None = None  # mean return of expert and random policy, 50 episodes of seed 0

    @abstractmethod
    def reset(self, seed: int) -> Observation:
        """Starts an episode that depends on nothing but ``seed``, a whole number of [0, 2**31)."""

    @abstractmethod
    def step(self, action: Action) -> tuple[Observation, float, bool]:
        """The next observation, the reward, and whether the episode is over (its last observation is not recorded)."""

    @abstractmethod
    def expert(self, rng: np.random.Generator) -> Action:
        """What the scripted expert does in the present state. It may look at the simulator's state, not only at pictures."""

    @abstractmethod
    def random(self, rng: np.random.Generator) -> Action:
        """An action drawn uniformly."""

    def close(self) -> None:  # noqa: B027 (most worlds hold nothing)
        """Frees what the simulator holds. Safe to call twice."""

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rollout(world: World, policy: ActionFunction, seed: int, episode: int = 0) -> Iterator[Step]:
    """One episode. Start and random numbers are a function of (seed, episode), so episodes can run in any order."""
    start, stream = np.random.SeedSequence([seed, episode]).spawn(2)
    rng = np.random.default_rng(stream)
    observation, done = world.reset(int(start.generate_state(1)[0] >> 1)), False
    while not done:
        action = policy(rng)
        following, reward, done = world.step(action)
        yield Step(observation, action, reward, done)
        observation = following


def resize(frame: UInt8[np.ndarray, "h w 3"], size: ImageSize | None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A simulator's picture at ``size`` (:func:`lamina.images.resize_frames`), always a copy: simulators reuse their buffers."""
    return np.array(resize_frames(frame[None], size)[0])
