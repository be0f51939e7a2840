"""New per-frame columns beside existing data: labels written back as a LeRobot dataset, video never re-encoded."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from lamina.data.episodes import SPLITS, Episode, Source
from lamina.data.lerobot import LeRobotDataset, read_json, read_table, to_numpy
from lamina.data.statistics import Statistics, column_statistics, merge_statistics, pixel_histogram, pixel_statistics
from lamina.data.video import VideoFolder, video_facts
from lamina.data.writer import (
    CHUNK_FILES,
    DATA_MB,
    DATA_PATH,
    EPISODES_PATH,
    INDEX_FEATURES,
    VIDEO_PATH,
    as_json,
    check_new,
    column_type,
    dataset_info,
    episode_table,
    statistics_columns,
    tasks_table,
    to_arrow,
    video_info,
    write_json,
    write_table,
    writing,
)
from lamina.errors import LaminaError, LaminaWarning
from lamina.files import partial_path, sync

VALID = "latent_action.valid"  # rows where it is False are left out of the other labels' statistics
CAMERA = "observation.images.video"  # what the one camera of plain video is called in a LeRobot dataset
SAMPLED_FRAMES = 16  # key frames of a plain video that its pixel statistics are taken from

Columns = dict[str, np.ndarray]
Features = dict[str, dict[str, Any]]


def write_labels(
    source: Source,
    out: str | Path,
    features: Features,
    label: Callable[[Episode, str], Columns],
    provenance: dict[str, Any],
    meta_name: str = "lamina.json",
    camera: str | None = None,
) -> Path:
    """Write ``source`` with new columns as a LeRobotDataset v3.0 at ``out``, which is returned.

    ``features`` maps the new columns to {"dtype", "shape": [d], "names"}; ``label(episode, camera)`` gives their values
    [t, d] (or [t]). ``provenance`` goes to meta/``meta_name``. All ten statistics are written for every new column;
    those of labels leave out the rows where ``latent_action.valid`` is False.

    A LeRobot dataset keeps its layout and its videos (hard links, copies on another disk). Plain video becomes one
    episode a file and one row a frame with the frame's real time, episodes grouped by split, each file linked, or
    remuxed to mp4 without re-encoding where its container is another. LeRobot's own reader finds frames by a constant
    rate, so files whose rate varies are named in a warning.

    Killed at any time and run again, it goes on after the last whole episode, and the result is the same, byte for byte,
    as long as ``provenance`` is (so keep clock times out of it); another provenance starts over. Raises LaminaError: ``out``
    exists, ``source`` has such a column already, labels that do not fit ``features`` or are NaN, video that cannot be
    decoded, a disk that refuses.
    """
    out = Path(out)
    camera = camera or source.cameras[0]
    taken = set(features) & {*source.columns, *INDEX_FEATURES}
    if taken:
        raise LaminaError(
            f"{source.root}: has a feature '{min(taken)}' already; label the dataset that it was made from"
        )
    check_new(out)
    partial = partial_path(out)
    dataset = partial / "dataset"
    spool = _Spool(out, features)
    key = json.dumps([provenance, features, camera, [[e.name, e.length] for e in source.episodes]], sort_keys=True)
    spool.resume(hashlib.sha256(key.encode()).hexdigest())
    for episode in source.episodes:
        if not spool.has(episode):
            spool.put(episode, label(episode, camera))
    with writing(out):
        if isinstance(source, LeRobotDataset):
            _extend(source, dataset, spool)
        elif isinstance(source, VideoFolder):
            _convert(source, dataset, spool)
        write_json(dataset / "meta" / meta_name, provenance)
        os.replace(dataset, out)
        sync(out.parent)
        shutil.rmtree(partial)
    return out


class _Spool:
    """The labels of each finished episode, one parquet file each."""

    def __init__(self, out: Path, features: Features) -> None:
        self.out, self.partial, self.features = out, partial_path(out), features
        self.folder = self.partial / "labels"
        self.schema = pa.schema([(n, column_type(f)) for n, f in features.items()])

    def resume(self, key: str) -> None:
        """Keep what an interrupted run with the same key left behind, and nothing else."""
        marker = self.folder / "key.json"
        with writing(self.out):
            if self.partial.exists() and not (marker.exists() and read_json(marker).get("key") == key):
                shutil.rmtree(self.partial)
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(marker, {"key": key})

    def _path(self, episode: Episode) -> Path:
        return self.folder / f"episode-{episode.number:06d}.parquet"

    def has(self, episode: Episode) -> bool:
        return self._path(episode).exists()

    def put(self, episode: Episode, columns: Columns) -> None:
        if columns.keys() != self.features.keys():
            raise LaminaError(f"{episode.name}: labels are {sorted(columns)}, not {sorted(self.features)}")
        arrays = []
        for name, feature in self.features.items():
            values = np.asarray(columns[name]).reshape(len(columns[name]), -1)
            if values.shape != (episode.length, *feature["shape"]):
                raise LaminaError(
                    f"{episode.name}: '{name}' is {values.shape}, not {(episode.length, *feature['shape'])}"
                )
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise LaminaError(f"{episode.name}: '{name}' is NaN or infinite; the model is damaged or has diverged")
            arrays.append(to_arrow(values, feature))
        write_table(self._path(episode), [pa.table(arrays, schema=self.schema)], self.schema)

    def get(self, episode: Episode) -> tuple[pa.Table, dict[str, Statistics]]:
        """An episode's labels and their statistics."""
        table = read_table(self._path(episode))
        values = {n: to_numpy(table[n]) for n in self.features}
        valid = values[VALID][:, 0] if VALID in values else np.ones(episode.length, dtype=bool)
        return table, {n: column_statistics(v if n == VALID else v[valid]) for n, v in values.items()}


