"""Malicious datasets: no writes or reads outside the allowed paths, no blocking, bounded memory."""

import json
import os
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_files import (
    DATA,
    EPISODES,
    FRONT,
    LABELS,
    change_info,
    change_table,
    config,
    foreign_dataset,
    label,
    numbers,
    write_columns,
    write_video,
)
from lamina.data.lerobot.labels import write_labels
from lamina.data.paths import check_template, walk
from lamina.data.sampling import DataConfig, open_source
from lamina.data.stream import sample_split
from lamina.errors import LaminaError, LaminaWarning

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")


@pytest.fixture
def root(tmp_path) -> Path:
    return foreign_dataset(tmp_path / "work/set", [20] * 3)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def in_time(function, seconds: float = 20):
    """What ``function`` returns or raises; a failure if it takes longer."""
    done: list = []

    def run() -> None:
        try:
            done.append((function(), None))
        except BaseException as error:
            done.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, "it hangs"
    if done[0][1] is not None:
        raise done[0][1]
    return done[0][0]


PATHS = [
    "../../home/.profile",
    "/home/.profile",
    "data/../../../home/.profile",
    "data\\..\\x.parquet",
    "data/\0.parquet",
    "",
    ".",
    "data/{chunk_index:1000000000d}.parquet",
    "data/{chunk_index:>999999999}.parquet",
    "data/{chunk_index.__class__}.parquet",
    "data/{chunk_index!r}.parquet",
    "data/{secret}.parquet",
    "data/{0}.parquet",
    "data/{chunk_index",
    "x" * 5000,
    7,
    ["data"],
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["data_path", "video_path"])
def test_a_path_that_leads_out_is_refused_and_nothing_is_written(tmp_path, root, key, path):
    """The fault behind this: label replaced the file that data_path named."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(root / DATA, home / ".profile")  # a file that could be read as the data
    change_info(root, **{key: path})
    before = snapshot(tmp_path)
    with pytest.raises(LaminaError, match=rf"info\.json: {key}: ") as error:
        write_labels(open_source(root), tmp_path / "work/out", LABELS, label, {})
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["../../../home/videos", "/tmp/cam", "a/b", "..", ".", "cam\\x", "cam\0"])
def test_a_camera_is_not_called_like_a_path(root, name):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = info["features"].pop(FRONT)
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(LaminaError, match=r"info\.json: video_path: ") as error:
        open_source(root)
    assert "\n" not in str(error.value)


def test_output_gets_the_usual_names_whatever_those_of_the_input(tmp_path, root):
    (root / "rows").mkdir()
    (root / DATA).rename(root / "rows/meta.info.0")
    (root / f"videos/{FRONT}/chunk-000/file-000.mp4").rename(root / "rows/lamina.json")
    change_info(root, data_path="rows/meta.info.{file_index}", video_path="rows/lamina.json")
    source = open_source(root)
    out = write_labels(source, tmp_path / "out", LABELS, label, {"checkpoint": "abc"})
    written = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert {DATA, EPISODES, f"videos/{FRONT}/chunk-000/file-000.mp4"} <= written
    assert json.loads((out / "meta/lamina.json").read_text()) == {"checkpoint": "abc"}
    after = open_source(out)
    assert [numbers(after, e) for e in range(3)] == [list(range(20 * e, 20 * e + 20)) for e in range(3)]
    assert after.column(after.episodes[2], "latent_action")[3].tolist() == [2, 3]


@pytest.mark.parametrize(
    "template",
    [
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "data/train-{file_index:05d}.parquet",
        "d/{chunk_index}/{file_index:d}.parquet",
    ],
)
def test_usual_templates_are_allowed(template):
    check_template(template, {"chunk_index", "file_index"})


def test_places_and_cameras_that_share_a_file(tmp_path, root):
    """A template may leave out what the episode table says."""
    twin = "observation.images.twin"
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][twin] = info["features"][FRONT]
    (root / "meta/info.json").write_text(json.dumps(info | {"video_path": "videos/all.mp4"}))
    (root / f"videos/{FRONT}/chunk-000/file-000.mp4").rename(root / "videos/all.mp4")
    change_table(
        root / EPISODES,
        **{f"videos__{FRONT}__file_index": [0, 1, 2]},
        **{f"videos__{twin}__{k}": [0] * 3 for k in ("chunk_index", "file_index")},
        **{f"videos__{twin}__from_timestamp": [0.0, 2.0, 4.0]},
    )
    source = open_source(root)
    after = open_source(write_labels(source, tmp_path / "out", LABELS, label, {}))
    for camera in (FRONT, twin):
        assert [numbers(source, e, camera) for e in range(3)] == [list(range(20 * e, 20 * e + 20)) for e in range(3)]
    assert [numbers(after, e, twin) for e in range(3)] == [list(range(20 * e, 20 * e + 20)) for e in range(3)]
    assert [numbers(after, e) for e in range(3)] == [list(range(20 * e, 20 * e + 20)) for e in range(3)]


# --------------------------------------------------------------------------------------------------------------- files


FILES = [DATA, EPISODES, "meta/info.json", "meta/stats.json", f"videos/{FRONT}/chunk-000/file-000.mp4"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("linked", [True, False])
def test_a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for(tmp_path, root, name, linked):
    (root / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe" if linked else root / name)
    if linked:
        (root / name).symlink_to(tmp_path / "pipe")
    called = []

    def use() -> None:
        write_labels(open_source(root), tmp_path / "out", LABELS, lambda *a: called.append(a), {})

    with pytest.raises(LaminaError, match=Path(name).name.replace(".", r"\.") + "|meta/episodes|episode 0") as error:
        in_time(use)
    assert "\n" not in str(error.value) and not called and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file(tmp_path, root, name):
    (root / name).unlink(missing_ok=True)
    (root / name).mkdir()
    with pytest.raises(LaminaError) as error:
        write_labels(open_source(root), tmp_path / "out", LABELS, label, {})
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_links_to_files_outside_are_not_copied_in(tmp_path, root):
    (tmp_path / "secret.txt").write_text("SECRET 1")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/id").write_text("SECRET 2")
    (root / "README.md").symlink_to(tmp_path / "secret.txt")
    (root / "meta/notes.json").symlink_to(tmp_path / "secret.txt")
    (root / "assets").symlink_to(tmp_path / "keys")
    (root / "own.md").write_text("mine")
    (root / "same.md").symlink_to(root / "own.md")
    os.mkfifo(root / "pipe")
    with pytest.warns(LaminaWarning, match=r"leads out of the dataset and is not copied \(3 such link"):
        out = in_time(lambda: write_labels(open_source(root), tmp_path / "out", LABELS, label, {}))
    assert not any(
        b"SECRET" in content for name, content in snapshot(out).items() if not name.endswith((".mp4", ".parquet"))
    )
    assert (out / "own.md").read_text() == (out / "same.md").read_text() == "mine"
    assert not [p for p in out.rglob("*") if p.is_symlink()]


def test_a_file_that_is_no_video_is_not_linked_in(tmp_path, root):
    """A camera that nobody looks at could bring any file of the user's into an output that is then published."""
    wrist = "observation.images.wrist"
    (tmp_path / "secret").write_text("the key " * 1000)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][wrist] = info["features"][FRONT]
    (root / "meta/info.json").write_text(json.dumps(info))
    change_table(
        root / EPISODES,
        **{f"videos__{wrist}__{k}": [0] * 3 for k in ("chunk_index", "file_index")},
        **{f"videos__{wrist}__from_timestamp": [0.0, 2.0, 4.0]},
    )
    (root / f"videos/{wrist}/chunk-000").mkdir(parents=True)
    (root / f"videos/{wrist}/chunk-000/file-000.mp4").symlink_to(tmp_path / "secret")
    with pytest.raises(LaminaError, match=rf"{wrist}/chunk-000/file-000\.mp4: is no video"):
        write_labels(open_source(root), tmp_path / "out", LABELS, label, {}, camera=FRONT)
    assert not list(tmp_path.glob("*out*"))


