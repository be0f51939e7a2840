"""Datasets as other software writes them: every row has its own frame and values, or the culprit is named."""

import io
import itertools
import json
import shutil
import warnings
from pathlib import Path

import av
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
    picture,
    read_number,
    write_video,
)
from lamina.data.episodes import DecodeError
from lamina.data.lerobot.labels import write_labels
from lamina.data.sampling import feature_width, open_source
from lamina.data.stream import ClipStream, sample_split
from lamina.errors import LaminaError, LaminaWarning
from lamina.types import ActionSpec

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")
VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"


def everything(root: Path) -> list[list[int]]:
    source = open_source(root)
    return [numbers(source, e) for e in range(len(source.episodes))]


def spans(*lengths: int) -> list[list[int]]:
    starts = np.cumsum([0, *lengths])
    return [list(range(a, b)) for a, b in itertools.pairwise(starts.tolist())]


# ------------------------------------------------------------------------------------------------ rows and pictures


@pytest.mark.parametrize("lengths", [[1200, 300, 300], [700] * 3, [60, 1500]])
def test_a_table_at_30_beside_video_at_29_97(tmp_path, lengths):
    """After half a minute the clocks are a whole picture apart: each row gets the picture with its number, by count."""
    foreign_dataset(tmp_path / "set", lengths, 30, video_fps=30000 / 1001)
    with pytest.warns(
        LaminaWarning, match=r"meta/episodes: the times of episode \d \(rows at 30 a second\) .*\(29\.97 pic"
    ):
        open_source(tmp_path / "set").missing_episodes(FRONT)
    assert everything(tmp_path / "set") == spans(*lengths)


def test_a_table_at_30_beside_video_at_29_97_that_cannot_be_counted(tmp_path):
    """With pictures left over nobody can tell: an episode is right, or named and refused, as are those after it."""
    root = foreign_dataset(tmp_path / "set", [90, 1000, 40, 300], 30)
    write_video(root / VIDEO, 1450, 30000 / 1001)
    source = open_source(root)
    assert numbers(source, 0) == list(range(90))
    for n in (1, 2, 3):
        with pytest.raises(
            DecodeError, match=rf"episode {n} and its video .*file-000\.mp4 disagree .* 30 a second .* 29\.97"
        ):
            source.frames(source.episodes[n], FRONT, 0, 1)


def test_an_episode_alone_in_a_file_whose_clock_has_drifted_is_not_believed(tmp_path):
    """The rows' times fit pictures exactly after 33 s, but for a whole picture."""
    root = foreign_dataset(tmp_path / "set", [1000, 40], 30)
    write_video(root / VIDEO, 1080, 30000 / 1001)
    change_table(root / EPISODES, **{f"videos__{FRONT}__chunk_index": [None, 0]})
    source = open_source(root)
    with pytest.raises(DecodeError, match="episode 1 and its video"):
        source.frames(source.episodes[1], FRONT, 0, 1)


@pytest.mark.parametrize("rate", [29.2, 30.9, 27.0])
def test_a_hardware_clock_in_the_table(tmp_path, rate):
    rng = np.random.default_rng(0)
    stamps = [np.arange(60) / rate + rng.uniform(0, 0.004, 60) * (np.arange(60) > 0) for _ in range(4)]
    root = foreign_dataset(tmp_path / "set", [60] * 4, 30, stamps=np.concatenate(stamps))
    with pytest.warns(
        LaminaWarning, match=r"set/meta/episodes: the times of episode 0 \(rows at .* a second\) .*\(30 pic"
    ):
        open_source(root).missing_episodes(FRONT)
    assert everything(root) == spans(60, 60, 60, 60)
    times = open_source(root).episodes[1].times
    np.testing.assert_allclose(times, stamps[1] - stamps[1][0], atol=1e-5)  # the table's clock is the rows'


def test_a_hardware_clock_and_a_video_that_lacks_pictures(tmp_path):
    stamps = np.concatenate([np.arange(60) / 29.2] * 4)
    root = foreign_dataset(tmp_path / "set", [60] * 4, 30, stamps=stamps)
    write_video(root / VIDEO, 237, 30)
    source = open_source(root)
    for episode in source.episodes:
        with pytest.raises(
            DecodeError, match=rf"meta/episodes: episode {episode.number} .* 29\.2 a second .* 237 pictures at 30"
        ):
            source.frames(episode, FRONT, 0, 60)
    with pytest.raises(LaminaError, match=r"meta/episodes: episode 0 .*4 episodes"):
        ClipStream(config(root), 4, seed=0)
    called = []
    with pytest.raises(LaminaError, match="meta/episodes: episode 0"):
        write_labels(source, tmp_path / "out", LABELS, lambda *a: called.append(a), {})
    assert not called and not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("late", [(0, 1, 1), (0, 0, 1), (0, 1, 0), (1, 1, 1)])
