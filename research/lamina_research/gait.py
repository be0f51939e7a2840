"""The search for the cheetah's gait, the linear expert of :mod:`lamina.envs.cheetah`.

    python -m lamina_research.gait --minutes 10

Augmented random search (Mania et al. 2018, V2-t) over the matrix G of a = clip(G [s, 1], -1, 1), where s is the suite's observation. An
expert that is a function of the state can be cloned. A planner's torques cannot: the state explains 1% of their variance, noise the rest.
"""

from __future__ import annotations

import time

import numpy as np
from jaxtyping import Float

from lamina.envs.cheetah import REPEAT, Cheetah

import mujoco  # isort: skip
from dm_control.suite import cheetah  # isort: skip
from mujoco import rollout  # isort: skip

STARTS, DIRECTIONS, KEPT = 32, 24, 12
NOISE, STEP = 0.05, 0.03
REPORT = 20  # iterations


class Runs:
    """Simulates many gaits at once, from ``STARTS`` states of the suite in which no collected episode starts."""

    def __init__(self) -> None:
        world = Cheetah((16, 16))
        self._model, self._scratch = world._model, mujoco.MjData(world._model)
        self._speed = self._model.sensor("torso_subtreelinvel").adr[0]
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        self._starts = np.empty((STARTS, mujoco.mj_stateSize(self._model, kind)))
        for number, state in enumerate(self._starts):
            world.reset(1_000_000 + number)
            mujoco.mj_getState(self._model, world._data, state, kind)

    def __call__(
        self, gaits: Float[np.ndarray, "n a s"], starts: list[int]
    ) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "m s"]]:
        """The return of each gait from its start, and all states on the way (each with a 1 appended)."""
        state, total, seen = self._starts[starts], np.zeros(len(gaits)), []
        positions, velocities = self._model.nq, self._model.nv
        for _ in range(Cheetah.max_steps):
            # The state begins with the time; the observation does not contain the horizontal position.
            observed = np.c_[state[:, 2 : 1 + positions + velocities], np.ones(len(state))]
            seen.append(observed)
            torques = np.clip(np.einsum("nas,ns->na", gaits, observed), -1, 1)
            states, sensors = rollout.rollout(
                self._model, self._scratch, state, np.repeat(torques[:, None], REPEAT, axis=1)
            )
            total += np.clip(sensors[..., self._speed] / cheetah._RUN_SPEED, 0, 1).sum(1)
            state = states[:, -1]
        return total, np.concatenate(seen)


def search(minutes: float, seed: int = 0) -> Float[np.ndarray, "a s"]:
    """The best gait that is found within ``minutes``."""
    runs, rng, deadline = Runs(), np.random.default_rng(seed), time.monotonic() + 60 * minutes
    actions, width = Cheetah.action.dim, Cheetah.proprio
    gait, best = np.zeros((actions, width)), (-1.0, np.zeros((actions, width + 1)))
    number, mean, spread = 0, np.zeros(width), np.zeros(width)

    def in_units(gaits: Float[np.ndarray, "n a s"]) -> Float[np.ndarray, "n a t"]:
        """Gaits for the standardised state, converted to gaits for the state."""
        scaled = gaits / (np.sqrt(spread / number) + 1e-2 if number else np.ones(width))
        return np.concatenate([scaled, -(scaled @ mean)[..., None]], axis=-1)

    for iteration in range(1, 1_000_000):
        tried = rng.normal(size=(DIRECTIONS, actions, width))
        starts = rng.integers(STARTS, size=DIRECTIONS).tolist()
        returns, seen = runs(in_units(np.concatenate([gait + NOISE * tried, gait - NOISE * tried])), starts * 2)
        ahead, back = returns[:DIRECTIONS], returns[DIRECTIONS:]
        top = np.argsort(-np.maximum(ahead, back))[:KEPT]
        scale = KEPT * (np.concatenate([ahead[top], back[top]]).std() + 1e-6)
        gait = gait + STEP / scale * np.tensordot(ahead[top] - back[top], tried[top], 1)
        # Mean and spread of all states so far (Chan et al.'s update).
        states, more = seen[:, :-1], len(seen)
        moved = states.mean(0) - mean
        spread = spread + ((states - states.mean(0)) ** 2).sum(0) + moved**2 * number * more / (number + more)
        mean, number = mean + moved * more / (number + more), number + more
        over = time.monotonic() > deadline
        if iteration % REPORT == 0 or over:
            candidate = in_units(gait[None])[0]
            found = float(runs(np.repeat(candidate[None], STARTS, axis=0), list(range(STARTS)))[0].mean())
            print(f"{iteration} iterations: {found:.0f}", flush=True)
            best = max(best, (found, candidate), key=lambda pair: pair[0])
        if over:
            break
    return best[1]


if __name__ == "__main__":
    import tyro

    print(np.array2string(tyro.cli(search), precision=3, suppress_small=True, separator=", ", max_line_width=140))
