"""Labels: a dataset with new per-frame columns, written as a LeRobot dataset; video files are not re-encoded."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa

from lamina.data.dataset import Dataset
from lamina.data.episodes import SPLITS, Episode, exact_rate
from lamina.data.lerobot.reader import LeRobotDataset
from lamina.data.lerobot.staging import VALID, Columns, Engine, Features, LabelPlan, Staging, digest, one_by_one
from lamina.data.lerobot.statistics import (
    Statistics,
    column_statistics,
    merge_statistics,
    pixel_histogram,
    pixel_statistics,
)
from lamina.data.lerobot.tables import open_table, read_table, to_numpy
from lamina.data.lerobot.writer import (
    CHUNK_FILES,
    DATA_PATH,
    EPISODES_PATH,
    INDEX_FEATURES,
    SMALL_PICTURES,
    VIDEO_PATH,
    DatasetTables,
    LeRobotWriter,
    action_feature,
    as_json,
    camera_feature,
    check_new,
    column_type,
    episode_table,
    file_name,
    statistics_columns,
    to_arrow,
    video_info,
    write_json,
    write_table,
    writing,
)
from lamina.data.paths import belongs, is_dataset, local, walk
from lamina.data.video import (
    FAILURES,
    SUFFIXES,
    VideoFile,
    VideoFolder,
    failures,
    index_video,
    open_video,
    video_facts,
    video_stream,
)
from lamina.errors import LaminaError, warn
from lamina.files import partial_path, reason, sync, whole_file

CAMERA = "observation.images.video"  # what the one camera of plain video is called in a LeRobot dataset
CONTAINERS = {".mp4": "mp4", ".mkv": "matroska"}
TICKS = 100  # of a remuxed mp4 for each frame
RECORDED_FRAMES = 64  # that are read at once where video is encoded
SAMPLED_FRAMES = 16  # key frames of a plain video that its pixel statistics are taken from


def write_labels(
    source: Dataset,
    out: str | Path,
    features: Features,
    label: Callable[[Episode, str], Columns],
    provenance: dict[str, Any],
    camera: str | None = None,
) -> Path:
    """Write ``source`` with new columns as a LeRobotDataset v3.0 at ``out``, which is returned.

    ``features`` maps the new columns to {"dtype", "shape": [d], "names"}; ``label(episode, camera)`` gives their values
    [t, d] (or [t]). ``provenance`` goes to meta/lamina.json. All ten statistics are written for every new column;
    those of labels leave out the rows where ``latent_action.valid`` is False.

    A LeRobot dataset keeps its tables and its videos (hard links, copies on another disk); files get LeRobot's usual names. Episodes that
    ``camera`` does not show get rows of zeros that are not valid, with a warning. Plain video becomes one episode a file and one row a
    frame with the frame's real time, episodes grouped by split; each file is linked, or remuxed without re-encoding where its container is
    another: to mp4, or all of them to mkv if one has a codec that no mp4 can hold. LeRobot's own reader finds frames by a constant rate, so
    files whose rate varies are named in a warning. Any other Dataset is written with its columns, its frames encoded as video
    (:class:`LeRobotWriter`), episodes grouped by split.

    Interrupted and run again, it continues after the last whole episode, and the result is the same, byte for byte, as long as
    ``provenance`` and the data are (so keep clock times out of it); otherwise it starts over. :func:`check_writable` is called before
    the first label. Raises LaminaError: ``out`` exists or lies in the dataset, ``source`` has such a column already or cannot be
    written, labels that do not fit ``features`` or are NaN, video that cannot be decoded, a disk that refuses.
    """
    camera = camera or source.cameras[0]
    plan = LabelPlan(source, features, provenance, camera)
    return write_labelled(plan, Path(out), nullcontext(one_by_one(lambda episode: label(episode, camera))))


def write_labelled(plan: LabelPlan, out: Path, engine: AbstractContextManager[Engine]) -> Path:
    """:func:`write_labels` by any engine, whose order of the episodes changes nothing. It is entered after all checks of ``plan`` and
    ``out``, before anything is written, and left before the dataset is made of the labels."""
    missing = check_plan(plan, out)
    with engine as label:
        staging = staging_of(plan, out)
        staging.fill(plan.source.episodes, missing, label)
    return finish(plan, out, staging)


def check_plan(plan: LabelPlan, out: Path) -> set[int]:
    """:func:`check_writable`, after the checks of the names in ``plan``, and of ``out``, which must be new."""
    source, features = plan.source, plan.features
    there = source.info["features"] if isinstance(source, LeRobotDataset) else source.columns
    taken = set(features) & {*there, *INDEX_FEATURES}
    if taken:
        raise LaminaError(
            f"{source.name}: has a feature '{min(taken)}' already; label the dataset that it was made from"
        )
    if out.exists():  # a process that was killed just after its last step left this
        shutil.rmtree(partial_path(out), ignore_errors=True)
    check_new(out)
    return check_writable(source, out, features, plan.camera)


def staging_of(plan: LabelPlan, out: Path) -> Staging:
    """The labels for ``out`` that an interrupted job has left, if they are of the same plan."""
    staging = Staging(partial_path(out) / "labels", out, plan.features)
    staging.resume(digest(plan.record()), within=partial_path(out))
    return staging


def finish(plan: LabelPlan, out: Path, staging: Staging) -> Path:
    """Make the dataset of labels that are all there; returns ``out``."""
    source, partial = plan.source, partial_path(out)
    dataset = partial / "dataset"
    with writing(out):
        if isinstance(source, LeRobotDataset):
            _extend(source, dataset, staging)
        elif isinstance(source, VideoFolder):
            _convert(source, dataset, staging)
        else:
            _record(source, dataset, staging)
        write_json(dataset / "meta/lamina.json", plan.provenance)
        os.replace(dataset, out)
        sync(out.parent)
        shutil.rmtree(partial)
    return out


def check_shown(source: Dataset, camera: str) -> set[int]:
    """The numbers of the episodes that ``camera`` does not show, with a warning: their rows are not valid.

    Raises LaminaError where the frames of an episode are uncertain, and where the camera shows none.
    """
    missing = source.missing_episodes(camera)
    refused = [error for error in missing.values() if error is not None]
    if refused:
        raise refused[0]
    if len(missing) == len(source.episodes):
        raise LaminaError(f"{source.name}: '{camera}' shows no episode; name another camera")
    if missing:
        warn(
            f"{source.name}: '{camera}' does not show {len(missing)} of {len(source.episodes)} episodes; their rows are not valid"
        )
    return set(missing)


def check_writable(source: Dataset, out: Path, features: Features, camera: str) -> set[int]:
    """The checks of :func:`write_labels` that need no label; returns the numbers of the episodes that ``camera`` does not show.

    Raises LaminaError: video frames whose rows are uncertain, a codec that no container here can hold, a file of the dataset that is
    missing or no video, rows that no episode has, an ``out`` within the dataset, episodes of different or uneven rates in a Dataset that is
    neither a LeRobot dataset nor video.
    """
    missing = check_shown(source, camera)
    if missing and VALID not in features:
        raise LaminaError(
            f"{source.name}: '{camera}' does not show episode {min(missing)}; its labels cannot be marked as missing"
        )
    if isinstance(source, VideoFolder):
        video_suffix(source)
    elif isinstance(source, LeRobotDataset):
        if out.resolve().is_relative_to(source.root.resolve()):
            raise LaminaError(f"{out}: lies in the dataset that it is made from; choose another place")
        if source.rows.unlisted:
            raise LaminaError(
                f"{min(source.rows.unlisted)}: has rows of episodes that meta/episodes does not list; mend one of them"
            )
        _ = source.stats
        for path in dict.fromkeys(_videos(source).values()):
            with failures(path, "is no video", "mend the dataset"), open_video(path) as container:
                video_stream(container)
    else:
        if rates := {e.fps for e in source.episodes} - {source.fps}:
            raise LaminaError(
                f"{source.name}: has episodes of {source.fps:g} and of {min(rates):g} frames per second, and a LeRobot dataset has one rate"
            )
        if uneven := next((e for e in source.episodes if e.stamps is not None), None):
            raise LaminaError(
                f"{uneven.name}: its frames are not evenly spaced in time, and those of a LeRobot dataset that is made of it would be; "
                "label without an output, or make video files of it"
            )
        _recorded_cameras(source)
    return missing


def _extend(source: LeRobotDataset, partial: Path, staging: Staging) -> None:
    """The same dataset with the new columns: tables rewritten, videos linked, everything else copied."""
    by_file: dict[int, list[Episode]] = {}
    for episode in source.episodes:
        by_file.setdefault(int(source.rows.file[episode.number]), []).append(episode)
    statistics: dict[int, dict[str, Statistics]] = {}
    for number, episodes in by_file.items():
        episodes.sort(key=lambda e: int(source.rows.start[e.number]))
        labels = []
        for episode in episodes:
            table, statistics[episode.number] = staging.get(episode)
            labels.append(table)
        _extend_file(source.rows.files[number], partial / file_name(DATA_PATH, number), pa.concat_tables(labels))
    overall: dict[str, Statistics] = {}
    for n in range(len(source.episodes)):
        overall = {name: merge_statistics(overall.get(name), s) for name, s in statistics[n].items()}
    for number, path in enumerate(sorted(walk(source.root / "meta/episodes"))):
        if path.suffix == ".parquet":
            table = _extend_episodes(source, read_table(path), statistics)
            write_table(partial / file_name(EPISODES_PATH, number), [table], table.schema)
    write_json(partial / "meta/stats.json", {**source.stats, **as_json(overall)})
    videos = _videos(source)
    template = VIDEO_PATH.removesuffix(".mp4") + (_suffix(source) if videos else ".mp4")
    own = {"data_path": DATA_PATH, "features": {**source.info["features"], **staging.features}}
    own |= {"video_path": template} if videos else {}
    write_json(partial / "meta/info.json", {**source.info, **own})
    for (camera, chunk, file), path in videos.items():
        link(path, partial / template.format(video_key=local(camera), chunk_index=chunk, file_index=file))
    _carry_over(source, partial)


def _extend_episodes(source: LeRobotDataset, table: pa.Table, statistics: dict[int, dict[str, Statistics]]) -> pa.Table:
    """Rows of meta/episodes with the statistics of the new columns and the data file that really holds the rows of each episode."""
    numbers = table["episode_index"].to_pylist()
    files = source.rows.file[np.array(numbers, dtype=int)] if numbers else np.zeros(0, int)
    for name, values in (("data/chunk_index", files // CHUNK_FILES), ("data/file_index", files % CHUNK_FILES)):
        column = pa.array(values, pa.int64())
        place = table.schema.get_field_index(name)
        table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
    if numbers:
        added = episode_table([statistics_columns(statistics[n]) for n in numbers])
        for name in added.column_names:
            table = table.append_column(name, added[name])
    return table


def _videos(source: LeRobotDataset) -> dict[tuple[str, int, int], Path]:
    """The video files of the episodes, by (camera, chunk, file)."""
    places: dict[tuple[str, int, int], Path] = {}
    for camera in source.cameras:
        if not source.in_table(camera):
            found = {source.video_place(e.number, camera) for e in source.episodes}
            places |= {(camera, *p): source.video_file(camera, p) for p in sorted(filter(None, found))}
    return places


def _suffix(source: LeRobotDataset) -> str:
    """What the names of a dataset's videos end with; LeRobot writes mp4."""
    suffix = Path(source.info["video_path"]).suffix.lower()
    return suffix if suffix in SUFFIXES else ".mp4"