def test_stretches_that_are_said_to_begin_a_picture_late(tmp_path, late):
    """No row gets the picture of the next episode: as many pictures as rows settle it."""
    root = foreign_dataset(tmp_path / "set", [20, 20, 20])
    begins = [2.0 * e + 0.1 * n for e, n in enumerate(late)]
    change_table(
        root / EPISODES,
        **{f"videos__{FRONT}__from_timestamp": begins, f"videos__{FRONT}__to_timestamp": [b + 2 for b in begins]},
    )
    assert everything(root) == spans(20, 20, 20)


def test_a_video_that_ends_early_costs_only_the_episodes_that_it_lacks(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20] * 6)
    write_video(root / VIDEO, 105, 10)
    source = open_source(root)
    assert [numbers(source, e) for e in range(5)] == spans(20, 20, 20, 20, 20)
    with pytest.raises(DecodeError, match=r"episode 5 .* 105 pictures"):
        source.frames(
            source.episodes[5], FRONT, 0, 2
        )  # not even the rows that it has: nobody knows where they are missing
    with pytest.warns(LaminaWarning, match="left out: .*episode 5 and its video"):
        clip = sample_split(config(root), "train", None)
    assert not (clip.episode == 5).any() and len(clip)
    for frames, episode, index in zip(clip.frames, clip.episode.tolist(), clip.index.tolist(), strict=True):
        assert [read_number(f.permute(1, 2, 0).numpy()) for f in frames] == [20 * episode + i for i in index]


def test_rows_at_every_third_picture(tmp_path):
    """A video of 30 a second beside rows at 10: the pictures between them are passed over."""
    root = foreign_dataset(tmp_path / "set", [20, 20, 20])
    write_video(root / VIDEO, 180, 30)
    assert everything(root) == [[3 * n for n in span] for span in spans(20, 20, 20)]


def test_rows_that_were_deleted_keep_the_pictures_of_the_others(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20, 20])
    table = pq.read_table(root / DATA)
    keep = [i for i in range(40) if i not in (3, 4, 11, 30)]
    pq.write_table(table.take(keep), root / DATA)
    change_table(root / EPISODES, length=[17, 19])
    assert everything(root) == [[i for i in keep if i < 20], [i for i in keep if i >= 20]]


def test_more_rows_than_pictures(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20, 20], 20)
    write_video(root / VIDEO, 20, 10)
    source = open_source(root)
    with pytest.raises(DecodeError, match=r"episode 0 .* 20 pictures at 10 a second for 40 rows"):
        source.frames(source.episodes[0], FRONT, 0, 20)


def test_video_with_reordered_frames_and_a_late_first_one(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20, 20])
    write_video(root / VIDEO, 40, 10, options={"g": "12", "bf": "3"})
    assert everything(root) == spans(20, 20)
    write_video(root / VIDEO, 40, pts=[30 + 100 * i for i in range(40)], options={"bf": "2"})
    assert everything(root) == spans(20, 20)


def test_times_that_do_not_start_at_zero_count_from_the_first_row(tmp_path):
    """A recording that was trimmed: rows 5 to 24 of the first episode's video are left."""
    root = foreign_dataset(tmp_path / "set", [20], stamps=np.arange(5, 25) / 10)
    write_video(root / VIDEO, 25, 10)
    change_table(root / EPISODES, **{f"videos__{FRONT}__to_timestamp": [2.5]})
    source = open_source(root)
    assert numbers(source, 0) == list(range(5, 25)) and source.episodes[0].times[0] == 0


def test_videos_that_are_cut_at_other_places_than_the_table(tmp_path):
    """Two cameras, one in a file an episode, one in two files and of another size."""
    wrist = "observation.images.wrist"
    root = foreign_dataset(tmp_path / "set", [20] * 4)
    shutil.rmtree(root / "videos")
    for f in range(4):
        write_video(root / f"videos/{FRONT}/chunk-000/file-{f:03d}.mp4", 20, offset=20 * f)
    for f in range(2):
        write_video(root / f"videos/{wrist}/chunk-000/file-{f:03d}.mp4", 40, offset=1000 + 40 * f, size=(64, 48))
    change_table(
        root / EPISODES,
        **{f"videos__{FRONT}__file_index": [0, 1, 2, 3], f"videos__{FRONT}__from_timestamp": [0.0] * 4},
        **{f"videos__{FRONT}__to_timestamp": [2.0] * 4, f"videos__{wrist}__chunk_index": [0] * 4},
        **{f"videos__{wrist}__file_index": [0, 0, 1, 1], f"videos__{wrist}__from_timestamp": [0.0, 2.0] * 2},
    )
    features = json.loads((root / "meta/info.json").read_text())["features"]
    change_info(root, features={**features, wrist: {"dtype": "video", "shape": [64, 48, 3], "names": None}})
    source = open_source(root)
    assert [numbers(source, e) for e in range(4)] == spans(20, 20, 20, 20)
    assert [numbers(source, e, wrist) for e in range(4)] == [[1000 + n for n in s] for s in spans(20, 20, 20, 20)]
    out = open_source(write_labels(source, tmp_path / "out", LABELS, label, {}))
    assert [numbers(out, e, wrist) for e in range(4)] == [[1000 + n for n in s] for s in spans(20, 20, 20, 20)]


