"""Round trips between Lamina and lerobot. Run by tests/lerobot_env.sh in an environment that has lerobot."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

# lerobot imports torchvision, whose operators do not register with this torch; nothing here calls them.
library = torch.library.Library("torchvision", "FRAGMENT")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

from data_files import camera, picture, read_number, write_dataset, write_video  # noqa: E402
from lamina.data.lerobot.labels import write_labels  # noqa: E402
from lamina.data.lerobot.statistics import STATISTICS  # noqa: E402
from lamina.data.sampling import open_source  # noqa: E402
from lamina.types import ActionSpec  # noqa: E402

LABELS = {
    "latent_action": {"dtype": "float32", "shape": [3], "names": None},
    "latent_action.index": {"dtype": "int64", "shape": [2], "names": None},
    "latent_action.valid": {"dtype": "bool", "shape": [1], "names": None},
}


def label(episode, camera: str) -> dict[str, np.ndarray]:
    number = np.arange(episode.length)
    return {
        "latent_action": np.stack([number, number * 2, number * 3], 1) / 10,
        "latent_action.index": np.stack([number, number + 1], 1),
        "latent_action.valid": number < episode.length - 1,
    }


def lerobot_reads(root: Path, **options) -> LeRobotDataset:
    return LeRobotDataset("local/test", root=root, video_backend="torchcodec", **options)


def shown(item: torch.Tensor) -> int:
    """The number that an image [c, h, w] in [0, 1] shows."""
    return read_number((item.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


def check_statistics(dataset: LeRobotDataset, names: list[str]) -> None:
    assert set(dataset.meta.stats) >= set(names), set(names) - set(dataset.meta.stats)
    for name in names:
        kept = dataset.meta.stats[name]
        assert set(kept) == set(STATISTICS), (name, set(kept))
        assert all(np.isfinite(np.asarray(v)).all() for v in kept.values()), name
    # lerobot's reader leaves the statistics by episode out when it loads; its editing tools need them.
    columns = pq.read_schema(dataset.root / "meta/episodes/chunk-000/file-000.parquet").names
    assert {f"stats/{n}/{s}" for n in names for s in STATISTICS} <= set(columns)


def check_labels(dataset: LeRobotDataset, lengths: list[int]) -> None:
    check_statistics(dataset, list(LABELS))
    starts = np.cumsum([0, *lengths])
    for e, length in enumerate(lengths):
        for i in (0, length // 2, length - 1):
            item = dataset[int(starts[e]) + i]
            assert int(item["episode_index"]) == e and int(item["frame_index"]) == i
            assert torch.allclose(item["latent_action"], torch.tensor([i, 2 * i, 3 * i]) / 10), item["latent_action"]
            assert item["latent_action.index"].tolist() == [i, i + 1]
            assert bool(item["latent_action.valid"]) == (i < length - 1)


def lerobot_reads_what_lamina_writes(folder: Path) -> None:
    odd = {"observation.images.odd": camera(33, 49)}
    lengths = [20, 7, 13, 1]
    root = write_dataset(folder / "ours", lengths, splits=["test", "train", "validation", "train"], **odd)
    order = [1, 3, 2, 0]  # by split
    dataset = lerobot_reads(root)
    assert dataset.num_episodes == 4 and len(dataset) == sum(lengths) and dataset.fps == 10
    check_statistics(dataset, ["action", "observation.state", "timestamp", "index", *dataset.meta.camera_keys])
    mean = np.mean([(100 * e + i) % 5 for e, n in enumerate(lengths) for i in range(n)])
    assert np.isclose(dataset.meta.stats["action"]["mean"], mean).all()
    assert dataset.meta.stats["observation.images.front"]["mean"].shape == (3, 1, 1)
    at = 0
    for e in order:
        for i in range(lengths[e]):
            item, number = dataset[at], 100 * e + i
            assert shown(item["observation.images.front"]) == number
            assert shown(item["observation.images.twin"]) == 2000 + number
            assert item["observation.images.odd"].shape == (3, 33, 49)
            assert shown(item["observation.images.odd"]) == number
            assert int(item["action"]) == number % 5 and item["observation.state"].tolist() == [e, i]
            assert item["task"] == f"task {e % 2}" and abs(float(item["timestamp"]) - i / 10) < 1e-5
            at += 1
    ahead = lerobot_reads(root, delta_timestamps={"observation.images.front": [0.0, 0.1], "action": [0.0, 0.1, 0.2]})
    item = ahead[0]
    assert [shown(f) for f in item["observation.images.front"]] == [100, 101] and item["action"].tolist() == [0, 1, 2]
    some = lerobot_reads(root, episodes=[2])
    assert len(some) == 13 and shown(some[0]["observation.images.front"]) == 200

    labelled = write_labels(open_source(root), folder / "ours-labelled", LABELS, label, {"checkpoint": "abc"})
    dataset = lerobot_reads(labelled)
    check_labels(dataset, [lengths[e] for e in order])
    assert shown(dataset[3]["observation.images.front"]) == 103
    assert (labelled / "meta/lamina.json").exists()


def lerobot_reads_labelled_video(folder: Path) -> None:
    videos = folder / "videos"
    write_video(videos / "a.mp4", frames=30, options={"bf": "2"})
    write_video(videos / "b.mkv", frames=20, offset=100, options={"bf": "2"})
    write_video(videos / "sub/c.webm", frames=25, offset=200, codec="libvpx-vp9")
    write_video(videos / "d.mov", frames=15, offset=300, codec="mjpeg", pix_fmt="yuvj420p")
    source = open_source(videos)
    labelled = write_labels(source, folder / "videos-labelled", LABELS, label, {"checkpoint": "abc"})
    order = sorted(source.episodes, key=lambda e: ("train", "validation", "test").index(e.splits[0][0]))
    dataset = lerobot_reads(labelled)
    check_labels(dataset, [e.length for e in order])
    check_statistics(dataset, ["observation.images.video"])
    at = 0
    for e in order:
        offset = {"a": 0, "b": 100, "c": 200, "d": 300}[Path(e.name).stem]
        for i in range(e.length):
            assert shown(dataset[at]["observation.images.video"]) == offset + i
            at += 1


def lamina_reads_what_lerobot_writes(folder: Path) -> None:
    features = {
        "action": {"dtype": "int64", "shape": (1,), "names": ["move"]},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["episode", "frame"]},
        "observation.images.front": {"dtype": "video", "shape": (64, 96, 3), "names": ["height", "width", "channels"]},
    }
    root = folder / "theirs"
    dataset = LeRobotDataset.create("local/theirs", fps=10, features=features, root=root)
    lengths = [20, 9, 14, 11]
    for e, length in enumerate(lengths):
        for i in range(length):
            number = 100 * e + i
            frame = {
                "action": np.array([number % 4]),
                "observation.state": np.array([e, i], dtype=np.float32),
                "observation.images.front": picture(number, 64, 96),
            }
            dataset.add_frame({**frame, "task": f"task {e % 2}"})
        dataset.save_episode()
    dataset.finalize()

    ours = open_source(root)
    assert ours.kind == "lerobot" and ours.cameras == ("observation.images.front",) and ours.fps == 10
    assert ours.action_spec("action") == ActionSpec((4,), names=("move",))
    assert [e.length for e in ours.episodes] == lengths
    for e, episode in enumerate(ours.episodes):
        frames = ours.frames(episode, "observation.images.front", 0, episode.length)
        assert [read_number(f) for f in frames] == [100 * e + i for i in range(episode.length)]
        state = ours.column(episode, "observation.state")
        assert np.array_equal(state, np.stack([np.full(len(state), e), np.arange(len(state))], 1))

    labelled = write_labels(ours, folder / "theirs-labelled", LABELS, label, {"checkpoint": "abc"})
    dataset = lerobot_reads(labelled)
    check_labels(dataset, lengths)
    check_statistics(dataset, ["action", "observation.state", "observation.images.front"])
    assert shown(dataset[25]["observation.images.front"]) == 105 and dataset[25]["task"] == "task 1"
    before = json.loads((root / "meta/info.json").read_text())
    after = json.loads((labelled / "meta/info.json").read_text())
    assert {k: v for k, v in after.items() if k != "features"} == {k: v for k, v in before.items() if k != "features"}


def main() -> None:
    for check in (
        lerobot_reads_what_lamina_writes,
        lerobot_reads_labelled_video,
        lamina_reads_what_lerobot_writes,
    ):
        with tempfile.TemporaryDirectory() as folder:
            check(Path(folder))
        print(f"ok  {check.__name__.replace('_', ' ')}")


if __name__ == "__main__":
    main()
