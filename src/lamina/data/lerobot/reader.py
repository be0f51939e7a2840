"""LeRobotDataset v3.0, read and written with pyarrow and PyAV alone.

On disk: ``data/chunk-000/file-000.parquet`` holds the rows of many episodes, ``videos/KEY/chunk-000/file-000.mp4`` the
frames of many episodes end to end, and ``meta/`` the place of each episode. The metadata is compared with the rows when a dataset is
opened, and with the frames of a camera when that is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lamina.data.dataset import Dataset, check_name
from lamina.data.episodes import (
    MAX_CLASSES,
    DecodeError,
    Episode,
    check_finite,
    compact_times,
    count_classes,
    split_episodes,
)
from lamina.data.lerobot.match import Numbers, RowAlignment, VideoSpan, align_rows, rate_of
from lamina.data.lerobot.tables import Columns, read_metadata, read_table, to_numpy
from lamina.data.paths import check_folder_name, check_inside, check_regular, check_template, contents, local, walk
from lamina.data.video import FAILURES, FrameClock, decode, decode_picture, index_video, key_distance
from lamina.errors import LaminaError, warn
from lamina.files import reason
from lamina.types import ActionSpec

WIDEST = 2**20  # values of a feature in one row, at most
LARGEST = 2**31  # number of an episode, chunk or file, below
#: Other names of the splits.
SPLIT_NAMES = dict.fromkeys(("val", "valid", "eval", "evaluation", "dev"), "validation")
PLACE = ("chunk_index", "file_index", "from_timestamp")
NUMBERS = {
    "bool",
    "float16",
    "float32",
    "float64",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
}


class _Feature(BaseModel):
    """A feature in meta/info.json: what is always needed. Other fields are checked where they are used."""

    model_config = ConfigDict(extra="allow")
    dtype: str


class _Info(BaseModel):
    """meta/info.json: what is always needed."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    codebase_version: str
    fps: float = Field(gt=0, le=1e6)
    total_episodes: int = Field(ge=1, lt=LARGEST)
    features: dict[str, _Feature]
    data_path: str
    video_path: str | None = None
    splits: dict[str, str] | None = None


@dataclass(frozen=True)
class _Rows:
    """Where the rows of each episode are, by the column episode_index of the rows themselves and not by meta/episodes."""

    files: tuple[Path, ...]  # in the order of the episodes
    file: Int[np.ndarray, "e"]  # number of the file
    start: Int[np.ndarray, "e"]  # first row in it
    first: Float[np.ndarray, "e"]  # time stamp of that
    stamps: dict[int, Float[np.ndarray, "t"]]  # seconds from the first row, where those are not i / fps
    unlisted: dict[Path, int]  # rows of episodes that the episode table does not know


