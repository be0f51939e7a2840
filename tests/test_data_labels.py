"""Label columns beside untouched video: content, and equal results after a killed run resumes."""

import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_files import read_number, write_dataset, write_video
from lamina.data.episodes import exact_rate
from lamina.data.lerobot.labels import write_labels
from lamina.data.lerobot.statistics import STATISTICS
from lamina.data.memory import InMemoryDataset
from lamina.data.read_ahead import ReadAhead
from lamina.data.sampling import open_source
from lamina.errors import LaminaError, LaminaWarning
from processes import dies_in, in_child

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")
FEATURES = {
    "latent_action": {"dtype": "float32", "shape": [2], "names": None},
    "latent_action.index": {"dtype": "int64", "shape": [1], "names": None},
    "latent_action.valid": {"dtype": "bool", "shape": [1], "names": None},
}
LENGTHS = [20, 12, 15, 8, 30]


def labels(length: int, number: int) -> dict[str, np.ndarray]:
    frame = np.arange(length)
    return {
        "latent_action": np.stack([frame + number, np.where(frame == length - 1, 1e6, frame)], 1),
        "latent_action.index": frame + 7,
        "latent_action.valid": frame < length - 1,
    }


def label(episode, camera):
    return labels(episode.length, episode.number)


def fingerprint(root: Path) -> dict[str, str]:
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = write_dataset(tmp_path_factory.mktemp("sets") / "set", LENGTHS)
    (root / "README.md").write_text("about the data")
    (root / ".cache").mkdir()
    (root / ".cache/junk").write_text("left behind")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for n, name in enumerate(["a.mp4", "b.mkv", "c.webm", "sub/d.mp4", "e.mov"]):
        codec = {"c.webm": "libvpx-vp9", "e.mov": "mjpeg"}.get(name, "libx264")
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        write_video(root / name, frames=20 + n, offset=100 * n, codec=codec, pix_fmt=pix_fmt)
    return root


@pytest.fixture(params=["dataset", "folder"])
def source(request):
    return open_source(request.getfixturevalue(request.param))


def test_columns_are_added_and_nothing_else_changes(dataset, tmp_path):
    out = write_labels(open_source(dataset), tmp_path / "out", FEATURES, label, {"checkpoint": "abc"})
    before, after = open_source(dataset), open_source(out)
    assert after.columns == (*before.columns, *FEATURES) and after.cameras == before.cameras
    assert [(e.length, e.splits) for e in after.episodes] == [(e.length, e.splits) for e in before.episodes]
    old, new = (pq.read_table(r / "data/chunk-000/file-000.parquet") for r in (dataset, out))
    assert new.select(old.column_names).equals(old)
    for e, episode in enumerate(after.episodes):
        for name, values in labels(LENGTHS[e], e).items():
            expected = np.asarray(values, np.float32).reshape(LENGTHS[e], -1)
            assert np.array_equal(after.column(episode, name), expected)
    for path in dataset.rglob("*.mp4"):
        assert (out / path.relative_to(dataset)).samefile(path)  # linked, not encoded again
    assert (out / "README.md").read_text() == "about the data" and not (out / ".cache").exists()
    assert json.loads((out / "meta/lamina.json").read_text()) == {"checkpoint": "abc"}
    infos = [json.loads((r / "meta/info.json").read_text()) for r in (dataset, out)]
    assert infos[1].pop("features") == {**infos[0].pop("features"), **FEATURES} and infos[0] == infos[1]


def test_statistics_leave_out_invalid_rows(source, tmp_path):
    out = write_labels(source, tmp_path / "out", FEATURES, label, {})
    stats = json.loads((out / "meta/stats.json").read_text())
    lengths = [e.length for e in source.episodes]
    values = np.concatenate([labels(n, e)["latent_action"][:-1] for e, n in enumerate(lengths)])
    assert set(stats["latent_action"]) == set(STATISTICS)
    for statistic in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats["latent_action"][statistic], getattr(values, statistic)(0), rtol=1e-5)
    assert stats["latent_action"]["count"] == [sum(lengths) - len(lengths)]
    assert stats["latent_action.valid"]["count"] == [sum(lengths)]
    rows = pq.read_table(next((out / "meta/episodes").glob("*/*.parquet"))).to_pylist()
    assert {f"stats/{n}/{s}" for n in FEATURES for s in STATISTICS} <= set(rows[0])
    assert all(r["stats/latent_action/count"] == [r["length"] - 1] for r in rows)


