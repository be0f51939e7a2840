"""Labels made by several jobs that know nothing of one another: each leaves one whole part, and a merge makes the dataset of all of them.

OUT.shards/00003-of-00010/    shard.json, episode-000123.parquet, ...
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamina.data.dataset import Dataset
from lamina.data.episodes import Episode
from lamina.data.lerobot.labels import check_plan, finish, link, staging_of
from lamina.data.lerobot.staging import Engine, LabelPlan, Staging, digest
from lamina.data.lerobot.tables import read_metadata
from lamina.data.lerobot.writer import check_new, write_json, writing
from lamina.errors import LaminaError
from lamina.files import locked, partial_path, sync
from lamina.records import differences

MOST = 99_999  # shards of a dataset
NOTE = "shard.json"


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts, ``number`` = 1 .. count. Raises LaminaError for any other."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MOST:
            raise LaminaError(f"--shard {self}: must be I/N with I from 1 to N, and N at most {MOST:,}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @staticmethod
    def parse(text: str) -> Shard:
        """The shard that "3/10" names. Raises LaminaError."""
        if not (found := re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)):
            raise LaminaError(f"--shard {text!r:.60}: must be I/N, such as 3/10")
        return Shard(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.number:05d}-of-{self.count:05d}"

    def episodes(self, source: Dataset) -> list[Episode]:
        """Its episodes: neighbours, which share files, and about as many frames as any other shard has."""
        lengths = np.array([episode.length for episode in source.episodes])
        middles = np.cumsum(lengths) - lengths / 2
        owner = (middles * self.count / lengths.sum()).astype(int)
        return [source.episodes[n] for n in np.flatnonzero(owner == self.number - 1).tolist()]


def shards_folder(out: Path) -> Path:
    """Where the parts of ``out`` wait to be merged."""
    return out.with_name(f"{out.name}.shards")


def write_shard(plan: LabelPlan, out: Path, shard: Shard, engine: Engine) -> Path:
    """Label the episodes of one shard of ``out``; returns the folder of the part, which appears whole or not at all.

    Killed and started again it goes on after the last whole episode; a part that is there already is left as it is. Raises LaminaError as
    :func:`lamina.data.lerobot.labels.write_labels` does, and for a part of another plan, and while another job writes this one.
    """
    place = shards_folder(out) / shard.name
    check_new(out)
    with locked(place):
        record = plan.record()
        if place.exists():
            _check_part(place, shard, record)
            return place
        missing = check_plan(plan, out)
        partial = partial_path(place)
        staging = Staging(partial, place, plan.features)
        staging.resume(digest(record), within=partial)
        staging.fill(shard.episodes(plan.source), missing, engine)
        with writing(place):
            write_json(partial / NOTE, {"format": 1, "number": shard.number, "count": shard.count, "labels": record})
            for file in (*partial.iterdir(), partial):
                sync(file)
            os.replace(partial, place)
            sync(place.parent)
    return place


def merge_shards(plan: LabelPlan, out: Path) -> Path:
    """Make the dataset ``out`` of the parts beside it, which are removed when it is whole. It is the one that a single job would write.

    Raises LaminaError for parts that are missing, not finished, damaged, of another plan or of other counts; and as
    :func:`lamina.data.lerobot.labels.write_labels` does. Nothing is written then.
    """
    with locked(out):
        check_plan(plan, out)
        parts, record = _parts(out), plan.record()
        made: dict[Path, Episode] = {}  # files of labels
        for shard, place in parts.items():
            _check_part(place, shard, record)
            part = Staging(place, place, plan.features)
            for episode in shard.episodes(plan.source):
                if not part.has(episode):
                    raise LaminaError(
                        f"{place}: lacks episode {episode.number}; delete this folder and label --shard {shard} again"
                    )
                made[part.path(episode)] = episode
        staging = staging_of(plan, out)
        with writing(out):
            for path, episode in made.items():
                link(path, staging.path(episode))
        finish(plan, out, staging)
        shutil.rmtree(shards_folder(out))
    return out


def _parts(out: Path) -> dict[Shard, Path]:
    """The folders of all parts of ``out``. Raises LaminaError unless every one is there."""
    folder = shards_folder(out)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = [re.fullmatch(r"\.?([0-9]{5})-of-([0-9]{5})(?:\.partial)?", name) for name in names]
    known = [(Shard(int(f[1]), int(f[2])), f[0].startswith(".")) for f in found if f and f[1] != "00000"]
    if not known:
        raise LaminaError(
            f"{folder}: holds no shard; run: lamina label RUN DATA --out {out} --shard 1/N, and so on to N/N"
        )
    counts = sorted({shard.count for shard, _ in known})
    if len(counts) > 1:
        raise LaminaError(f"{folder}: holds shards of {counts[0]} and of {counts[1]}; delete those of one of them")
    whole = {shard for shard, unfinished in known if not unfinished}
    lacking = [s for s in (Shard(n + 1, counts[0]) for n in range(counts[0])) if s not in whole]
    if lacking:
        named = ", ".join(map(str, lacking[:5])) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        begun = sum(shard in {s for s, _ in known} for shard in lacking)
        state = f" ({begun} begun, not finished)" if begun else ""
        raise LaminaError(
            f"{folder}: shard {named} missing{state}; run lamina label with --shard {lacking[0]} before --merge"
        )
    return {shard: folder / shard.name for shard in sorted(whole, key=lambda shard: shard.number)}


def _check_part(place: Path, shard: Shard, record: dict[str, Any]) -> None:
    """Raises LaminaError unless a part is that shard of labels with this record."""
    remedy = f"delete this folder and label --shard {shard} again"
    note = read_metadata(place / NOTE)
    if (note.get("format"), note.get("number"), note.get("count")) != (1, shard.number, shard.count):
        raise LaminaError(f"{place}: is not what its name says; {remedy}")
    changed = differences(note.get("labels"), record)
    if "provenance.checkpoint" in changed:
        raise LaminaError(f"{place}: was labelled by another model; {remedy}, or give the run that it was made with")
    if {"content", "lengths"} & set(changed):
        raise LaminaError(f"{place}: was labelled from other data; {remedy}, or give the data that it was made from")
    if changed:
        raise LaminaError(
            f"{place}: was labelled with other options ({', '.join(changed)}); {remedy}, or give the same ones"
        )
