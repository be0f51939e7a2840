"""Writing LeRobotDataset v3.0 with pyarrow and PyAV. Nothing appears under its final name before it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from lamina.data.episodes import SPLITS, exact_rate
from lamina.data.lerobot.statistics import (
    Statistics,
    column_statistics,
    merge_statistics,
    pixel_histogram,
    pixel_statistics,
)
from lamina.data.paths import check_folder_name, open_arrow
from lamina.errors import LaminaError
from lamina.files import disk_errors, partial_path, sync, whole_file, write_text
from lamina.types import ActionSpec

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
CHUNK_FILES = 1000
DATA_MB, VIDEO_MB = 100, 200
INDEX_FEATURES = {
    name: {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None}
    for name in ("timestamp", "frame_index", "episode_index", "index", "task_index")
}
CAMERA_PREFIX = "observation.images."  # of the features that hold cameras
ENCODERS = {"h264": "libx264", "av1": "libsvtav1"}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure of the file system, or of the video library on it, into a LaminaError that names ``path``."""
    with disk_errors(path):
        try:
            yield
        except av.error.FFmpegError as error:
            raise OSError(error.errno, error.strerror) from error


def check_new(root: Path) -> None:
    """Raises LaminaError if there is something at ``root`` already, or no folder to put it in."""
    if root.exists():
        raise LaminaError(f"{root}: exists already; choose another path or delete it")
    with writing(root):
        root.parent.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=4) + "\n")


def write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema, durable: bool = True) -> None:
    """Write a parquet file, one row group a table, whole or not at all; but for a loss of power, if it is not to be ``durable``."""
    with (
        whole_file(path, durable) as partial,
        open_arrow(partial, "wb") as raw,
        pq.ParquetWriter(raw, schema, write_page_checksum=True) as writer,
    ):
        for table in tables:
            writer.write_table(table.cast(schema))


def file_name(template: str, number: int, **more: str) -> str:
    """The usual name of file ``number``. No name that a dataset states is ever written to."""
    return template.format(chunk_index=number // CHUNK_FILES, file_index=number % CHUNK_FILES, **more)


def camera_feature(height: int, width: int) -> dict[str, Any]:
    """The feature of a camera."""
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]}


def action_feature(spec: ActionSpec) -> dict[str, Any]:
    """The feature that holds actions: int64 with ``num_classes`` where all dimensions are discrete, else float32."""
    feature: dict[str, Any] = {
        "dtype": "float32" if spec.continuous else "int64",
        "shape": [spec.dim],
        "names": list(spec.names) or None,
    }
    if spec.discrete:
        feature["num_classes"] = spec.discrete[0] if spec.dim == 1 else list(spec.discrete)
    return feature


def column_type(feature: dict[str, Any]) -> pa.DataType:
    """The arrow type of a feature: a scalar for shape [1], else a list of fixed length (1-D features)."""
    scalar = pa.from_numpy_dtype(np.dtype(feature["dtype"]))
    return scalar if tuple(feature["shape"]) == (1,) else pa.list_(scalar, int(feature["shape"][0]))


def to_arrow(values: np.ndarray, feature: dict[str, Any]) -> pa.Array:
    """[t, d] as a column of a feature."""
    kind = column_type(feature)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1).astype(feature["dtype"]))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind) if pa.types.is_fixed_size_list(kind) else flat


def episode_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows of meta/episodes as a table; statistics become (nested) lists of doubles."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name.startswith("stats/"):
            kind = pa.int64() if values[0].dtype.kind in "iu" else pa.float64()
            for _ in range(values[0].ndim):
                kind = pa.list_(kind)
            columns[name] = pa.array([v.tolist() for v in values], kind)
        else:
            columns[name] = pa.array(values)
    return pa.table(columns)


def statistics_columns(statistics: dict[str, Statistics]) -> dict[str, np.ndarray]:
    """Statistics of features as columns of meta/episodes."""
    return {f"stats/{name}/{s}": v for name, values in statistics.items() for s, v in values.items()}