def test_plain_video_becomes_a_dataset_with_a_row_for_each_frame(folder, tmp_path):
    source = open_source(folder)
    out = write_labels(source, tmp_path / "out", FEATURES, label, {})
    after = open_source(out)
    assert after.fps == 10 and after.cameras == ("observation.images.video",)
    assert len(pq.read_table(out / "data/chunk-000/file-000.parquet")) == sum(e.length for e in source.episodes)
    split = {e.length: e.splits[0][0] for e in source.episodes}  # lengths tell the files apart
    assert {e.length: e.splits[0][0] for e in after.episodes} == split  # held-out video stays held out
    for episode in after.episodes:
        n = episode.length - 20  # the number of the file
        np.testing.assert_allclose(episode.times, np.arange(episode.length) / 10, atol=1e-3)
        frames = after.frames(episode, after.cameras[0], 0, episode.length)
        assert [read_number(f) for f in frames] == [100 * n + i for i in range(episode.length)]
        number = source.episodes[[e.length for e in source.episodes].index(episode.length)].number
        assert after.column(episode, "latent_action")[0, 0] == number
    linked = [p for p in out.rglob("*.mp4") if p.stat().st_nlink > 1]
    assert len(linked) == 2  # the two mp4 files; the others are remuxed
    stats = json.loads((out / "meta/stats.json").read_text())
    assert np.array(stats["observation.images.video"]["mean"]).shape == (3, 1, 1)
    assert 0.05 < stats["observation.images.video"]["mean"][0][0][0] < 0.95


def test_real_times_are_kept(tmp_path):
    pts = [30, 70, 130, 500, 540, 600, 1000, 1040, 1100, 1500]
    write_video(tmp_path / "in" / "a.mp4", frames=10, pts=pts, options={"bf": "2"})
    with pytest.warns(LaminaWarning, match=r"a\.mp4: has a varying frame rate"):
        out = write_labels(open_source(tmp_path / "in"), tmp_path / "out", FEATURES, label, {})
    source = open_source(out)
    (episode,) = source.episodes
    np.testing.assert_allclose(episode.times, (np.array(pts) - 30) / 1000, atol=1e-6)
    assert [read_number(f) for f in source.frames(episode, source.cameras[0], 0, 10)] == list(range(10))


def test_an_interrupted_run_goes_on_and_ends_the_same(source, tmp_path):
    whole = fingerprint(write_labels(source, tmp_path / "whole", FEATURES, label, {"checkpoint": "abc"}))
    called = []

    def interrupted(episode, camera):
        called.append(episode.number)
        if len(called) == 4:
            raise KeyboardInterrupt
        return label(episode, camera)

    with pytest.raises(KeyboardInterrupt):
        write_labels(source, tmp_path / "out", FEATURES, interrupted, {"checkpoint": "abc"})
    assert not (tmp_path / "out").exists()
    out = write_labels(source, tmp_path / "out", FEATURES, interrupted, {"checkpoint": "abc"})
    assert called == [0, 1, 2, 3, 3, 4] and fingerprint(out) == whole
    assert not list(tmp_path.glob(".*"))


