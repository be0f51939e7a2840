"""The queue of claims: several processes train the models of the claims that have to be run.

The unit of work is a claim with one seed. A worker runs the claim's own function with that seed, which fills the cache; when all seeds are
done, one worker runs the claim with all of them, finds everything there, and writes the record. Two workers may have the same unit: where a
claim says so (:meth:`~lamina_research.experiment.Experiment.each`), each builds other models of the seed. A worker never waits for a run
that another builds: it takes another unit, and this one is taken up again when the run is there. Nothing but the cache is shared, so a
queue that was killed goes on when it is started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from lamina.comparison.plan import cores
from lamina.errors import LaminaError
from lamina.files import disk_errors, locked
from lamina_research.agenda import Row, Run, Unit, agenda
from lamina_research.cache import is_busy
from lamina_research.experiment import Event
from lamina_research.queue_page import QueuePage
from lamina_research.record import read_record, verdict
from lamina_research.reproduce import prepare, reproduce
from lamina_research.worker import Message, order_of

WORKER: tuple[str, ...] = ("-m", "lamina_research.worker")  # what the interpreter runs
DEATHS = 2  # of workers, after which a claim has failed
POLL = 0.5  # seconds
PAGE_EVERY = 5.0  # seconds


def say(line: str) -> None:
    """Prints a line at once, also into a file."""
    print(line, flush=True)


def start(threads: int, log: Path) -> subprocess.Popen[bytes]:
    """Starts a worker, which prints to ``log``."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *WORKER, str(threads)]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment
        )  # fmt: skip


