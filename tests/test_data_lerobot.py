"""LeRobotDataset v3.0: reading equals writing, writes are atomic, and damage is named."""

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_files import camera, picture, read_number, write_dataset
from lamina.data.lerobot.statistics import (
    STATISTICS,
    column_statistics,
    merge_statistics,
    pixel_histogram,
    pixel_statistics,
)
from lamina.data.lerobot.writer import LeRobotWriter, VideoEncoding
from lamina.data.sampling import open_source
from lamina.errors import LaminaError
from lamina.types import ActionSpec

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")
LENGTHS = [20, 12, 15, 8, 30, 11]
SPLITS = ["test", "train", "validation", "train", "train", "test"]
ORDER = [1, 3, 4, 2, 0, 5]  # by split
FRONT, TWIN = "observation.images.front", "observation.images.twin"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    odd = {"observation.images.odd": camera(33, 49)}
    return write_dataset(tmp_path_factory.mktemp("sets") / "set", LENGTHS, fps=8.75, splits=SPLITS, **odd)


@pytest.fixture
def copy(root, tmp_path) -> Path:
    return shutil.copytree(root, tmp_path / "copy")


def test_reading_equals_writing(root):
    source = open_source(root)
    assert source.fps == 8.75
    assert source.cameras == (FRONT, TWIN, "observation.images.odd")
    assert source.action_spec("action") == ActionSpec(discrete=(5,), names=("move",))
    assert [e.length for e in source.episodes] == [LENGTHS[e] for e in ORDER]
    assert [e.splits[0][0] for e in source.episodes] == [SPLITS[e] for e in ORDER]
    for episode, e in zip(source.episodes, ORDER, strict=True):
        n = LENGTHS[e]
        np.testing.assert_allclose(episode.times, np.arange(n) / 8.75)
        number = 100 * e + np.arange(n)
        assert np.array_equal(source.column(episode, "action")[:, 0], number % 5)
        assert np.array_equal(source.column(episode, "observation.state"), np.stack([np.full(n, e), np.arange(n)], 1))
        for key, offset in ((FRONT, 0), (TWIN, 2000), ("observation.images.odd", 0)):
            assert [read_number(f) for f in source.frames(episode, key, 0, n)] == (number + offset).tolist()
        assert source.frames(episode, "observation.images.odd", 2, 4).shape == (2, 33, 49, 3)
        assert read_number(source.frames(episode, FRONT, n - 1, n, (8, 24))[0]) == number[-1]


def test_an_episode_knows_its_task(root, copy):
    assert [e.task for e in open_source(root).episodes] == [f"task {e % 2}" for e in ORDER]
    path = copy / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    number = table.schema.get_field_index("tasks")
    many = table.set_column(
        number, "tasks", pa.array([["a", "b"], [], None, ["c"], [""], ["d"]], pa.list_(pa.string()))
    )
    pq.write_table(many, path)
    assert [e.task for e in open_source(copy).episodes] == ["a", "", "", "c", "", "d"]
    pq.write_table(table.drop_columns("tasks"), path)
    assert {e.task for e in open_source(copy).episodes} == {""}


def test_info_says_what_is_there(root):
    info = json.loads((root / "meta/info.json").read_text())
    assert info["total_episodes"] == 6 and info["total_frames"] == sum(LENGTHS) and info["total_tasks"] == 2
    assert info["splits"] == {"train": "0:3", "validation": "3:4", "test": "4:6"}
    assert info["features"]["observation.images.odd"]["info"]["video.pix_fmt"] == "yuv444p"
    assert info["features"][FRONT]["info"]["video.pix_fmt"] == "yuv420p"
    assert not list(root.parent.glob(".*"))  # nothing is left of the folder that it was put together in


