"""What a queue of claims has to do: which claims, in which order, and how long that takes."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from lamina.errors import LaminaError
from lamina.training.pretraining import duration
from lamina_research.cache import is_busy
from lamina_research.experiment import Event
from lamina_research.notes import Note, read_note
from lamina_research.record import read_record
from lamina_research.reproduce import CLAIMS, Job, check_scale, find_record, prepare, results_folders

State = Literal["waiting", "running", "done", "failed"]


@dataclass(eq=False)
class Unit:
    """A claim with some of its seeds, which a worker runs to fill the cache, or (``last``) with all of them, to write the record."""

    row: Row
    seeds: tuple[int, ...]
    last: bool
    workers: int = 0
    done: bool = False
    busy: tuple[Path, ...] = ()  # the runs without which it could not go on, and which others were building

    def can_go_on(self) -> bool:
        """Whether one of the runs that it needs is free."""
        if self.busy and all(map(is_busy, self.busy)):
            return False
        self.busy = ()
        return True


@dataclass
class Run:
    """A run of the cache that a claim asked for."""

    event: Event
    began: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Row:
    """A claim in the queue."""

    job: Job
    why_run: str = ""
    note: Note | None = None  # what it took before
    state: State = "waiting"
    why: str = ""  # it failed; while its workers end, it is running still
    units: list[Unit] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)  # by the name of the folder
    deaths: int = 0  # of workers
    began: float = 0.0
    ended: float = 0.0
    lock: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        seeds, together = self.job.seeds, self.job.claim.together
        if len(seeds) > 1 and not together:
            self.units = [Unit(self, (seed,), last=False) for seed in seeds]
        self.units.append(Unit(self, seeds, last=True))

    @property
    def open(self) -> bool:
        return self.state in ("waiting", "running")

    def ready(self) -> list[Unit]:
        """The units that workers may take: the seeds, then the whole."""
        if not self.open or self.why:
            return []
        *seeds, whole = self.units
        return [unit for unit in seeds if not unit.done] or [whole]

    def takes_more(self, unit: Unit) -> bool:
        """Whether a second worker may help with a unit: it can build other models. With all models there, it could only repeat the work."""
        return not self.job.claim.together and (not unit.last or len(self.units) == 1)

    def seconds_left(self, there: set[str]) -> float | None:
        """The seconds of one process that are left, estimated from what the claim took before; None where nothing is known.

        ``there``: the runs in the cache. Runs that this queue found or built count even where their names have changed with the code.
        """
        if not self.open:
            return 0.0
        if self.note is None:
            return None
        if not self.runs:
            return self.note.left(there)
        spent = sum(run.event.seconds for run in self.runs.values())
        building = [time.monotonic() - run.began for run in self.runs.values() if run.event.kind == "begun"]
        return max(0.0, self.note.seconds - spent - sum(building))


def cached_runs(workdir: Path) -> set[str]:
    """The names of the finished runs in a work folder."""
    folder = workdir / "cache"
    return {path.name for path in folder.iterdir() if not path.suffix} if folder.is_dir() else set()


def why_missing(job: Job, folders: Sequence[Path]) -> str | None:
    """Why a claim has to be run: it has no record, or one that is damaged, outdated, or of other seeds. None if it has not."""
    path = find_record(job.claim, job.scale, folders)
    if path is None:
        return "no record"
    try:
        record = read_record(path)
    except LaminaError:
        return "damaged record"
    if record.get("outdated"):
        return "outdated record"
    missing = [seed for seed in job.seeds if seed not in record["seeds"]]
    return f"record without seed {', '.join(map(str, missing))}" if missing else None


def matching(patterns: Sequence[str], scale: str) -> list[str]:
    """The ids of the claims that can be run at a scale and match one of ``patterns`` (none: all); the name of a paper matches its claims.

    Raises LaminaError for a pattern that none matches.
    """
    check_scale(scale)
    runnable = [i for i, claim in CLAIMS.items() if claim.run is not None and scale in claim.scales]
    if not patterns:
        return runnable
    found: set[str] = set()
    for pattern in patterns:
        every = [i for i in CLAIMS if fnmatchcase(i, pattern) or i.startswith(f"{pattern}/")]
        if not every:
            near = difflib.get_close_matches(pattern, CLAIMS, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise LaminaError(f"--claims: no claim matches {pattern!r}; {hint}`lamina reproduce --list` shows them all")
        if not set(every) & set(runnable):
            raise LaminaError(f"--claims: no claim that matches {pattern!r} can be run at the scale {scale}")
        found |= set(every)
    return [i for i in runnable if i in found]


def agenda(
    scale: str,
    patterns: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    workdir: Path = Path("runs/claims"),
    values: Path | None = None,
) -> list[Row]:
    """The claims that have to be run, in the order in which they are.

    Raises LaminaError for an unknown scale and for a pattern that no runnable claim matches.
    """
    folders = results_folders()
    rows = []
    for claim_id in matching(patterns, scale):
        job = prepare(claim_id, scale, None, seeds, workdir, values)
        if why := why_missing(job, folders):
            rows.append(Row(job, why, read_note(workdir, job.name, find_record(job.claim, scale, folders))))
    return ordered(rows, cached_runs(workdir))


def ordered(rows: Sequence[Row], there: set[str]) -> list[Row]:
    """Cheap claims first. What is cheap is decided anew after each: claims that share models with it have become cheaper.

    ``there``: the runs in the cache. Claims of which nothing is known come last, in the order of the catalogue, in which those of a paper,
    which often share models, are together.
    """
    known = [row for row in rows if row.note is not None]
    unknown = [row for row in rows if row.note is None]
    there, found = set(there), []
    while known:
        row = min(known, key=lambda row: row.note.left(there) if row.note else 0.0)
        known.remove(row)
        found.append(row)
        there |= set(row.note.runs) if row.note else set()
    return [*found, *unknown]


def total_left(rows: Sequence[Row], there: set[str]) -> tuple[float, int]:
    """The seconds of one process that a queue takes, each run counted once, and the number of claims of which nothing is known."""
    seconds, unknown, there = 0.0, 0, set(there)
    for row in rows:
        left = row.seconds_left(there)
        seconds, unknown = seconds + (left or 0.0), unknown + (left is None)
        there |= set(row.note.runs) if row.note else set()
    return seconds, unknown


def in_words(seconds: float, unknown: int, jobs: int) -> str:
    """ "about 2.5 hours with 2 processes, not counting 3 claims of unknown length"."""
    processes = f"{jobs} process{'es' if jobs > 1 else ''}"
    claims = f"{unknown} claim{'' if unknown == 1 else 's'} of unknown length"
    if seconds == 0 and unknown:
        return f"unknown ({claims})"
    return f"about {duration(seconds / jobs)} with {processes}" + (f", not counting {claims}" if unknown else "")


def agenda_text(rows: Sequence[Row], jobs: int, workdir: Path) -> str:
    """A table of what a queue would do, with the estimated time of each claim in one process."""
    if not rows:
        return "Nothing to do: every one of these claims has its record."
    there = cached_runs(workdir)
    seconds, unknown = total_left(rows, there)
    width, reasons = max(len(row.job.claim.id) for row in rows) + 2, max(len(row.why_run) for row in rows) + 2
    lines = []
    for row in rows:
        left = row.seconds_left(there)
        told = "unknown" if left is None or row.note is None else f"{duration(left)}, by {row.note.source}"
        lines.append(f"{row.job.claim.id:{width}}{row.why_run:{reasons}}{told}")
        there |= set(row.note.runs) if row.note else set()
    return "\n".join([*lines, f"{len(rows)} claim{'' if len(rows) == 1 else 's'}: {in_words(seconds, unknown, jobs)}."])
