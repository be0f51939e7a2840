"""Worlds that run in processes of their own, so that several can be stepped at once and none can take the others with it.

Workers are forked from a nursery: a fresh interpreter, started for them, that does nothing but import what all of them need.
So they have none of their owner's threads and memory, and starting one again takes no time. Each is a process group of its
own: Ctrl-C reaches only the owner, and whatever processes a simulator starts can be ended with it. A worker closes its
world and ends when its line to the owner is closed (as it is when the owner is killed), at SIGTERM, and on an exception.

What is said, as tuples, each order answered before the next: ``open NAME`` is answered by ``open WorldInfo``; ``play`` by a
``frame`` for each decision (the actions to be taken next go back) and ``end`` (return, length, truncated). Where the world itself decides,
as its expert or at random, there are no frames and now and then a ``busy``. Instead of any answer there can be
``mistake`` (of the user, one line) or ``lost`` (a reason), after which the process ends.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import Pipe, connection, reduction
from typing import Any, Self, cast

import numpy as np

import lamina.envs
from lamina.envs.base import Action, Observation, World
from lamina.errors import LaminaError
from lamina.types import ActionSpec, ImageSize

Make = Callable[[str, ImageSize], World]

PATIENCE = (
    120.0  # seconds until a worker that says nothing is given up; opening a simulator on a busy machine takes many
)
GRACE = 5.0  # seconds that a worker has to close its world
START = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from lamina.policies import workers
workers.nurse(*map(int, sys.argv[2:]))
os._exit(0)
"""


@dataclass(frozen=True)
class WorldInfo:
    """What the owner needs to know about a world."""

    fps: int
    action: ActionSpec
    task: str
    reference: tuple[float, float] | None


# ------------------------------------------------------------------------------------------------------ in the worker


class _Watched:
    """A world that remembers what it showed last: ``rollout`` asks a policy with a generator only, not with a picture."""

    def __init__(self, world: World):
        self._world = world

    def reset(self, seed: int) -> Observation:
        self.seen = self._world.reset(seed)
        return self.seen

    def step(self, action: Action) -> tuple[Observation, float, bool]:
        self.seen, reward, done = self._world.step(action)
        return self.seen, reward, done


class _Link:
    """The worker's end. Where the owner is gone, there is nothing left to do: SystemExit closes the world."""

    def __init__(self, descriptor: int):
        os.set_inheritable(descriptor, False)  # a simulator's process would hold the line after the worker's death
        self._connection = connection.Connection(descriptor)

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


def nurse(descriptor: int, owner: int) -> None:
    """The nursery's life. It forks a worker for each end of a line that it is sent, and waits for them when asked to."""
    os.set_inheritable(descriptor, False)
    line, nursery = connection.Connection(descriptor), os.getpid()
    while True:
        try:
            while not line.poll(1):
                if os.getppid() != owner:
                    return
            request = line.recv()
            if request == "bear":
                end = reduction.recv_handle(line)
                pid = os.fork()
                os.setpgid(pid, pid)  # here and there: neither must be first
                if pid == 0:
                    break
                os.close(end)
                line.send(pid)
            else:
                line.send(_wait(*request))
        except (EOFError, OSError):
            return
    line.close()
    status: Any = 1
    try:
        serve(end, nursery)
    except SystemExit as leaving:
        status = leaving.code or 0
    finally:
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(status)  # taking the interpreter apart, torch in it, costs a quarter of a second


def _wait(pid: int, seconds: float) -> int | None:
    """How the child ended (minus the number of the signal that killed it); None if it has not, or was waited for before."""
    deadline = time.monotonic() + seconds
    with suppress(ChildProcessError):
        while True:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)
    return None


