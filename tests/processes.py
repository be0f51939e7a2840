"""Child processes that are killed with SIGKILL at a chosen moment. They are forked, to save the time of an import."""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

#: Seconds after which a forked process hangs: it may have copied a lock that a thread held, which no thread of its own returns.
HANGS = 120


def start_child(work: Callable[[], Any]) -> int:
    """Run ``work`` in a forked process, quietly; its number. A process that hangs tells where, and ends by SIGALRM."""
    pid = os.fork()
    if pid == 0:
        try:
            faulthandler.register(signal.SIGALRM, file=os.dup(2), chain=True)
            signal.alarm(HANGS)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return pid


def end_of(pid: int) -> int:
    """The signal that ended a child, or minus its exit status."""
    return -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work: Callable[[], Any], killer: Callable[[int], None] = lambda pid: None) -> int:
    """:func:`end_of` a child that runs ``work``; ``killer(pid)`` runs in this process meanwhile."""
    pid = start_child(work)
    killer(pid)
    return end_of(pid)


def die() -> None:
    """As ``kill -9`` does it: nothing is flushed, closed or told."""
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in(owner: Any, name: str, call: int, after: Callable[..., Any] = lambda *args: None) -> None:
    """From now on, this process is killed at call number ``call`` (from 0) of ``owner.name``; ``after`` does a part of it."""
    original, calls = getattr(owner, name), iter(range(10**6))

    def dying(*args, **options):
        if next(calls) == call:
            after(*args)
            die()
        return original(*args, **options)

    setattr(owner, name, dying)


def dies_before_step(number: int) -> None:
    """From now on, this process is killed when an optimiser is about to take its step ``number`` (from 1)."""
    steps = itertools.count(1)
    register_optimizer_step_pre_hook(lambda *_: die() if next(steps) == number else None)


def dies_after_step(number: int) -> None:
    """From now on, this process is killed when an optimiser has taken its step ``number`` (from 1)."""
    steps = itertools.count(1)
    register_optimizer_step_post_hook(lambda *_: die() if next(steps) == number else None)