@dataclass(frozen=True, eq=False)
class LeRobotDataset(Dataset):
    """A LeRobotDataset v3.0 on disk."""

    root: Path
    info: dict[str, Any]
    #: By column of meta/episodes, a value for each episode: where its frames are stated to be (NaN: nowhere), and its task.
    places: dict[str, np.ndarray]
    rows: _Rows
    cameras: tuple[str, ...] = ()  # those with colours first
    columns: tuple[str, ...] = ()
    episodes: tuple[Episode, ...] = ()
    # Results that are computed when they are first needed: by feature, by camera, by camera and file.
    _specs: dict[str, ActionSpec] = field(init=False, default_factory=dict)
    _missing: dict[str, dict[int, DecodeError | None]] = field(init=False, default_factory=dict)
    _groups: dict[str, dict[Path | None, list[int]]] = field(init=False, default_factory=dict)
    _matched: dict[tuple[str, Path], tuple[FrameClock, RowAlignment] | DecodeError] = field(
        init=False, default_factory=dict
    )
    _numbers: Columns = field(init=False, default_factory=Columns)
    _pictures: Columns = field(init=False, default_factory=Columns)

    @property
    def name(self) -> str:
        return str(self.root)

    @property
    def fps(self) -> float:
        """The rate that meta/info.json states."""
        return float(self.info["fps"])

    def action_spec(self, name: str) -> ActionSpec | None:
        """What feature ``name`` holds, read as an action; None if there is no such feature.

        Whole-number features are discrete: their class counts are the feature's ``num_classes`` (a number, or one per
        dimension; Lamina writes it) or else the largest value in the rows + 1. Where values are below zero, or too large for classes,
        they are read as continuous, with a warning. ``num_classes`` on a float feature marks its leading dimensions as discrete.
        """
        if name not in self.columns:
            return None
        if name not in self._specs:
            self._specs[name] = self._action_spec(name)
        return self._specs[name]

    def _action_spec(self, name: str) -> ActionSpec:
        feature = self.info["features"][name]
        dim = width_of(feature)
        stated = feature.get("num_classes")
        if stated is None:
            whole = np.dtype(feature["dtype"]).kind in "iu"
            classes = count_classes([self.column(e, name) for e in self.episodes], name, self.name) if whole else ()
        elif isinstance(stated, list):
            classes = tuple(stated)
        else:
            classes = (stated,) * dim
        if len(classes) > dim or not all(type(n) is int and 2 <= n <= MAX_CLASSES for n in classes):
            text = str(stated)[:80]
            raise LaminaError(
                f"{self.root}/meta/info.json: '{name}' states {text} classes in {dim} dimension(s), not 2 to {MAX_CLASSES} each; mend it"
            )
        return ActionSpec(classes, dim - len(classes), feature_names(feature))

    @cached_property
    def stats(self) -> dict[str, Any]:
        """meta/stats.json, empty where there is none."""
        path = self.root / "meta/stats.json"
        return read_metadata(path) if path.exists() else {}

    def data_file(self, number: int) -> Path:
        """The parquet file with the rows of episode ``number``."""
        return self.rows.files[self.rows.file[number]]

    def in_table(self, camera: str) -> bool:
        """Whether a camera's pictures are a column of the table, and no video."""
        return self.info["features"][camera]["dtype"] == "image"

    def video_place(self, number: int, camera: str) -> tuple[int, int] | None:
        """(chunk, file) of the video with the pictures of episode ``number``; None if the camera does not show it."""
        place = [self.places[f"videos/{camera}/{k}"][number] for k in PLACE]
        return None if np.isnan(place).any() else (int(place[0]), int(place[1]))

    def video_file(self, camera: str, place: tuple[int, int]) -> Path:
        """The video file at a place (chunk, file)."""
        name = self.info["video_path"].format(video_key=camera, chunk_index=place[0], file_index=place[1])
        return self.root / local(name)

    def shown_in(self, number: int, camera: str) -> Path | None:
        """The video file with the pictures of episode ``number``; None if the camera does not show it."""
        place = self.video_place(number, camera)
        return None if place is None else self.video_file(camera, place)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold pictures and rows of the episodes, in an order that does not depend on where the dataset lies."""
        videos = (self._by_file(camera) for camera in self.cameras if not self.in_table(camera))
        shown = {path for groups in videos for path in groups if path is not None}
        return (*sorted(shown), *self.rows.files)

    def content(self) -> str:
        """sha256 of :func:`lamina.data.paths.contents` of the files, and of what meta/ says of which part of them an episode is."""
        digest = hashlib.sha256(f"{contents(self.files)} {self.info['fps']}".encode())
        for name, values in sorted(self.places.items()):
            digest.update(f";{name}={values.tolist()}".encode() if name != "task" else b"")
        return digest.hexdigest()

    def missing_episodes(self, camera: str) -> dict[int, DecodeError | None]:
        """Compares the rows with the pictures of every file of the camera."""
        check_name(self, "camera", camera, self.cameras)
        if camera not in self._missing:
            self._missing[camera] = self._find_missing(camera)
        return self._missing[camera]

    def _find_missing(self, camera: str) -> dict[int, DecodeError | None]:
        missing: dict[int, DecodeError | None] = {}
        counted: dict[int, tuple[Path, FrameClock]] = {}
        for path, episodes in ({} if self.in_table(camera) else self._by_file(camera)).items():
            if path is None:
                missing |= dict.fromkeys(episodes)
                continue
            found = self._match(camera, path)
            if isinstance(found, DecodeError):
                missing |= dict.fromkeys(episodes, found)
            else:
                clock, matched = found
                counted |= dict.fromkeys(matched.counted, (path, clock))
                missing |= {n: self._refusal(n, path, text) for n, text in matched.refused.items()}
        if counted:
            n = min(counted)
            path, clock = counted[n]
            warn(
                f"{self.root}/meta/episodes: the times of episode {n} (rows at {self.episodes[n].fps:.5g} a second) do not fit its video "
                f"{path} ({clock.fps:.5g} pictures a second); it has a picture for each row, and so they are "
                f"paired by number ({len(counted)} such episode(s))"
            )
        return missing

    def _by_file(self, camera: str) -> dict[Path | None, list[int]]:
        """The episodes in each video file of a camera; under None those that it does not show."""
        if camera not in self._groups:
            groups = self._groups[camera] = {}
            for n in range(len(self.episodes)):
                groups.setdefault(self.shown_in(n, camera), []).append(n)
        return self._groups[camera]

    def partly_seen(self) -> set[int]:
        """The episodes that some camera does not show, by the episode table; if those are most of them, that the first camera does not."""
        lacking = [
            np.isnan([self.places[f"videos/{c}/{k}"] for k in PLACE]).any(0)
            for c in self.cameras
            if not self.in_table(c)
        ]
        lacking = [lacks for lacks in lacking if not lacks.all()]  # a camera that is never there is none
        if not lacking:
            return set()
        some = np.any(lacking, axis=0)
        return set(np.flatnonzero(some if (~some).sum() >= max(3, len(some) / 2) else lacking[0]).tolist())

    def _match(self, camera: str, path: Path) -> tuple[FrameClock, RowAlignment] | DecodeError:
        """The pictures of one file of a camera, compared with the rows of the episodes in it; once."""
        key = camera, path
        if key not in self._matched:
            try:
                index = index_video(path, quick=True)
            except DecodeError as error:
                self._matched[key] = error
            else:
                spans = [self._span(n, camera) for n in self._by_file(camera)[path]]
                self._matched[key] = index.clock, align_rows(index.clock, len(index.times), spans)
        return self._matched[key]

    def _span(self, number: int, camera: str) -> VideoSpan:
        begin, end = (float(self.places[f"videos/{camera}/{k}_timestamp"][number]) for k in ("from", "to"))
        episode = self.episodes[number]
        times = begin + self.rows.first[number] + episode.times
        return VideoSpan(number, begin, end, times, rate_of(times, episode.fps), self.fps)

    def _refusal(self, number: int, path: Path, text: str) -> DecodeError:
        return DecodeError(
            f"{self.root}/meta/episodes: episode {number} and its video {path} disagree ({text}); which picture "
            "belongs to which row is not known: mend one of them, or leave out the episode"
        )

    def frames(
        self, episode: Episode, camera: str, start: int, stop: int, size: tuple[int, int] | None = None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        check_name(self, "camera", camera, self.cameras)
        stop = min(stop, episode.length)
        if self.in_table(camera):
            return self._images(episode, camera, start, stop, size)
        path = self.shown_in(episode.number, camera)
        if path is None:
            raise DecodeError(f"{self.root}: episode {episode.number} has no pictures of '{camera}'; leave it out")
        found = self._match(camera, path)
        if isinstance(found, DecodeError):
            raise found
        clock, matched = found
        if episode.number in matched.refused:
            raise self._refusal(episode.number, path, matched.refused[episode.number])
        numbers: Numbers = matched.pictures[episode.number][start:stop]
        return decode(path, clock.at(np.asarray(numbers)), size, clock.tolerance)

    def _images(
        self, episode: Episode, camera: str, start: int, stop: int, size: tuple[int, int] | None
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Images that are stored in the table, or in files that it names."""
        path, first = self.data_file(episode.number), int(self.rows.start[episode.number])
        pictures: list[np.ndarray] = []
        for part in self._pictures.parts(path, camera, first + start, first + stop):
            for stored in part:
                try:
                    data = self._image_bytes(stored.as_py())
                    pictures.append(decode_picture(data, size or (pictures[0].shape[:2] if pictures else None)))
                except FAILURES as error:
                    raise DecodeError(
                        f"{path}: the picture '{camera}' of episode {episode.number}, row {start + len(pictures)} cannot be decoded "
                        f"({reason(error)}); mend it or leave out the episode"
                    ) from error
        return np.stack(pictures)

    def _image_bytes(self, stored: Any) -> bytes:
        """The content of an image file that a cell of the table holds or names."""
        data, name = (stored.get("bytes"), stored.get("path")) if isinstance(stored, dict) else (stored, None)
        if isinstance(data, str):
            data, name = None, data
        if isinstance(data, bytes):
            return data
        if not isinstance(name, str):
            raise ValueError("there is none")
        check_inside(name)
        path = self.root / local(name)
        check_regular(path)
        return path.read_bytes()

    def seconds(self, episode: Episode, camera: str) -> float:
        if self.in_table(camera):
            return float(episode.times[-1]) + 1.0 / episode.fps
        begin, end = (self.places[f"videos/{camera}/{k}_timestamp"][episode.number] for k in ("from", "to"))
        return float(end - begin)

    def width(self, name: str) -> int | None:
        return width_of(self.info["features"][name]) if name in self.columns else None

    def column(self, episode: Episode, name: str) -> Float[np.ndarray, "t d"]:
        if name not in self.columns:
            kind = self.info["features"].get(name, {}).get("dtype")
            lacks = "no feature" if kind is None else f"no numbers in its feature (of {kind})"
            raise LaminaError(f"{self.root}: has {lacks} '{name}'; it has: {', '.join(self.columns)}")
        path = self.data_file(episode.number)
        start = int(self.rows.start[episode.number])
        width = width_of(self.info["features"][name])
        with np.errstate(over="ignore"):
            values = self._numbers.rows(path, name, start, start + episode.length, width).astype(np.float32)
        remedy = "mend it, or do without the feature"
        check_finite(values, name, str(path), f"episode {episode.number}, ", remedy)
        return values


