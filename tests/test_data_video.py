"""Video files: the right frame at the right time from every container and codec, and clear errors for bad files."""

import itertools
import os
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_files import picture, read_number, write_video
from lamina.data.episodes import DecodeError, compact_times, split_episodes
from lamina.data.sampling import open_source
from lamina.data.video import index_video
from lamina.errors import LaminaError, LaminaWarning

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")

OPEN_GOP = {"bf": "3", "x264-params": "open-gop=1:scenecut=0:keyint=12:min-keyint=12"}
UNEVEN = [40 * i + 300 * (i // 7) for i in range(60)]
FORMATS = {
    "plain.mp4": {},
    "reordered.mp4": {"options": {"g": "12", "bf": "3"}},
    "open-groups.mp4": {"options": OPEN_GOP},
    "one-key-frame.mkv": {"options": {"g": "9999", "x264-params": "scenecut=0"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12"}},
    "vp8-hidden-frames.webm": {
        "codec": "libvpx",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "30"},
    },
    "uneven.mkv": {"pts": UNEVEN, "options": {"bf": "2"}},
    "uneven-late.mp4": {"pts": [p + 70 for p in UNEVEN], "options": {"bf": "2"}},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "alpha.mov": {"codec": "png", "pix_fmt": "rgba"},
    "odd.mp4": {"pix_fmt": "yuv444p", "size": (33, 49)},
    "ten-bit.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_frame_is_the_one_asked_for(tmp_path, name):
    options = FORMATS[name]
    source = open_source(write_video(tmp_path / name, frames=60, **options))
    (episode,) = source.episodes
    written = np.array(options["pts"]) / 1000 if "pts" in options else np.arange(60) / 10
    np.testing.assert_allclose(episode.times, written - written[0], atol=1.01e-3)

    frames = source.frames(episode, "video", 0, 60)
    assert frames.shape == (60, *options.get("size", (32, 48)), 3) and frames.dtype == np.uint8
    assert [read_number(f) for f in frames] == list(range(60))
    rng = np.random.default_rng(0)
    for start in rng.permutation(60).tolist():
        stop = min(60, start + int(rng.integers(1, 4)))
        size = (24, 60) if rng.random() < 0.5 else None
        frames = source.frames(episode, "video", start, stop, size)
        assert frames.shape[1:3] == (size or options.get("size", (32, 48)))
        assert [read_number(f) for f in frames] == list(range(start, stop))


def bytes_read() -> int:
    """Bytes that this process has read from files, as Linux counts them."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes that Linux says were read")
def test_reading_on_decodes_forward_without_seeking(tmp_path):
    """A film whose only key frame is the first is read once; backwards, every piece is read from its start again."""
    path, rng = tmp_path / "a.mkv", np.random.default_rng(0)  # noise, so that the file is larger than any buffer
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "60"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for _ in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rng.integers(0, 256, (96, 128, 3), np.uint8))))
        container.mux(stream.encode())
    source = open_source(path)

    def read(starts: list[int]) -> float:
        """How many times the size of the file is read."""
        before = bytes_read()
        for start in starts:
            source.frames(source.episodes[0], "video", start, min(60, start + 7))
        return (bytes_read() - before) / path.stat().st_size

    pieces = list(range(0, 60, 7))
    read(pieces[:1])  # opens the file
    assert 0.7 < read(pieces[1:]) < 1.2
    assert read([59]) < 0.1  # the last frame again
    assert read(pieces[::-1]) > 3


def test_a_rotated_recording_is_shown_upright(tmp_path):
    """Phones store portrait video on its side, with a matrix in the track header that says so."""
    path = write_video(tmp_path / "a.mp4", frames=3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    one, minus = bytes.fromhex("00010000"), bytes.fromhex("ffff0000")
    data[matrix : matrix + 20] = bytes(4) + one + bytes(4) + minus + bytes(4)
    path.write_bytes(data)
    source = open_source(path)
    frames = source.frames(source.episodes[0], "video", 0, 3)
    assert frames.shape == (3, 48, 32, 3)
    assert [read_number(np.rot90(f)) for f in frames] == [0, 1, 2]  # the file asks for a turn clockwise
    assert source.frames(source.episodes[0], "video", 0, 1, (24, 16)).shape == (1, 24, 16, 3)


def test_resizing_keeps_colours_and_proportions(tmp_path):
    """Area averaging: a picture of two halves stays one, and its mean stays the same."""
    source = open_source(write_video(tmp_path / "a.mkv", frames=1, size=(64, 96), codec="ffv1", pix_fmt="gray"))
    small = source.frames(source.episodes[0], "video", 0, 1, (8, 12))[0].astype(float)
    full = picture(0, 64, 96).astype(float)
    assert abs(small.mean() - full.mean()) < 1


def test_a_folder_is_searched_in_order_and_mixed_sizes_work(tmp_path):
    write_video(tmp_path / "b.mp4", frames=12, size=(48, 64), fps=30)
    write_video(tmp_path / "sub" / "deeper" / "a.webm", frames=12, size=(32, 60), codec="libvpx-vp9", fps=30)
    write_video(tmp_path / "c.MKV", frames=12, size=(33, 49), pix_fmt="yuv444p", fps=10)
    (tmp_path / "notes.txt").write_text("not a video")
    source = open_source(tmp_path)
    assert [Path(e.name).name for e in source.episodes] == ["b.mp4", "c.MKV", "a.webm"]
    assert source.fps == 30 and [round(e.fps) for e in source.episodes] == [30, 10, 30]
    for episode in source.episodes:
        assert source.frames(episode, "video", 0, 12, (32, 32)).shape == (12, 32, 32, 3)


def damaged(path: Path, how: str) -> Path:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) * 2 // 3])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("this is not a video")
    elif how == "zeros inside":
        path.write_bytes(data[: len(data) // 2] + bytes(200) + data[len(data) // 2 + 200 :])
    return path


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_an_unreadable_file_is_named_in_one_line(tmp_path, name, how):
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = damaged(write_video(tmp_path / name, codec=codec), how)
    with pytest.raises(LaminaError) as error:
        open_source(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_file_with_its_index_at_the_front_is_noticed(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=60)

    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    with pytest.raises(LaminaError, match=r"b\.mp4: is truncated"):
        open_source(damaged(tmp_path / "b.mp4", "truncated"))


def test_damage_inside_is_an_error_and_not_a_picture(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=60)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 1500
    data[at : at + 100] = bytes(100)
    path.write_bytes(data)
    source = open_source(path)
    with pytest.raises(DecodeError, match=r"a\.mp4: cannot be decoded"):
        source.frames(source.episodes[0], "video", 0, 60)
    assert read_number(source.frames(source.episodes[0], "video", 0, 1)[0]) == 0  # what comes before it is still there


def test_a_bad_file_among_good_ones_is_left_out_up_to_a_limit(tmp_path):
    for n in range(4):
        write_video(tmp_path / f"{n}.mp4")
    damaged(tmp_path / "1.mp4", "truncated")
    with pytest.warns(LaminaWarning, match=r"left out: .*1\.mp4"):
        source = open_source(tmp_path)
    assert [Path(e.name).name for e in source.episodes] == ["0.mp4", "2.mp4", "3.mp4"]
    with pytest.raises(LaminaError, match=r"1\.mp4"):
        open_source(tmp_path, max_bad=0)


@pytest.mark.parametrize("make", ["missing", "empty folder", "folder of text"])
def test_sources_without_video_are_refused(tmp_path, make):
    path = tmp_path / "data"
    if make != "missing":
        path.mkdir()
    if make == "folder of text":
        (path / "a.txt").write_text("a")
    with pytest.raises(LaminaError, match="no such file" if make == "missing" else "holds no video") as error:
        open_source(path)
    assert str(path) in str(error.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    path.chmod(0)
    with pytest.raises(LaminaError, match=r"a\.mp4"):
        open_source(path)


def test_sound_without_pictures_is_no_video(tmp_path):

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 8000
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with pytest.raises(LaminaError, match=r"a\.mp4: .*holds no video"):
        index_video(path)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=50), st.sampled_from([7.0, 24000 / 1001, 30.0]))
def test_times_are_kept_exactly_or_as_a_rate(steps, rate):
    """Whatever the pauses, the times that an episode gives back are the file's to 10 microseconds."""
    for times in (np.cumsum([0, *steps]) / 1000, np.arange(len(steps) + 1) / rate):
        fps, stamps = compact_times(times)
        kept = np.arange(len(times)) / fps if stamps is None else stamps
        assert np.abs(kept - times).max() < 1e-5
    assert stamps is None and abs(fps - rate) < 1e-6


@settings(max_examples=30)
@given(st.integers(1, 200), st.randoms(use_true_random=False))
def test_splits_are_by_episode_and_depend_on_names_only(count, random):
    episodes = open_episodes(count)
    names = [f"video {n}" for n in range(count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = split_episodes(episodes, names, Path("a"))
        order = random.sample(range(count), count)
        again = split_episodes([episodes[i] for i in order], [names[i] for i in order], Path("elsewhere"))
    assert {names[i]: e.splits for i, e in enumerate(split)} == {
        names[i]: e.splits for i, e in zip(order, again, strict=True)
    }
    sizes = {s: sum(b - a for e in split for n, a, b in e.splits if n == s) for s in ("train", "validation", "test")}
    assert sum(sizes.values()) == 100 * count
    if count >= 3:
        assert all(len(e.splits) == 1 for e in split)
        assert sizes["validation"] == sizes["test"] == 100 * max(1, round(0.1 * count))
    else:
        assert sizes == {"train": 80 * count, "validation": 10 * count, "test": 10 * count}
        for e in split:
            assert [a for _, a, _ in e.splits] == [0, 80, 90] and e.splits[-1][2] == 100


def open_episodes(count: int):
    from lamina.data.episodes import Episode

    return [Episode(n, f"{n}", 100, 10.0) for n in range(count)]


def test_declared_splits_are_kept():
    episodes = open_episodes(20)
    names = [f"episode {n}" for n in range(20)]
    full = {"train": range(16), "validation": range(16, 18), "test": range(18, 20)}
    split = [e.splits[0][0] for e in split_episodes(episodes, names, Path("a"), full)]
    assert split == ["train"] * 16 + ["validation"] * 2 + ["test"] * 2
    # A declared test set is never trained on; a validation set that is missing comes out of the rest.
    split = [
        e.splits[0][0] for e in split_episodes(episodes, names, Path("a"), {"train": range(15), "test": range(15, 20)})
    ]
    assert split[15:] == ["test"] * 5 and split.count("validation") == 2
    assert [k for k, _ in itertools.groupby(sorted(split))] == ["test", "train", "validation"]