def test_labels_of_pictures_that_were_others_start_over(dataset, tmp_path):
    """The user mends, between two sessions, which part of its video file an episode is."""
    root = shutil.copytree(dataset, tmp_path / "set")
    (path,) = (root / "meta/episodes").rglob("*.parquet")
    table = pq.read_table(path)
    camera = open_source(root).cameras[0]
    keys = [f"videos/{camera}/{end}_timestamp" for end in ("from", "to")]
    seen: list[int] = []

    def interrupted(episode, camera):
        seen.append(episode.number)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return label(episode, camera)

    with pytest.raises(KeyboardInterrupt):
        write_labels(open_source(root), tmp_path / "out", FEATURES, interrupted, {})
    for key in keys:
        place = table.column_names.index(key)
        values = table[key].to_numpy() + 0.1 * (key == keys[0]) * (np.arange(len(table)) == 1)
        table = table.set_column(place, key, pa.array(values))
    pq.write_table(table, path)
    assert open_source(root).content() != open_source(dataset).content()
    write_labels(open_source(root), tmp_path / "out", FEATURES, interrupted, {})
    assert seen[4:] == [0, 1, 2, 3, 4]


def test_uneven_frames_of_a_dataset_of_ones_own_are_not_written_as_even_ones(tmp_path):
    class Uneven(InMemoryDataset):
        @property
        def episodes(self):
            return tuple(replace(e, stamps=np.r_[np.arange(5), np.arange(55, 60)] / 10) for e in super().episodes)

    data = Uneven([SimpleNamespace(frames=np.zeros((10, 16, 16, 3), np.uint8))] * 3)
    with pytest.raises(LaminaError, match="its frames are not evenly spaced in time"):
        write_labels(data, tmp_path / "out", FEATURES, label, {})
    assert not list(tmp_path.iterdir())


def test_a_frame_an_hour_is_a_frame_an_hour(tmp_path):
    data = InMemoryDataset(
        [SimpleNamespace(frames=np.full((4, 16, 16, 3), 50 * n, np.uint8)) for n in range(3)], fps=1 / 3600
    )
    out = open_source(write_labels(data, tmp_path / "out", FEATURES, label, {}))
    assert [e.times.tolist() for e in out.episodes] == [[0, 3600, 7200, 10800]] * 3
    for episode in out.episodes:
        number = out.column(episode, "latent_action")[0, 0]
        np.testing.assert_allclose(out.frames(episode, out.cameras[0], 0, 4), 50 * number, atol=3)
    assert exact_rate(29.97003) == Fraction(30000, 1001) and exact_rate(0.4) == Fraction(2, 5)


def test_another_checkpoint_starts_over(source, tmp_path):
    def fails_late(episode, camera):
        if episode.number == 3:
            raise KeyboardInterrupt
        return {**label(episode, camera), "latent_action": np.full((episode.length, 2), -1.0)}

    with pytest.raises(KeyboardInterrupt):
        write_labels(source, tmp_path / "out", FEATURES, fails_late, {"checkpoint": "old"})
    out = write_labels(source, tmp_path / "out", FEATURES, label, {"checkpoint": "new"})
    after = open_source(out)
    assert all((after.column(e, "latent_action") >= 0).all() for e in after.episodes)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["dataset", "folder"])
def test_a_run_killed_at_any_time_ends_the_same(request, tmp_path, kind):
    """Processes kill themselves, without any clean-up, at one after the other of the renames that they come to."""
    root = request.getfixturevalue(kind)
    whole = fingerprint(write_labels(open_source(root), tmp_path / "whole", FEATURES, label, {"checkpoint": "abc"}))
    out = tmp_path / "out"
    deaths = 0
    for step in itertools.chain([2, 5, 3, 2, 4, 3, 2], itertools.repeat(1000)):

        def work(step: int = step) -> None:
            dies_in(os, "replace", step - 1)
            write_labels(open_source(root), out, FEATURES, label, {"checkpoint": "abc"})

        status = in_child(work)
        if status == 0:
            break
        deaths += 1
        assert status == signal.SIGKILL and not out.exists()
    assert deaths >= 5 and fingerprint(out) == whole and not list(tmp_path.glob(".*"))


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(dataset, tmp_path):
    """A limit on the size of files stands in for the full disk: both are an OSError from the same calls."""
    source = open_source(dataset)
    whole = fingerprint(write_labels(source, tmp_path / "whole", FEATURES, label, {}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1_000, 4_000):  # too little for the labels of an episode, too little for the dataset's tables
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(LaminaError, match=r"cannot be written .*; free some space") as error:
                write_labels(source, tmp_path / "out", FEATURES, label, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    assert fingerprint(write_labels(source, tmp_path / "out", FEATURES, label, {})) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_action": np.zeros((3, 2))}, r"'latent_action' is \(3, 2\)"),
        ({"latent_action": lambda n: np.full((n, 2), np.nan)}, "'latent_action' is NaN or infinite"),
        ({"more": lambda n: np.zeros(n)}, "labels are"),
    ],
)
def test_labels_that_do_not_fit_are_refused(source, tmp_path, change, message):
    def wrong(episode, camera):
        values = {k: v(episode.length) if callable(v) else v for k, v in change.items()}
        return {**label(episode, camera), **values}

    with pytest.raises(LaminaError, match=message):
        write_labels(source, tmp_path / "out", FEATURES, wrong, {})
    assert not (tmp_path / "out").exists()


