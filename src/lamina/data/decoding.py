"""Work that processes do ahead of who takes it, in a fixed order.

Each process sends its results through a pipe of its own, so one that dies, even in the middle of a result, ends that pipe and is noticed
at once, in whatever thread. With a queue that all share, as in torch's DataLoader, a process that dies while it sends keeps the others from
sending, and who waits for the rest of its result waits for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Semaphore
from typing import Any

import torch

AHEAD = 4  # results that each process has ready
#: ``work(first, every)`` makes the results with the numbers first, first + every, ... (from 0). Where processes are spawned, it is pickled.
Work = Callable[[int, int], Iterable[Any]]


class DecodingDied(Exception):
    """A process ended that had results to deliver: which one, and how."""


class InProcesses(Iterator[Any]):
    """The results of ``work`` in the order of their numbers, made by ``count`` processes.

    They end when this object is closed or deleted, and when the process ends that made it. Raises DecodingDied, in one line, where one of
    them ends before; what it printed is its own message.
    """

    def __init__(self, work: Work, count: int):
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self.close = weakref.finalize(self, _end, os.getpid(), self._pipes, self._processes)
        for first in range(count):
            ours, theirs = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.Process(target=_deliver, args=(theirs, work, first, count), daemon=True)
            with theirs:  # the process alone can write, so that the pipe ends with it
                process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self._next = 0

    def __next__(self) -> Any:
        turn = self._next % len(self._pipes)
        try:
            result = self._pipes[turn].recv()
        except (EOFError, OSError) as error:
            raise DecodingDied(_how_it_ended(self._processes[turn])) from error
        self._next += 1
        return result


def _how_it_ended(process: BaseProcess) -> str:
    process.join(5)
    status = process.exitcode
    if status is None:
        return f"process {process.pid} sends nothing more"
    if status < 0:
        return f"process {process.pid} was killed by {signal.Signals(-status).name}"
    return f"process {process.pid} ended with status {status}"


def _end(owner: int, pipes: list[Connection], processes: list[BaseProcess]) -> None:
    if os.getpid() != owner:  # a fork of it, with a copy of what is deleted
        return
    for process in processes:
        process.kill()  # it has nothing to lose
    for process in processes:
        process.join()
    for pipe in pipes:
        pipe.close()


def _deliver(pipe: Connection, work: Work, first: int, every: int) -> None:
    """A process's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for its owner, which ends it
    threading.Thread(target=_end_with_owner, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    free, ready = Semaphore(AHEAD), SimpleQueue[Any]()

    def send() -> None:
        while True:
            pipe.send(ready.get())
            free.release()

    threading.Thread(target=send, daemon=True).start()
    for result in work(first, every):
        free.acquire()
        ready.put(result)


def _end_with_owner(owner: int) -> None:
    """A process that is killed cannot end those that it has started."""
    while os.getppid() == owner:
        time.sleep(1)
    os._exit(1)
