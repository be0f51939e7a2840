"""Notes of what claims took, from which the time of the next run is estimated: WORKDIR/notes/CLAIM-SCALE.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lamina.errors import LaminaError
from lamina.files import json_of, write_text
from lamina_research.cache import build_seconds
from lamina_research.experiment import Experiment


@dataclass(frozen=True)
class Note:
    """Seconds of one process that a claim took: of each run of the cache that it asked for, by the name of its folder, and of the rest.

    ``source``: what says so. A record knows only the sum, which is then ``own``.
    """

    runs: Mapping[str, float] = field(default_factory=dict)
    own: float = 0.0
    source: str = "an earlier run"

    @property
    def seconds(self) -> float:
        return sum(self.runs.values()) + self.own

    def left(self, there: set[str]) -> float:
        """The seconds that a run takes which finds the runs in ``there``."""
        return sum(seconds for run, seconds in self.runs.items() if run not in there) + self.own


def note_path(workdir: Path, name: str) -> Path:
    return workdir / "notes" / f"{name}.json"


def write_note(workdir: Path, name: str, experiment: Experiment, seconds: float) -> None:
    """Writes the note of an experiment that took ``seconds``, without those in which runs were built that it found in the cache."""
    runs = {run.name: build_seconds(run) for run in experiment.runs}
    own = max(0.0, seconds + experiment.reused_seconds - sum(runs.values()))
    write_text(note_path(workdir, name), json.dumps({"runs": runs, "own": round(own, 1)}, indent=1) + "\n")


def read_note(workdir: Path, name: str, record: Path | None = None) -> Note | None:
    """What a claim took before, by its note or else by its record; None where nothing readable says so."""
    try:
        found = json_of(note_path(workdir, name))
        return Note({str(run): float(s) for run, s in found["runs"].items()}, float(found["own"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    try:
        return None if record is None else Note(own=float(json_of(record)["wall_seconds"]), source="its record")
    except (OSError, ValueError, KeyError, TypeError, LaminaError):
        return None
