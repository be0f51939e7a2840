"""LeRobotDataset v3.0, read and written with pyarrow and PyAV alone.

On disk: ``data/chunk-000/file-000.parquet`` holds the rows of many episodes, ``videos/KEY/chunk-000/file-000.mp4`` the
pictures of many episodes end to end, and ``meta/`` says which episode is where.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8

from lamina.data.episodes import Episode, compact_times, split_episodes
from lamina.data.video import decode, key_distance
from lamina.data.writer import LeRobotWriter, VideoEncoding
from lamina.errors import LaminaError
from lamina.shapes import ActionSpec

__all__ = ["LeRobotDataset", "LeRobotWriter", "VideoEncoding", "open_lerobot"]

CACHE_BYTES = 128 * 2**20  # columns of row groups kept in memory, per process
FAILURES = (pa.ArrowException, OSError, ValueError, KeyError)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``. Raises LaminaError if it is missing or damaged."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LaminaError(f"{path}: cannot be read ({_reason(error)}); the dataset is incomplete or damaged") from error
    if not isinstance(content, dict):
        raise LaminaError(f"{path}: is not a JSON object; the dataset is damaged")
    return content


def read_table(path: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()) -> pa.Table:
    """A parquet file as a table: ``columns`` and those of ``optional`` that it has, or everything.

    Raises LaminaError if it is missing, damaged or lacks one of ``columns``.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            there = set(file.schema_arrow.names)
            missing = set(columns or ()) - there
            if missing:
                raise LaminaError(f"{path}: has no column {', '.join(sorted(missing))}; the dataset is incomplete")
            wanted = None if columns is None else [*columns, *(name for name in optional if name in there)]
            table = file.read(columns=wanted)
            if len(table) != file.metadata.num_rows:
                raise ValueError("rows are missing")
            return table
    except FAILURES as error:
        if isinstance(error, LaminaError):
            raise
        raise LaminaError(f"{path}: cannot be read ({_reason(error)}); the dataset is incomplete or damaged") from error