def _extend_file(path: Path, out: Path, labels: pa.Table) -> None:
    with open_table(path) as file:
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
    """Copy the other files (tasks, README, ...), except hidden files, other datasets and links that lead out of this one."""
    outside: list[Path] = []
    for path in sorted(walk(source.root, lambda folder: not is_dataset(folder))):
        relative = path.relative_to(source.root)
        if relative.parts[0] in ("data", "videos") or relative.parts[:2] == ("meta", "episodes"):
            continue
        if not belongs(path, source.root) or not path.exists():
            outside.append(path)
        elif not (partial / relative).exists():
            (partial / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, partial / relative)
    if outside:
        warn(f"{outside[0]}: leads out of the dataset and is not copied ({len(outside)} such link(s))")


def link(path: Path, out: Path) -> None:
    """A hard link to a file, or a copy where it lies on another disk."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), out)
    except OSError:
        with whole_file(out) as copy:
            shutil.copyfile(path, copy)


def _convert(source: VideoFolder, partial: Path, staging: Staging) -> None:
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
        warn(
            f"{uneven[0]}: has a varying frame rate ({len(uneven)} such file(s)); its labels keep the real times, but "
            "LeRobot's own reader needs a constant rate"
        )
    suffix = video_suffix(source)
    if suffix != ".mp4":
        warn(
            f"{source.root}: holds video that no mp4 can hold; all of it is written as {suffix}, whose times are rounded to a thousandth "
            "of a second: LeRobot's own reader needs a tolerance of 0.001 for it"
        )
    template = VIDEO_PATH.removesuffix(".mp4") + suffix
    schema = pa.schema([(n, column_type(f)) for n, f in INDEX_FEATURES.items()] + list(staging.schema))
    tables = DatasetTables(partial, schema)
    sizes = [(0, 0)] * len(source.files)  # as shown
    for number, episode in enumerate(order):
        labels, statistics = staging.get(episode)
        length = episode.length
        indices = {
            "timestamp": episode.times,
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": np.arange(tables.frames, tables.frames + length),
            "task_index": np.zeros(length),
        }
        statistics |= {n: column_statistics(v[:, None]) for n, v in indices.items()}
        statistics[CAMERA], sizes[episode.number] = _pixels(source, episode)
        columns = [to_arrow(v, INDEX_FEATURES[n]) for n, v in indices.items()]
        start = _place_video(source, episode, partial / file_name(template, number, video_key=CAMERA))
        place = {
            "chunk_index": number // CHUNK_FILES,
            "file_index": number % CHUNK_FILES,
            "from_timestamp": start,
            "to_timestamp": start + float(episode.times[-1]) + 1.0 / episode.fps,
        }
        videos = {f"videos/{CAMERA}/{name}": value for name, value in place.items()}
        tables.add(pa.table([*columns, *labels.columns], schema=schema), [""], videos, statistics)
    features = {CAMERA: _camera_feature(source, sizes), **staging.features}
    tables.finish(source.fps, features, [""], splits, {"video_path": template})


def _record(source: Dataset, out: Path, staging: Staging) -> None:
    """A Dataset that has no files to link: its frames and columns, and the labels, by :class:`LeRobotWriter`."""
    cameras = _recorded_cameras(source)
    features: Features = {}
    for camera, name in cameras.items():
        height, width, _ = source.frames(source.episodes[0], camera, 0, 1)[0].shape
        features[name] = camera_feature(height, width)
    for name in source.columns:
        spec = source.action_spec(name)
        plain = {"dtype": "float32", "shape": [source.width(name)], "names": None}
        features[name] = plain if spec is None else action_feature(spec)
    shutil.rmtree(out, ignore_errors=True)  # whole, but left by a process that was killed before it could be renamed
    with LeRobotWriter(out, source.fps, {**features, **staging.features}, video=SMALL_PICTURES) as writer:
        for episode in source.episodes:
            table, statistics = staging.get(episode)
            columns = {name: source.column(episode, name) for name in source.columns}
            columns |= {name: to_numpy(table[name]) for name in staging.features}
            videos = {name: _all_frames(source, episode, camera) for camera, name in cameras.items()}
            split = episode.splits[0][0] if len(episode.splits) == 1 else "train"
            writer.add_episode(columns, videos, episode.task, split, statistics)


def _recorded_cameras(source: Dataset) -> dict[str, str]:
    """Cameras that show every episode, and the names that they get in a LeRobot dataset. The others are left out with a warning."""
    partial = [camera for camera in source.cameras if source.missing_episodes(camera)]
    if len(partial) == len(source.cameras):
        raise LaminaError(f"{source.name}: no camera shows every episode; leave out the episodes that it does not show")
    if partial:
        warn(
            f"{source.name}: '{partial[0]}' does not show every episode and is not written ({len(partial)} such camera(s))"
        )
    prefix = "observation.images."
    return {c: c if c.startswith(prefix) else prefix + c for c in source.cameras if c not in partial}


def _all_frames(source: Dataset, episode: Episode, camera: str) -> Iterator[np.ndarray]:
    for start in range(0, episode.length, RECORDED_FRAMES):
        yield from source.frames(episode, camera, start, min(start + RECORDED_FRAMES, episode.length))


def _camera_feature(source: VideoFolder, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The feature of plain video: the most frequent size as it is shown, and what a file of that size is like."""
    (height, width), _ = Counter(sizes).most_common(1)[0]
    codec, pix_fmt, has_audio = video_facts(source.files[sizes.index((height, width))].path)
    return camera_feature(height, width) | {"info": video_info(height, width, codec, pix_fmt, source.fps, has_audio)}