def test_statistics_are_those_of_the_data(root):
    stats = json.loads((root / "meta/stats.json").read_text())
    info = json.loads((root / "meta/info.json").read_text())
    assert set(stats) == set(info["features"])
    assert all(set(s) == set(STATISTICS) for s in stats.values())
    rows = pq.read_table(root / "data/chunk-000/file-000.parquet").to_pydict()
    for name in ("action", "observation.state", "timestamp", "frame_index", "episode_index", "index", "task_index"):
        values = np.array(rows[name], dtype=np.float64).reshape(sum(LENGTHS), -1)
        for statistic in ("min", "max", "mean", "std"):
            np.testing.assert_allclose(stats[name][statistic], getattr(values, statistic)(0), rtol=1e-6, atol=1e-6)
        assert stats[name]["count"] == [sum(LENGTHS)]
    pictures = np.stack([picture(100 * e + i) for e, n in enumerate(LENGTHS) for i in range(n)]) / 255
    np.testing.assert_allclose(np.array(stats[FRONT]["mean"])[:, 0, 0], pictures.mean((0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(np.array(stats[FRONT]["std"])[:, 0, 0], pictures.std((0, 1, 2)), atol=1e-9)
    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert episodes[2]["stats/action/count"] == [LENGTHS[4]]
    assert np.array(episodes[2][f"stats/{FRONT}/q50"]).shape == (3, 1, 1)


@given(arrays(np.float64, st.tuples(st.integers(1, 40), st.just(2)), elements=st.floats(-1e3, 1e3)), st.integers(0, 40))
def test_statistics_of_parts_are_those_of_the_whole(values, cut):
    merged = merge_statistics(column_statistics(values[:cut]), column_statistics(values[cut:]))
    whole = column_statistics(values)
    for statistic in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(merged[statistic], whole[statistic], rtol=1e-6, atol=1e-6)


@given(arrays(np.uint8, (4, 7, 5, 3)))
def test_pixel_statistics_equal_those_of_the_pixels(frames):
    kept = pixel_statistics(sum(pixel_histogram(f) for f in frames), len(frames))
    direct = column_statistics(frames.reshape(-1, 3) / 255)
    for statistic in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(kept[statistic][:, 0, 0], direct[statistic], atol=1e-7)
    for name, share in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        for c in range(3):
            assert (frames[..., c] / 255 <= kept[name][c, 0, 0] + 1e-9).mean() >= share


def test_frames_may_come_one_by_one_and_files_are_split_by_size(tmp_path, monkeypatch):
    monkeypatch.setattr("lamina.data.lerobot.writer.VIDEO_MB", 1 / 1024)
    monkeypatch.setattr("lamina.data.lerobot.writer.DATA_MB", 1 / 1024)
    monkeypatch.setattr("lamina.data.lerobot.writer.CHUNK_FILES", 2)
    root = write_dataset(tmp_path / "set", [40] * 6, splits=["train", "test"] * 3)
    files = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*") if "meta" not in p.parts)
    assert "data/chunk-001/file-001.parquet" in files and f"videos/{FRONT}/chunk-001/file-000.mp4" in files
    source = open_source(root)
    for episode, e in zip(source.episodes, [0, 2, 4, 1, 3, 5], strict=True):
        assert [read_number(f) for f in source.frames(episode, FRONT, 0, 40)] == [100 * e + i for i in range(40)]
        assert source.column(episode, "observation.state")[-1].tolist() == [e, 39]


def test_other_codecs(tmp_path):
    features = {"cam": camera(64, 64), "action": {"dtype": "float32", "shape": [2], "names": None}}
    for codec in ("h264", "av1"):
        with LeRobotWriter(tmp_path / codec, 10, features, video=VideoEncoding(codec=codec)) as writer:
            writer.add_episode({"action": np.ones((12, 2))}, {"cam": [picture(i, 64, 64) for i in range(12)]})
        source = open_source(tmp_path / codec)
        assert [read_number(f) for f in source.frames(source.episodes[0], "cam", 0, 12)] == list(range(12))
        assert source.action_spec("action") == ActionSpec(continuous=2)
    with pytest.raises(LaminaError, match="no encoder for 'betamax'"):
        VideoEncoding(codec="betamax")


def test_actions_may_be_part_discrete(tmp_path):
    features = {"action": {"dtype": "float32", "shape": [3], "names": {"axes": ["grip", "x", "y"]}, "num_classes": [2]}}
    with LeRobotWriter(tmp_path / "a", 10, {**features, "cam": camera()}) as writer:
        writer.add_episode({"action": np.ones((5, 3))}, {"cam": [picture(i) for i in range(5)]})
    assert open_source(tmp_path / "a").action_spec("action") == ActionSpec((2,), 2, ("grip", "x", "y"))


def test_classes_are_counted_in_the_rows_where_nothing_states_them(copy):
    path = copy / "meta/info.json"
    info = json.loads(path.read_text())
    del info["features"]["action"]["num_classes"]
    path.write_text(json.dumps(info))
    assert open_source(copy).action_spec("action") == ActionSpec(discrete=(5,), names=("move",))
    (copy / "meta/stats.json").unlink()
    assert open_source(copy).action_spec("action") == ActionSpec(
        discrete=(5,), names=("move",)
    )  # the rows say it as well


# ------------------------------------------------------------------------------------------------------- broken sets


def break_info(root: Path, **changes) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**info, **changes}.items() if v is not None}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


BREAKS = {
    "no episodes": (lambda r: shutil.rmtree(r / "meta/episodes"), "meta/episodes"),
    "no data": (lambda r: shutil.rmtree(r / "data"), r"data/chunk-000/file-000.parquet"),
    "data cut short": (lambda r: truncate(r / "data/chunk-000/file-000.parquet"), "data/chunk-000/file-000.parquet"),
    "episodes cut short": (
        lambda r: truncate(r / "meta/episodes/chunk-000/file-000.parquet"),
        "meta/episodes/chunk-000/file-000.parquet",
    ),
    "info cut short": (lambda r: truncate(r / "meta/info.json"), r"meta/info.json"),
    "info is a list": (lambda r: (r / "meta/info.json").write_text("[]"), "meta/info.json"),
    "another version": (lambda r: break_info(r, codebase_version="v2.1"), r"info.json: is LeRobotDataset v2\.1"),
    "no version": (lambda r: break_info(r, codebase_version=None), "info.json"),
    "no features": (lambda r: break_info(r, features=None), "info.json"),
    "no rate": (lambda r: break_info(r, fps=0), "info.json: fps: Input should be greater than 0"),
    "more episodes": (lambda r: break_info(r, total_episodes=9), "lists 6 of 9 episodes"),
    "bad splits": (lambda r: break_info(r, splits={"train": "0-3"}), "split train is '0-3'"),
    "splits beyond": (lambda r: break_info(r, splits={"train": "0:99"}), "split train is 0:99"),
    "rows missing": (
        lambda r: pq.write_table(
            pq.read_table(r / "data/chunk-000/file-000.parquet").slice(0, 50), r / "data/chunk-000/file-000.parquet"
        ),
        "has 0 rows of episode 3, and meta/episodes says 15; one of them is truncated",
    ),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_dataset_is_named_in_one_line(copy, what):
    break_it, message = BREAKS[what]
    break_it(copy)
    with pytest.raises(LaminaError, match=message) as error:
        open_source(copy)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


def test_missing_and_cut_video_is_named_when_it_is_needed(copy):
    path = copy / f"videos/{FRONT}/chunk-000/file-000.mp4"
    truncate(path)
    source = open_source(copy)
    for _ in range(2):
        with pytest.raises(LaminaError, match=r"file-000\.mp4: (holds no frame|cannot be)"):
            source.frames(source.episodes[0], FRONT, 0, 10)
        path.unlink(missing_ok=True)
    assert len(source.frames(source.episodes[0], TWIN, 0, 10)) == 10


def test_names_that_are_not_there_are_listed(root):
    source = open_source(root)
    with pytest.raises(LaminaError, match=r"no feature 'actions'; it has: action, observation\.state"):
        source.column(source.episodes[0], "actions")
    with pytest.raises(LaminaError, match=f"no camera 'wrist'; it has: {FRONT}, {TWIN}"):
        source.frames(source.episodes[0], "wrist", 0, 1)


def test_a_dataset_without_video_is_refused(tmp_path):
    from lamina.data.sampling import DataConfig
    from lamina.data.stream import ClipStream

    with LeRobotWriter(tmp_path / "a", 10, {"action": {"dtype": "float32", "shape": [1], "names": None}}) as writer:
        writer.add_episode({"action": np.zeros(5)}, {})
    with pytest.raises(LaminaError, match="has no video"):
        ClipStream(DataConfig((str(tmp_path / "a"),)), 2, seed=0)


# ------------------------------------------------------------------------------------------------------- the writer

FEATURES = {"action": {"dtype": "int64", "shape": [2], "names": None}, "cam": camera()}


def episode(n: int = 5) -> tuple[dict, dict]:
    return {"action": np.zeros((n, 2), np.int64)}, {"cam": [picture(i) for i in range(n)]}


@pytest.mark.parametrize(
    ("columns", "videos", "message"),
    [
        ({"action": np.zeros((5, 3))}, {"cam": [picture(0)] * 5}, r"'action' has shape \(3,\), not \(2,\)"),
        ({"action": np.full((5, 2), np.nan)}, {"cam": [picture(0)] * 5}, "'action'"),
        ({"action": np.full((5, 2), 0.5)}, {"cam": [picture(0)] * 5}, "'action' has values that are no int64"),
        ({"action": np.zeros((4, 2))}, {"cam": [picture(0)] * 5}, r"have \[4, 5\] frames"),
        ({"action": np.zeros((5, 2))}, {"cam": [picture(0, 64)] * 5}, r"a frame of cam is uint8 \(64, 48, 3\)"),
        ({"action": np.zeros((5, 2))}, {"cam": [picture(0).astype(float)] * 5}, "a frame of cam is float64"),
        ({"action": np.zeros((0, 2))}, {"cam": []}, "an episode has no frame of cam"),
        ({}, {"cam": [picture(0)]}, r"an episode has \['cam'\], not \['action', 'cam'\]"),
        ({"action": np.zeros((5, 2)), "cam": np.zeros((5, 2))}, {}, "an episode has"),
    ],
)
def test_columns_and_videos_that_do_not_fit_are_refused(tmp_path, columns, videos, message):
    with pytest.raises(LaminaError, match=message), LeRobotWriter(tmp_path / "a", 10, FEATURES) as writer:
        writer.add_episode(*episode())
        writer.add_episode(columns, videos)
    assert not list(tmp_path.iterdir())


def test_an_exception_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), LeRobotWriter(tmp_path / "a", 10, FEATURES) as writer:
        writer.add_episode(*episode())
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_existing_datasets_are_never_overwritten(tmp_path, root):
    with pytest.raises(LaminaError, match="exists already; choose another path or delete it"):
        LeRobotWriter(root, 10, FEATURES)
    with pytest.raises(LaminaError, match="no episode was added"), LeRobotWriter(tmp_path / "a", 10, FEATURES):
        pass
    assert not list(tmp_path.iterdir())


def test_files_of_a_killed_writer_are_ignored(tmp_path):
    (tmp_path / ".a.partial/data").mkdir(parents=True)
    (tmp_path / ".a.partial/data/junk").write_text("junk")
    with LeRobotWriter(tmp_path / "a", 10, FEATURES) as writer:
        writer.add_episode(*episode())
    assert not list((tmp_path / "a").rglob("junk")) and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LaminaError, match=r"file/a: cannot be written"):
        LeRobotWriter(tmp_path / "file" / "a", 10, FEATURES)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LaminaError, match=r"cannot be written \(Permission denied\)"):
        LeRobotWriter(tmp_path / "a", 10, FEATURES)


@pytest.mark.parametrize("limit", [2_000, 20_000, 60_000])
def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path, limit):
    """A limit on the size of files stands in for the full disk: both are an OSError from the same calls."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (40, 64, 64, 3), dtype=np.uint8)
    features = {"action": {"dtype": "float32", "shape": [2], "names": None}, "cam": camera(64, 64)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with (
            pytest.raises(LaminaError, match=r"cannot be written .*; free some space") as error,
            LeRobotWriter(tmp_path / "a", 10, features) as writer,
        ):
            writer.add_episode({"action": rng.random((40, 2))}, {"cam": noise})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_parquet_that_others_wrote_in_other_shapes(copy):
    """Lists of free length, big lists, several row groups: all of them are seen in the wild."""
    path = copy / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    free = pa.array(table["observation.state"].to_pylist(), pa.list_(pa.float64()))
    at = table.schema.get_field_index("observation.state")
    pq.write_table(table.set_column(at, "observation.state", free), path, row_group_size=17)
    source = open_source(copy)
    for episode, e in zip(source.episodes, ORDER, strict=True):
        state = source.column(episode, "observation.state")
        assert np.array_equal(state, np.stack([np.full(LENGTHS[e], e), np.arange(LENGTHS[e])], 1))
