"""Worlds in processes of their own, so that several can be stepped at once and a crash ends one episode only.

Workers are forked from multiprocessing's fork server, which has imported what all of them need: they have none of their owner's threads
and memory, and starting one again takes no time. Each is a process group of its own, so Ctrl-C reaches only the owner, and the processes
of a simulator can be ended with their worker. A worker closes its world and ends when its connection to the owner is closed (as it is
when the owner is killed), at SIGTERM, and on an exception. As with all of multiprocessing, the main script is imported again in each
worker: a script that opens worlds must do so under ``if __name__ == "__main__":``.

Messages are tuples; each order is answered before the next: ``open NAME`` by ``open WorldInfo``; ``play`` by an ``observation`` for each
decision (the next actions are sent back) and ``end Outcome``. Where the world's own expert or random policy acts, nothing is observed
but, once a second, there is a ``busy``. ``film`` is answered by ``busy``s and ``film`` (why there is no film of each take, or nothing).
Instead of any answer there can be ``mistake`` (an input error, one line) or ``lost`` (a reason), after which the process ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np

import lamina.envs
from lamina.data.lerobot.writer import VideoEncoding, write_video
from lamina.envs.base import Action, Transition, World
from lamina.errors import LaminaError
from lamina.types import ActionSpec, ImageSize

Make = Callable[[str, ImageSize], World]

PATIENCE = (
    120.0  # seconds without an answer until a worker is given up; opening a simulator on a busy machine takes many
)
GRACE = 5.0  # seconds that a worker has to close its world
FILM = VideoEncoding(crf=20, g=30)
CONTEXT = multiprocessing.get_context("forkserver")
#: What the fork server imports: what workers need, and the main module of the command line, which each worker imports again.
PRELOADED = ["lamina.envs.registry", "lamina.policies.workers", "lamina.cli"]


@dataclass(frozen=True)
class WorldInfo:
    """What the owner needs to know about a world."""

    fps: int
    action: ActionSpec
    task: str
    reference: tuple[float, float] | None
    cameras: tuple[str, ...]
    proprio: int
    tier: str

    @classmethod
    def of(cls, world: World) -> WorldInfo:
        return cls(**{field.name: getattr(world, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Outcome:
    """How an episode went: its return, what was done, whether it was cut off, and whether its goal was reached (None: not judged)."""

    total: float
    actions: Sequence[Action]
    truncated: bool
    success: bool | None


@dataclass(frozen=True)
class Take:
    """An episode that has been played and is to be filmed."""

    episode: int
    outcome: Outcome
    path: Path  # of the film


@dataclass(frozen=True)
class Look:
    """What is observed for a decision: these cameras (none: the world's first, whatever it is called), and proprioception if asked for."""

    cameras: tuple[str, ...] = ()
    proprio: bool = False


# ------------------------------------------------------------------------------------------------------ in the worker


class _Link:
    """The worker's end of its connection. Where the owner is gone, SystemExit closes the world."""

    def __init__(self, owner: Connection):
        os.set_inheritable(owner.fileno(), False)  # a simulator's process would keep it open after the worker's death
        self._connection = owner

    def send(self, *message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:
            sys.exit()

    def receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            sys.exit()


def serve(owner: Connection) -> None:
    """A worker's life: carries out the orders that come by ``owner``, until it is closed."""
    os.setpgid(0, 0)
    os.dup2(2, 1)  # what simulators print does not belong into the owner's output
    multiprocessing.current_process().daemon = False  # a simulator may start processes of its own
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_after_owner, daemon=True).start()
    link = _Link(owner)
    world: World | None = None
    try:
        make, size = link.receive()
        while True:
            order, *arguments = link.receive()
            if order == "open":
                if world is not None:
                    world.close()
                world = make(*arguments, size)
                link.send("open", WorldInfo.of(world))
            elif order == "film":
                link.send("film", _film(link, make, *arguments))
            else:
                assert world is not None
                link.send("end", _play(link, world, *arguments))
    except LaminaError as error:
        link.send("mistake", str(error))
    except Exception as error:  # a simulator may raise anything
        link.send("lost", f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        if world is not None:
            with suppress(Exception):  # the reason of its failure was sent
                world.close()


def _play(
    link: _Link, world: World, policy: str | None, look: Look, seed: int, episode: int, max_steps: int | None
) -> Outcome:
    """One episode."""
    answered = time.monotonic()
    planned: list[Action] = []
    cameras = look.cameras or world.cameras[:1]

    def ask(rng: np.random.Generator) -> Action:
        if not planned:
            seen = world.observe()
            link.send("observation", [seen.frames[c] for c in cameras], seen.proprio if look.proprio else None)
            planned.extend(link.receive())
        return planned.pop(0)

    def decide(rng: np.random.Generator) -> Action:
        nonlocal answered
        if time.monotonic() > answered + 1:
            answered = time.monotonic()
            link.send("busy")
        return getattr(world, cast(str, policy))(rng)

    return outcome(world, lamina.envs.play(world, ask if policy is None else decide, seed, episode, max_steps))


def _film(link: _Link, make: Make, name: str, size: ImageSize, seed: int, takes: Sequence[Take]) -> list[str]:
    """Plays episodes again and writes what the first camera shows; for each, why it could not be done, or nothing."""
    reasons = []
    with make(name, size) as world:
        for take in takes:
            frames: list[np.ndarray] = []
            actions = iter(take.outcome.actions)

            def again(rng: np.random.Generator, frames: list = frames, actions: Iterator[Action] = actions) -> Action:
                if len(frames) % 10 == 0:
                    link.send("busy")
                frames.append(world.observe().frames[world.cameras[0]])
                return next(actions)

            found = outcome(world, lamina.envs.play(world, again, seed, take.episode, len(take.outcome.actions)))
            same = (found.total, found.success) == (take.outcome.total, take.outcome.success)
            if same:
                write_video(take.path, frames, world.fps, FILM)
            reasons.append("" if same else f"played again, its return is {found.total:g}")
    return reasons


def outcome(world: World, steps: Iterable[Transition]) -> Outcome:
    """How the episode of ``world`` that consists of these steps went."""
    total, actions, truncated = 0.0, [], False
    for step in steps:
        total, truncated = total + float(step.reward), step.truncated
        actions.append(step.action)
    return Outcome(total, actions, truncated, world.success)


def _end_after_owner() -> None:
    """Ends this process and its children some time after the owner: the main thread, which the closed connection tells, can hang in a
    simulator."""
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    time.sleep(GRACE)
    os.killpg(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------- in the owner


@contextmanager
def _fork_server() -> Iterator[None]:
    """The fork server is started here, if it is not running, with one thread for what it preloads."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        CONTEXT.set_forkserver_preload(PRELOADED)
        try:
            forkserver.ensure_running()
        except ChildProcessError:  # this process was forked from one that had a fork server: that one is not its own
            forkserver._forkserver._forkserver_pid = None  # type: ignore[attr-defined]
            forkserver.ensure_running()
        yield
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


class Worker:
    """The owner's end of one worker. Raises EOFError or OSError where the fork server has died."""

    def __init__(self, make: Make, size: ImageSize, patience: float):
        self.link, theirs = CONTEXT.Pipe()
        with theirs:
            self._process = CONTEXT.Process(target=serve, args=(theirs,), daemon=True)
            with _fork_server():
                self._process.start()
        self.pid = cast(int, self._process.pid)
        self.world: str | None = None  # that it has open
        self._patience, self._has_answered = patience, False
        self._send((make, size))

    def open(self, world: str) -> None:
        self.world = world
        self._send(("open", world))

    def play(self, policy: str | None, look: Look, seed: int, episode: int, max_steps: int | None) -> None:
        """One episode of the open world, by its own ``policy`` (``expert``, ``random``) or by actions that will be sent."""
        self._send(("play", policy, look, seed, episode, max_steps))

    def act(self, planned: Sequence[Action]) -> None:
        """The next actions, in turn; the next observation follows them."""
        self._send(planned)

    def film(self, world: str, size: ImageSize, seed: int, takes: Sequence[Take]) -> None:
        """Episodes of a world, played again with pictures of ``size`` and filmed."""
        self._send(("film", world, size, seed, takes))

    def _send(self, message: Any) -> None:
        self._answered = time.monotonic()
        with suppress(OSError):  # receive() says that the worker is dead
            self.link.send(message)

    def late(self) -> bool:
        return time.monotonic() > self._answered + self._patience

    def receive(self) -> tuple[Any, ...]:
        """The next answer; ``lost`` where the process died or did not answer in time."""
        try:
            if not self.link.poll(max(0.0, self._answered + self._patience - time.monotonic())):
                return "lost", f"it said nothing for {self._patience:g} s"
            message = self.link.recv()
        except (EOFError, OSError):
            return "lost", self._exit_reason()
        self._answered, self._has_answered = time.monotonic(), True
        return message

    def end(self) -> None:
        """Ends the process, and what it may have left behind. Safe to call twice."""
        self.link.close()
        self._process.join(GRACE)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(GRACE)

    def _exit_reason(self) -> str:
        self._process.join(GRACE)
        status = self._process.exitcode
        if status is None:
            return "its process is gone"
        if status < 0:
            return f"its process was killed by {signal.Signals(-status).name}"
        guard = "" if self._has_answered else '; a script that opens worlds must do so under if __name__ == "__main__":'
        return f"its process ended with status {status}{guard}"


class Workers:
    """``count`` workers, started when they are first needed and then kept: use it as a context manager.

    ``make`` opens a world by name, in the worker, with pictures of ``size`` (height, width): ``lamina.envs.registry.make``, or a
    function of your own that a worker can import. Raises LaminaError for one that it can't, and for a count below 1.
    """

    def __init__(
        self,
        count: int = 8,
        size: ImageSize = (64, 64),
        make: Make = lamina.envs.registry.make,
        patience: float = PATIENCE,
    ):
        if count < 1:
            raise LaminaError(f"the number of parallel environments must be at least 1, got {count}")
        qualified = f"{make.__module__}.{make.__qualname__}"
        if qualified.startswith("__main__.") or "<" in qualified:
            raise LaminaError(
                f"workers cannot import {qualified}: move it to the top level of a module that they can import"
            )
        self.size, self.infos = size, dict[str, WorldInfo]()
        self._make, self._patience = make, patience
        self._workers: list[Worker | None] = [None] * count

    def __len__(self) -> int:
        return len(self._workers)

    def __getitem__(self, row: int) -> Worker:
        worker = self._workers[row]
        if worker is None:
            worker = self._workers[row] = self._start()
        return worker

    def _start(self) -> Worker:
        for _ in range(3):
            with suppress(EOFError, OSError):  # the fork server was killed; multiprocessing starts another
                return Worker(self._make, self.size, self._patience)
            time.sleep(0.2)  # once the system says that it has ended
        raise LaminaError("processes for environments cannot be started here; their own messages are above")

    def end(self, rows: Iterable[int]) -> None:
        """Ends these workers; the next use of a row starts its worker again."""
        ending = [worker for row in rows if (worker := self._workers[row]) is not None]
        self._workers = [None if worker in ending else worker for worker in self._workers]
        for worker in ending:
            worker.link.close()  # all at once: each takes a moment
        for worker in ending:
            worker.end()

    def ready(self, rows: Sequence[int]) -> list[int]:
        """Those of ``rows`` that have an answer, or are late with it; waits a second for the first."""
        links = {self[row].link: row for row in rows}
        found = {links[cast(Connection, link)] for link in connection.wait(list(links), timeout=1)}
        return sorted(found | {row for row in rows if self[row].late()})

    def inspect(self, worlds: Sequence[str]) -> dict[str, WorldInfo]:
        """The properties of the ``worlds``, each opened by one worker where that was not done before.

        Raises LaminaError for a world that cannot be opened.
        """
        new = [name for name in worlds if name not in self.infos]
        for first in range(0, len(new), len(self)):
            opened = dict(enumerate(new[first : first + len(self)]))
            try:
                for row, name in opened.items():
                    self[row].open(name)
                answers = {row: self[row].receive() for row in opened}
            except BaseException:  # an answer that nobody took would be taken for another
                self.end(opened)
                raise
            self.infos |= {opened[row]: value for row, (kind, value) in answers.items() if kind == "open"}
            if failed := {row: value for row, (kind, value) in answers.items() if kind != "open"}:
                self.end(failed)
                row, reason = min(failed.items())
                mistake = answers[row][0] == "mistake"
                raise LaminaError(reason if mistake else f"world '{opened[row]}' cannot be opened: {reason}")
        return {name: self.infos[name] for name in worlds}

    def close(self) -> None:
        """Ends all workers. Safe to call twice; a later use starts them again."""
        self.end(range(len(self)))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
