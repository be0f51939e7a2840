"""Claims, their experiments and the outcomes of experiments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from lamina.files import read_json, to_json, write_text
from lamina_research.cache import build_seconds, cached, code_version, key_text
from lamina_research.figures import Plot


@dataclass(frozen=True)
class Scale:
    """The size of an experiment, and whether its outcome decides anything."""

    seeds: tuple[int, ...]  # the default
    enough: int | None  # how many seeds decide a claim; None: no number does


SCALES = {
    "smoke": Scale((0,), None),  # under 60 s on 2 CPU cores; shows that the code runs
    "cpu": Scale((0, 1, 2), 3),  # under 2 hours on 2 CPU cores; decides the direction of an effect
    "gpu": Scale((0, 1, 2), 3),  # minutes on one GPU; decides direction and size
    "paper": Scale((0, 1, 2), 3),  # the paper's own configuration
}


VALUE = "value.json"


@dataclass(frozen=True)
class Outcome:
    """The result of an experiment: ``metrics[method][metric]`` holds one value per seed, in the order of the seeds.

    ``holds`` says whether the rule in the claim's ``decides`` is met (a scale that decides nothing ignores it), ``explanation``
    gives the numbers behind that. ``picture`` is a PNG file that the experiment wrote.
    """

    metrics: Mapping[str, Mapping[str, Sequence[float]]]
    holds: bool
    explanation: str
    plots: Sequence[Plot] = ()  # drawn side by side
    picture: Path | None = None


@dataclass(frozen=True)
class Experiment:
    """The scale, seeds and cache with which a claim runs.

    ``values``: a folder of values that were measured before (:meth:`cached_value`).
    """

    scale: str
    seeds: tuple[int, ...]
    workdir: Path
    progress: Callable[[str], None] = print
    values: Path | None = None
    _reused: dict[Path, float] = field(default_factory=dict, repr=False)
    _kept: dict[str, str] = field(default_factory=dict, repr=False)  # values that were found: file, version of the code

    def cached(self, key: dict[str, Any], code: tuple[ModuleType | str, ...], build: Callable[[Path], None]) -> Path:
        """The folder that ``build(path)`` fills, built at most once for this ``key`` and this code.

        ``key``: every value that the result depends on (method, config, data recipe, seed). ``code``: the modules (or their names)
        whose code the result depends on; the modules that these import are found, except those imported by a computed name.
        ``build`` may be called on a folder that an interrupted run left, and should resume. Name data in ``key`` by its
        recipe, not by its path: with paths, another work folder would train everything again.
        """
        built: list[Path] = []

        def counted(path: Path) -> None:
            built.append(path)
            build(path)

        run = cached(
            self.workdir / "cache", key, [m if isinstance(m, str) else m.__name__ for m in code], counted, self.progress
        )
        if built:
            self._reused[run] = 0.0  # its time is part of this experiment's own
        elif run not in self._reused:
            self._reused[run] = build_seconds(run)
            self.progress(f"{run}: from the cache")
        return run

    def cached_value(self, key: dict[str, Any], code: tuple[ModuleType | str, ...], compute: Callable[[], Any]) -> Any:
        """What ``compute()`` returns, a JSON value, computed at most once; ``key`` and ``code`` as in :meth:`cached`.

        With a folder of ``values`` it is also kept there, under its key alone: it is found again where the models are gone or the code has
        changed since. The record tells with which code.
        """
        kept = None if self.values is None else self.values / f"{sha256(key_text(key).encode()).hexdigest()[:16]}.json"
        if kept is not None and kept.exists():
            found = read_json(kept, "delete it")
            self._kept[kept.name] = str(found["code_version"])
            return found["value"]

        def build(path: Path) -> None:
            write_text(path / VALUE, json.dumps(compute()) + "\n")

        value = json.loads((self.cached(key, code, build) / VALUE).read_text())
        if kept is not None:
            record = {"key": json.loads(key_text(key)), "value": value, "code_version": code_version()}
            write_text(kept, to_json(record, indent=1) + "\n")
        return value

    @property
    def kept_versions(self) -> dict[str, int]:
        """How many of the values were found in ``values``, by the version of the code that measured them."""
        return dict(Counter(self._kept.values()))

    @property
    def reused_seconds(self) -> float:
        """Seconds that it took to build the runs that were found in the cache."""
        return sum(self._reused.values())


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, and the experiment that tests it (None: planned)."""

    id: str  # paper/claim
    statement: str
    paper: str  # where the paper makes it, and the paper's numbers
    decides: str  # the rule by which it holds here
    run: Callable[[Experiment], Outcome] | None = None
    scales: tuple[str, ...] = ("smoke", "cpu", "gpu")  # those that ``run`` is built for
    seeds: tuple[int, ...] = ()  # the default at scales that decide something; empty: the scale's own

    def default_seeds(self, scale: str) -> tuple[int, ...]:
        """The seeds of a run that names none."""
        return self.seeds if self.seeds and SCALES[scale].enough else SCALES[scale].seeds

    @property
    def state(self) -> str:
        """``planned``, or the scales at which anyone can run it."""
        return f"runnable at {', '.join(self.scales)}" if self.run else "planned"