def width_of(feature: dict[str, Any]) -> int:
    """Values that a feature of numbers has in each row. Raises ValueError for a shape that is none."""
    shape = feature.get("shape", [1])
    if not isinstance(shape, list | tuple) or not all(type(n) is int and 1 <= n <= WIDEST for n in shape):
        raise ValueError(f"shape {str(shape)[:80]}")
    width = int(np.prod(shape, dtype=float))
    if width > WIDEST:
        raise ValueError(f"shape {str(shape)[:80]}")
    return width


def feature_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """The names of a feature's dimensions; LeRobot keeps them as a list, or as a dict of lists."""
    names = feature.get("names") or ()
    if isinstance(names, dict):
        names = [n for group in names.values() for n in (group if isinstance(group, list) else [group])]
    return tuple(str(n) for n in names) if isinstance(names, list | tuple) else (str(names),)


def open_lerobot(root: Path) -> LeRobotDataset:
    """Read the tables of a LeRobotDataset v3.0; no video is touched but the head of one file a camera.

    Raises LaminaError for a dataset of another version, and for one whose tables are damaged or do not agree.
    """
    info_path = root / "meta/info.json"
    info = read_metadata(info_path)
    version = str(info.get("codebase_version"))[:20]
    if not version.startswith("v3."):
        raise LaminaError(
            f"{info_path}: is LeRobotDataset {version}, not v3.0; convert it with lerobot's convert_dataset_v21_to_v30"
        )
    try:
        checked = _Info.model_validate(info)
        check_template(checked.data_path, {"chunk_index", "file_index"})
        checked.data_path.format(chunk_index=0, file_index=0)
    except ValidationError as error:
        where, message = error.errors()[0]["loc"], error.errors()[0]["msg"]
        raise LaminaError(f"{info_path}: {'.'.join(map(str, where))}: {message}; the dataset is damaged") from error
    except ValueError as error:
        raise LaminaError(f"{info_path}: data_path: {reason(error)}; the dataset is damaged") from error
    fps, total, features = checked.fps, checked.total_episodes, info["features"]
    cameras = _cameras(info_path, info)
    places = _read_places(root, tuple(c for c in cameras if features[c]["dtype"] == "video"))
    lengths = places["length"]
    if len(lengths) != total:
        raise LaminaError(f"{root}/meta/episodes: lists {len(lengths)} of {total} episodes; the dataset is incomplete")
    rows = _find_rows(root, checked.data_path, places, fps)
    columns = tuple(name for name, feature in features.items() if _is_numeric(feature))
    dataset = LeRobotDataset(root, info, places, rows, cameras, columns)
    gop = _key_distance(dataset)
    episodes = [
        Episode(
            n,
            f"{root} episode {n}",
            int(length),
            fps if n not in rows.stamps else compact_times(rows.stamps[n])[0],
            stamps=rows.stamps.get(n),
            keys=None if gop is None else np.arange(0, length, gop, dtype=np.int32),
            task=str(places["task"][n]),
        )
        for n, length in enumerate(lengths.astype(int).tolist())
    ]
    names = [f"episode {n}" for n in range(total)]
    declared = _declared_splits(info_path, checked.splits or {}, total)
    object.__setattr__(dataset, "episodes", split_episodes(episodes, names, root, declared, dataset.partly_seen()))
    return dataset