def _pixels(source: VideoFolder, episode: Episode) -> tuple[Statistics, tuple[int, int]]:
    """Pixel statistics of evenly spread frames, and their size as shown; key frames, where the others would have to be decoded up to."""
    numbers = np.arange(episode.length) if episode.keys is None else episode.keys
    numbers = np.unique(numbers[np.linspace(0, len(numbers) - 1, SAMPLED_FRAMES).round().astype(int)])
    histogram = np.zeros((3, 256), dtype=np.int64)
    size = (0, 0)
    for n in numbers.tolist():
        frame = source.frames(episode, source.cameras[0], n, n + 1)[0]
        size = size if any(size) else frame.shape[:2]
        histogram += pixel_histogram(frame)
    return pixel_statistics(histogram, len(numbers)), size


def video_suffix(source: VideoFolder) -> str:
    """What the files of plain video become: .mp4, or .mkv where a codec is among them that no mp4 can hold.

    Raises LaminaError if neither can hold one of them.
    """
    # By codec, container and suffix: what goes for one such file goes for all of them.
    like = {(file.codec, file.format, file.cut, file.path.suffix): file for file in reversed(source.files)}
    refusals: dict[str, tuple[Path, str]] = {}
    for suffix, form in CONTAINERS.items():
        for file in like.values():
            refusal = None if suffix == ".mp4" and _is_mp4(file) else _refusal(file.path, form)
            if suffix == ".mkv" and file.cut:
                refusal = "no mkv can hide what was cut off its beginning"
            if refusal is not None:
                refusals[suffix] = file.path, refusal
                break
        else:
            return suffix
    path, refusal = refusals[".mkv"]
    raise LaminaError(
        f"{path}: fits neither into an mp4 nor into an mkv ({refusal}); re-encode it: ffmpeg -i IN OUT.mp4"
    )