def test_existing_labels_are_not_overwritten(source, dataset, tmp_path):
    with pytest.raises(LaminaError, match="exists already"):
        write_labels(source, dataset, FEATURES, label, {})
    labelled = open_source(write_labels(source, tmp_path / "out", FEATURES, label, {}))
    with pytest.raises(LaminaError, match="has a feature 'latent_action' already"):
        write_labels(labelled, tmp_path / "again", FEATURES, label, {})


def test_reading_ahead_gives_the_same_frames_in_bounded_memory(folder):
    source = open_source(folder)
    held = []
    original = source.frames

    class Counting:
        episodes, missing_episodes = source.episodes, source.missing_episodes

        def frames(self, *arguments):
            held.append(arguments[2:4])
            return original(*arguments)

    ahead = ReadAhead(Counting(), "video", (16, 48), chunk=8, chunks=2)
    for n in (0, 1, 3, 4, 2):  # in order, and not
        shown = [read_number(f) for part in ahead(source.episodes[n]) for f in part]
        first = shown[0]
        assert len(shown) == source.episodes[n].length and shown == list(range(first, first + len(shown)))
    ahead.close()

    held.clear()
    parts = ahead(source.episodes[0])
    next(parts)
    time.sleep(0.5)
    assert len(held) <= 4  # one delivered, two in the queue, one waiting to get in
    ahead.close()


def test_reading_ahead_names_damaged_files(tmp_path):
    for n in range(3):
        path = write_video(tmp_path / f"{n}.mp4", frames=40, options={"g": "2"})
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 900
    data[at : at + 200] = bytes(200)
    path.write_bytes(data)
    source = open_source(tmp_path)
    ahead = ReadAhead(source, "video", None, chunk=8)
    assert sum(len(f) for f in ahead(source.episodes[0])) == 40
    with pytest.raises(LaminaError, match=r"2\.mp4: cannot be decoded"):
        list(ahead(source.episodes[2]))
    assert sum(len(f) for f in ahead(source.episodes[1])) == 40
    ahead.close()


def test_labels_that_a_loss_of_power_left_half_written_are_made_again(source, tmp_path):
    whole = fingerprint(write_labels(source, tmp_path / "whole", FEATURES, label, {"checkpoint": "abc"}))

    def interrupted(episode, camera):
        if episode.number == 4:
            raise KeyboardInterrupt
        return label(episode, camera)

    with pytest.raises(KeyboardInterrupt):
        write_labels(source, tmp_path / "out", FEATURES, interrupted, {"checkpoint": "abc"})
    first, second, *_ = sorted(tmp_path.glob(".out.partial/labels/*.parquet"))
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:-50])
    called = []
    out = write_labels(
        source,
        tmp_path / "out",
        FEATURES,
        lambda e, c: (called.append(e.number), label(e, c))[1],
        {"checkpoint": "abc"},
    )
    assert called == [0, 1, 4] and fingerprint(out) == whole