def _extend(source: LeRobotDataset, partial: Path, spool: _Spool) -> None:
    """The same dataset with the new columns: tables rewritten, videos linked, everything else copied."""
    by_file: dict[Path, list[Episode]] = {}
    for episode in source.episodes:
        by_file.setdefault(source.data_file(episode.number), []).append(episode)
    statistics: dict[int, dict[str, Statistics]] = {}
    for path, episodes in by_file.items():
        episodes.sort(key=lambda e: int(source.places["row"][e.number]))
        labels = []
        for episode in episodes:
            table, statistics[episode.number] = spool.get(episode)
            labels.append(table)
        _extend_file(path, partial / path.relative_to(source.root), pa.concat_tables(labels))
    overall: dict[str, Statistics] = {}
    for n in range(len(source.episodes)):
        overall = {name: merge_statistics(overall.get(name), s) for name, s in statistics[n].items()}
    for path in sorted((source.root / "meta/episodes").glob("*/*.parquet")):
        table = read_table(path)
        rows = [statistics_columns(statistics[n]) for n in table["episode_index"].to_pylist()]
        if rows:
            added = episode_table(rows)
            for name in added.column_names:
                table = table.append_column(name, added[name])
        write_table(partial / path.relative_to(source.root), [table], table.schema)
    write_json(partial / "meta/stats.json", {**source.stats, **as_json(overall)})
    write_json(partial / "meta/info.json", {**source.info, "features": {**source.info["features"], **spool.features}})
    _carry_over(source, partial)


def _extend_file(path: Path, out: Path, labels: pa.Table) -> None:
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != len(labels):
            raise LaminaError(f"{path}: has {file.metadata.num_rows} rows, its episodes {len(labels)}; it is damaged")
        # Metadata that the Hugging Face library left would describe the old columns only.
        schema = pa.schema([*file.schema_arrow, *labels.schema])

        def groups() -> Iterator[pa.Table]:
            begin = 0
            for g in range(file.metadata.num_row_groups):
                table = file.read_row_group(g)
                part = labels.slice(begin, len(table))
                begin += len(table)
                yield pa.table([*table.columns, *part.columns], schema=schema)

        write_table(out, groups(), schema)