def _is_mp4(file: VideoFile) -> bool:
    """Whether a file is an mp4 already, which can be linked."""
    return "mp4" in file.format and file.path.suffix.lower() in (".mp4", ".m4v")


def _refusal(path: Path, form: str) -> str | None:
    """Why the video of a file cannot be put into a container, tried with its first packet; None if it can."""
    try:
        with open_video(path) as given, av.open(BytesIO(), "w", format=form) as target:
            stream = video_stream(given)
            copy = target.add_stream_from_template(stream)
            packet = next(p for p in given.demux(stream) if p.size)
            packet.pts = packet.dts = 0
            packet.stream = copy
            target.mux(packet)
    except (*FAILURES, TypeError) as error:
        return reason(error)
    return None


def _place_video(source: VideoFolder, episode: Episode, out: Path) -> float:
    """Link an mp4, remux anything else; returns the time of the first frame in the new file, in seconds."""
    file = source.files[episode.number]
    path, start = file.path, file.clock.start
    if out.suffix == ".mp4" and _is_mp4(file):
        link(path, out)
        return start
    # Where frames are regular they get their exact times again, which a container may have rounded: LeRobot's own reader looks for those.
    grid = exact_rate(episode.fps) if episode.stamps is None and out.suffix == ".mp4" else None
    with whole_file(out) as partial:
        _remux(path, start, grid, partial, CONTAINERS[out.suffix])
        index = index_video(partial, quick=True)
        if len(index.times) != episode.length:
            raise LaminaError(f"{path}: lost frames on its way into {out.name}; re-encode it: ffmpeg -i IN OUT.mp4")
    return index.start