# -------------------------------------------------------------------------------------------------- where rows are


def test_a_file_number_that_is_an_episode_behind(tmp_path):
    """As an official converter leaves it: the first episode of a new file is said to lie in the old one."""
    root = foreign_dataset(tmp_path / "set", [20] * 6)
    table = pq.read_table(root / DATA)
    pq.write_table(table.slice(0, 60), root / DATA)
    pq.write_table(table.slice(60), root / "data/chunk-000/file-001.parquet")
    change_table(root / EPISODES, data__file_index=[0, 0, 0, 0, 1, 1])
    source = open_source(root)
    for e, span in enumerate(spans(*[20] * 6)):
        assert source.column(source.episodes[e], "action")[:, 0].tolist() == span
        assert numbers(source, e) == span
    out = write_labels(source, tmp_path / "out", LABELS, label, {})
    assert pq.read_table(out / EPISODES)["data/file_index"].to_pylist() == [0, 0, 0, 1, 1, 1]
    for file, episodes in enumerate(([0, 1, 2], [3, 4, 5])):
        rows = pq.read_table(out / f"data/chunk-000/file-{file:03d}.parquet").to_pydict()
        assert [v[0] for v in rows["latent_action"]] == rows["episode_index"] == np.repeat(episodes, 20).tolist()
        assert [v[1] for v in rows["latent_action"]] == rows["frame_index"]


def test_rows_in_a_file_that_no_episode_names(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20] * 4)
    table = pq.read_table(root / DATA)
    pq.write_table(table.slice(0, 40), root / DATA)
    pq.write_table(table.slice(40), root / "data/chunk-000/file-007.parquet")
    source = open_source(root)
    assert source.column(source.episodes[3], "action")[:, 0].tolist() == list(range(60, 80))


def test_rows_without_any_hint_in_the_episode_table(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    table = pq.read_table(root / EPISODES)
    hints = [n for n in table.column_names if n.startswith(("data/", "dataset_"))]
    pq.write_table(table.drop_columns(hints), root / EPISODES)
    source = open_source(root)
    assert source.column(source.episodes[2], "action")[:, 0].tolist() == list(range(40, 60))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: change_table(r / EPISODES, length=[20, 21, 20]), "has 20 rows of episode 1, and meta/episodes says 21"),
        (lambda r: change_table(r / EPISODES, length=[20, 19, 20]), "has 20 rows of episode 1, and meta/episodes says 19"),
        (lambda r: change_table(r / DATA, episode_index=[0, 1] * 10 + [1] * 20 + [2] * 20), "episode 0 do not lie together"),
        (lambda r: change_table(r / DATA, frame_index=[5, 4, *range(2, 20)] * 3), "rows of episode 0 are out of order"),
        (lambda r: change_table(r / DATA, timestamp=[0.1] * 60), "timestamps of episode 0 do not ascend"),
        (lambda r: change_table(r / DATA, timestamp=[0.0, np.inf, *range(2, 60)]), "timestamps of episode 0 do not ascend"),
        (lambda r: change_table(r / DATA, timestamp=["a"] * 60), r"file-000\.parquet: cannot be read"),
        (lambda r: change_table(r / DATA, episode_index=[-1] * 60), "row 0 is of episode -1"),
        (lambda r: change_table(r / EPISODES, length=[20, None, 20]), "episode 1 has no frame"),
        (lambda r: change_table(r / EPISODES, length=[20, np.nan, 20]), "episode 1 has no frame"),
        (lambda r: change_table(r / EPISODES, length=[20, np.inf, 20]), "length is inf in row 1"),
        (lambda r: change_table(r / EPISODES, length=[20, 19.5, 20]), r"length is 19\.5 in row 1"),
        (lambda r: change_table(r / EPISODES, length=["20"] * 3), "length is string, not a number"),
        (lambda r: change_table(r / EPISODES, data__file_index=[0, -1, 0]), "data/file_index is -1 in row 1"),
        (lambda r: change_table(r / EPISODES, **{f"videos__{FRONT}__from_timestamp": [0, np.inf, 4]}), "is inf in row 1"),
        (lambda r: change_table(r / EPISODES, episode_index=[0, 0, 1]), "not numbered 0..2"),
        (lambda r: change_info(r, fps="fast"), r"info\.json: fps: "),
        (lambda r: change_info(r, fps=float("nan")), r"info\.json: fps: "),
        (lambda r: change_info(r, total_episodes=[3]), r"info\.json: total_episodes: "),
        (lambda r: change_info(r, splits="0:3"), r"info\.json: splits: "),
        (lambda r: change_info(r, splits={"train": "0:3", "val": "2:3"}), "splits train and val share episodes"),
        (lambda r: change_info(r, features=[]), r"info\.json: features: "),
        (lambda r: change_info(r, features={"action": "float32"}), r"info\.json: features\.action: "),
        (lambda r: (r / "meta/info.json").write_text("[" * 200_000), r"info\.json: cannot be read"),
        (lambda r: (r / "meta/info.json").write_bytes(b'{"fps": "\xff\xfe"}'), r"info\.json: cannot be read"),
    ],
)  # fmt: skip
def test_tables_that_do_not_agree(tmp_path, change, message):
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    change(root)
    with pytest.raises(LaminaError, match=message) as error:
        open_source(root)
    assert str(root) in str(error.value) and "\n" not in str(error.value)


