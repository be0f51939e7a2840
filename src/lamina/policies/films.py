"""Films of a rollout: some successes and some failures of each world, and one page that shows them.

An episode is filmed after all have been played, by doing the same again: the rollout itself draws no more than its policy looks at, and a
film can be sharper than what the policy saw. That the return is the same again is checked.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from tqdm import tqdm

from lamina.data.lerobot.writer import check_new, writing
from lamina.files import partial_path, write_text
from lamina.intervals import Estimate
from lamina.policies.workers import Outcome, Take, Workers
from lamina.progress import progress_bar
from lamina.types import ImageSize

FILMED = 4  # episodes of a world, half of them failures if there are so many
SIDE = 256  # pixels that the shorter side of a film has at least


@dataclass(frozen=True)
class Scene:
    """What the page shows of one world."""

    name: str
    tier: str
    rate: Estimate | None  # of success
    outcomes: dict[int, Outcome]  # by number of episode


@dataclass(frozen=True)
class Shown:
    """One film on the page; without ``file``, the reason why there is none."""

    episode: int
    outcome: Outcome
    file: str = ""
    reason: str = ""


def choose(outcomes: dict[int, Outcome], count: int = FILMED) -> list[int]:
    """The numbers of the episodes to film: the first successes and the first others, half of each as far as there are so many."""
    good = [number for number, outcome in sorted(outcomes.items()) if outcome.success]
    other = [number for number in sorted(outcomes) if number not in good]
    half = count // 2
    successes = good[: max(half, count - len(other))]
    return sorted(successes + other[: count - len(successes)])


def film(scenes: Sequence[Scene], seed: int, workers: Workers, folder: Path, title: str, progress: bool = True) -> Path:
    """Films each world, in ``workers``, into the new ``folder``: the path of its index.html.

    Raises LaminaError where ``folder`` exists or cannot be written; nothing is left of it then.
    """
    check_new(folder)
    partial = Path(os.path.abspath(partial_path(folder)))
    scale = -(-SIDE // min(workers.size))
    size = (workers.size[0] * scale, workers.size[1] * scale)
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        shown: list[tuple[Scene, list[Shown]]] = []
        with progress_bar(len(scenes), "filming", " worlds", disable=not progress) as bar:
            for first in range(0, len(scenes), len(workers)):
                together = scenes[first : first + len(workers)]
                shown += _film(together, seed, workers, partial, size, bar)
        write_text(partial / "index.html", _page(shown, title, size))
        with writing(folder):
            os.replace(partial, folder)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(partial)
        raise
    return folder / "index.html"


def _film(
    scenes: Sequence[Scene], seed: int, workers: Workers, folder: Path, size: ImageSize, bar: tqdm
) -> list[tuple[Scene, list[Shown]]]:
    """One world in each worker, all at once."""
    takes: list[list[Take]] = []
    for row, scene in enumerate(scenes):
        stem = re.sub(r"[^\w-]+", "-", scene.name)
        takes.append([Take(n, scene.outcomes[n], folder / f"{stem}-{n:03d}.mp4") for n in choose(scene.outcomes)])
        workers[row].film(scene.name, size, seed, takes[row])
    found = []
    for row, scene in enumerate(scenes):
        while (answer := workers[row].receive())[0] not in ("film", "lost", "mistake"):
            pass
        kind, said = answer
        if kind != "film":
            workers.end([row])
        reasons = said if kind == "film" else [said] * len(takes[row])
        found.append(
            (
                scene,
                [
                    Shown(t.episode, t.outcome, "" if why else t.path.name, why)
                    for t, why in zip(takes[row], reasons, strict=True)
                ],
            )
        )
        bar.update()
    return found


def _page(shown: Sequence[tuple[Scene, Sequence[Shown]]], title: str, size: ImageSize) -> str:
    environment = Environment(
        loader=PackageLoader("lamina.policies", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("films.html.j2").render(worlds=shown, title=title, height=size[0], width=size[1])