def to_numpy(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A scalar or (nested) list column as an array [rows, d]."""
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = len(values)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    while pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or is_fixed(values.type):
        values = values.flatten()
    flat = values.to_numpy(zero_copy_only=False)
    if rows and len(flat) % rows:
        raise ValueError("rows differ in length")
    return flat.reshape(rows, -1 if rows else 1)


def is_fixed(kind: pa.DataType) -> bool:
    """Whether an arrow type is a list of fixed length."""
    return pa.types.is_fixed_size_list(kind)


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


class _Columns:
    """Columns of parquet row groups, the most recently used of them in memory."""

    def __init__(self) -> None:
        self.held: OrderedDict[tuple[Path, str, int], np.ndarray] = OrderedDict()
        self.bounds: dict[Path, np.ndarray] = {}

    def rows(self, path: Path, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1 of one column of a file, [rows, d]."""
        try:
            if path not in self.bounds:
                metadata = pq.read_metadata(path)
                counts = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
                self.bounds[path] = np.concatenate([[0], np.cumsum(counts)])
            bounds = self.bounds[path]
            first = int(np.searchsorted(bounds, start, side="right")) - 1
            last = int(np.searchsorted(bounds, stop, side="left"))
            parts = [self._group(path, name, g) for g in range(first, last)]
            return np.concatenate(parts)[start - bounds[first] : stop - bounds[first]]
        except FAILURES as error:
            raise LaminaError(
                f"{path}: column {name} cannot be read ({_reason(error)}); the file is damaged"
            ) from error

    def _group(self, path: Path, name: str, group: int) -> np.ndarray:
        key = (path, name, group)
        values = self.held.pop(key, None)
        if values is None:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                values = to_numpy(file.read_row_group(group, columns=[name], use_threads=False).column(name))
                if len(values) != file.metadata.row_group(group).num_rows:
                    raise ValueError("rows are missing")
        self.held[key] = values
        while len(self.held) > 1 and sum(v.nbytes for v in self.held.values()) > CACHE_BYTES:
            self.held.popitem(last=False)
        return values


@dataclass(frozen=True, eq=False)
class LeRobotDataset:
    """A LeRobotDataset v3.0 on disk."""

    root: Path
    info: dict[str, Any]
    places: dict[str, np.ndarray]  # one value per episode: where its rows and its pictures are, and its task
    fps: float
    cameras: tuple[str, ...]
    columns: tuple[str, ...]
    episodes: tuple[Episode, ...]
    kind: Literal["video", "lerobot"] = "lerobot"

    @property
    def action(self) -> ActionSpec | None:
        """What the feature "action" holds, if there is one."""
        return self.action_spec("action")

    def action_spec(self, name: str) -> ActionSpec | None:
        """What feature ``name`` holds, read as an action; None if there is no such feature.

        Whole-number features are discrete: their class counts are the feature's ``num_classes`` (a number, or one per
        dimension; Lamina writes it) or else the statistics' maximum + 1. ``num_classes`` on a float feature marks its
        leading dimensions as discrete.
        """
        if name not in self.columns:
            return None
        feature = self.info["features"][name]
        dim = int(np.prod(feature["shape"]))
        stated = feature.get("num_classes", ())
        try:
            classes = (stated,) * dim if isinstance(stated, int) else tuple(int(n) for n in stated)
        except (TypeError, ValueError) as error:
            raise LaminaError(f"{self.root}/meta/info.json: '{name}' states {stated!r} classes; mend it") from error
        classes = classes or self._count_classes(name, dim)
        return ActionSpec(classes, dim - len(classes), feature_names(feature))

    def _count_classes(self, name: str, dim: int) -> tuple[int, ...]:
        """Whole numbers whose classes nothing states: their maximum + 1."""
        if np.dtype(self.info["features"][name]["dtype"]).kind not in "iu":
            return ()
        try:
            highest = [int(m) for m in self.stats[name]["max"]]
        except (LookupError, TypeError, ValueError):
            highest = []
        if len(highest) != dim:
            raise LaminaError(f"{self.root}/meta/stats.json: has no maximum of '{name}' to count its classes")
        return tuple(max(2, m + 1) for m in highest)

    @cached_property
    def stats(self) -> dict[str, Any]:
        """meta/stats.json, empty where there is none."""
        path = self.root / "meta/stats.json"
        return read_json(path) if path.exists() else {}

    @cached_property
    def _cache(self) -> _Columns:
        return _Columns()

    def data_file(self, number: int) -> Path:
        """The parquet file with the rows of episode ``number``."""
        chunk, file = (int(self.places[f"data/{k}"][number]) for k in ("chunk_index", "file_index"))
        return self.root / self.info["data_path"].format(chunk_index=chunk, file_index=file)

    def video_file(self, number: int, camera: str) -> Path:
        """The video file with the pictures of episode ``number``."""
        chunk, file = (int(self.places[f"videos/{camera}/{k}"][number]) for k in ("chunk_index", "file_index"))
        return self.root / self.info["video_path"].format(video_key=camera, chunk_index=chunk, file_index=file)

    def frames(
        self, episode: Episode, camera: str, start: int, stop: int, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """See :meth:`lamina.data.episodes.Source.frames`."""
        if camera not in self.cameras:
            raise LaminaError(f"{self.root}: has no camera '{camera}'; it has: {', '.join(self.cameras)}")
        origin = self.places[f"videos/{camera}/from_timestamp"][episode.number]
        times = origin + episode.times[start:stop]
        return decode(self.video_file(episode.number, camera), times, size, tolerance=0.4 / episode.fps)

    def seconds(self, episode: Episode, camera: str) -> float:
        """See :meth:`lamina.data.episodes.Source.seconds`."""
        begin, end = (self.places[f"videos/{camera}/{k}_timestamp"][episode.number] for k in ("from", "to"))
        return float(end - begin)

    def column(self, episode: Episode, name: str) -> Float[np.ndarray, "t d"]:
        """See :meth:`lamina.data.episodes.Source.column`."""
        if name not in self.columns:
            raise LaminaError(f"{self.root}: has no feature '{name}'; it has: {', '.join(self.columns)}")
        path = self.data_file(episode.number)
        start = int(self.places["row"][episode.number])
        values = self._cache.rows(path, name, start, start + episode.length).astype(np.float32)
        if np.isnan(values).any():
            row = int(np.isnan(values).any(axis=1).argmax())
            raise LaminaError(
                f"{path}: '{name}' is NaN at episode {episode.number}, frame {row}; mend it, or do without the feature"
            )
        return values


def feature_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """The names of a feature's dimensions; LeRobot keeps them as a list, or as a dict of lists."""
    names = feature.get("names") or ()
    if isinstance(names, dict):
        names = [n for group in names.values() for n in (group if isinstance(group, list) else [group])]
    return tuple(str(n) for n in names)


def open_lerobot(root: Path, number: int = 0) -> LeRobotDataset:
    """Read the tables of a LeRobotDataset v3.0; no video is touched but the head of one file a camera."""
    info_path = root / "meta/info.json"
    info = read_json(info_path)
    version = str(info.get("codebase_version"))
    if not version.startswith("v3."):
        raise LaminaError(
            f"{info_path}: is LeRobotDataset {version}, not v3.0; convert it with lerobot's convert_dataset_v21_to_v30"
        )
    try:
        cameras = tuple(k for k, v in info["features"].items() if v["dtype"] == "video")
        columns = tuple(k for k, v in info["features"].items() if v["dtype"] not in ("video", "image", "string"))
        for name in columns:
            np.dtype(info["features"][name]["dtype"]), np.prod(info["features"][name]["shape"], dtype=int)
        fps, total = float(info["fps"]), int(info["total_episodes"])
        info["data_path"].format(chunk_index=0, file_index=0)
        info["video_path"].format(video_key="", chunk_index=0, file_index=0)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise LaminaError(
            f"{info_path}: lacks or garbles something ({_reason(error)}); the dataset is damaged"
        ) from error
    if not fps > 0:
        raise LaminaError(f"{info_path}: states {fps} frames per second; the dataset is damaged")
    places = _read_places(root, cameras)
    lengths = places["length"]
    if len(lengths) != total:
        raise LaminaError(f"{root}/meta/episodes: lists {len(lengths)} of {total} episodes; the dataset is incomplete")
    dataset = LeRobotDataset(root, info, places, fps, cameras, columns, ())
    stamps = _read_times(dataset, lengths, fps)
    gop = _key_distance(dataset) if total else None
    episodes = [
        Episode(
            number,
            n,
            f"{root} episode {n}",
            int(length),
            fps if n not in stamps else compact_times(stamps[n])[0],
            stamps=stamps.get(n),
            keys=None if gop is None else np.arange(0, length, gop, dtype=np.int32),
            task=str(places["task"][n]),
        )
        for n, length in enumerate(lengths)
    ]
    names = [f"episode {n}" for n in range(total)]
    declared = _declared_splits(info_path, info.get("splits") or {}, total)
    object.__setattr__(dataset, "episodes", split_episodes(episodes, names, root, declared))
    return dataset


def _read_places(root: Path, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """Where each episode's rows and pictures are, one array entry per episode, in the order of episode_index."""
    files = sorted((root / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise LaminaError(f"{root}/meta/episodes: holds no parquet file; the dataset is incomplete")
    names = ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index"]
    names += [f"videos/{c}/{k}" for c in cameras for k in ("chunk_index", "file_index", "from_timestamp")]
    ends = [f"videos/{c}/to_timestamp" for c in cameras]
    tables = [read_table(f, names, optional=("tasks", *ends)) for f in files]
    names += [name for name in ends if all(name in t.column_names for t in tables)]
    table = pa.concat_tables([t.select(names) for t in tables])
    places = dict.fromkeys(ends, np.full(len(table), np.nan)) | {name: to_numpy(table[name])[:, 0] for name in names}
    places["task"] = np.array([task for t in tables for task in _first_tasks(t)], dtype=object)
    order = np.argsort(places["episode_index"], kind="stable")
    places = {name: values[order] for name, values in places.items()}
    where = f"{root}/meta/episodes"
    if not np.array_equal(places["episode_index"], np.arange(len(order))):
        raise LaminaError(f"{where}: episodes are not numbered 0..{len(order) - 1}; the dataset is damaged")
    if len(order) and places["length"].min() < 1:
        raise LaminaError(f"{where}: episode {int(places['length'].argmin())} has no frame; the dataset is damaged")
    # The row within its file: files hold consecutive rows, so a file begins at its lowest dataset_from_index.
    file = places["data/chunk_index"].astype(np.int64) * 2**32 + places["data/file_index"]
    _, inverse = np.unique(file, return_inverse=True)
    first = np.full(inverse.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, inverse, places["dataset_from_index"])
    places["row"] = places["dataset_from_index"] - first[inverse]
    return places


def _first_tasks(table: pa.Table) -> list[str]:
    """The task of each row of meta/episodes, "" where none is given."""
    if "tasks" not in table.column_names:
        return [""] * len(table)
    return [
        str(tasks[0]) if isinstance(tasks, list) and tasks else str(tasks or "") for tasks in table["tasks"].to_pylist()
    ]


def _read_times(dataset: LeRobotDataset, lengths: np.ndarray, fps: float) -> dict[int, np.ndarray]:
    """The times of the episodes whose rows are not i / fps apart (Lamina writes the real times of plain video)."""
    members: dict[Path, list[int]] = {}
    for n in range(len(lengths)):
        members.setdefault(dataset.data_file(n), []).append(n)

    def irregular(path: Path) -> dict[int, np.ndarray]:
        values = to_numpy(read_table(path, ["timestamp"])["timestamp"])[:, 0].astype(np.float64)
        found = {}
        for n in members[path]:
            start = int(dataset.places["row"][n])
            times = values[start : start + lengths[n]]
            if len(times) < lengths[n]:
                raise LaminaError(f"{path}: has {len(values)} rows and lacks those of episode {n}; it is truncated")
            if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
                raise LaminaError(f"{path}: the timestamps of episode {n} do not ascend; the file is damaged")
            regular = np.arange(len(times)) / fps
            if (np.abs(times - regular) > 1e-4 + 1e-6 * regular).any():
                found[n] = times
        return found

    return {n: times for path in members for n, times in irregular(path).items()}


def _key_distance(dataset: LeRobotDataset) -> int | None:
    """Frames between key frames, from the head of each camera's first file; None where decoding can start anywhere."""
    distances = (key_distance(dataset.video_file(0, camera)) for camera in dataset.cameras)
    return max((d for d in distances if d is not None), default=None)


def _declared_splits(path: Path, splits: dict[str, str], total: int) -> dict[str, range]:
    declared = {}
    for name, span in splits.items():
        try:
            start, stop = (int(x) for x in str(span).split(":"))
        except ValueError as error:
            raise LaminaError(f"{path}: split {name} is '{span}', not 'start:stop'; mend it") from error
        if not 0 <= start <= stop <= total:
            raise LaminaError(f"{path}: split {name} is {span} but there are {total} episodes; mend it")
        declared["validation" if name in ("val", "valid") else name] = range(start, stop)
    return declared