def test_the_hubs_cache_is_read_and_copied(tmp_path):
    """A snapshot's files are relative links to blobs that are named by their hash and have no suffix."""
    plain = foreign_dataset(tmp_path / "plain", [20] * 3)
    (plain / "README.md").write_text("about it")
    snapshot_of = tmp_path / "datasets--someone--cubes/snapshots/0123abcd"
    blobs = tmp_path / "datasets--someone--cubes/blobs"
    blobs.mkdir(parents=True)
    for n, path in enumerate(sorted(p for p in plain.rglob("*") if p.is_file())):
        path.rename(blobs / f"{n:064d}")
        place = snapshot_of / path.relative_to(plain)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blobs / f"{n:064d}", place.parent))
    out = write_labels(open_source(snapshot_of), tmp_path / "out", LABELS, label, {})
    after = open_source(out)
    assert [numbers(after, e) for e in range(3)] == [list(range(20 * e, 20 * e + 20)) for e in range(3)]
    assert (out / "README.md").read_text() == "about it" and not (out / "README.md").is_symlink()


def test_walking_ends_where_links_go_in_circles(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(".")
    (tmp_path / "loop").symlink_to("loop")
    assert [p.relative_to(tmp_path).as_posix() for p in walk(tmp_path)] == ["loop", "a/b/file"]


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.fixture
def little_memory():
    """2 GB more than what is in use: what asks for more fails, and the test with it."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_table_that_claims_thirty_million_rows(tmp_path, root, little_memory):
    rows = 30_000_000  # of these ten row groups are written
    schema = pa.schema([("episode_index", pa.int64()), ("timestamp", pa.float32())])
    part = pa.table({"episode_index": np.zeros(rows // 10, np.int64), "timestamp": np.zeros(rows // 10, np.float32)})
    with pq.ParquetWriter(root / DATA, schema, compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(part)
    del part
    assert (root / DATA).stat().st_size < 1_000_000
    with pytest.raises(LaminaError, match=r"file-000\.parquet: cannot be read \(30000000 rows in \d+ bytes\)"):
        open_source(root)
    shutil.copyfile(root / DATA, root / EPISODES)
    with pytest.raises(LaminaError, match=r"meta/episodes/.*: cannot be read \(30000000 rows in"):
        open_source(root)


def test_a_cell_that_claims_a_hundred_million_values(tmp_path, root, little_memory):
    """Sixty rows, one of which is a list of zeros that is as long as you like."""
    lists = [[0.0] * 20_000_000, *[[1.0, 2.0]] * 59]
    change_table(root / DATA, action=pa.array(lists, pa.list_(pa.float32())))
    assert (root / DATA).stat().st_size < 200_000
    source = open_source(root)
    with pytest.raises(LaminaError, match="'action' has 20000118 values in 60 rows, not 2 a row"):
        source.column(source.episodes[0], "action")
    assert len(sample_split(config(root), "train", None))


@pytest.mark.parametrize("shape", [[10**9], [10**5, 10**5], [-2], [0], [2.5], ["2"], 2, {"a": 1}])
def test_shapes_that_make_no_sense_are_not_believed(root, shape):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["shape"] = shape
    (root / "meta/info.json").write_text(json.dumps(info))
    source = open_source(root)
    assert source.action_spec("action") is None and numbers(source, 2) == list(range(40, 60))
    with pytest.raises(LaminaError, match="no numbers in its feature"):
        source.column(source.episodes[0], "action")


def test_an_episode_of_a_billion_rows(root, little_memory):
    change_table(root / EPISODES, length=[2**30, 20, 20])
    with pytest.raises(LaminaError, match="has 20 rows of episode 0, and meta/episodes says 1073741824"):
        open_source(root)


def test_a_billion_episodes(root, little_memory):
    change_info(root, total_episodes=2**30)
    with pytest.raises(LaminaError, match="lists 3 of 1073741824 episodes"):
        open_source(root)


def test_a_shuffle_buffer_that_is_never_full():
    with pytest.raises(LaminaError, match="--shuffle must be at most 1e\\+06, got 4611686018427387904"):
        DataConfig(("a",), shuffle=2**62)


def test_a_folder_that_is_no_folder(tmp_path):
    write_video(tmp_path / "a.mp4", 5)
    for path in ("a.mp4/b", "x" * 300, "nul\0"):
        with pytest.raises(LaminaError, match="no such file") as error:
            open_source(tmp_path / path)
        assert "\n" not in str(error.value)


def test_statistics_that_are_damaged_are_known_before_the_work(tmp_path, root):
    (root / "meta/stats.json").write_text("{")
    called = []
    with pytest.raises(LaminaError, match=r"stats\.json: cannot be read"):
        write_labels(open_source(root), tmp_path / "out", LABELS, lambda *a: called.append(a), {})
    assert not called and len(sample_split(config(root), "train", None))


def test_names_of_features_that_collide_with_the_labels(tmp_path, root):
    """Also of those that are no numbers."""
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["latent_action"] = {"dtype": "language", "shape": [1]}
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(LaminaError, match="has a feature 'latent_action' already"):
        write_labels(open_source(root), tmp_path / "out", LABELS, label, {})


def test_an_empty_dataset(tmp_path, root):
    write_columns(root / EPISODES, {"episode_index": pa.array([], pa.int64()), "length": pa.array([], pa.int64())})
    change_info(root, total_episodes=0)
    with pytest.raises(LaminaError, match="total_episodes"):
        open_source(root)