class Worker:
    """A process that runs units, and the thread that takes its answers. What it prints goes to ``log``."""

    def __init__(self, number: int, threads: int, log: Path, inbox: SimpleQueue[tuple[Worker, Message]]):
        self.number, self.log = number, log
        self.unit: Unit | None = None
        self.building: list[Event] = []  # the runs that it builds, the inner ones last
        self.process = start(threads, log)
        self._reader = Thread(target=self._read, args=(inbox,), daemon=True)
        self._reader.start()

    def _read(self, inbox: SimpleQueue[tuple[Worker, Message]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            inbox.put((self, json.loads(line)))

    def take(self, unit: Unit) -> None:
        """Gives the process its next unit."""
        self.unit = unit
        unit.workers += 1
        order = json.dumps(order_of(unit.row.job, unit.seeds, unit.last))
        assert self.process.stdin is not None
        with suppress(OSError):  # it has died, which is seen to later
            self.process.stdin.write(f"{order}\n".encode())
            self.process.stdin.flush()

    def has_died(self) -> bool:
        """Whether the process has ended, of whose answers none is left to take."""
        if self.process.poll() is None:
            return False
        self._reader.join(1.0)
        return True

    def end(self) -> None:
        """Ends the process, whatever it is at."""
        self.process.kill()
        self.process.wait()
        self._reader.join(1.0)
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


class Scheduler:
    """The queue and its workers."""

    def __init__(self, rows: Sequence[Row], jobs: int, workdir: Path, page: QueuePage, progress: Callable[[str], None]):
        self.rows, self.jobs, self.workdir, self.page, self.progress = rows, jobs, workdir, page, progress
        self.workers: list[Worker] = []
        self.inbox: SimpleQueue[tuple[Worker, Message]] = SimpleQueue()
        self.started = 0  # workers
        self.told: set[Path] = set()  # runs that processes of others build

    def run(self) -> None:
        """Runs until every claim has its record or has failed."""
        due = 0.0
        try:
            while any(row.open for row in self.rows):
                self.hand_out()
                self.receive()
                self.bury()
                self.give_up()
                if time.monotonic() >= due:
                    self.page.write()
                    due = time.monotonic() + PAGE_EVERY
        finally:
            for worker in self.workers:
                worker.end()
            for row in self.rows:
                row.lock.close()
            self.page.write(ended=True)

    def next_unit(self) -> Unit | None:
        """The first unit of the queue on which nobody works, else one in whose work a second worker can join."""
        ready = [unit for row in self.rows for unit in row.ready()]
        free = (unit for unit in ready if not unit.workers and unit.can_go_on())
        shared = (unit for unit in ready if unit.workers and unit.row.takes_more(unit) and unit.can_go_on())
        return next(free, None) or next(shared, None)

    def hand_out(self) -> None:
        """Gives units to the workers that have none, and starts workers as long as there are units for them."""
        while len([w for w in self.workers if w.unit]) < self.jobs and (unit := self.next_unit()):
            if not self.begun(unit.row):
                continue
            worker = next((w for w in self.workers if w.unit is None), None) or self.new_worker()
            worker.take(unit)

    def begun(self, row: Row) -> bool:
        """Whether a claim is running now: its record is locked for this queue, or else it has failed."""
        if row.state == "waiting":
            try:
                row.lock.enter_context(locked(row.job.out))
            except LaminaError as error:
                self.finish(row, why=str(error))
                return False
            row.state, row.began = "running", time.monotonic()
        return row.state == "running"

    def new_worker(self) -> Worker:
        self.started += 1
        log = self.workdir / "logs" / f"{self.page.path.stem}-{self.started}.log"
        log.unlink(missing_ok=True)
        worker = Worker(self.started, max(1, cores() // self.jobs), log, self.inbox)
        self.workers.append(worker)
        return worker

    def receive(self) -> None:
        """Takes the answers of workers; waits a moment where there are none."""
        wait: float | None = POLL
        while True:
            try:
                worker, message = self.inbox.get(timeout=wait) if wait else self.inbox.get_nowait()
            except Empty:
                return
            wait = None
            if worker.unit is None:
                continue
            row = worker.unit.row
            if "said" in message:
                self.progress(f"{row.job.claim.id}: {message['said']}")
            elif "event" in message:
                self.happened(worker, row, Event(**message["event"]))
            else:
                unit, worker.unit = worker.unit, None
                self.answered(unit, message, worker.log)

    def happened(self, worker: Worker, row: Row, event: Event) -> None:
        """Something has happened to a run that a worker needs."""
        if event.kind == "begun":
            worker.building.append(event)
        elif event.kind in ("built", "dropped"):
            worker.building.pop()
        known = row.runs.get(event.run)
        if event.kind == "found" and known and known.event.kind == "built":
            return  # by this queue; its time counts as before
        row.runs[event.run] = Run(event)

    def answered(self, unit: Unit, message: Message, log: Path) -> None:
        """A worker has ended its unit."""
        row = unit.row
        unit.workers -= 1
        if not row.open or unit.done:
            return  # another worker was faster
        if message["outcome"] == "failed":
            row.why = row.why or f"{message['why']} ({log} has more)"
        elif message["outcome"] == "busy":
            unit.busy = tuple(map(Path, message["runs"]))
            self.tell_of_others(row, unit.busy)
        else:
            unit.done = True
        if row.units[-1].done:
            self.finish(row)

    def tell_of_others(self, row: Row, runs: Sequence[Path]) -> None:
        """Says, once for each run, that a process which is not of this queue builds what a claim needs."""
        ours = {event.run for worker in self.workers for event in worker.building}
        for run in runs:
            if run.name not in ours and run not in self.told and is_busy(run):
                self.told.add(run)
                self.progress(f"{row.job.claim.id}: {run}: waiting for another process that builds it")

    def bury(self) -> None:
        """Sees to workers that have died: their claims are tried once more, since a model that was half trained goes on."""
        for worker in [w for w in self.workers if w.has_died()]:
            self.receive_rest()
            self.workers.remove(worker)
            worker.end()
            if worker.unit is None:
                continue
            row, code = worker.unit.row, worker.process.returncode
            row.deaths += 1
            how = f"signal {-code}" if code < 0 else f"status {code}"
            for event in worker.building:
                row.runs[event.run] = Run(replace(event, kind="dropped"))
            at = worker.building[-1].title if worker.building else "no model"
            if row.deaths < DEATHS:
                self.progress(f"{row.job.claim.id}: a process ended ({how}) at {at}; it is tried again")
                answer = {"outcome": "busy", "runs": []}
            else:
                answer = {"outcome": "failed", "why": f"{at}: its process ended ({how}), {DEATHS} times in all"}
            self.answered(worker.unit, answer, worker.log)

    def give_up(self) -> None:
        """Ends the claims that failed and whose other workers have ended what they were at."""
        for row in self.rows:
            if row.open and row.why and not any(unit.workers for unit in row.units):
                self.finish(row, row.why)

    def receive_rest(self) -> None:
        """Takes what workers had answered before they died."""
        if not self.inbox.empty():
            self.receive()

    def finish(self, row: Row, why: str = "") -> None:
        """A claim has its record, or has failed."""
        row.state, row.why, row.ended = ("failed" if why else "done"), why, time.monotonic()
        row.lock.close()
        self.progress(f"{row.job.claim.id}: {'failed: ' + why if why else result(row)}")


def result(row: Row) -> str:
    """What the record of a finished claim says."""
    record = read_record(row.job.out)
    return f"{verdict(record)} ({len(record['seeds'])} seeds), {row.job.out}"


def run_rows(
    rows: Sequence[Row], jobs: int, workdir: Path, page: Path, title: str, progress: Callable[[str], None] = say
) -> None:
    """Runs claims in ``jobs`` processes and shows how far they are on ``page``. Raises LaminaError for less than one
    process, and if ``workdir`` cannot be written."""
    if jobs < 1:
        raise LaminaError(f"{jobs} processes: at least one is needed")
    with disk_errors(workdir):
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
    shown = QueuePage(page, rows, jobs, workdir, title)
    progress(f"progress: {shown.write()}")
    Scheduler(rows, jobs, workdir, shown, progress).run()


def reproduce_in_parallel(
    claim_id: str,
    scale: str,
    out: Path | None = None,
    seeds: Sequence[int] | None = None,
    workdir: Path = Path("runs/claims"),
    progress: Callable[[str], None] = say,
    values: Path | None = None,
    jobs: int = 1,
) -> Path:
    """:func:`~lamina_research.reproduce.reproduce` with the models trained in ``jobs`` processes, each with its share of the cores.

    The record is the same, but for its times, as that of one process with as many threads. Raises LaminaError, after the other processes
    have ended what they were at, if an experiment fails.
    """
    if jobs == 1:
        return reproduce(claim_id, scale, out, seeds, workdir, progress, values)
    row = Row(prepare(claim_id, scale, out, seeds, workdir, values))
    with row.lock:
        row.lock.enter_context(locked(row.job.out))  # fails now, before anything is started
        row.state, row.began = "running", time.monotonic()
        run_rows([row], jobs, workdir, workdir / f"{row.job.name}.html", f"{claim_id} at scale {scale}", progress)
    if row.state == "failed":
        raise LaminaError(f"{claim_id}: {row.why}")
    return row.job.out


def reproduce_all(
    scale: str,
    patterns: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    workdir: Path = Path("runs/claims"),
    progress: Callable[[str], None] = say,
    values: Path | None = None,
    jobs: int = 1,
) -> list[Row]:
    """Runs the claims without a record, or with an outdated one, in one queue; WORKDIR/queue.html shows how far it is.

    A claim that fails does not stop the others. ``patterns``: only claims whose ids match one of them. Raises LaminaError for an unknown
    scale, for a pattern that no claim matches, if ``workdir`` cannot be written, and if another queue uses it.
    """
    rows = agenda(scale, patterns, seeds, workdir, values)
    page = workdir / "queue.html"
    with locked(page) if rows else nullcontext():
        if rows:
            run_rows(rows, jobs, workdir, page, f"Claims at scale {scale}", progress)
    return rows


def outcome_text(rows: Sequence[Row]) -> str:
    """What became of each claim, in a table."""
    if not rows:
        return "Nothing to do: every one of these claims has its record."
    width = max(len(row.job.claim.id) for row in rows) + 2
    lines = [f"{row.job.claim.id:{width}}{row.why if row.state == 'failed' else result(row)}" for row in rows]
    return "\n".join([*lines, f"{sum(row.state == 'done' for row in rows)} of {len(rows)} claims have their records."])
