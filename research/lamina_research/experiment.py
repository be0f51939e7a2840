"""What a claim is, what its experiment is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from lamina_research.cache import build_seconds, cached
from lamina_research.figures import Plot


@dataclass(frozen=True)
class Scale:
    """How large an experiment is, and what its outcome may decide."""

    name: str
    meaning: str
    seeds: tuple[int, ...]  # the default
    enough: int | None  # seeds from which it decides anything; None: never


SCALES = {
    scale.name: scale
    for scale in (
        Scale("smoke", "under 60 s on 2 CPU cores; shows that the code runs, decides nothing", (0,), None),
        Scale("cpu", "under 2 hours on 2 CPU cores, 3 seeds or more; decides the direction", (0, 1, 2), 3),
        Scale("gpu", "minutes on one GPU, 3 seeds or more; decides direction and size", (0, 1, 2), 3),
        Scale("paper", "the paper's own configuration", (0, 1, 2), 3),
    )
}


@dataclass(frozen=True)
class Outcome:
    """What an experiment measured: ``metrics[method][metric]`` holds one value per seed, in the order of the seeds.

    ``holds`` is the answer by the rule that the claim's ``decides`` states; ``explanation`` tells it in plain words,
    with the numbers. A scale that decides nothing drops the answer. ``picture`` is a PNG that the experiment made.
    """

    metrics: Mapping[str, Mapping[str, Sequence[float]]]
    holds: bool
    explanation: str
    plot: Plot | None = None
    picture: Path | None = None


@dataclass(frozen=True)
class Experiment:
    """What an experiment's function is given."""

    scale: str
    seeds: tuple[int, ...]
    workdir: Path
    progress: Callable[[str], None] = print
    _reused: dict[Path, float] = field(default_factory=dict, repr=False)

    def cached(self, key: dict[str, Any], code: tuple[ModuleType | str, ...], build: Callable[[Path], None]) -> Path:
        """The folder that ``build(path)`` fills, built at most once for this ``key`` and this code.

        ``key``: every value that the result depends on (method, config, data recipe, seed); ``code``: the modules
        (or their names) whose code it depends on (what they import is found), among them any that is imported by a computed name.
        ``build`` may be called on a folder that an interrupted run left: it resumes. Name data in ``key`` by its
        recipe, not by its path, or another work folder would train everything again.
        """
        built: list[Path] = []

        def counted(path: Path) -> None:
            built.append(path)
            build(path)

        run = cached(
            self.workdir / "cache", key, [m if isinstance(m, str) else m.__name__ for m in code], counted, self.progress
        )
        if not built:
            self._reused[run] = build_seconds(run)
            self.progress(f"{run}: from the cache")
        return run

    @property
    def reused_seconds(self) -> float:
        """Seconds that the runs which were found in the cache took when they were built."""
        return sum(self._reused.values())


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, and the experiment that tests it (None: planned)."""

    id: str  # paper/claim
    statement: str
    paper: str  # the paper's figure for it
    decides: str  # what decides it here
    run: Callable[[Experiment], Outcome] | None = None
    scales: tuple[str, ...] = ()  # those that ``run`` is built for
    seeds: tuple[int, ...] = ()  # the default where a scale decides something; empty: the scale's own

    def default_seeds(self, scale: str) -> tuple[int, ...]:
        """The seeds of a run that names none."""
        return self.seeds if self.seeds and SCALES[scale].enough else SCALES[scale].seeds

    @property
    def state(self) -> str:
        """``planned``, or the scales at which anyone can run it."""
        return f"runnable at {', '.join(self.scales)}" if self.run else "planned"