def _is_numeric(feature: dict[str, Any]) -> bool:
    """Whether a feature holds numbers. Other features (text, images, types of later versions) are ignored here and copied by labelling."""
    try:
        return feature["dtype"] in NUMBERS and width_of(feature) > 0
    except ValueError:
        return False


def _cameras(info_path: Path, info: dict[str, Any]) -> tuple[str, ...]:
    """The features that hold images: first video, then images in the table, then depth."""

    def order(name: str) -> int:
        feature = info["features"][name]
        about = feature.get("info") or feature.get("video_info") or {}
        depth = isinstance(about, dict) and (about.get("video.is_depth_map") or about.get("is_depth_map"))
        return 2 if depth else int(feature["dtype"] == "image")

    def shows(feature: dict[str, Any]) -> bool:
        shape = feature.get("shape")
        coloured = isinstance(shape, list) and len(shape) == 3 and 3 in (shape[0], shape[2])
        return feature["dtype"] == "video" or (feature["dtype"] == "image" and coloured)

    cameras = sorted((name for name, feature in info["features"].items() if shows(feature)), key=order)
    videos = [name for name in cameras if info["features"][name]["dtype"] == "video"]
    try:
        for name in videos:
            check_folder_name(name)
        if videos:
            check_template(info.get("video_path"), {"video_key", "chunk_index", "file_index"})
            info["video_path"].format(video_key="", chunk_index=0, file_index=0)
    except ValueError as error:
        raise LaminaError(f"{info_path}: video_path: {reason(error)}; the dataset is damaged") from error
    return tuple(cameras)