def _carry_over(source: LeRobotDataset, partial: Path) -> None:
    """Videos are linked; what else there is (tasks, README, ...) is copied. Hidden folders are left behind."""
    for path in sorted(source.root.rglob("*")):
        relative = path.relative_to(source.root)
        rewritten = relative.parts[0] == "data" or relative.parts[:2] == ("meta", "episodes")
        if not path.is_file() or rewritten or any(p.startswith(".") for p in relative.parts):
            continue
        if relative.parts[0] == "videos":
            link(path, partial / relative)
        elif not (partial / relative).exists():
            (partial / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, partial / relative)


def link(path: Path, out: Path) -> None:
    """A hard link to a file, or a copy where it lies on another disk."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), out)
    except OSError:
        copy = partial_path(out)
        shutil.copyfile(path, copy)
        sync(copy)
        os.replace(copy, out)


def _convert(source: VideoFolder, partial: Path, spool: _Spool) -> None:
    """Plain video as a LeRobot dataset: one episode a file, one row a frame, episodes in the order of their splits."""
    whole = all(len(e.splits) == 1 for e in source.episodes)
    order = sorted(source.episodes, key=lambda e: SPLITS.index(e.splits[0][0])) if whole else list(source.episodes)
    splits = {}
    for split in SPLITS if whole else ():
        numbers = [n for n, e in enumerate(order) if e.splits[0][0] == split]
        if numbers:
            splits[split] = f"{numbers[0]}:{numbers[-1] + 1}"
    uneven = [e.name for e in order if e.stamps is not None]
    if uneven:
        warnings.warn(
            f"{uneven[0]}: has a varying frame rate ({len(uneven)} such file(s)); its labels keep the real times, but "
            "LeRobot's own reader needs a constant rate",
            LaminaWarning,
            stacklevel=3,
        )
    schema = pa.schema([(n, column_type(f)) for n, f in INDEX_FEATURES.items()] + list(spool.schema))
    overall: dict[str, Statistics] = {}
    rows: list[dict[str, Any]] = []
    pending: list[pa.Table] = []
    files = index = 0

    def flush() -> None:
        name = DATA_PATH.format(chunk_index=files // CHUNK_FILES, file_index=files % CHUNK_FILES)
        write_table(partial / name, pending, schema)

    for number, episode in enumerate(order):
        labels, statistics = spool.get(episode)
        length = episode.length
        indices = {
            "timestamp": episode.times,
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": np.arange(index, index + length),
            "task_index": np.zeros(length),
        }
        statistics |= {n: column_statistics(v[:, None]) for n, v in indices.items()}
        statistics[CAMERA] = _pixels(source, episode)
        columns = [to_arrow(v, INDEX_FEATURES[n]) for n, v in indices.items()]
        table = pa.table([*columns, *labels.columns], schema=schema)
        if pending and sum(t.nbytes for t in pending) + table.nbytes > DATA_MB * 2**20:
            flush()
            pending, files = [], files + 1
        pending.append(table)
        place = {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}
        start = _place_video(
            source.files[episode.number],
            source.starts[episode.number],
            partial / VIDEO_PATH.format(video_key=CAMERA, **place),
        )
        rows.append(
            {
                "episode_index": number,
                "tasks": [""],
                "length": length,
                "data/chunk_index": files // CHUNK_FILES,
                "data/file_index": files % CHUNK_FILES,
                "dataset_from_index": index,
                "dataset_to_index": index + length,
                **{f"videos/{CAMERA}/{k}": v for k, v in place.items()},
                f"videos/{CAMERA}/from_timestamp": start,
                f"videos/{CAMERA}/to_timestamp": start + float(episode.times[-1]) + 1.0 / episode.fps,
                **statistics_columns(statistics),
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        overall = {name: merge_statistics(overall.get(name), s) for name, s in statistics.items()}
        index += length
    flush()
    meta = episode_table(rows)
    write_table(partial / EPISODES_PATH.format(chunk_index=0, file_index=0), [meta], meta.schema)
    tasks = tasks_table([""])
    write_table(partial / "meta/tasks.parquet", [tasks], tasks.schema)
    write_json(partial / "meta/stats.json", as_json(overall))
    features = {CAMERA: _camera_feature(source), **spool.features}
    write_json(
        partial / "meta/info.json", dataset_info(source.fps, features, None, len(rows), index, tasks=1, splits=splits)
    )


def _camera_feature(source: VideoFolder) -> dict[str, Any]:
    sizes, counts = np.unique(np.array(source.sizes), axis=0, return_counts=True)
    height, width = sizes[counts.argmax()].tolist()
    like = source.files[source.sizes.index((height, width))]
    codec, pix_fmt, has_audio = video_facts(like)
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": video_info(height, width, codec, pix_fmt, source.fps, has_audio),
    }


def _pixels(source: VideoFolder, episode: Episode) -> Statistics:
    """Pixel statistics of evenly spread frames; key frames, where the others would have to be decoded up to."""
    numbers = np.arange(episode.length) if episode.keys is None else episode.keys
    numbers = np.unique(numbers[np.linspace(0, len(numbers) - 1, SAMPLED_FRAMES).round().astype(int)])
    histogram = np.zeros((3, 256), dtype=np.int64)
    for n in numbers.tolist():
        histogram += pixel_histogram(source.frames(episode, source.cameras[0], n, n + 1)[0])
    return pixel_statistics(histogram, len(numbers))


def _place_video(path: Path, start: float, out: Path) -> float:
    """Link an mp4, remux anything else; returns the time of the first frame in the new file, in seconds."""
    if path.suffix.lower() in (".mp4", ".m4v"):
        link(path, out)
        return start
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(out)
    try:
        with av.open(str(path)) as source, av.open(str(partial), "w", format="mp4") as target:
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            assert stream.time_base is not None
            origin = round(start / stream.time_base)
            for packet in source.demux(stream):
                if packet.size == 0:
                    continue
                packet.pts = None if packet.pts is None else packet.pts - origin
                packet.dts = None if packet.dts is None else packet.dts - origin
                packet.stream = copy
                target.mux(packet)
    except (av.error.FFmpegError, ValueError, TypeError) as error:
        raise LaminaError(f"{path}: cannot be put into an mp4 ({error}); re-encode it: ffmpeg -i IN OUT.mp4") from error
    sync(partial)
    os.replace(partial, out)
    return 0.0


class ReadAhead:
    """Frames of whole episodes in order, decoded by a thread while the caller works on the ones before.

    ``ahead(episode)`` yields its frames in arrays of at most ``chunk``; the thread goes on to the episodes that follow,
    so short ones do not make the caller wait. Memory: ``chunks`` + 2 arrays.
    """

    def __init__(
        self, source: Source, camera: str, size: tuple[int, int] | None, chunk: int = 64, chunks: int = 4
    ) -> None:
        self.source, self.camera, self.size, self.chunk, self.chunks = source, camera, size, chunk, chunks
        self.thread: threading.Thread | None = None
        self.expected = -1  # position of the episode that the thread delivers next

    def __call__(self, episode: Episode) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        position = self.source.episodes.index(episode)
        if self.thread is None or self.expected != position:
            self.close()
            self._begin(position)
        self.expected = -1  # a caller that leaves early finds the queue in the middle of an episode
        for start in range(0, episode.length, self.chunk):
            frames = self.queue.get()
            if isinstance(frames, Exception):
                self.close()
                raise frames
            if start + self.chunk >= episode.length:
                self.expected = position + 1
            yield frames

    def _begin(self, position: int) -> None:
        self.queue: queue.Queue[Any] = queue.Queue(self.chunks)
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._decode, args=(position, self.queue, self.stopping), daemon=True)
        self.thread.start()

    def _decode(self, position: int, out: queue.Queue[Any], stopping: threading.Event) -> None:
        for episode in self.source.episodes[position:]:
            for start in range(0, episode.length, self.chunk):
                try:
                    stop = min(start + self.chunk, episode.length)
                    item: Any = self.source.frames(episode, self.camera, start, stop, self.size)
                except Exception as error:  # raised again where the frames are asked for
                    item = error
                while not stopping.is_set():
                    try:
                        out.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if stopping.is_set() or isinstance(item, Exception):
                    return

    def close(self) -> None:
        """Stop the thread."""
        if self.thread is not None:
            self.stopping.set()
            self.thread.join()
            self.thread = None
