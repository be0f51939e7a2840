"""Claims, their experiments and the outcomes of experiments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from lamina.files import read_json, to_json, write_text
from lamina_research.cache import Busy, build_seconds, cached, code_version, is_cached, key_text
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
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Event:
    """What happens to a run of the cache: it is begun, then built or (after an exception) dropped; or it is found there."""

    kind: Literal["begun", "built", "dropped", "found"]
    run: str  # the name of its folder
    title: str
    seconds: float = 0.0  # in which it was built
    steps: int | None = None  # of its training, if its key has them


def _levels(value: Any) -> Iterator[tuple[str, Any]]:
    """The names and values in nested JSON objects, the outer ones first."""
    level = [value]
    while level:
        yield from (item for inner in level for item in inner.items())
        level = [v for inner in level for v in inner.values() if isinstance(v, dict)]


def title_of(key: Mapping[str, Any]) -> str:
    """What a run is, in a few words from its key: "alam, seed 1"; "structure of alam, seed 1"; "grid vanilla, sigma 0.5, seed 2"."""
    plain = json.loads(key_text(dict(key)))
    first, *others = key or ("run",)
    value = plain.get(first)
    inner = dict(_levels(value)) if isinstance(value, dict) else {}
    name = value if isinstance(value, str) else inner.get("method") or inner.get("world") or ""
    words = [f"{'' if first == 'method' else first} {name}".strip()]
    if "seed" in others:
        before = others[: others.index("seed")]
        words += [f"{n} {plain[n]}" for n in before if isinstance(plain[n], str | int | float)]
    seeds = [f"seed {seed}" for n, seed in _levels(plain) if n == "seed"]
    return ", ".join([*words, *seeds[:1]])


def _steps(key: dict[str, Any]) -> int | None:
    train = json.loads(key_text(key)).get("train")
    return train.get("steps") if isinstance(train, dict) else None


def _names(code: tuple[ModuleType | str, ...]) -> list[str]:
    return [m if isinstance(m, str) else m.__name__ for m in code]


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

    ``values``: a folder of values that were measured before (:meth:`cached_value`). ``wait``: whether to wait for runs that other processes
    build; otherwise :class:`~lamina_research.cache.Busy` is raised. ``events`` is called with what happens to runs; without it ``progress``
    is told which were found.
    """

    scale: str
    seeds: tuple[int, ...]
    workdir: Path
    progress: Callable[[str], None] = print
    values: Path | None = None
    wait: bool = True
    events: Callable[[Event], None] | None = None
    _reused: dict[Path, float] = field(default_factory=dict, repr=False)
    _kept: dict[str, str] = field(default_factory=dict, repr=False)  # values that were found: file, version of the code

    @property
    def _cache(self) -> Path:
        return self.workdir / "cache"

    def _tell(self, event: Event) -> None:
        if self.events is not None:
            self.events(event)
        elif event.kind == "found":
            self.progress(f"{self._cache / event.run}: from the cache")

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """``function`` of every item, in their order; for items that can be worked on in any order, such as models.

        Where another process builds what an item needs, and this one does not wait, the other items are done first; the item is tried again
        as long as others get done, so ``function`` may be called more than once. Raises Busy for what is left.
        """
        done: dict[int, Result] = {}
        left = dict(enumerate(items))
        while left:
            before = len(left)
            busy: list[Path] = []
            for n, item in list(left.items()):
                try:
                    done[n] = function(item)
                    del left[n]
                except Busy as error:
                    busy += error.runs
            if len(left) == before:
                raise Busy(*busy)
        return [done[n] for n in sorted(done)]

    def cached(
        self, key: dict[str, Any], code: tuple[ModuleType | str, ...], build: Callable[[Path], None], title: str = ""
    ) -> Path:
        """The folder that ``build(path)`` fills, built at most once for this ``key`` and this code.

        ``key``: every value that the result depends on (method, config, data recipe, seed). ``code``: the modules (or their names)
        whose code the result depends on; the modules that these import are found, except those imported by a computed name.
        ``build`` may be called on a folder that an interrupted run left, and should resume. Name data in ``key`` by its
        recipe, not by its path: with paths, another work folder would train everything again. ``title``: what the run is, for people; it is
        told when the building begins.
        """
        built: list[str] = []

        def told(path: Path) -> None:
            name, steps = path.stem, _steps(key)
            built.append(name)
            if title:
                self.progress(title)
            self._tell(Event("begun", name, title or title_of(key), steps=steps))
            try:
                build(path)
            except BaseException as error:
                error.add_note(title or title_of(key))  # the innermost run first
                self._tell(Event("dropped", name, title or title_of(key), steps=steps))
                raise

        run = cached(self._cache, key, _names(code), told, self.progress, wait=self.wait)
        if built:
            self._reused[run] = 0.0  # its time is part of this experiment's own
            self._tell(Event("built", run.name, title or title_of(key), build_seconds(run)))
        elif run not in self._reused:
            self._reused[run] = build_seconds(run)
            self._tell(Event("found", run.name, title or title_of(key), self._reused[run]))
        return run

    def cached_value(
        self,
        key: dict[str, Any],
        code: tuple[ModuleType | str, ...],
        compute: Callable[[], Any],
        needs: Callable[[], Any] = lambda: None,
    ) -> Any:
        """What ``compute()`` returns, a JSON value, computed at most once; ``key`` and ``code`` as in :meth:`cached`.

        With a folder of ``values`` it is also kept there, under its key alone: it is found again where the models are gone or the code has
        changed since. The record then tells with which code. ``needs()`` asks for the runs that the value is computed from, so that their
        time counts as theirs, also where the value is in the cache; a value that is kept needs none.
        """
        kept = None if self.values is None else self.values / f"{sha256(key_text(key).encode()).hexdigest()[:16]}.json"
        here = is_cached(self._cache, key, _names(code))
        if kept is not None and kept.exists() and not here:
            found = read_json(kept, "delete it")
            self._kept[kept.name] = str(found["code_version"])
            return found["value"]
        needs()

        def build(path: Path) -> None:
            write_text(path / VALUE, json.dumps(compute()) + "\n")

        value = json.loads((self.cached(key, code, build) / VALUE).read_text())
        if kept is not None and not (here and kept.exists()):  # what is kept may be newer than this cache
            record = {"key": json.loads(key_text(key)), "value": value, "code_version": code_version()}
            write_text(kept, to_json(record, indent=1) + "\n")
        return value

    @property
    def kept_versions(self) -> dict[str, int]:
        """How many of the values were found in ``values``, by the version of the code that measured them."""
        return dict(Counter(self._kept.values()))

    @property
    def runs(self) -> tuple[Path, ...]:
        """The runs of the cache that were asked for."""
        return tuple(self._reused)

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
    together: bool = False  # its seeds are one computation: with some of them it would build other models than with all

    def default_seeds(self, scale: str) -> tuple[int, ...]:
        """The seeds of a run that names none."""
        return self.seeds if self.seeds and SCALES[scale].enough else SCALES[scale].seeds

    @property
    def state(self) -> str:
        """``planned``, or the scales at which anyone can run it."""
        return f"runnable at {', '.join(self.scales)}" if self.run else "planned"