def test_the_same_episode_in_two_files(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    table = pq.read_table(root / DATA)
    pq.write_table(table.slice(20, 20), root / "data/chunk-000/file-001.parquet")
    change_table(root / EPISODES, data__file_index=[0, 0, 1])
    with pytest.raises(LaminaError, match=r"file-001\.parquet: .*|has 0 rows"):
        change_table(root / EPISODES, data__file_index=[0, 2, 1])
        open_source(root)
    change_table(root / EPISODES, data__file_index=[0, 1, 0])  # where the table says which, that one is read
    change_table(root / "data/chunk-000/file-001.parquet", action=[[-5.0, 5.0]] * 20)
    source = open_source(root)
    assert source.column(source.episodes[1], "action")[0].tolist() == [-5, 5]
    assert source.column(source.episodes[2], "action")[0].tolist() == [40, -40]


def test_rows_of_episodes_that_are_not_listed(tmp_path):
    """A recording that broke off: its rows are there, its entry is not. The others are read; nothing is written from it."""
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    pq.write_table(pq.read_table(root / EPISODES).slice(0, 2), root / EPISODES)
    change_info(root, total_episodes=2, splits={})
    with pytest.warns(
        LaminaWarning, match=r"file-000\.parquet: 20 row\(s\) are of episodes that meta/episodes does not"
    ):
        source = open_source(root)
    assert source.column(source.episodes[1], "action")[:, 0].tolist() == list(range(20, 40))
    assert numbers(source, 1) == list(range(20, 40))
    with pytest.raises(LaminaError, match="has rows of episodes that meta/episodes does not list"):
        write_labels(source, tmp_path / "out", LABELS, label, {})


# --------------------------------------------------------------------------------------- cameras that are not there


@pytest.mark.parametrize("integers", [True, False])
def test_a_camera_that_some_episodes_lack(tmp_path, integers):
    root = foreign_dataset(tmp_path / "set", [20] * 5)
    table = pq.read_table(root / EPISODES)
    for name in [n for n in table.column_names if n.startswith("videos/")]:
        values = [None if e in (0, 2) else v for e, v in enumerate(table[name].to_pylist())]
        kind = (
            table.schema.field(name).type if integers else pa.float64()
        )  # pandas turns whole numbers with gaps into others
        table = table.set_column(table.column_names.index(name), name, pa.array(values, kind))
    pq.write_table(table, root / EPISODES)
    with pytest.warns(LaminaWarning, match=f"'{FRONT}' does not show 2 of 5 episodes; they are left out"):
        clip = sample_split(config(root), "train", None)
    assert set(clip.episode.tolist()) <= {1, 3, 4}
    source = open_source(root)
    assert [numbers(source, e) for e in (1, 3, 4)] == [spans(*[20] * 5)[e] for e in (1, 3, 4)]
    with pytest.raises(DecodeError, match=f"episode 2 has no pictures of '{FRONT}'"):
        source.frames(source.episodes[2], FRONT, 0, 1)

    labelled = []
    with pytest.warns(LaminaWarning, match=r"does not show 2 of 5 episodes; their rows are not valid"):
        out = write_labels(
            source, tmp_path / "out", LABELS, lambda e, c: (labelled.append(e.number), label(e, c))[1], {}
        )
    assert labelled == [1, 3, 4]
    after = open_source(out)
    for e in range(5):
        valid = after.column(after.episodes[e], "latent_action.valid")
        latent = after.column(after.episodes[e], "latent_action")
        assert valid.all() == (e not in (0, 2)) and valid.any() == (e not in (0, 2))
        assert np.array_equal(
            latent, label(after.episodes[e], "")["latent_action"] if e not in (0, 2) else np.zeros((20, 2))
        )
    assert [numbers(after, e) for e in (1, 3, 4)] == [spans(*[20] * 5)[e] for e in (1, 3, 4)]


@pytest.mark.parametrize(
    ("count", "absent"), [(4, {0, 2}), (5, {4}), (12, {0, 1, 2, 3, 4, 5, 6, 7, 8}), (20, set(range(0, 20, 2)))]
)
def test_a_camera_that_some_episodes_lack_has_every_split(tmp_path, count, absent):
    """Whichever episodes it lacks: those of validation and test are taken from the others."""
    root = foreign_dataset(tmp_path / "set", [40] * count)
    change_info(root, splits=None)
    change_table(
        root / EPISODES, **{f"videos__{FRONT}__file_index": [None if e in absent else 0 for e in range(count)]}
    )
    begins = np.cumsum([0.0] + [0.0 if e in absent else 4.0 for e in range(count)])
    change_table(
        root / EPISODES,
        **{
            f"videos__{FRONT}__from_timestamp": begins[:-1].tolist(),
            f"videos__{FRONT}__to_timestamp": begins[1:].tolist(),
        },
    )
    seen = sorted(set(range(count)) - absent)
    write_video(root / VIDEO, 40 * len(seen), 10)
    taken: set[tuple[int, int]] = set()
    for split in ("train", "validation", "test"):
        clip = sample_split(config(root), split, None)
        assert len(clip) and set(clip.episode.tolist()) <= set(seen)
        for frames, e, index in zip(clip.frames[:, 0], clip.episode.tolist(), clip.index[:, 0].tolist(), strict=True):
            assert read_number(frames.permute(1, 2, 0).numpy()) == 40 * seen.index(e) + index
        here = {(e, i) for e, row in zip(clip.episode.tolist(), clip.index.tolist(), strict=True) for i in row}
        assert not here & taken
        taken |= here


def test_a_camera_that_is_not_used_is_not_looked_at(tmp_path):
    wrist = "observation.images.wrist"
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    change_table(
        root / EPISODES,
        **{f"videos__{wrist}__{k}": [0] * 3 for k in ("chunk_index", "file_index")},
        **{f"videos__{wrist}__from_timestamp": [0.0, 2.0, 4.0]},
    )
    features = json.loads((root / "meta/info.json").read_text())["features"]
    change_info(root, features={wrist: {"dtype": "video", "shape": [1, 1, 3]}, **features})
    clip = sample_split(config(root, camera=FRONT), "train", None)
    assert len(clip)
    with pytest.raises(LaminaError, match=rf"videos/{wrist}/chunk-000/file-000\.mp4"):
        sample_split(config(root, camera=wrist), "train", None)
    called = []
    with pytest.raises(LaminaError, match=rf"videos/{wrist}/chunk-000/file-000\.mp4: cannot be read"):
        write_labels(open_source(root), tmp_path / "out", LABELS, lambda *a: called.append(a), {}, camera=FRONT)
    assert not called and not (tmp_path / "out").exists()


def test_depth_is_not_the_camera_that_is_taken_by_default(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    depth = {"dtype": "video", "shape": [32, 48, 1], "info": {"video.is_depth_map": True}}
    features = json.loads((root / "meta/info.json").read_text())["features"]
    change_info(root, features={"observation.depth": depth, **features})
    assert open_source(root).cameras == (FRONT, "observation.depth")


def test_a_cover_picture_is_not_the_video(tmp_path):
    """The stream with the pictures is meant, not the still that comes first."""
    write_video(tmp_path / "plain.mp4", 30)
    with av.open(str(tmp_path / "plain.mp4")) as given, av.open(str(tmp_path / "covered.mkv"), "w") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        moving = out.add_stream_from_template(given.streams.video[0])
        moving.disposition = av.stream.Disposition.default
        still = av.VideoFrame.from_ndarray(picture(4000), "rgb24")
        for packet in (*cover.encode(still), *cover.encode()):
            out.mux(packet)
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = moving
                out.mux(packet)
    (tmp_path / "plain.mp4").unlink()
    source = open_source(tmp_path / "covered.mkv")
    assert numbers(source, 0) == list(range(30))


# -------------------------------------------------------------------------------------------------- pictures in tables


def encoded(number: int, codec: str = "png", pix_fmt: str = "rgb24") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="image2pipe") as out:
        stream = out.add_stream(codec, rate=1)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pix_fmt
        frame = av.VideoFrame.from_ndarray(picture(number), "rgb24").reformat(format=pix_fmt)
        for packet in (*stream.encode(frame), *stream.encode()):
            out.mux(packet)
    return file.getvalue()


KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGE = {FRONT: {"dtype": "image", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}}


def image_dataset(root: Path, cells: list[dict]) -> Path:
    foreign_dataset(root, [20] * 4, camera=None, features=IMAGE, columns={FRONT: pa.array(cells, KIND)})
    change_info(root, video_path=None)
    return root


@pytest.mark.parametrize("codec", ["png", "mjpeg"])
def test_a_dataset_of_pictures_without_video(tmp_path, codec):
    pix_fmt = "rgb24" if codec == "png" else "yuvj444p"
    cells = [{"bytes": encoded(100 + i, codec, pix_fmt), "path": f"frame-{i:06d}.png"} for i in range(80)]
    root = image_dataset(tmp_path / "set", cells)
    source = open_source(root)
    assert source.cameras == (FRONT,) and source.missing_episodes(FRONT) == {}
    for e in range(4):
        assert numbers(source, e) == list(range(100 + 20 * e, 120 + 20 * e))
    assert read_number(source.frames(source.episodes[2], FRONT, 7, 8, (16, 36))[0]) == 147
    clip = sample_split(config(root), "train", None)
    assert read_number(clip.frames[0, 1].permute(1, 2, 0).numpy()) == 100 + 20 * clip.episode[0] + clip.index[0, 1]
    out = write_labels(source, tmp_path / "out", LABELS, label, {})
    after = open_source(out)
    assert numbers(after, 3) == list(range(160, 180)) and not (out / "videos").exists()
    assert after.column(after.episodes[3], "latent_action")[4].tolist() == [3, 4]


def test_pictures_in_files_of_their_own(tmp_path):
    cells = [{"bytes": None, "path": f"images/front/frame-{i:06d}.png"} for i in range(80)]
    root = image_dataset(tmp_path / "set", cells)
    (root / "images/front").mkdir(parents=True)
    for i in range(80):
        (root / f"images/front/frame-{i:06d}.png").write_bytes(encoded(i))
    source = open_source(root)
    assert numbers(source, 3) == list(range(60, 80))
    (root / "images/front/frame-000065.png").write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=rf"'{FRONT}' of episode 3, row 5 cannot be decoded"):
        source.frames(source.episodes[3], FRONT, 0, 20)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "images/../../secret.png"])
