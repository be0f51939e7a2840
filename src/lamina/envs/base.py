"""Environment interface: reset, step, look, expert action. Looking is separate, because pictures cost far more than steps."""

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


@dataclass(frozen=True, kw_only=True)
class Transition:
    """An action and what followed it: the reward, and whether the episode is over (``truncated``: only by a bound on its steps, this
    library's or the simulator's own)."""

    action: Action
    reward: float
    done: bool
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class Step(Transition):
    """A transition, and what was observed before it."""

    observation: Observation


class World(ABC):
    """A simulator with a scripted expert. Use it as a context manager: some worlds own a process.

    An episode lasts until a step says that it is over, and ``max_steps`` at most (:func:`play` counts them). The names of the action are
    those of the classes where the action is one discrete choice, and those of the dimensions where it is continuous.
    """

    name: str
    task: str  # what the expert does, one plain phrase
    fps: int  # observations a second of simulated time
    cameras: tuple[str, ...]
    action: ActionSpec
    max_steps: int
    proprio: int = 0  # size of the proprioception, 0 = none
    reference: tuple[float, float] | None = None  # mean return of expert and random policy, 50 episodes of seed 0
    tier: str = ""  # how difficult its task is said to be, where somebody says so
    success: bool | None = None  # whether this episode has reached its goal; None = the world does not judge that
    truncated: bool = False  # whether the last step is over only by the simulator's own bound on the steps

    @abstractmethod
    def reset(self, seed: int) -> None:
        """Starts an episode that depends on nothing but ``seed``, a whole number of [0, 2**31)."""

    @abstractmethod
    def step(self, action: Action) -> tuple[float, bool]:
        """The reward, and whether the episode is over."""

    @abstractmethod
    def observe(self) -> Observation:
        """What is observed in the present state of an episode that is not over. Changes nothing: it may be called often or never."""

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


def play(
    world: World, policy: ActionFunction, seed: int, episode: int = 0, max_steps: int | None = None
) -> Iterator[Transition]:
    """One episode, of ``max_steps`` at most (default: the world's own), in which only ``policy`` may look at the world.

    Start and random numbers are a function of (seed, episode), so episodes can run in any order.
    """
    start, stream = np.random.SeedSequence([seed, episode]).spawn(2)
    rng = np.random.default_rng(stream)
    world.reset(int(start.generate_state(1)[0] >> 1))
    bound = world.max_steps if max_steps is None else max_steps
    for step in range(1, bound + 1):
        action = policy(rng)
        reward, over = world.step(action)
        last = step == bound
        yield Transition(action=action, reward=reward, done=over or last, truncated=world.truncated if over else last)
        if over:
            return


def rollout(
    world: World, policy: ActionFunction, seed: int, episode: int = 0, max_steps: int | None = None
) -> Iterator[Step]:
    """As :func:`play`, with what is observed before each action."""
    seen: list[Observation] = []

    def looking(rng: np.random.Generator) -> Action:
        seen.append(world.observe())
        return policy(rng)

    for transition in play(world, looking, seed, episode, max_steps):
        yield Step(**vars(transition), observation=seen.pop())


def resize(frame: UInt8[np.ndarray, "h w 3"], size: ImageSize | None) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A simulator's picture at ``size`` (:func:`lamina.images.resize_frames`), always a copy: simulators reuse their buffers."""
    return np.array(resize_frames(frame[None], size)[0])