def _remux(path: Path, start: float, grid: Fraction | None, out: Path, form: str) -> None:
    """Copy the packets of a video into another container. ``grid``: frames a second, whose exact times they get; None: they keep theirs."""
    try:
        with open_video(path) as given, av.open(f"file:{out}", "w", format=form) as target:
            stream = video_stream(given)
            copy = target.add_stream_from_template(stream)
            assert stream.time_base is not None
            base = stream.time_base if grid is None else 1 / grid / TICKS
            copy.time_base = base
            origin = round(start / stream.time_base)
            frame = stream.time_base * (grid or 1)  # of a tick, where there is a grid
            for packet in given.demux(stream):
                if packet.size == 0:
                    continue
                pts, dts = (None if t is None else t - origin for t in (packet.pts, packet.dts))
                if grid is not None:
                    pts = None if pts is None else TICKS * round(pts * frame)
                    dts = None if dts is None else round(dts * frame * TICKS)
                    dts = dts if dts is None or pts is None else min(dts, pts)
                packet.pts, packet.dts, packet.time_base = pts, dts, base
                packet.stream = copy
                target.mux(packet)
    except (*FAILURES, TypeError) as error:
        if isinstance(error, LaminaError):
            raise
        raise LaminaError(
            f"{path}: cannot be put into an {form} ({reason(error)}); re-encode it: ffmpeg -i IN OUT.mp4"
        ) from error