def test_a_picture_is_not_read_from_outside(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(encoded(7))
    source = open_source(image_dataset(tmp_path / "set", [{"bytes": None, "path": name}] * 80))
    with pytest.raises(DecodeError, match="leads out of the dataset"):
        source.frames(source.episodes[0], FRONT, 0, 1)


def test_a_column_of_depth_pictures_beside_video(tmp_path):
    """Not decodable here, and not in the way: carried along byte for byte."""
    cells = [{"bytes": bytes([i]) * (50 + i), "path": f"d-{i}.png"} for i in range(80)]
    depth = {"observation.depth": {"dtype": "image", "shape": [32, 48, 1], "names": None}}
    root = foreign_dataset(
        tmp_path / "set", [20] * 4, features=depth, columns={"observation.depth": pa.array(cells, KIND)}
    )
    table = pq.read_table(root / DATA).replace_schema_metadata({"huggingface": "{}"})
    with pq.ParquetWriter(root / DATA, table.schema) as writer:
        for k in range(4):
            writer.write_table(table.slice(20 * k, 20))
    source = open_source(root)
    assert source.cameras == (FRONT,) and [numbers(source, e) for e in range(4)] == spans(20, 20, 20, 20)
    out = write_labels(source, tmp_path / "out", LABELS, label, {})
    assert pq.read_table(out / DATA)["observation.depth"].to_pylist() == cells


# ------------------------------------------------------------------------------------------------------------- values


def test_columns_that_are_no_numbers_are_carried_along(tmp_path):
    """Features of words, of a dtype that is not known, of a shape that is none: never in the way, the same in the output."""
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("timestamp", pa.float64())]))
    words = [[{"role": "assistant", "content": f"grasp {i} ☕", "timestamp": 0.5}] * (i % 3) for i in range(60)]
    features = {
        "language_persistent": {"dtype": "language", "shape": [1], "names": None},
        "later": {"dtype": "hologram", "shape": None},
        "odd": {"dtype": "float32", "shape": ["many"]},
        "huge": {"dtype": "float32", "shape": [10**9, 10**9]},
    }
    columns = {"language_persistent": pa.array(words, kind), "odd": [1.0] * 60, "huge": [1.0] * 60, "later": ["x"] * 60}
    root = foreign_dataset(tmp_path / "set", [20] * 3, features=features, columns=columns)
    source = open_source(root)
    assert not {*features} & {*source.columns} and numbers(source, 2) == list(range(40, 60))
    with pytest.raises(LaminaError, match=r"no numbers in its feature \(of language\) 'language_persistent'"):
        source.column(source.episodes[0], "language_persistent")
    assert len(next(ClipStream(config(root, action="action"), 8, seed=0))) == 8
    out = write_labels(source, tmp_path / "out", LABELS, label, {})
    assert pq.read_table(out / DATA)["language_persistent"].to_pylist() == words
    assert (
        json.loads((out / "meta/info.json").read_text())["features"]["language_persistent"]
        == features["language_persistent"]
    )


