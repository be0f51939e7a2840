"""Closed-loop evaluation: returns and successes of a policy in several worlds, and their share of the experts' returns.

Each row of the policy's batch is one world in a process of its own (``workers.py``). All rows that are in an episode decide together. A
row that ends its episode begins another: of the same world while any are left, else of the world with most episodes left for each row on
it. The same arguments give the same returns.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8
from tqdm import tqdm

from lamina.data.lerobot.writer import CAMERA_PREFIX, check_new
from lamina.envs.base import Action
from lamina.envs.registry import make, members
from lamina.errors import LaminaError, warn
from lamina.files import json_of, locked, to_json, write_text
from lamina.intervals import Estimate, wilson
from lamina.policies.base import Observations, Policy
from lamina.policies.films import Scene, film
from lamina.policies.workers import Look, Make, Outcome, Workers, WorldInfo
from lamina.progress import progress_bar
from lamina.types import ActionSpec, ImageSize

SCRIPTED = ("expert", "random")
MAX_LOST = 0.25  # share of a world's episodes that may be lost to crashes
#: Relative difference that is allowed between the policy's time between decisions and the world's.
TIMING_TOLERANCE = 0.25
SEED = 1000  # other starts than those of demonstrations collected with the default seed, which is 0
CAMERA = "image"  # what the one camera is called in the observations of a policy that names none: the worlds' own names differ


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


@dataclass(frozen=True, kw_only=True)
class WorldResult:
    """Episodes of one world, in their order, without the lost ones. None where a figure does not exist (:func:`summarize`)."""

    returns: list[float]
    lengths: list[int]  # steps
    mean: float  # return
    standard_error: float | None
    expert: float | None  # mean return that the world publishes
    random: float | None
    normalized: float | None  # the mean in percent of the expert's, as in FlexLAM (§A.2)
    normalized_standard_error: float | None
    above_random: float | None  # the mean where random actions are 0 and the expert is 100
    success: list[bool] | None  # None = the world does not judge it
    success_rate: Estimate | None  # with Wilson's interval
    tier: str  # of difficulty; empty = unknown
    lost: list[str]  # a line for each lost episode
    truncated: int  # episodes that a bound on their steps ended, ours or the simulator's own


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """What an agent did in several worlds.

    ``normalized`` and ``above_random`` are means over the worlds that publish returns. Percent of the expert alone misleads where random
    actions earn less than nothing (Doom's ``basic``, ``my_way_home``) or much (``health_gathering``): read both. ``success``, and that of
    each of the ``tiers``, is the mean over the worlds that judge it (:func:`mean_success`). ``realtime`` is the simulated time of all
    environments together over the time that it took, the start of the simulators included.
    """

    agent: str
    episodes: int  # of each world
    seed: int
    parallel: int
    worlds: dict[str, WorldResult]
    normalized: float | None
    above_random: float | None
    success: Estimate | None
    tiers: dict[str, Estimate | None]
    decisions_per_second: float  # of all rows; a decision of a policy of chunks is several steps
    realtime: float
    seconds: float
    k: int | Literal["auto"] | None = None  # latent tokens of a decision, None = all
    tokens: float | None = None  # latent tokens of a decision, mean over all of them; None = the agent does not say
    temperature: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def rollout_worlds(
    agent: Agent,
    worlds: Sequence[str],
    episodes: int = 50,
    parallel: int = 8,
    seed: int = SEED,
    max_steps: int | Mapping[str, int | None] | None = None,
    size: ImageSize = (64, 64),
    progress: bool = True,
    make: Make = make,
    workers: Workers | None = None,
    videos: Path | None = None,
) -> RolloutResult:
    """``episodes`` of each world, played by a policy, by the worlds' scripted experts or at random.

    Episode n of a world starts as in ``lamina.envs.base.rollout(world, policy, seed, n)``, so the returns of a policy that treats its
    rows alike do not depend on ``parallel``. A :class:`Policy` gets :class:`Observations` of ``parallel`` frames of ``size`` (height,
    width) from each camera that it names (else from each world's first one, called "image"), the proprioception if it reads it, and the
    worlds' tasks; a plain one gets the frames of the first camera alone. A row without an episode gets its last observation again (zeros
    before the first), and its action is ignored. An episode that is not over after ``max_steps`` (for all worlds or by world; default: the
    world's own) is counted as ``truncated``. ``make`` opens a world by name, in the worker. Starting processes costs
    seconds: to share them between calls give ``workers``, which then determine ``parallel``, ``size`` and ``make``. ``videos`` is a new
    folder for films of some episodes of each world (``films.py``).

    A simulator that raises, dies or does not answer for two minutes loses its episode and is started again; the others continue.

    Raises LaminaError for numbers out of range, unknown worlds, a policy that does not fit them (cameras, proprioception, actions, size
    of frames, time between decisions), an action outside the space, and when more than a quarter of a world's episodes are lost.
    """
    if isinstance(agent, str) and agent not in SCRIPTED:
        raise LaminaError(f"an agent is an object with reset and act_batch, 'expert' or 'random', not '{agent}'")
    limits = dict(max_steps) if isinstance(max_steps, Mapping) else dict.fromkeys(worlds, max_steps)
    for name, value in (("episodes", episodes), *(("steps", limit) for limit in limits.values())):
        if value is not None and value < 1:
            raise LaminaError(f"the number of {name} must be at least 1, got {value}")
    if seed < 0:
        raise LaminaError(f"the seed must not be negative, got {seed}")
    if videos is not None:
        check_new(videos)
    if not worlds or len(set(worlds)) < len(worlds):
        raise LaminaError(f"name one or more worlds, each once, got {', '.join(worlds) or 'none'}")
    with ExitStack() as stack:
        workers = stack.enter_context(Workers(parallel, size, make)) if workers is None else workers
        bar = progress_bar(episodes * len(worlds), "rollout", " episodes", disable=not progress)
        evaluation = _Evaluation(agent, tuple(worlds), episodes, seed, limits, workers, stack.enter_context(bar))
        try:
            result = evaluation.run()
            if videos is not None:
                scenes = [
                    Scene(name, w.tier, w.success_rate, evaluation.tallies[name].results)
                    for name, w in result.worlds.items()
                ]
                film(scenes, seed, workers, videos, f"Rollout of {result.agent}", progress)
            return result
        except BaseException:
            workers.end(evaluation.jobs)  # they are in the middle of an episode
            raise


def rollout(
    run: Path | str,
    worlds: Sequence[str],
    k: int | Literal["auto"] | None = None,
    episodes: int = 50,
    parallel: int = 8,
    seed: int = SEED,
    temperature: float = 0.0,
    out: Path | None = None,
    max_steps: int | None = None,
    size: ImageSize | None = None,
    device: str = "auto",
    precision: str = "fp32",
    videos: Path | None = None,
    progress: bool = True,
) -> RolloutResult:
    """:func:`rollout_worlds` of the policy in the folder ``run`` (:meth:`Policy.from_run`), or of ``expert`` or ``random``; the result is
    returned, and written to ``out`` as JSON.

    ``seed``: by default other starts than those of demonstrations that were collected with the default seed; a warning says where the
    policy was trained on those that it is played on. ``worlds`` may name suites (``doom-suite``), which stand for all their worlds, with
    the suite's bound on the steps of an episode unless ``max_steps`` is given. ``k``: latent tokens of a decision, a number or "auto" (all
    by default; see from_run); the scripted agents take neither it nor a ``temperature``. ``size``: height and width of the frames;
    default: the model's own, 64x64 for ``expert`` and ``random``. Raises what rollout_worlds and from_run raise.
    """
    if out is not None and out.is_dir():
        raise LaminaError(f"{out}: is a folder; name a file for the record, for example {out / 'rollout.json'}")
    with nullcontext() if out is None else locked(out):  # a disk that refuses does so now, not after hours
        record = _rollout(
            run, worlds, k, episodes, parallel, seed, temperature, max_steps, size, progress, device, precision, videos
        )
        if out is not None:
            write_text(out, to_json(record.to_dict(), indent=2) + "\n")
    return record


def _rollout(
    run: str | Path,
    worlds: Sequence[str],
    k: int | Literal["auto"] | None,
    episodes: int,
    parallel: int,
    seed: int,
    temperature: float,
    max_steps: int | None,
    size: ImageSize | None,
    progress: bool,
    device: str,
    precision: str,
    videos: Path | None,
) -> RolloutResult:
    limits: dict[str, int | None] = {}
    for suite in map(members, worlds):
        for name in suite.worlds:
            limit = max_steps or suite.max_steps
            if limits.setdefault(name, limit) != limit:
                raise LaminaError(
                    f"'{name}' is in two suites with episodes of other lengths: give the steps of an episode"
                )
    agent: Any = str(run)
    if agent in SCRIPTED:
        if k is not None or temperature:
            raise LaminaError(f"'{agent}' has neither k nor a temperature; leave them out")
    else:
        agent = Policy.from_run(
            run, k=k, batch=parallel, temperature=temperature, seed=seed, device=device, precision=precision
        )
        warn_of_known_starts(Path(run), limits, seed)
    size = size or getattr(agent, "image", (3, 64, 64))[1:]
    result = rollout_worlds(agent, list(limits), episodes, parallel, seed, limits, size, progress, videos=videos)
    return replace(result, agent=str(run), k=k, temperature=temperature)


def warn_of_known_starts(run: Path, worlds: Iterable[str], seed: int) -> None:
    """Warns where the policy of ``run`` was trained on a dataset whose records say that it was collected in one of these ``worlds`` with
    this ``seed``. Says nothing of data that is not here."""
    with suppress(OSError, ValueError):  # what the run's own loader did not refuse
        data = json_of(run / "policy" / "config.json").get("data")
        for path in data if isinstance(data, list) else [data]:
            with suppress(OSError, ValueError):
                collected = json_of(Path(str(path)) / "meta" / "info.json").get("lamina")
                record = collected if isinstance(collected, dict) else {}
                tasks = record.get("tasks")
                known = set(worlds) & set(map(str, tasks.values() if isinstance(tasks, dict) else ()))
                if known and record.get("seed") == seed:
                    warn(
                        f"{path} was collected in '{min(known)}' with seed {seed} too, and the policy was trained on it: it is played on "
                        "starts that it has seen; choose another --seed"
                    )


def table(result: RolloutResult) -> str:
    """A result as plain text: a line for each world with its return or, where it judges success, its rate; and the means."""
    wide = max(26, *(len(name) + 2 for name in result.worlds))
    returns = {name: world for name, world in result.worlds.items() if world.success_rate is None}
    lines = []
    if returns:
        titles = f"{'return':>10}{'+-':>8}{'expert':>9}{'random':>9}{'% expert':>10}{'0-100':>8}  lost"
        lines.append(f"{'world':<{wide}}{titles}")
        for name, w in returns.items():
            cells = f"{w.mean:>10.2f}{_number(w.standard_error, '.2f'):>8}{_number(w.expert):>9}{_number(w.random):>9}"
            cells += f"{_number(w.normalized):>10}{_number(w.above_random):>8}  {len(w.lost) or ''}"
            lines.append(f"{name:<{wide}}{cells}".rstrip())
        lines.append(f"{'mean':<{wide + 36}}{_number(result.normalized):>10}{_number(result.above_random):>8}")
        lines.append("0-100: random actions are 0, the expert is 100.")
    if result.success is not None:
        lines.append(f"{'world':<{wide}}{'success':>10}{'95% interval':>16}{'episodes':>10}  lost")
        for name, w in result.worlds.items():
            if w.success_rate is not None and w.success is not None:
                lines.append(f"{_rate(name, w.success_rate, wide)}{len(w.success):>10}  {len(w.lost) or ''}".rstrip())
        lines += [_rate(f"mean of {tier} tasks", rate, wide) for tier, rate in result.tiers.items() if rate]
        lines.append(_rate("mean of tasks", result.success, wide))
    if result.tokens is not None:
        lines.append(f"{result.tokens:.2f} latent tokens a decision.")
    lines.append(f"{result.realtime:.1f} times real time.")
    return "\n".join(lines)


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def _rate(name: str, rate: Estimate, wide: int) -> str:
    interval = f"{rate.low:.3f} - {rate.high:.3f}"
    return f"{name:<{wide}}{rate.mean:>10.3f}{interval:>16}"


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
    results: dict[int, Outcome] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)


class _Evaluation:
    """One call of :func:`rollout_worlds`."""

    def __init__(
        self,
        agent: Agent,
        worlds: tuple[str, ...],
        episodes: int,
        seed: int,
        limits: Mapping[str, int | None],
        workers: Workers,
        bar: tqdm,
    ):
        self.episodes, self.seed, self.limits = episodes, seed, limits
        self.workers, self.bar = workers, bar
        self.policy = None if isinstance(agent, str) else agent
        self.scripted = agent if isinstance(agent, str) else None
        self.name = agent if isinstance(agent, str) else getattr(agent, "name", type(agent).__name__)
        self.tallies = {world: _Tally(deque(range(episodes))) for world in worlds}
        self.jobs: dict[int, tuple[str, int]] = {}  # row: world and episode
        self.last: dict[int, str] = {}  # row: world of its last episode
        self.fresh: set[int] = set()  # rows whose episode has not had a decision
        self.decisions = 0  # of a policy
        self.tokens: list[float] = []  # latent tokens of every decision
        cameras = agent.cameras if isinstance(agent, Policy) else ()
        proprio = agent.proprio if isinstance(agent, Policy) else 0
        #: The worlds call their cameras so; a policy may call them as a dataset does.
        self.look = Look(tuple(c.removeprefix(CAMERA_PREFIX) for c in cameras), proprio > 0)
        self.frames = {c: np.zeros((len(workers), *workers.size, 3), dtype=np.uint8) for c in cameras or (CAMERA,)}
        self.proprio = np.zeros((len(workers), proprio), dtype=np.float32)

    def run(self) -> RolloutResult:
        started = time.monotonic()
        self.infos = self.workers.inspect(tuple(self.tallies))
        if self.policy is not None:
            for world, info in self.infos.items():
                _check_fit(self.policy, self.workers.size, self.look, world, info)
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
        worker.play(self.scripted, self.look, self.seed, episode, self.limits.get(world))
        self.jobs[row] = (world, episode)
        self.fresh.add(row)
        return True

    def _receive(self, row: int) -> bool:
        """Takes one answer of the row's worker; whether another one follows before its next decision."""
        world, episode = self.jobs[row]
        kind, *answer = self.workers[row].receive()
        if kind == "mistake":
            raise LaminaError(answer[0])
        if kind == "observation":
            for frames, frame in zip(self.frames.values(), answer[0], strict=True):
                frames[row] = _check_frame(frame, self.workers.size, world)
            if self.look.proprio:
                self.proprio[row] = answer[1]
            return False
        if kind == "end" and not math.isfinite(answer[0].total):
            kind, answer = "lost", [f"its return is {answer[0].total}"]
        if kind == "end":
            self.tallies[world].results[episode] = answer[0]
            self.bar.set_postfix_str(_so_far([o for tally in self.tallies.values() for o in tally.results.values()]))
        elif kind == "lost":
            self.workers.end([row])
            self._lose(world, episode, answer[0])
        else:  # busy, or the answer to open
            return True
        self.bar.update()
        return self._begin(row)

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
        self.decisions += len(self.jobs)
        frames = {camera: shown.copy() for camera, shown in self.frames.items()}
        if isinstance(policy, Policy):
            actions = np.asarray(policy.act_batch(self._observations(frames)))
        else:
            actions = np.asarray(policy.act_batch(frames[CAMERA]))
        kept = getattr(policy, "kept", None)
        if kept is not None:
            self.tokens += [float(kept[row]) for row in self.jobs]
        if len(actions) != len(self.workers):
            raise LaminaError(f"the agent gave {len(actions)} actions for {len(self.workers)} frames")
        chunks = actions if actions.ndim == 3 else actions[:, None]
        checked = {
            row: [check_action(action, self.infos[world].action, world) for action in chunks[row]]
            for row, (world, _) in self.jobs.items()
        }
        for row, planned in checked.items():
            self.workers[row].act(planned)

    def _observations(self, frames: dict[str, UInt8[np.ndarray, "b h w 3"]]) -> Observations:
        tasks = [self.infos[self.jobs[row][0]].task if row in self.jobs else "" for row in range(len(self.workers))]
        return Observations(frames, self.proprio.copy() if self.look.proprio else None, tuple(tasks))

    def _record(self, seconds: float) -> RolloutResult:
        worlds: dict[str, WorldResult] = {}
        for world, tally in self.tallies.items():
            results = [tally.results[episode] for episode in sorted(tally.results)]
            judged = [o.success for o in results if o.success is not None]
            worlds[world] = WorldResult(
                returns=[o.total for o in results],
                lengths=[len(o.actions) for o in results],
                **summarize([o.total for o in results], self.infos[world].reference),
                success=judged if len(judged) == len(results) else None,
                success_rate=wilson(float(np.mean(judged)), len(judged)) if len(judged) == len(results) else None,
                tier=self.infos[world].tier,
                lost=[f"episode {episode}: {tally.lost[episode]}" for episode in sorted(tally.lost)],
                truncated=sum(o.truncated for o in results),
            )
        steps = {world: sum(result.lengths) for world, result in worlds.items()}
        simulated = sum(count / self.infos[world].fps for world, count in steps.items())
        decisions = self.decisions if self.policy is not None else sum(steps.values())
        tiers = dict.fromkeys(result.tier for result in worlds.values() if result.tier)
        return RolloutResult(
            episodes=self.episodes,
            seed=self.seed,
            parallel=len(self.workers),
            agent=self.name,
            worlds=worlds,
            normalized=_mean(result.normalized for result in worlds.values()),
            above_random=_mean(result.above_random for result in worlds.values()),
            success=mean_success(list(worlds.values())),
            tiers={tier: mean_success([r for r in worlds.values() if r.tier == tier]) for tier in tiers},
            decisions_per_second=decisions / seconds,
            tokens=float(np.mean(self.tokens)) if self.tokens else None,
            realtime=simulated / seconds,
            seconds=seconds,
        )


def _so_far(outcomes: Sequence[Outcome]) -> str:
    """What the progress bar says: how many of the judged episodes succeeded, else the mean return."""
    judged = [o.success for o in outcomes if o.success is not None]
    return f"{sum(judged)}/{len(judged)} succeeded" if judged else f"return {np.mean([o.total for o in outcomes]):.2f}"


def mean_success(worlds: Sequence[WorldResult]) -> Estimate | None:
    """The mean over the worlds that judge success of their rates, None where none does.

    Wilson's interval, for as many trials as there are episodes: a little too wide where worlds differ in difficulty. It says how well the
    mean of these worlds is known, and nothing about other worlds or other trainings of the agent.
    """
    judged = [world.success for world in worlds if world.success]
    if not judged:
        return None
    return wilson(float(np.mean([np.mean(success) for success in judged])), sum(map(len, judged)))


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


def _check_fit(policy: Policy | PlainPolicy, size: ImageSize, look: Look, world: str, info: WorldInfo) -> None:
    """Raises LaminaError where a policy's cameras, proprioception, frames, actions or time between decisions differ from the world's."""
    if missing := [camera for camera in look.cameras if camera not in info.cameras]:
        raise LaminaError(
            f"world '{world}' has no camera '{missing[0]}', which the agent reads; it has {', '.join(info.cameras)}"
        )
    proprio = policy.proprio if isinstance(policy, Policy) else 0
    if proprio and proprio != info.proprio:
        raise LaminaError(f"world '{world}' has proprioception of {info.proprio} numbers, the agent reads {proprio}")
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