def serve(descriptor: int, nursery: int) -> None:
    """A worker's life: ``descriptor`` is its end of the line, ``nursery`` the process that it must not outlive."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_after, args=(nursery,), daemon=True).start()
    link = _Link(descriptor)
    world: World | None = None
    try:
        make, size = link.receive()
        while True:
            order, *arguments = link.receive()
            if order == "open":
                if world is not None:
                    world.close()
                world = make(*arguments, size)
                link.send("open", WorldInfo(world.fps, world.action, world.task, world.reference))
            else:
                assert world is not None
                link.send("end", *_play(link, world, *arguments))
    except LaminaError as error:
        link.send("mistake", str(error))
    except Exception as error:  # a simulator may raise anything
        link.send("lost", f"{type(error).__name__}: {error}".splitlines()[0])
    finally:
        if world is not None:
            with suppress(Exception):  # its reason to fail has been told
                world.close()


def _play(
    link: _Link, world: World, policy: str | None, seed: int, episode: int, max_steps: int | None
) -> tuple[float, int, bool]:
    """One episode: its return, its length, and whether it was still going on when its steps were used up."""
    watched, told = _Watched(world), time.monotonic()
    planned: list[Action] = []

    def ask(rng: np.random.Generator) -> Action:
        if not planned:
            link.send("frame", watched.seen.frames[world.cameras[0]])
            planned.extend(link.receive())
        return planned.pop(0)

    def decide(rng: np.random.Generator) -> Action:
        nonlocal told
        if time.monotonic() > told + 1:
            told = time.monotonic()
            link.send("busy")
        return getattr(world, cast(str, policy))(rng)

    bound = world.max_steps if max_steps is None else min(world.max_steps, max_steps)
    total, length, done = 0.0, 0, False
    steps = lamina.envs.rollout(cast(World, watched), ask if policy is None else decide, seed, episode)
    for step in islice(steps, bound):
        total, length, done = total + float(step.reward), length + 1, bool(step.done)
    return total, length, not done


def _end_after(nursery: int) -> None:
    """Ends this process and what it started some time after its nursery, which ends with the owner: the line's end, which tells
    the main thread, can be missed by one that is stuck in a simulator."""
    while os.getppid() == nursery:
        time.sleep(1)
    time.sleep(GRACE)
    os.killpg(os.getpid(), signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------- in the owner


class Nursery:
    """The owner's end of the nursery. Methods raise EOFError or OSError where it has died."""

    def __init__(self) -> None:
        self._line, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            process_group=0,
            stdin=subprocess.DEVNULL,
            stdout=2,  # what simulators print does not belong to what we print
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()

    def bear(self) -> tuple[connection.Connection, int]:
        """A new worker: our end of its line, and its process."""
        ours, theirs = Pipe()
        self._line.send("bear")
        reduction.send_handle(self._line, theirs.fileno(), self._process.pid)
        theirs.close()
        return ours, self._line.recv()

    def wait(self, pid: int, seconds: float) -> int | None:
        self._line.send((pid, seconds))
        return self._line.recv()

    def close(self) -> None:
        self._line.close()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Worker:
    """The owner's end of one worker."""

    def __init__(self, nursery: Nursery, make: Make, size: ImageSize, patience: float):
        self.link, self.pid = nursery.bear()
        self.world: str | None = None  # that it has open
        self._nursery, self._patience = nursery, patience
        self._send((make, size))

    def open(self, world: str) -> None:
        self.world = world
        self._send(("open", world))

    def play(self, policy: str | None, seed: int, episode: int, max_steps: int | None) -> None:
        """One episode of the open world, of its own ``policy`` (``expert``, ``random``) or of actions that will be sent."""
        self._send(("play", policy, seed, episode, max_steps))

    def act(self, planned: Sequence[Action]) -> None:
        """The actions to be taken next, in turn; then comes the next frame."""
        self._send(planned)

    def _send(self, message: Any) -> None:
        self._spoke = time.monotonic()
        with suppress(OSError):  # a worker that is dead shows it in the answer
            self.link.send(message)

    def late(self) -> bool:
        return time.monotonic() > self._spoke + self._patience

    def receive(self) -> tuple[Any, ...]:
        """The next answer; ``lost`` where the process died or says nothing for too long."""
        try:
            if not self.link.poll(max(0.0, self._spoke + self._patience - time.monotonic())):
                return "lost", f"it said nothing for {self._patience:g} s"
            message = self.link.recv()
        except (EOFError, OSError):
            return "lost", self._obituary()
        self._spoke = time.monotonic()
        return message

    def end(self) -> None:
        """Ends the process, and what it may have left behind. Safe to call twice."""
        self.link.close()
        self._wait(GRACE)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._wait(GRACE)

    def _obituary(self) -> str:
        status = self._wait(GRACE)
        if status is not None and status < 0:
            return f"its process was killed by {signal.Signals(-status).name}"
        return "its process is gone" if status is None else f"its process ended with status {status}"

    def _wait(self, seconds: float) -> int | None:
        with suppress(EOFError, OSError):
            return self._nursery.wait(self.pid, seconds)
        return None


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
        place = f"{make.__module__}.{make.__qualname__}"
        if place.startswith("__main__.") or "<" in place:
            raise LaminaError(
                f"workers cannot import {place}: move it to the top level of a module that they can import"
            )
        self.size, self.facts = size, dict[str, WorldInfo]()
        self._make, self._patience = make, patience
        self._workers: list[Worker | None] = [None] * count
        self._nursery: Nursery | None = None

    def __len__(self) -> int:
        return len(self._workers)

    def __getitem__(self, row: int) -> Worker:
        worker = self._workers[row]
        if worker is None:
            worker = self._workers[row] = self._start()
        return worker

    def _start(self) -> Worker:
        for _ in range(2):
            if self._nursery is None:
                self._nursery = Nursery()
            try:
                return Worker(self._nursery, self._make, self.size, self._patience)
            except (EOFError, OSError):  # somebody killed it; a new one should do
                self._nursery.close()
                self._nursery = None
        raise LaminaError("processes for environments cannot be started here; their own words are above")

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
        found = {links[cast(connection.Connection, link)] for link in connection.wait(list(links), timeout=1)}
        return sorted(found | {row for row in rows if self[row].late()})

    def inspect(self, worlds: Sequence[str]) -> dict[str, WorldInfo]:
        """What the ``worlds`` are, each opened by one worker where that was not done before.

        Raises LaminaError for a world that cannot be opened.
        """
        new = [name for name in worlds if name not in self.facts]
        for first in range(0, len(new), len(self)):
            opened = dict(enumerate(new[first : first + len(self)]))
            try:
                for row, name in opened.items():
                    self[row].open(name)
                answers = {row: self[row].receive() for row in opened}
            except BaseException:  # an answer that nobody took would be taken for another
                self.end(opened)
                raise
            self.facts |= {opened[row]: said for row, (answer, said) in answers.items() if answer == "open"}
            if failed := {row: said for row, (answer, said) in answers.items() if answer != "open"}:
                self.end(failed)
                row, reason = min(failed.items())
                told = answers[row][0] == "mistake"
                raise LaminaError(reason if told else f"world '{opened[row]}' cannot be opened: {reason}")
        return {name: self.facts[name] for name in worlds}

    def close(self) -> None:
        """Ends all workers. Safe to call twice; a later use starts them again."""
        self.end(range(len(self)))
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