class DatasetTables:
    """The tables of a new dataset at ``root``: the rows of its episodes, in files of about DATA_MB, and meta/."""

    def __init__(self, root: Path, schema: pa.Schema) -> None:
        self.root, self.schema = root, schema
        self.episodes: list[dict[str, Any]] = []  # rows of meta/episodes
        self.frames = 0  # of the episodes so far
        self._statistics: dict[str, Statistics] = {}
        self._pending: list[pa.Table] = []
        self._file = self._size = 0  # number of the data file that the pending tables will be in, and their bytes

    def add(self, table: pa.Table, tasks: list[str], videos: dict[str, Any], statistics: dict[str, Statistics]) -> None:
        """Append an episode: its rows, its tasks, its ``videos/...`` columns in meta/episodes, its statistics."""
        if self._pending and self._size + table.nbytes > DATA_MB * 2**20:
            self._write_data()
            self._pending, self._file, self._size = [], self._file + 1, 0
        self._pending.append(table)
        self._size += table.nbytes
        self.episodes.append(
            {
                "episode_index": len(self.episodes),
                "tasks": tasks,
                "length": len(table),
                "data/chunk_index": self._file // CHUNK_FILES,
                "data/file_index": self._file % CHUNK_FILES,
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + len(table),
                **videos,
                **statistics_columns(statistics),
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        self.frames += len(table)
        self._statistics = {n: merge_statistics(self._statistics.get(n), s) for n, s in statistics.items()}

    def _write_data(self) -> None:
        write_table(self.root / file_name(DATA_PATH, self._file), self._pending, self.schema)

    def finish(
        self, fps: float, features: dict[str, Any], tasks: list[str], splits: dict[str, str], info: dict[str, Any]
    ) -> None:
        """Write what is left of the rows, and meta/. ``info``: further entries of meta/info.json, which may replace the usual ones."""
        self._write_data()
        described = episode_table(self.episodes), tasks_table(tasks)
        for name, table in zip((file_name(EPISODES_PATH, 0), "meta/tasks.parquet"), described, strict=True):
            write_table(self.root / name, [table], table.schema)
        write_json(self.root / "meta/stats.json", as_json(self._statistics))
        usual = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": len(tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": as_fps(fps),
            "splits": splits,
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": {**features, **INDEX_FEATURES},
        }
        write_json(self.root / "meta/info.json", usual | info)


def tasks_table(tasks: list[str]) -> pa.Table:
    """meta/tasks.parquet: the task is the index of a pandas frame, which pandas finds in the schema's metadata."""
    index = "__index_level_0__"
    described = [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, field, kind, numpy in (
            ("task_index", "task_index", "int64", "int64"),
            (None, index, "unicode", "object"),
        )
    ]
    pandas = {
        "index_columns": [index],
        "column_indexes": [
            {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
        ],
        "columns": described,
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.3",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


@dataclass(frozen=True)
class VideoEncoding:
    """How pictures are encoded. A key frame every ``g`` = 2 frames makes random access 20 times faster."""

    codec: str = "h264"
    crf: int = 18
    g: int = 2
    pix_fmt: str = "yuv420p"

    def __post_init__(self) -> None:
        if ENCODERS.get(self.codec, self.codec) not in av.codecs_available:
            raise LaminaError(f"no encoder for '{self.codec}' here; use {' or '.join(ENCODERS)}")

    def for_size(self, height: int, width: int) -> str:
        """The pixel format: yuv420p needs even sizes, so an odd height or width is stored in full colour, yuv444p."""
        return "yuv444p" if self.pix_fmt == "yuv420p" and (height % 2 or width % 2) else self.pix_fmt


#: For pictures of about 64 pixels: colours at half the resolution cost them 10 dB, and the usual quality shows in them.
SMALL_PICTURES = VideoEncoding(crf=10, pix_fmt="yuv444p")


def open_video(
    path: Path, fps: Fraction, height: int, width: int, encoding: VideoEncoding
) -> tuple[av.container.OutputContainer, av.VideoStream]:
    """A new video file, and its stream to encode pictures with."""
    container = av.open(f"file:{path}", "w")
    options = {"g": str(encoding.g), "crf": str(encoding.crf), "bf": "0", "forced-idr": "1"}
    codec = ENCODERS.get(encoding.codec, encoding.codec)
    stream = cast(av.VideoStream, container.add_stream(codec, rate=fps, options=options))
    stream.height, stream.width = height, width
    stream.pix_fmt = encoding.for_size(height, width)
    return container, stream


def write_video(path: Path, frames: Sequence[UInt8[np.ndarray, "h w 3"]], fps: float, encoding: VideoEncoding) -> None:
    """A video file of its own. Raises LaminaError where it cannot be written."""
    height, width, _ = frames[0].shape
    with writing(path):
        container, stream = open_video(path, exact_rate(fps), height, width, encoding)
        with container:
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode())


class _VideoTrack:
    """The files of one camera and one split, in which episodes lie end to end."""

    def __init__(
        self, root: Path, folder: Path, fps: Fraction, shape: tuple[int, int, int], encoding: VideoEncoding
    ) -> None:
        self.root, self.folder, self.fps, self.shape, self.encoding = root, folder, fps, shape, encoding
        self.files: list[Path] = []
        self.container: av.container.OutputContainer | None = None
        self.count = self.size = 0  # frames and bytes in the open file

    def _open(self) -> av.container.OutputContainer:
        height, width, _ = self.shape
        path = self.folder / f"{len(self.files):06d}.mp4"
        self.folder.mkdir(parents=True, exist_ok=True)
        container, self.stream = open_video(path, self.fps, height, width, self.encoding)
        self.files.append(path)
        self.count = self.size = 0
        return container

    def add(self, frames: Iterable[UInt8[np.ndarray, "h w 3"]]) -> tuple[int, int, int, Statistics]:
        """Append an episode: (file number, its first frame there, frames, statistics)."""
        if self.size > VIDEO_MB * 2**20:
            self.close()
        with writing(self.root):
            self.container = self.container or self._open()
        first = self.count
        histogram = np.zeros((3, 256), dtype=np.int64)
        for frame in frames:
            if frame.shape != self.shape or frame.dtype != np.uint8:
                raise LaminaError(
                    f"{self.root}: a frame of {self.folder.name} is {frame.dtype} {frame.shape}, not uint8 {self.shape}"
                )
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = self.count, 1 / self.fps
            if self.count == first:
                picture.pict_type = av.video.frame.PictureType.I
            packets = self.stream.encode(picture)
            self.size += sum(p.size for p in packets)
            with writing(self.root):
                self.container.mux(packets)
            histogram += pixel_histogram(frame)
            self.count += 1
        length = self.count - first
        if length == 0:
            raise LaminaError(f"{self.root}: an episode has no frame of {self.folder.name}")
        return len(self.files) - 1, first, length, pixel_statistics(histogram, length)

    def close(self) -> None:
        """Finish the open file."""
        if self.container is not None:
            container, self.container = self.container, None
            with writing(self.root):
                container.mux(self.stream.encode())
                container.close()
                sync(self.files[-1])


class LeRobotWriter:
    """Writes a LeRobotDataset v3.0 episode by episode.

    ``features`` maps the name of each numeric feature to {"dtype", "shape": [d], "names"[, "num_classes"]} and that of
    each camera to {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]}. Any frame
    size will do: odd ones are encoded as yuv444p. Episodes are numbered by split: train first, then validation, test.

    Everything goes to a hidden neighbour of ``root`` that :meth:`finish` renames; leaving the ``with`` block by an
    exception, or :meth:`abort`, removes it. Raises LaminaError if ``root`` exists, if what is added does not fit
    ``features`` or is NaN, and if the disk refuses.
    """

    def __init__(
        self,
        root: str | Path,
        fps: float,
        features: dict[str, dict[str, Any]],
        robot_type: str | None = None,
        video: VideoEncoding = VideoEncoding(),
        extra_info: dict[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        self.fps = fps
        self.features = {name: dict(feature) for name, feature in features.items()}
        self.cameras = [name for name, feature in features.items() if feature["dtype"] == "video"]
        self.robot_type, self.video, self.extra_info = robot_type, video, extra_info or {}
        for name in features:
            try:
                check_folder_name(name)
                taken = name in INDEX_FEATURES
            except ValueError:
                taken = True
            if taken:
                raise LaminaError(f"{root}: a feature cannot be called '{name}'; choose another name")
        check_new(self.root)
        # Absolute: the libraries that write would take a colon in a relative path for the end of a protocol's name.
        self.partial = Path(os.path.abspath(partial_path(self.root)))
        with writing(self.root):
            if self.partial.exists():
                shutil.rmtree(self.partial)
            self.partial.mkdir()
        self.tasks: dict[str, int] = {}
        self._episodes: dict[str, list[dict[str, Any]]] = {s: [] for s in SPLITS}
        self._tracks: dict[tuple[str, str], _VideoTrack] = {}
        self._staged: dict[str, pq.ParquetWriter] = {}
        numeric = {n: f for n, f in {**self.features, **INDEX_FEATURES}.items() if f["dtype"] != "video"}
        self._schema = pa.schema([(n, column_type(f)) for n, f in numeric.items()])

    def add_episode(
        self,
        columns: dict[str, np.ndarray],
        videos: Mapping[str, Iterable[UInt8[np.ndarray, "h w 3"]]],
        task: str = "",
        split: str = "train",
        statistics: Mapping[str, Statistics] = {},
    ) -> None:
        """Append an episode: ``columns`` [t, d] (or [t]) for each feature, ``videos`` [t, h, w, 3] for each camera.

        ``statistics``: of the features whose statistics are not to be taken over all rows.
        """
        if split not in SPLITS:
            raise LaminaError(f"{self.root}: no split '{split}'; there are: {', '.join(SPLITS)}")
        if columns.keys() | videos.keys() != self.features.keys() or videos.keys() != set(self.cameras):
            raise LaminaError(f"{self.root}: an episode has {sorted({*columns, *videos})}, not {sorted(self.features)}")
        arrays = {n: self._checked(n, values) for n, values in columns.items()}
        with self._aborting():
            found: dict[str, Statistics] = {}
            row: dict[str, Any] = {"tasks": [task]}
            lengths = {len(a) for a in arrays.values()}
            for camera, frames in videos.items():
                track = self._track(split, camera)
                file, first, length, found[camera] = track.add(frames)
                lengths.add(length)
                row[f"videos/{camera}/file"] = file
                row[f"videos/{camera}/from_timestamp"] = float(first / track.fps)
                row[f"videos/{camera}/to_timestamp"] = float((first + length) / track.fps)
            if len(lengths) != 1:
                raise LaminaError(
                    f"{self.root}: the parts of an episode have {sorted(lengths)} frames; they must agree"
                )
            length = row["length"] = lengths.pop()
            if length == 0:
                raise LaminaError(f"{self.root}: an episode has no frame")
            number = self.tasks.setdefault(task, len(self.tasks))
            arrays = {
                **arrays,
                "timestamp": np.arange(length) / self.fps,
                "frame_index": np.arange(length),
                "episode_index": np.zeros(length, np.int64),  # known when all are counted, as is the index
                "index": np.zeros(length, np.int64),
                "task_index": np.full(length, number),
            }
            for name, values in arrays.items():
                found[name] = statistics.get(name) or column_statistics(values.reshape(length, -1))
            row["statistics"] = found
            stored = [to_arrow(arrays[n], INDEX_FEATURES.get(n) or self.features[n]) for n in self._schema.names]
            with writing(self.root):
                if split not in self._staged:
                    self._staged[split] = pq.ParquetWriter(self.partial / f"{split}.parquet", self._schema)
                self._staged[split].write_table(pa.table(stored, schema=self._schema))
            self._episodes[split].append(row)

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        feature = self.features[name]
        array = np.asarray(values)
        array = array[:, None] if array.ndim == 1 else array
        if array.shape[1:] != tuple(feature["shape"]):
            raise LaminaError(f"{self.root}: '{name}' has shape {array.shape[1:]}, not {tuple(feature['shape'])}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            frame = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise LaminaError(f"{self.root}: '{name}' is NaN or infinite at frame {frame} of an episode; mend it")
        kind = np.dtype(feature["dtype"]).kind
        if kind in "iub" and not np.array_equal(array, array.astype(feature["dtype"])):
            raise LaminaError(
                f"{self.root}: '{name}' has values that are no {feature['dtype']}; mend it or its feature"
            )
        return array.astype(feature["dtype"])

    def _track(self, split: str, camera: str) -> _VideoTrack:
        if (split, camera) not in self._tracks:
            shape = tuple(int(n) for n in self.features[camera]["shape"])
            folder = self.partial / "encoding" / split / camera
            self._tracks[split, camera] = _VideoTrack(self.root, folder, exact_rate(self.fps), shape, self.video)  # type: ignore[arg-type]
        return self._tracks[split, camera]

    def finish(self) -> Path:
        """Put the files in their places and rename the folder to its final name, which is returned."""
        with self._aborting(), writing(self.root):
            if not any(self._episodes.values()):
                raise LaminaError(f"{self.root}: no episode was added; there is nothing to write")
            for staging in self._staged.values():
                staging.close()
            video_files = self._place_videos()
            tables, splits = DatasetTables(self.partial, self._schema), {}
            for split, episodes in self._episodes.items():
                if not episodes:
                    continue
                splits[split] = f"{len(tables.episodes)}:{len(tables.episodes) + len(episodes)}"
                staged = pq.ParquetFile(self.partial / f"{split}.parquet")
                for group, episode in enumerate(episodes):
                    table = staged.read_row_group(group)
                    numbers = {
                        "episode_index": np.full(len(table), len(tables.episodes)),
                        "index": np.arange(tables.frames, tables.frames + len(table)),
                    }
                    for name, values in numbers.items():
                        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
                        episode["statistics"][name] = column_statistics(values[:, None])
                    videos = self._video_columns(split, episode, video_files)
                    tables.add(table, episode["tasks"], videos, episode["statistics"])
            for split in self._staged:
                (self.partial / f"{split}.parquet").unlink()
            info = {"robot_type": self.robot_type, **self.extra_info}
            tables.finish(self.fps, self._described_features(), list(self.tasks), splits, info)
            os.replace(self.partial, self.root)
            sync(self.root.parent)
        return self.root

    def _place_videos(self) -> dict[tuple[str, str], int]:
        """Give the encoded files their numbers: (split, camera) -> number of its first file."""
        first: dict[tuple[str, str], int] = {}
        for camera in self.cameras:
            number = 0
            for split in SPLITS:
                track = self._tracks.get((split, camera))
                if track is None:
                    continue
                track.close()
                first[split, camera] = number
                for path in track.files:
                    place = self.partial / file_name(VIDEO_PATH, number, video_key=camera)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, place)
                    number += 1
        shutil.rmtree(self.partial / "encoding", ignore_errors=True)
        return first

    def _video_columns(self, split: str, episode: dict[str, Any], first: dict[tuple[str, str], int]) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for camera in self.cameras:
            number = first[split, camera] + episode[f"videos/{camera}/file"]
            columns[f"videos/{camera}/chunk_index"] = number // CHUNK_FILES
            columns[f"videos/{camera}/file_index"] = number % CHUNK_FILES
            for key in ("from_timestamp", "to_timestamp"):
                columns[f"videos/{camera}/{key}"] = episode[f"videos/{camera}/{key}"]
        return columns

    def _described_features(self) -> dict[str, Any]:
        """The features as meta/info.json states them: with the encoding of each camera."""
        features = {name: dict(feature) for name, feature in self.features.items()}
        for camera in self.cameras:
            height, width, _ = features[camera]["shape"]
            pixels = self.video.for_size(height, width)
            features[camera]["info"] = video_info(height, width, self.video.codec, pixels, self.fps)
        return features

    @contextmanager
    def _aborting(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Remove everything that was written."""
        for track in self._tracks.values():
            container, track.container = track.container, None
            if container is not None:
                with suppress(OSError, av.error.FFmpegError):  # the file is about to be removed
                    container.close()
        for staging in self._staged.values():
            with suppress(OSError):
                staging.close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def __enter__(self) -> LeRobotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        elif self.partial.exists():
            self.finish()


def video_info(
    height: int, width: int, codec: str, pix_fmt: str, fps: float, has_audio: bool = False
) -> dict[str, Any]:
    """The "info" of a camera in meta/info.json."""
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": codec,
        "video.pix_fmt": pix_fmt,
        "video.is_depth_map": False,
        "video.fps": as_fps(fps),
        "video.channels": 3,
        "has_audio": has_audio,
    }


def as_fps(fps: float) -> float | int:
    """Whole frame rates as integers, which is what LeRobot expects."""
    return int(fps) if float(fps).is_integer() else float(fps)


def as_json(statistics: dict[str, Statistics]) -> dict[str, Any]:
    """Statistics as meta/stats.json keeps them."""
    return {name: {s: v.tolist() for s, v in values.items()} for name, values in statistics.items()}
