"""Small video files and datasets; every frame encodes its own number."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lamina.data.dataset import Dataset
from lamina.data.lerobot.writer import LeRobotWriter
from lamina.data.sampling import DataConfig

BITS = 12


def picture(number: int, height: int = 32, width: int = 48) -> np.ndarray:
    """A picture [h, w, 3] that shows ``number`` in black and white columns, which survive encoding and resizing."""
    bits = np.array([number >> b & 1 for b in range(BITS)], dtype=np.uint8)
    columns = bits[np.arange(width) * BITS // width]
    return np.broadcast_to((16 + 223 * columns)[None, :, None], (height, width, 3)).astype(np.uint8)


def read_number(image: np.ndarray) -> int:
    """The number that a picture [h, w, 3] shows."""
    width = image.shape[1]
    middles = (np.arange(BITS) * 2 + 1) * width // (2 * BITS)
    levels = image[image.shape[0] // 2, middles].mean(-1)
    assert (np.abs(levels - 127.5) > 40).all(), f"unreadable picture: {levels}"
    return int(((levels > 127.5) << np.arange(BITS)).sum())


def write_video(
    path: Path,
    frames: int = 40,
    fps: float = 10,
    size: tuple[int, int] = (32, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    offset: int = 0,
    muxer: dict[str, str] | None = None,
) -> Path:
    """A video whose frame i shows offset + i, at i / fps seconds or at ``pts`` milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(offset + i, *size), format="rgb24").reformat(format=pix_fmt)
            frame.pts = i if pts is None else pts[i]
            frame.time_base = Fraction(1, 1000) if pts is not None else 1 / Fraction(fps).limit_denominator(1001)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def camera(height: int = 32, width: int = 48) -> dict:
    return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"]}


def write_dataset(
    root: Path, lengths: list[int], fps: float = 10, splits: list[str] | None = None, **cameras: dict
) -> Path:
    """A LeRobot dataset. Episode e, frame i: the camera shows 100 e + i, the second one 2000 + that, any of ``cameras``
    the same as the first; the action is (100 e + i) % 5, the state [e, i]."""
    features = {
        "action": {"dtype": "int64", "shape": [1], "names": ["move"], "num_classes": 5},
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["episode", "frame"]},
        "observation.images.front": camera(),
        "observation.images.twin": camera(),
        **cameras,
    }
    with LeRobotWriter(root, fps, features) as writer:
        for e, length in enumerate(lengths):
            number = 100 * e + np.arange(length)
            writer.add_episode(
                {
                    "action": number % 5,
                    "observation.state": np.stack([np.full(length, e), np.arange(length)], 1).astype(np.float32),
                },
                {
                    "observation.images.front": (picture(n) for n in number),
                    "observation.images.twin": np.stack([picture(2000 + n) for n in number]),
                    **{name: (picture(n, *f["shape"][:2]) for n in number) for name, f in cameras.items()},
                },
                task=f"task {e % 2}",
                split=splits[e] if splits else "train",
            )
    return root


FRONT = "observation.images.front"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def write_columns(path: Path, columns: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def foreign_dataset(
    root: Path,
    lengths: list[int],
    fps: float = 10,
    features: dict | None = None,
    columns: dict | None = None,
    camera: str | None = FRONT,
    info: dict | None = None,
    stamps: np.ndarray | None = None,
    action: np.ndarray | None = None,
    video_fps: float | None = None,
) -> Path:
    """A LeRobotDataset v3.0 as other programs write it: one data file, one video file. Its row i shows i and has the action (i, -i)."""
    total, starts = sum(lengths), np.cumsum([0, *lengths])[:-1].tolist()
    if camera:
        write_video(root / f"videos/{camera}/chunk-000/file-000.mp4", total, video_fps or fps)
    action = np.stack([np.arange(total), -np.arange(total)], 1).astype(np.float32) if action is None else action
    frame = np.concatenate([np.arange(n) for n in lengths])
    rows = {
        "action": pa.array(action.tolist(), pa.list_(pa.from_numpy_dtype(action.dtype))),
        "timestamp": pa.array(np.asarray(frame / fps if stamps is None else stamps, np.float32)),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(total),
        "task_index": np.zeros(total, np.int64),
    }
    write_columns(root / DATA, {**rows, **(columns or {})})
    each = [0] * len(lengths)
    episodes = {
        "episode_index": list(range(len(lengths))),
        "tasks": [["push the cube"]] * len(lengths),
        "length": lengths,
        "data/chunk_index": each,
        "data/file_index": each,
        "dataset_from_index": starts,
        "dataset_to_index": [s + n for s, n in zip(starts, lengths, strict=True)],
    }
    if camera:
        episodes |= {f"videos/{camera}/{k}": each for k in ("chunk_index", "file_index")}
        episodes[f"videos/{camera}/from_timestamp"] = [s / fps for s in starts]
        episodes[f"videos/{camera}/to_timestamp"] = [(s + n) / fps for s, n in zip(starts, lengths, strict=True)]
    write_columns(root / EPISODES, episodes)
    write_columns(root / "meta/tasks.parquet", {"task_index": [0], "__index_level_0__": ["push the cube"]})
    whole = {n: "int64" for n in ("frame_index", "episode_index", "index", "task_index")} | {"timestamp": "float32"}
    described = {n: {"dtype": kind, "shape": [1], "names": None} for n, kind in whole.items()}
    described["action"] = {"dtype": str(action.dtype), "shape": [action.shape[1]], "names": None}
    if camera:
        described[camera] = {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
    content = {
        "codebase_version": "v3.0",
        "total_episodes": len(lengths),
        "total_frames": total,
        "fps": fps,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {**described, **(features or {})},
    }
    (root / "meta/info.json").write_text(json.dumps({**content, **(info or {})}))
    return root


def change_info(root: Path, **changes: object) -> None:
    """Changes values in meta/info.json; None removes."""
    path = root / "meta/info.json"
    info = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in info.items() if v is not None}))


def change_table(path: Path, **columns: list | pa.Array) -> None:
    """Replaces columns of a parquet file; "/" in a name is written "__"."""
    table = pq.read_table(path)
    for name, values in columns.items():
        name = name.replace("__", "/")
        at = table.schema.get_field_index(name)
        table = table.append_column(name, pa.array(values)) if at < 0 else table.set_column(at, name, pa.array(values))
    pq.write_table(table, path)


def numbers(source: Dataset, episode: int, camera: str | None = None) -> list[int]:
    """The numbers that the pictures of an episode show."""
    e = source.episodes[episode]
    return [read_number(f) for f in source.frames(e, camera or source.cameras[0], 0, e.length)]


LABELS = {
    "latent_action": {"dtype": "float32", "shape": [2], "names": None},
    "latent_action.valid": {"dtype": "bool", "shape": [1], "names": None},
}


def label(episode, camera):
    """Labels that say whose they are: the episode's number and the row's, all of them valid."""
    rows = np.arange(episode.length)
    return {
        "latent_action": np.stack([np.full(episode.length, episode.number), rows], 1).astype(np.float32),
        "latent_action.valid": np.ones(episode.length, bool),
    }


def config(root: Path, **options) -> DataConfig:
    """Small pictures, read in this process; frames alone."""
    return DataConfig((str(root),), **{"size": (16, 48), "workers": 0, "shuffle": 20, "action": None, **options})
