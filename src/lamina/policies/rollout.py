"""Closed-loop evaluation: returns of a policy in several worlds, and their share of the experts' returns.

Each row of the policy's batch is one world in a process of its own (``workers.py``). All rows that are in an episode decide together. A
row that ends its episode begins another: of the same world while any are left, else of the world with most episodes left for each row on
it. The same arguments give the same returns.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8
from tqdm import tqdm

from lamina.envs.base import Action
from lamina.envs.registry import SUITES, make
from lamina.errors import LaminaError
from lamina.files import locked, to_json, write_text
from lamina.policies.base import Observations, Policy
from lamina.policies.workers import Make, Workers, WorldInfo
from lamina.types import ActionSpec, ImageSize

SCRIPTED = ("expert", "random")
MAX_LOST = 0.25  # share of a world's episodes that may be lost to crashes
#: Relative difference that is allowed between the policy's time between decisions and the world's.
TIMING_TOLERANCE = 0.25
CAMERA = "image"  # what the one camera of a rollout's observations is called: the worlds' own names differ


@runtime_checkable
class PlainPolicy(Protocol):
    """Any object with these two methods: a policy of frames alone, without the base class :class:`lamina.policies.base.Policy`.

    Where it has ``spec``, ``image``, ``decision_seconds`` and ``chunk`` (see Policy), they are checked against the worlds.
    """

    def reset(self, rows: Sequence[int]) -> None:
        """These rows of the batch begin an episode."""

    def act_batch(self, frames: UInt8[np.ndarray, "b h w 3"]) -> Shaped[np.ndarray, "b *n a"]:
        """The action of each row, or n actions in turn, as :meth:`lamina.policies.base.Policy.act_batch`."""


Agent = Policy | PlainPolicy | Literal["expert", "random"]


def rollout_worlds(
    agent: Agent,
    worlds: Sequence[str],
    episodes: int = 50,
    parallel: int = 8,
    seed: int = 0,
    max_steps: int | None = None,
    size: ImageSize = (64, 64),
    progress: bool = True,
    make: Make = make,
    workers: Workers | None = None,
) -> dict[str, Any]:
    """``episodes`` of each world, played by a policy, by the worlds' scripted experts or at random: a record for JSON.

    Episode n of a world starts as in ``lamina.envs.base.rollout(world, policy, seed, n)``, so the returns of a policy that treats its
    rows alike do not depend on ``parallel``. A :class:`Policy` gets :class:`Observations` of ``parallel`` frames of ``size`` (height,
    width) from each world's first camera, and the worlds' tasks; a plain one gets the frames alone. A row without an episode gets its last
    frame again (zeros before the first), and its action is ignored. An episode that is not over after the world's ``max_steps``, or
    ``max_steps`` if that is less, is counted as ``truncated``. ``make`` opens a world by name, in the worker. Starting processes costs
    seconds: to share them between calls give ``workers``, which then determine ``parallel``, ``size`` and ``make``.

    The record, per world: ``returns`` and ``lengths`` of the episodes in their order, ``mean`` and ``standard_error``; the
    mean returns of ``expert`` and ``random`` that the world publishes; ``normalized``, the mean in percent of the
    expert's as in FlexLAM (§A.2), and its standard error; ``above_random``, on a scale where random actions are 0 and the
    expert 100; ``lost``, a line for each lost episode; ``truncated``, the number of truncated ones. Over all worlds that publish
    returns: the means of ``normalized`` and ``above_random``. Percent of the expert alone misleads where random actions
    earn less than nothing (Doom's ``basic``, ``my_way_home``) or much (``health_gathering``): read both. ``realtime`` is the
    simulated time of all environments together over the time that it took, the start of the simulators included.

    A simulator that raises, dies or does not answer for two minutes loses its episode and is started again; the others continue.

    Raises LaminaError for numbers out of range, unknown worlds, a policy that does not fit them (actions, size of frames,
    time between decisions), an action outside the space, and when more than a quarter of a world's episodes are lost.
    """
    if isinstance(agent, str) and agent not in SCRIPTED:
        raise LaminaError(f"an agent is an object with reset and act_batch, 'expert' or 'random', not '{agent}'")
    for name, value in (("episodes", episodes), ("steps", max_steps)):
        if value is not None and value < 1:
            raise LaminaError(f"the number of {name} must be at least 1, got {value}")
    if seed < 0:
        raise LaminaError(f"the seed must not be negative, got {seed}")
    if not worlds or len(set(worlds)) < len(worlds):
        raise LaminaError(f"name one or more worlds, each once, got {', '.join(worlds) or 'none'}")
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(parallel, size, make)) if workers is None else workers
        bar = tqdm(total=episodes * len(worlds), unit=" episodes", desc="rollout", disable=not progress)
        evaluation = _Evaluation(agent, tuple(worlds), episodes, seed, max_steps, workers, stack.enter_context(bar))
        try:
            return evaluation.run()
        except BaseException:
            workers.end(evaluation.jobs)  # they are in the middle of an episode
            raise


def rollout(
    run: Path | str,
    worlds: Sequence[str],
    k: int | None = None,
    episodes: int = 50,
    parallel: int = 8,
    seed: int = 0,
    temperature: float = 0.0,
    out: Path | None = None,
    max_steps: int | None = None,
    size: ImageSize | None = None,
    device: str = "auto",
    precision: str = "fp32",
    progress: bool = True,
) -> dict[str, Any]:
    """:func:`rollout_worlds` of the policy in the folder ``run`` (:meth:`Policy.from_run`), or of ``expert`` or ``random``; the record is
    returned, and written to ``out``.

    ``worlds`` may name suites (``doom-suite``), which stand for all their worlds. ``k``: latent tokens of a decision (all by default).
    ``size``: height and width of the frames; default: the model's own, 64x64 for ``expert`` and ``random``. Raises what rollout_worlds
    and Policy.from_run raise.
    """
    if out is not None and out.is_dir():
        raise LaminaError(f"{out}: is a folder; name a file for the record, for example {out / 'rollout.json'}")
    with nullcontext() if out is None else locked(out):  # a disk that refuses does so now, not after hours
        record = _rollout(
            run, worlds, k, episodes, parallel, seed, temperature, max_steps, size, progress, device, precision
        )
        if out is not None:
            write_text(out, to_json(record, indent=2) + "\n")
    return record


def _rollout(
    run: str | Path,
    worlds: Sequence[str],
    k: int | None,
    episodes: int,
    parallel: int,
    seed: int,
    temperature: float,
    max_steps: int | None,
    size: ImageSize | None,
    progress: bool,
    device: str,
    precision: str,
) -> dict[str, Any]:
    names = list(dict.fromkeys(name for given in worlds for name in SUITES.get(given, (given,))))
    agent: Any = str(run)
    if agent not in SCRIPTED:
        agent = Policy.from_run(
            run, k=k, batch=parallel, temperature=temperature, seed=seed, device=device, precision=precision
        )
    size = size or getattr(agent, "image", (3, 64, 64))[1:]
    record = rollout_worlds(agent, names, episodes, parallel, seed, max_steps, size, progress)
    return record | {"agent": str(run), "k": k, "temperature": temperature}


def table(record: dict[str, Any]) -> str:
    """A record as plain text: one line a world, and the means over worlds."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [f"{'world':<26}{'return':>10}{'+-':>8}{'expert':>9}{'random':>9}{'% expert':>10}{'0-100':>8}  lost"]
    for name, w in record["worlds"].items():
        cells = [number(w["mean"], ">10.2f"), number(w["standard_error"], ">8.2f")]
        cells += [number(w[key], form).rjust(wide) for key, form, wide in _COLUMNS]
        lines.append(f"{name:<26}{''.join(cells)}  {len(w['lost']) or ''}".rstrip())
    means = "".join(number(record[key], form).rjust(wide) for key, form, wide in _COLUMNS[2:])
    lines.append(f"{'mean':<62}{means}")
    lines.append(f"0-100: random actions are 0, the expert is 100. {record['realtime']:.1f} times real time.")
    return "\n".join(lines)


_COLUMNS = (("expert", ".1f", 9), ("random", ".1f", 9), ("normalized", ".1f", 10), ("above_random", ".1f", 8))


def summarize(returns: Sequence[float], reference: tuple[float, float] | None) -> dict[str, Any]:
    """Mean and standard error of returns, plain and against the ``reference`` returns of expert and random policy.

    None where a figure does not exist: the error of a single episode, percent of an expert that earns nothing or less,
    anything against an expert that is not better than random, or where there is no reference.
    """
    values = np.asarray(returns, dtype=float)
    mean = float(values.mean())
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    figures = {"mean": mean, "standard_error": error}
    scaled = dict.fromkeys(("expert", "random", "normalized", "normalized_standard_error", "above_random"))
    if reference is None:
        return figures | scaled
    expert, random = reference
    scaled |= {"expert": expert, "random": random}
    if expert > 0:
        scaled["normalized"] = 100 * mean / expert
        scaled["normalized_standard_error"] = None if error is None else 100 * error / expert
    if expert > random:
        scaled["above_random"] = 100 * (mean - random) / (expert - random)
    return figures | scaled


def check_action(action: Shaped[np.ndarray, "a"], spec: ActionSpec, world: str) -> Action:
    """``action`` in the type that worlds take. Raises LaminaError for one that is outside ``spec``: wrong number of dimensions,
    not finite, no whole number where it is discrete, no such class."""
    if action.shape != (spec.dim,):
        raise LaminaError(f"world '{world}' takes actions of {spec.dim} numbers, the agent gave {list(action.shape)}")
    classes = np.array(spec.discrete)
    chosen = action[: len(classes)]
    if (
        not np.isfinite(action).all()
        or (chosen != np.round(chosen)).any()
        or (chosen < 0).any()
        or (chosen >= classes).any()
    ):
        raise LaminaError(
            f"world '{world}': the agent's action {action.tolist()} is outside the space "
            f"(classes {list(spec.discrete)}, then {spec.continuous} finite numbers)"
        )
    return action.astype(np.float32 if spec.continuous else np.int64)


@dataclass
class _Tally:
    """The outcomes of one world's episodes."""

    waiting: deque[int]  # episodes that have not been started
    results: dict[int, tuple[float, int]] = field(default_factory=dict)  # return and length
    lost: dict[int, str] = field(default_factory=dict)
    truncated: int = 0


class _Evaluation:
    """One call of :func:`rollout_worlds`."""

    def __init__(
        self,
        agent: Agent,
        worlds: tuple[str, ...],
        episodes: int,
        seed: int,
        max_steps: int | None,
        workers: Workers,
        bar: tqdm,
    ):
        self.episodes, self.seed, self.max_steps = episodes, seed, max_steps
        self.workers, self.bar = workers, bar
        self.policy = None if isinstance(agent, str) else agent
        self.scripted = agent if isinstance(agent, str) else None
        self.name = agent if isinstance(agent, str) else getattr(agent, "name", type(agent).__name__)
        self.tallies = {world: _Tally(deque(range(episodes))) for world in worlds}
        self.jobs: dict[int, tuple[str, int]] = {}  # row: world and episode
        self.last: dict[int, str] = {}  # row: world of its last episode
        self.fresh: set[int] = set()  # rows whose episode has not had a decision
        self.frames = np.zeros((len(workers), *workers.size, 3), dtype=np.uint8)

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        self.infos = self.workers.inspect(tuple(self.tallies))
        if self.policy is not None:
            for world, info in self.infos.items():
                _check_fit(self.policy, self.workers.size, world, info)
            self.policy.reset(list(range(len(self.workers))))
        awaited = {row for row in range(len(self.workers)) if self._begin(row)}
        while awaited:
            while awaited:
                # A policy's rows are read in order: its random numbers must not depend on which worker answers first.
                for row in self.workers.ready(sorted(awaited)) if self.policy is None else sorted(awaited):
                    if not self._receive(row):
                        awaited.remove(row)
            if self.jobs and self.policy is not None:
                self._decide(self.policy)
                awaited = set(self.jobs)
        return self._record(time.monotonic() - started)

    def _begin(self, row: int) -> bool:
        """Starts the next episode in ``row``; False where there is none."""
        self.jobs.pop(row, None)
        left = {world: len(tally.waiting) for world, tally in self.tallies.items() if tally.waiting}
        if not left:
            return False
        worker, rows = self.workers[row], [world for world, _ in self.jobs.values()]
        # The world of this row's last episode, not the one that its worker has open: that may be of another evaluation.
        world = self.last.get(row, "")
        if world not in left:
            world = self.last[row] = max(left, key=lambda w: left[w] / (1 + rows.count(w)))
        if worker.world != world:
            worker.open(world)
        episode = self.tallies[world].waiting.popleft()
        worker.play(self.scripted, self.seed, episode, self.max_steps)
        self.jobs[row] = (world, episode)
        self.fresh.add(row)
        return True

    def _receive(self, row: int) -> bool:
        """Takes one answer of the row's worker; whether another one follows before its next decision."""
        world, episode = self.jobs[row]
        kind, *answer = self.workers[row].receive()
        if kind == "mistake":
            raise LaminaError(answer[0])
        if kind == "frame":
            self.frames[row] = _check_frame(answer[0], self.workers.size, world)
            return False
        if kind == "end" and not math.isfinite(answer[0]):
            kind, answer = "lost", [f"its return is {answer[0]}"]
        if kind == "end":
            self._finish(world, episode, *answer)
        elif kind == "lost":
            self.workers.end([row])
            self._lose(world, episode, answer[0])
        else:  # busy, or the answer to open
            return True
        self.bar.update()
        return self._begin(row)

    def _finish(self, world: str, episode: int, total: float, length: int, truncated: bool) -> None:
        tally = self.tallies[world]
        tally.results[episode] = (total, length)
        tally.truncated += truncated

    def _lose(self, world: str, episode: int, reason: str) -> None:
        lost = self.tallies[world].lost
        lost[episode] = reason
        if len(lost) > MAX_LOST * self.episodes:
            raise LaminaError(
                f"world '{world}': {len(lost)} of {self.episodes} episodes were lost, more than a quarter; the last: {reason}"
            )

    def _decide(self, policy: Policy | PlainPolicy) -> None:
        """One decision of all rows that are in an episode."""
        if begun := sorted(self.fresh & self.jobs.keys()):
            policy.reset(begun)
        self.fresh.clear()
        frames = self.frames.copy()
        if isinstance(policy, Policy):
            actions = np.asarray(policy.act_batch(self._observations(frames)))
        else:
            actions = np.asarray(policy.act_batch(frames))
        if len(actions) != len(self.workers):
            raise LaminaError(f"the agent gave {len(actions)} actions for {len(self.workers)} frames")
        chunks = actions if actions.ndim == 3 else actions[:, None]
        checked = {
            row: [check_action(action, self.infos[world].action, world) for action in chunks[row]]
            for row, (world, _) in self.jobs.items()
        }
        for row, planned in checked.items():
            self.workers[row].act(planned)

    def _observations(self, frames: UInt8[np.ndarray, "b h w 3"]) -> Observations:
        tasks = [self.infos[self.jobs[row][0]].task if row in self.jobs else "" for row in range(len(self.workers))]
        return Observations({CAMERA: frames}, task=tuple(tasks))

    def _record(self, seconds: float) -> dict[str, Any]:
        worlds: dict[str, dict[str, Any]] = {}
        for world, tally in self.tallies.items():
            results = [tally.results[episode] for episode in sorted(tally.results)]
            worlds[world] = {
                "returns": [total for total, _ in results],
                "lengths": [length for _, length in results],
                **summarize([total for total, _ in results], self.infos[world].reference),
                "lost": [f"episode {episode}: {tally.lost[episode]}" for episode in sorted(tally.lost)],
                "truncated": tally.truncated,
            }
        decisions = {world: sum(summary["lengths"]) for world, summary in worlds.items()}
        simulated = sum(count / self.infos[world].fps for world, count in decisions.items())
        return {
            "episodes": self.episodes,
            "seed": self.seed,
            "parallel": len(self.workers),
            "agent": self.name,
            "worlds": worlds,
            "normalized": _mean(summary["normalized"] for summary in worlds.values()),
            "above_random": _mean(summary["above_random"] for summary in worlds.values()),
            "decisions_per_second": sum(decisions.values()) / seconds,
            "realtime": simulated / seconds,
            "seconds": seconds,
        }


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _check_frame(frame: np.ndarray, size: ImageSize, world: str) -> UInt8[np.ndarray, "h w 3"]:
    if frame.shape != (*size, 3) or frame.dtype != np.uint8:
        raise LaminaError(
            f"world '{world}' shows {frame.dtype} frames of {list(frame.shape)}, uint8 of {[*size, 3]} were asked for"
        )
    return frame


def _check_fit(policy: Policy | PlainPolicy, size: ImageSize, world: str, info: WorldInfo) -> None:
    """Raises LaminaError where a policy's frames, actions or time between decisions differ from the world's."""
    image, spec, seconds = (getattr(policy, name, None) for name in ("image", "spec", "decision_seconds"))
    if image is not None and tuple(image[-2:]) != tuple(size):
        raise LaminaError(f"the agent sees frames of {image[-2]}x{image[-1]}, not {size[0]}x{size[1]}")
    if spec is not None:
        ours, theirs = info.action, spec
        renamed = len(ours.names) == len(theirs.names) and ours.names != theirs.names
        if (ours.discrete, ours.continuous) != (theirs.discrete, theirs.continuous) or renamed:
            raise LaminaError(f"the agent's actions are not those of world '{world}': {theirs}, {ours}")
    chunk = getattr(policy, "chunk", 1)
    if seconds is not None and abs(seconds * info.fps / chunk - 1) > TIMING_TOLERANCE:
        raise LaminaError(
            f"world '{world}' takes an action every {1 / info.fps:.3g} s, the agent learned {chunk} every {seconds:.3g} s: choose worlds "
            "with the frame rate of its data, and align to chunks (--actions chunk) where a latent spans several actions"
        )