def _read_places(root: Path, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns of meta/episodes that are read, in the order of episode_index; NaN where a value is missing."""
    where = root / "meta/episodes"
    files = _parquet_files(where)
    if not files:
        raise LaminaError(f"{where}: holds no parquet file; the dataset is incomplete")
    wanted = ["episode_index", "length"]
    hints = ["data/chunk_index", "data/file_index"]
    hints += [f"videos/{c}/{k}" for c in cameras for k in (*PLACE, "to_timestamp")]
    tables = [read_table(f, wanted, optional=("tasks", *hints)) for f in files]
    places: dict[str, np.ndarray] = {}
    for name in (*wanted, *hints):
        parts = [
            _stated(f, t[name], name) if name in t.column_names else np.full(len(t), np.nan)
            for f, t in zip(files, tables, strict=True)
        ]
        places[name] = np.concatenate(parts)
    places["task"] = np.array([task for t in tables for task in _first_tasks(t)], dtype=object)
    order = np.argsort(places["episode_index"], kind="stable")
    places = {name: values[order] for name, values in places.items()}
    if not np.array_equal(places["episode_index"], np.arange(len(order))):
        raise LaminaError(f"{where}: episodes are not numbered 0..{len(order) - 1}; the dataset is damaged")
    if not (places["length"] >= 1).all():
        n = int((~(places["length"] >= 1)).argmax())
        raise LaminaError(f"{where}: episode {n} has no frame; the dataset is damaged")
    return places


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(p for p in walk(folder) if p.suffix == ".parquet") if folder.is_dir() else []


def _stated(path: Path, column: pa.ChunkedArray, name: str) -> Float[np.ndarray, "e"]:
    """A column of the episode table as numbers, NaN where it has none. Raises LaminaError for what is no number or out of range."""
    try:
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type)):
            raise ValueError(f"is {column.type}, not a number")
        values = np.array(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
        wrong = ~(np.isnan(values) | ((values >= 0) & (values < LARGEST)))
        if not name.endswith("_timestamp"):
            wrong |= np.nan_to_num(values, posinf=0.5, neginf=0.5) % 1 > 0
        if wrong.any():
            raise ValueError(f"is {values[wrong][0]:g} in row {int(wrong.argmax())}")
        return values
    except (ValueError, pa.ArrowException) as error:
        raise LaminaError(f"{path}: {name} {reason(error)}; the dataset is damaged") from error


def _first_tasks(table: pa.Table) -> list[str]:
    """The task of each row of meta/episodes, "" where none is given."""
    if "tasks" not in table.column_names:
        return [""] * len(table)
    return [
        str(tasks[0] or "") if isinstance(tasks, list) and tasks else tasks if isinstance(tasks, str) else ""
        for tasks in table["tasks"].to_pylist()
    ]


@dataclass(frozen=True)
class _Run:
    """Rows of one episode that follow each other in one file."""

    path: Path
    start: int
    times: Float[np.ndarray, "t"]


def _find_rows(root: Path, template: str, places: dict[str, np.ndarray], fps: float) -> _Rows:
    """The rows of every episode: in the files that the episode table names, or else in any other below their folder.

    Some converters write wrong file numbers into meta/episodes, so the episode_index of the rows decides. Raises LaminaError for rows that
    are missing, too many, out of order or present twice.
    """
    lengths = places["length"].astype(int)
    stated = _stated_files(root, template, places)
    found: dict[int, _Run] = {}
    unlisted: dict[Path, int] = {}

    def search(paths: Sequence[Path]) -> None:
        for path in paths:
            for n, run in _runs(path):
                if n >= len(lengths):
                    unlisted[path] = unlisted.get(path, 0) + len(run.times)
                elif n not in found or stated[n] == path != found[n].path:
                    found[n] = run
                elif found[n].path == path:
                    raise LaminaError(f"{path}: the rows of episode {n} do not lie together; the file is damaged")
                elif stated[n] != found[n].path:
                    raise LaminaError(
                        f"{path}: has rows of episode {n}, as has {found[n].path}; remove one of the files"
                    )

    named = [path for path in dict.fromkeys(stated) if path is not None]
    present = [path for path in named if path.exists()]
    search(present)
    if len(found) < len(lengths):
        search([p for p in _parquet_files(root / "data") if p not in set(present)])
    for n, length in enumerate(lengths.tolist()):
        run = found.get(n)
        if run is None or len(run.times) != length:
            path = run.path if run else stated[n] or root / "data"
            check_regular(path) if path != root / "data" else None
            raise LaminaError(
                f"{path}: has {len(run.times) if run else 0} rows of episode {n}, and meta/episodes says {length}; one of them is truncated"
            )
    for path, count in unlisted.items():
        warn(f"{path}: {count} row(s) are of episodes that meta/episodes does not list; they are not read")
    files = {path: i for i, path in enumerate(dict.fromkeys(found[n].path for n in range(len(lengths))))}
    stamps = {}
    for n, length in enumerate(lengths.tolist()):
        times = found[n].times
        if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise LaminaError(f"{found[n].path}: the timestamps of episode {n} do not ascend; the file is damaged")
        regular = np.arange(length) / fps
        if (np.abs(times - times[0] - regular) > 1e-4 + 1e-6 * regular).any():
            stamps[n] = times - times[0]
    return _Rows(
        tuple(files),
        np.array([files[found[n].path] for n in range(len(lengths))]),
        np.array([found[n].start for n in range(len(lengths))]),
        np.array([found[n].times[0] for n in range(len(lengths))]),
        stamps,
        unlisted,
    )


def _stated_files(root: Path, template: str, places: dict[str, np.ndarray]) -> list[Path | None]:
    """The file that the episode table names for each episode; None where it names none."""
    pairs = zip(places["data/chunk_index"].tolist(), places["data/file_index"].tolist(), strict=True)
    return [
        None if np.isnan(c) or np.isnan(f) else root / template.format(chunk_index=int(c), file_index=int(f))
        for c, f in pairs
    ]


def _runs(path: Path) -> Iterator[tuple[int, _Run]]:
    """(episode, its rows) in the order of a file."""
    table = read_table(path, ["episode_index", "timestamp"], optional=("frame_index",))
    if not len(table):
        return
    try:
        values = {name: to_numpy(table[name]) for name in table.column_names}
        if any(v.shape[1] != 1 for v in values.values()) or values["episode_index"].dtype.kind not in "iu":
            raise ValueError("episode_index, timestamp or frame_index is not one number a row")
    except ValueError as error:
        raise LaminaError(f"{path}: cannot be read ({reason(error)}); the file is damaged") from error
    numbers, times = values["episode_index"][:, 0], values["timestamp"][:, 0].astype(np.float64)
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    for start, stop in pairwise(bounds):
        if numbers[start] < 0:
            raise LaminaError(f"{path}: row {start} is of episode {numbers[start]}; the file is damaged")
        if "frame_index" in values and (np.diff(values["frame_index"][start:stop, 0]) <= 0).any():
            raise LaminaError(f"{path}: the rows of episode {numbers[start]} are out of order; the file is damaged")
        yield int(numbers[start]), _Run(path, start, times[start:stop])


def _key_distance(dataset: LeRobotDataset) -> int | None:
    """Frames between key frames, from the head of each camera's first file; None where decoding can start anywhere."""
    distances = []
    for camera in dataset.cameras:
        if not dataset.in_table(camera):
            places = (dataset.video_place(n, camera) for n in range(len(dataset.places["length"])))
            place = next((p for p in places if p is not None), None)
            distances.append(None if place is None else key_distance(dataset.video_file(camera, place)))
    return max((d for d in distances if d is not None), default=None)


def _declared_splits(path: Path, splits: dict[str, str], total: int) -> dict[str, list[int]]:
    """The episodes of each split, by the name that it has here."""
    spans: dict[str, range] = {}
    for name, span in splits.items():
        try:
            start, stop = (int(x) for x in span.split(":"))
        except ValueError as error:
            raise LaminaError(f"{path}: split {name} is '{span[:80]}', not 'start:stop'; mend it") from error
        if not 0 <= start <= stop <= total:
            raise LaminaError(f"{path}: split {name} is {span} but there are {total} episodes; mend it")
        for other, taken in spans.items():
            if max(start, taken.start) < min(stop, taken.stop):
                raise LaminaError(f"{path}: splits {other} and {name} share episodes; mend it")
        spans[name] = range(start, stop)
    declared: dict[str, list[int]] = {}
    for name, taken in spans.items():
        declared.setdefault(SPLIT_NAMES.get(name.lower(), name.lower()), []).extend(taken)
    return declared