@pytest.mark.parametrize(("value", "what"), [(np.inf, "infinite"), (-np.inf, "infinite"), (np.nan, "NaN")])
def test_a_value_that_is_not_finite(tmp_path, value, what):
    action = np.stack([np.sin(np.arange(160) / 5), np.cos(np.arange(160) / 5)], 1).astype(np.float32)
    action[57, 1] = value
    root = foreign_dataset(tmp_path / "set", [40] * 4, action=action)
    message = rf"file-000\.parquet: 'action' is {what} at episode 1, row 17;"
    source = open_source(root)
    with pytest.raises(LaminaError, match=message):
        source.column(source.episodes[1], "action")
    assert np.array_equal(source.column(source.episodes[0], "action"), action[:40])
    for read in (sample_split, lambda c, s, n: next(ClipStream(c, 500, seed=0))):
        with pytest.raises(LaminaError, match=message):
            read(config(root, action="action"), "train", None)
        assert len(read(config(root), "train", None))  # frames alone: actions are not looked at


def test_a_number_too_large_for_a_float(tmp_path):
    action = np.full((60, 1), 1e300)
    root = foreign_dataset(tmp_path / "set", [20] * 3, action=action)
    source = open_source(root)
    with pytest.raises(LaminaError, match="'action' is infinite at episode 0, row 0"):
        source.column(source.episodes[0], "action")


