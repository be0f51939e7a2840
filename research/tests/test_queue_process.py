"""The queue as a command, with a worker in a process of its own, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import toy_claims

START = [sys.executable, toy_claims.__file__]


def runs(process: str) -> bool:
    """Whether a process does anything still; a zombie does not."""
    status = Path("/proc", process, "stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_command_takes_its_workers_with_it_and_goes_on(tmp_path: Path) -> None:
    command = [*START, "cli", "reproduce", "--all", "--claims", "toy/pair", "--seeds", "0", "--jobs", "1", "--workdir", "w"]  # fmt: skip
    steps = tmp_path / "w" / "steps"

    def taken() -> list[list[str]]:
        return [line.split() for line in steps.read_text().splitlines()] if steps.exists() else []

    slow = {**os.environ, "TOY": '{"sleep": 0.2}'}
    with subprocess.Popen(command, cwd=tmp_path, env=slow, stdout=subprocess.PIPE) as first:
        while len(taken()) < toy_claims.STEPS + 2:  # one model is there, the other begun
            assert first.poll() is None
            time.sleep(0.02)
        first.kill()
    (worker,) = {step[0] for step in taken()}
    until = time.monotonic() + 20
    while runs(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not runs(worker) and first.returncode == -signal.SIGKILL
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").rglob("*.json"))

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        "toy/pair  decides nothing (1 seeds), results/toy/pair-cpu.json",
        "1 of 1 claims have their records.",
    ]
    assert (tmp_path / "results" / "toy" / "pair-cpu.json").exists()
    count = Counter(tuple(step[1:]) for step in taken())
    assert len(count) == 2 * toy_claims.STEPS and sum(count.values()) <= 2 * toy_claims.STEPS + 1
    assert all(count["wide", "0", str(n)] == 1 for n in range(1, toy_claims.STEPS + 1))