def test_a_missing_value(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    change_table(root / DATA, action=pa.array([[1.0, None] if i == 23 else [1.0, 2.0] for i in range(60)]))
    source = open_source(root)
    with pytest.raises(LaminaError, match="'action' is NaN at episode 1, row 3"):
        source.column(source.episodes[1], "action")


@pytest.mark.parametrize("width", [1, 3])
def test_an_action_that_is_not_as_wide_as_its_feature(tmp_path, width):
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    change_table(root / DATA, action=pa.array([[1.0] * width] * 60))
    source = open_source(root)
    with pytest.raises(
        LaminaError, match=rf"'action' has {width} values a row, not 2|has {60 * width} values in 60 rows"
    ):
        source.column(source.episodes[0], "action")


def test_negative_integers_are_continuous_with_a_warning(tmp_path):
    n = np.arange(160)
    action = np.stack([n // 4 % 3 - 1, np.where(n // 7 % 2, 1, -1)], 1).astype(np.int64)
    root = foreign_dataset(tmp_path / "set", [40] * 4, action=action)
    with pytest.warns(
        LaminaWarning, match="'action' holds whole numbers from -1 to 1; they are no classes, and are read as"
    ):
        assert open_source(root).action_spec("action") == ActionSpec(continuous=2)
    clip = sample_split(config(root, action="action"), "train", None)
    rows = 40 * clip.episode[:, None] + clip.index
    assert np.array_equal(clip.action.numpy(), action[rows.numpy()])


def test_whole_numbers_too_large_for_classes_are_continuous(tmp_path):
    action = (np.arange(60)[:, None] * 10**6).astype(np.int64)
    root = foreign_dataset(tmp_path / "set", [20] * 3, action=action)
    assert open_source(root).action_spec("action") == ActionSpec(continuous=1)


def test_classes_come_from_the_rows_whatever_the_statistics_say(tmp_path):
    action = (np.arange(60)[:, None] % 5).astype(np.int64)
    root = foreign_dataset(tmp_path / "set", [20] * 3, action=action)
    for content in (None, "{", '{"action": {"max": [1]}}', '{"action": 3}'):
        if content is not None:
            (root / "meta/stats.json").write_text(content)
        assert open_source(root).action_spec("action") == ActionSpec(discrete=(5,))
    assert len(sample_split(config(root), "train", None))


@pytest.mark.parametrize("classes", [10**9, -3, 1, 2.5, "many", [4, 4, 4], [None], True])
def test_class_counts_that_make_no_sense(tmp_path, classes):
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["num_classes"] = classes
    (root / "meta/info.json").write_text(json.dumps(info))
    source = open_source(root)
    with pytest.raises(LaminaError, match=r"info\.json: 'action' states .* classes"):
        _ = source.action_spec("action")
    assert len(sample_split(config(root), "train", None))  # frames alone never ask


@pytest.mark.parametrize(("value", "told"), [(0.5, "0.5"), (-1.0, "-1"), (4.0, "4")])
def test_a_value_that_is_none_of_the_classes(tmp_path, value, told):
    action = (np.arange(60)[:, None] % 4).astype(np.float32)
    action[25] = value
    root = foreign_dataset(tmp_path / "set", [20] * 3, action=action)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["num_classes"] = 4
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(
        LaminaError, match=rf"set episode 1: 'action' is {told} at row 5, dimension 0, none of its classes 0 to 3"
    ):
        sample_split(config(root, action="action"), "train", None)


def test_a_dataset_that_was_moved_is_the_same_data(tmp_path):
    root = foreign_dataset(tmp_path / "set", [40] * 5)
    state = ClipStream(config(root), 8, seed=0).state_dict()
    moved = shutil.move(root, tmp_path / "elsewhere")
    ClipStream(config(moved), 8, seed=0).load_state_dict(state)
    more = foreign_dataset(tmp_path / "more", [40] * 6)
    with pytest.raises(LaminaError, match="start a new run from this one's weights with --init"):
        ClipStream(config(more), 8, seed=0).load_state_dict(state)


def test_a_valid_dataset_gives_no_warning(tmp_path):
    root = foreign_dataset(tmp_path / "set", [40] * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_source(root)
        assert source.missing_episodes(FRONT) == {}
        write_labels(source, tmp_path / "out", LABELS, label, {})


@pytest.mark.parametrize(("splits", "expected"), [
    ({"train": "0:7", "eval": "7:9", "test": "9:10"}, ["train"] * 7 + ["validation"] * 2 + ["test"]),
    ({"train": "0:7", "val": "7:8", "dev": "8:9", "test": "9:10"}, ["train"] * 7 + ["validation"] * 2 + ["test"]),
    ({"train": "0:7", "validation": "7:8", "test": "8:9", "calibration": "9:10"}, ["train"] * 7 + ["validation", "test", None]),
])  # fmt: skip
def test_no_episode_that_a_dataset_holds_out_is_trained_on(tmp_path, splits, expected):
    root = foreign_dataset(tmp_path / "set", [12] * 10)
    change_info(root, splits=splits)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = [e.splits for e in open_source(root).episodes]
    assert found == [() if split is None else ((split, 0, 12),) for split in expected]
    words = "its splits calibration are none of train, validation, test; their episodes are left out of all three"
    assert any(words in str(w.message) for w in told) == (None in expected)
    change_info(root, splits={"all": "0:10"})
    with pytest.warns(LaminaWarning, match="its splits all are none of .*; their episodes are divided anew"):
        assert {e.splits[0][0] for e in open_source(root).episodes} == {"train", "validation", "test"}


def test_a_camera_that_is_seldom_there_does_not_decide_over_the_splits(tmp_path):
    wrist, gone = "observation.images.wrist", "observation.images.gone"
    root = foreign_dataset(tmp_path / "set", [20] * 20)
    before = [e.splits for e in open_source(root).episodes]
    change_table(
        root / EPISODES,
        **{f"videos__{wrist}__{k}": [None] * 18 + [0, 0] for k in ("chunk_index", "file_index")},
        **{f"videos__{wrist}__from_timestamp": [None] * 18 + [0.0, 2.0]},
    )
    features = json.loads((root / "meta/info.json").read_text())["features"]
    change_info(root, features={**features, wrist: features[FRONT], gone: features[FRONT]})
    assert [e.splits for e in open_source(root).episodes] == before
    with pytest.raises(LaminaError, match=f"'{gone}' shows no episode"):
        sample_split(config(root, camera=gone), "train", None)
    with pytest.raises(LaminaError, match=f"'{gone}' shows no episode"):
        write_labels(open_source(root), tmp_path / "out", LABELS, label, {}, camera=gone)


def test_the_width_of_a_feature_is_known_without_its_values(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20] * 3, action=np.full((60, 3), np.nan, np.float32))
    assert feature_width(config(root), "action") == 3 and feature_width(config(root), "state") is None
