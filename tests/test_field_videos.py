"""Folders of video as found in practice: each file once, upright, with correct times, also in the labelled dataset."""

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from data_files import DATA, FRONT, LABELS, foreign_dataset, label, numbers, picture, read_number, write_video
from lamina.data.lerobot.labels import write_labels
from lamina.data.sampling import DataConfig, open_source
from lamina.data.stream import ClipStream
from lamina.data.video import index_video
from lamina.errors import LaminaError, LaminaWarning

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")
CAMERA = "observation.images.video"


def firsts(root: Path) -> list[int]:
    """The number that the first picture of each file shows."""
    source = open_source(root)
    return sorted(numbers(source, e)[0] for e in range(len(source.episodes)))


# ------------------------------------------------------------------------------------------------------------ folders


def test_linked_folders_are_searched(tmp_path):
    for k in range(3):
        write_video(tmp_path / f"disk/plain{k}/v.mp4", 20, offset=100 * k)
    write_video(tmp_path / "plain/here.mp4", 20, offset=900)
    for k in range(3):
        (tmp_path / f"plain/set{k}").symlink_to(tmp_path / f"disk/plain{k}")
    (tmp_path / "plain/set0/back").symlink_to(tmp_path / "plain")  # a circle
    (tmp_path / "plain/again").symlink_to(tmp_path / "disk/plain1")  # the same folder under another name
    assert firsts(tmp_path / "plain") == [0, 100, 200, 900]
    out = write_labels(open_source(tmp_path / "plain"), tmp_path / "out", LABELS, label, {})
    assert firsts(out) == [0, 100, 200, 900]


def test_a_dangling_link_gives_a_warning(tmp_path):
    write_video(tmp_path / "a.mp4", 20)
    (tmp_path / "b.mp4").symlink_to(tmp_path / "gone.mp4")
    with pytest.warns(LaminaWarning, match=r"left out: .*b\.mp4: cannot be read \(No such file"):
        open_source(tmp_path)


def test_one_file_under_two_names_is_one_episode(tmp_path):
    """A copy of a training clip among the test clips would flatter every score."""
    for k in range(3):
        write_video(tmp_path / f"{k}.mp4", 20, offset=100 * k)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "1.mp4")
    os.link(tmp_path / "2.mp4", tmp_path / "hard.mp4")
    assert firsts(tmp_path) == [0, 100, 200]


def test_names_that_begin_with_a_dot_are_skipped(tmp_path):
    for k in range(10):
        write_video(tmp_path / f"clip{k}.mp4", 20, offset=100 * k)
        (tmp_path / f"._clip{k}.mp4").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4072))
    write_video(tmp_path / ".Trashes/501/old.mp4", 20, offset=2000)
    write_video(tmp_path / "sub/.thumb.mp4", 20, offset=2100)
    assert firsts(tmp_path) == [100 * k for k in range(10)]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    write_video(tmp_path / "a.mp4", 20)
    os.mkfifo(tmp_path / "b.mp4")
    assert firsts(tmp_path) == [0]
    with pytest.raises(LaminaError, match=r"b\.mp4: "):
        open_source(tmp_path / "b.mp4")


def test_a_dataset_whose_videos_are_on_another_disk(tmp_path):
    root = foreign_dataset(tmp_path / "robot", [20] * 4)
    (tmp_path / "disk").mkdir()
    (root / "videos").rename(tmp_path / "disk/videos")
    (root / "videos").symlink_to(tmp_path / "disk/videos")
    out = write_labels(open_source(root), tmp_path / "out", LABELS, label, {})
    after = open_source(out)
    assert [numbers(after, e) for e in range(4)] == [list(range(20 * e, 20 * e + 20)) for e in range(4)]
    assert not (out / "videos").is_symlink()


def test_a_folder_of_datasets_is_not_plain_video(tmp_path):
    for k in range(3):
        foreign_dataset(tmp_path / f"rank_0/id_{k}", [10] * 6)
    with pytest.raises(LaminaError, match=rf"holds 3 LeRobot dataset\(s\) .* --data {tmp_path}/rank_0/id_0 "):
        open_source(tmp_path)
    for inside in ("videos", f"videos/{FRONT}", f"videos/{FRONT}/chunk-000/file-000.mp4"):
        with pytest.raises(LaminaError, match=rf"lies in the LeRobot dataset {tmp_path}/rank_0/id_1"):
            open_source(tmp_path / "rank_0/id_1" / inside)


@pytest.mark.parametrize("lost", ["meta/info.json", "meta/episodes"])
def test_a_dataset_without_all_of_its_tables_is_not_plain_video(tmp_path, lost):
    root = foreign_dataset(tmp_path / "set", [10] * 6)
    (root / lost).rename(tmp_path / "lost")
    with pytest.raises(LaminaError, match=lost):
        open_source(root)


def test_labels_below_the_folder_are_not_read_again(tmp_path):
    for k in range(4):
        write_video(tmp_path / "in" / f"v{k}.mp4", 40, offset=100 * k)
    before = open_source(tmp_path / "in")
    write_labels(before, tmp_path / "in/labels", LABELS, label, {})
    with pytest.warns(LaminaWarning, match=r"are left out \(1, the first is .*in/labels\)"):
        after = open_source(tmp_path / "in")
    assert [(e.name, e.splits) for e in after.episodes] == [(e.name, e.splits) for e in before.episodes]
    assert firsts(tmp_path / "in") == [0, 100, 200, 300]


def test_labels_within_the_dataset_that_they_are_made_from(tmp_path):
    root = foreign_dataset(tmp_path / "set", [20] * 3)
    for out in (root / "labels", root / "videos/labels"):
        with pytest.raises(LaminaError, match="lies in the dataset that it is made from"):
            write_labels(open_source(root), out, LABELS, label, {})
        assert not out.exists()


# -------------------------------------------------------------------------------------------------------- containers


JITTER = np.cumsum([0, *[(33, 34, 50, 16, 67)[n % 5] for n in range(119)]]).tolist()


def recorded(path: Path, offset: int = 0) -> Path:
    """As a browser's MediaRecorder writes it: VP8, uneven frames, neither duration nor cues."""
    options = {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0", "g": "50"}
    return write_video(path, 120, 30, codec="libvpx", options=options, pts=JITTER, offset=offset, muxer={"live": "1"})


def test_vp8_goes_into_a_container_that_holds_it(tmp_path):
    for k in range(2):
        recorded(tmp_path / f"in/rec{k}.webm", 200 * k)
    write_video(tmp_path / "in/z.mp4", 40, offset=1000, options={"bf": "2"})
    with pytest.warns(LaminaWarning, match=r"no mp4 can hold; all of it is written as \.mkv"):
        out = write_labels(open_source(tmp_path / "in"), tmp_path / "out", LABELS, label, {})
    info = json.loads((out / "meta/info.json").read_text())
    assert info["video_path"].endswith("/file-{file_index:03d}.mkv") and not list(out.rglob("*.mp4"))
    after = open_source(out)
    shown = {tuple(numbers(after, e)): after.episodes[e].times for e in range(3)}
    assert set(shown) == {tuple(range(120)), tuple(range(200, 320)), tuple(range(1000, 1040))}
    np.testing.assert_allclose(shown[tuple(range(120))], np.array(JITTER) / 1000, atol=1e-6)
    np.testing.assert_allclose(shown[tuple(range(1000, 1040))], np.arange(40) / 10, atol=1e-6)


def test_a_codec_without_a_container_is_refused_before_labelling(tmp_path):
    write_video(tmp_path / "in/a.mp4", 20)
    write_video(tmp_path / "in/b.mov", 20, codec="qtrle", pix_fmt="rgb24")
    called = []
    with pytest.raises(LaminaError, match=r"b\.mov: fits neither into an mp4 nor into an mkv .*; re-encode it"):
        write_labels(open_source(tmp_path / "in"), tmp_path / "out", LABELS, lambda *a: called.append(a), {})
    assert not called and [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("fps", [12, 30, 24000 / 1001, 29.97, 7])
@pytest.mark.parametrize("name", ["a.webm", "a.mkv"])
@pytest.mark.parametrize("frames", [10, 41, 130])
def test_a_constant_rate_in_whole_milliseconds(tmp_path, fps, name, frames):
    """The rate is that of the header, whatever the length, and no file is said to vary."""
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    options = {"cpu-used": "8", "deadline": "realtime"} if name == "a.webm" else {"bf": "2"}
    source = open_source(write_video(tmp_path / name, frames, fps, codec=codec, options=options))
    (episode,) = source.episodes
    assert episode.stamps is None and abs(episode.fps - fps) < 1e-3 and abs(source.fps - fps) < 1e-3
    np.testing.assert_allclose(episode.times, np.arange(frames) / episode.fps)
    assert numbers(source, 0) == list(range(frames))


def test_remuxed_video_gets_its_exact_times_again(tmp_path):
    """LeRobot's own reader looks for a picture within a ten-thousandth of a second."""
    options = {"cpu-used": "8", "deadline": "realtime"}
    for k, (name, fps) in enumerate([("a.webm", 12), ("b.webm", 12), ("c.mkv", 12)]):
        codec = "libx264" if name == "c.mkv" else "libvpx-vp9"
        write_video(
            tmp_path / "in" / name, 40, fps, codec=codec, options={} if codec == "libx264" else options, offset=100 * k
        )
    out = write_labels(open_source(tmp_path / "in"), tmp_path / "out", LABELS, label, {})
    for path in out.rglob("*.mp4"):
        index = index_video(path)
        np.testing.assert_allclose(index.start + index.times, np.arange(40) / 12, atol=1e-6)
    assert json.loads((out / "meta/info.json").read_text())["fps"] == 12
    after = open_source(out)
    assert sorted(numbers(after, e)[0] for e in range(3)) == [0, 100, 200]
    assert all(e.stamps is None and e.fps == 12 for e in after.episodes)


def test_frames_a_millisecond_apart_are_told_apart(tmp_path):
    pts = [0, 1, 2, 100, 101, 103, 200, 201, 300, 301]
    source = open_source(write_video(tmp_path / "a.mkv", 10, codec="ffv1", pix_fmt="gray", pts=pts))
    assert numbers(source, 0) == list(range(10))
    for i in reversed(range(10)):
        assert [picture(i)[0, :, 0].tolist()] == [
            source.frames(source.episodes[0], "video", i, i + 1)[0][0, :, 0].tolist()
        ]


def test_the_size_changes_within_a_file(tmp_path):
    """A sender halves its picture for lack of bandwidth."""
    parts = [(range(0, 20), (64, 96)), (range(20, 40), (32, 48)), (range(40, 60), (64, 96))]
    with av.open(str(tmp_path / "call.webm"), "w") as out:
        stream, n = None, 0
        for k, (shown, size) in enumerate(parts):
            options = {"auto-alt-ref": "0", "lag-in-frames": "0", "b": "400k"}
            path = write_video(
                tmp_path / f"parts/{k}.webm", 20, codec="libvpx", size=size, options=options, offset=shown[0]
            )
            with av.open(str(path)) as given:
                stream = stream or out.add_stream_from_template(given.streams.video[0])
                for packet in given.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = 100 * n
                        packet.stream = stream
                        out.mux(packet)
                        n += 1
    source = open_source(tmp_path / "call.webm")
    assert numbers(source, 0) == list(range(60))


def test_a_play_list_is_no_video(tmp_path):
    """A few words that call themselves a video would be followed to any other file, and to the net."""
    write_video(tmp_path / "secret.mp4", 10)
    for name, text in (
        ("a.mp4", "ffconcat version 1.0\nfile secret.mp4\n"),
        ("b.mp4", "#EXTM3U\n#EXTINF:1,\nsecret.mp4\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(LaminaError, match=rf"{name}: cannot be read as video"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("container", ["avi", "mpegts"])
def test_the_content_counts_and_not_the_suffix(tmp_path, container):
    with av.open(str(tmp_path / "a.mp4"), "w", format=container) as out:
        stream = out.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for i in range(20):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), "rgb24")))
        out.mux(stream.encode())
    source = open_source(tmp_path / "a.mp4")
    assert numbers(source, 0) == list(range(20))


def cut_without_loss(path: Path, lead: int) -> Path:
    """The same file from frame ``lead`` on: the packets before it stay, from the key frame on, and an edit list hides them."""
    out = path.with_name(f"cut-{path.name}")
    with av.open(str(path)) as given, av.open(str(out), "w") as target:
        stream = given.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = round(lead / stream.average_rate / stream.time_base)
        for packet in given.demux(stream):
            if packet.size:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                target.mux(packet)
    path.unlink()
    return out


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("bf", ["0", "2"])
def test_frames_hidden_by_an_edit_list_are_not_read(tmp_path, suffix, bf):
    path = write_video(tmp_path / f"in/a.{suffix}", 60, options={"g": "30", "bf": bf})
    cut_without_loss(path, 13)
    source = open_source(tmp_path / "in")
    assert numbers(source, 0) == list(range(13, 60))
    out = open_source(write_labels(source, tmp_path / "out", LABELS, label, {}))
    assert numbers(out, 0) == list(range(13, 60)) and out.fps == 10


def test_an_edit_list_cannot_be_written_to_mkv(tmp_path):
    cut_without_loss(write_video(tmp_path / "in/a.mov", 60, options={"g": "30"}), 13)
    write_video(tmp_path / "in/b.webm", 20, codec="libvpx")
    called = []
    with pytest.raises(LaminaError, match=r"cut-a\.mov: fits neither .*hide what was cut off"):
        write_labels(open_source(tmp_path / "in"), tmp_path / "out", LABELS, lambda *a: called.append(a), {})
    assert not called


CAMERA_FILES = {
    "fragmented": {"muxer": {"movflags": "frag_keyframe+empty_moov+default_base_moof"}, "options": {"g": "30"}},
    "open groups": {"options": {"bf": "3", "x264-params": "open-gop=1:keyint=15:b-pyramid=normal"}},
    "ten bit": {"pix_fmt": "yuv420p10le", "options": {"bf": "3", "g": "30"}},
    "av1": {"codec": "libsvtav1", "options": {"g": "2", "preset": "12"}, "size": (64, 96)},
    "full colour": {"pix_fmt": "yuv444p"},
}


@pytest.mark.parametrize("name", CAMERA_FILES)
@pytest.mark.parametrize("dataset", [False, True])
def test_videos_as_cameras_write_them(tmp_path, name, dataset):
    options = CAMERA_FILES[name]
    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"no encoder {options['codec']} here")
    root = foreign_dataset(tmp_path / "set", [40, 50], 30) if dataset else tmp_path / "plain"
    write_video(root / (f"videos/{FRONT}/chunk-000/file-000.mp4" if dataset else "a.mp4"), 90, 30, **options)
    source = open_source(root)
    shown = [number for e in range(len(source.episodes)) for number in numbers(source, e)]
    assert shown == list(range(90))
    whole = source.episodes[-1]
    for start in (37, 3, 21):
        frame = source.frames(whole, source.cameras[0], start, start + 1)[0]
        assert read_number(frame) == start + 90 - whole.length


# ----------------------------------------------------------------------------------------------------------- upright


ONE, MINUS = 0x00010000, -0x00010000
TURNS = {
    "quarter": ((0, ONE, MINUS, 0), lambda f: np.rot90(f, -1)),
    "half": ((MINUS, 0, 0, MINUS), lambda f: np.rot90(f, 2)),
    "three quarters": ((0, MINUS, ONE, 0), lambda f: np.rot90(f, 1)),
    "mirror": ((MINUS, 0, 0, ONE), lambda f: f[:, ::-1]),
    "upside down mirror": ((ONE, 0, 0, MINUS), lambda f: f[::-1]),
    "quarter and mirror": ((0, ONE, ONE, 0), lambda f: f.swapaxes(0, 1)),
    "three quarters and mirror": ((0, MINUS, MINUS, 0), lambda f: np.rot90(f, 2).swapaxes(0, 1)),
}


def turned(path: Path, matrix: tuple[int, ...]) -> Path:
    """The same file with another matrix in its track header, as phones and front cameras write it."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (n.to_bytes(4, "big", signed=True) for n in matrix)
    data[at : at + 20] = a + b + bytes(4) + c + d
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("how", TURNS)
def test_pictures_and_their_size_are_as_shown(tmp_path, how):
    matrix, expected = TURNS[how]
    rng = np.random.default_rng(0)
    corner = np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((8, 8, 1))).astype(
        np.uint8
    )  # like none of its reflections
    for name in ("stored.mp4", "in/IMG_0001.MOV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with av.open(str(tmp_path / name), "w", format="mp4") as out:
            stream = out.add_stream("libx264", rate=10, options={"bf": "0"})
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
            for _ in range(12):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(corner, "rgb24")))
            out.mux(stream.encode())
    stored = open_source(tmp_path / "stored.mp4")
    turned(tmp_path / "in/IMG_0001.MOV", matrix)
    source = open_source(tmp_path / "in")
    want = expected(stored.frames(stored.episodes[0], "video", 3, 4)[0])
    assert np.array_equal(source.frames(source.episodes[0], "video", 3, 4)[0], want)
    out = write_labels(source, tmp_path / "out", LABELS, label, {})
    after = open_source(out)
    assert np.array_equal(after.frames(after.episodes[0], CAMERA, 3, 4)[0], want)
    feature = json.loads((out / "meta/info.json").read_text())["features"][CAMERA]
    assert feature["shape"] == list(want.shape)
    assert (feature["info"]["video.height"], feature["info"]["video.width"]) == want.shape[:2]


# ------------------------------------------------------------------------------------------------------------- names


def test_names_that_are_not_utf8(tmp_path):
    for k in range(3):
        path = write_video(tmp_path / f"{k}.mp4", 20, offset=100 * k)
        (tmp_path / "in").mkdir(exist_ok=True)
        try:
            os.rename(path, os.fsencode(tmp_path) + b"/in/d\xeda %d.mp4" % k)
        except OSError:
            pytest.skip("this file system takes no such names")
    source = open_source(tmp_path / "in")
    assert firsts(tmp_path / "in") == [0, 100, 200]
    assert {e.splits[0][0] for e in source.episodes} == {"train", "validation", "test"}
    out = write_labels(source, Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xeda out")), LABELS, label, {})
    assert firsts(out) == [0, 100, 200]


IN_ASCII = """
import json, sys, warnings
sys.path.insert(0, "tests")
from data_files import LABELS, label, numbers
from lamina.data import open_source, write_labels
warnings.simplefilter("ignore")
source = open_source(sys.argv[1])
out = open_source(write_labels(source, sys.argv[2], LABELS, label, {}))
told = [numbers(s, e) for s in (source, out) for e in range(len(s.episodes))]
print(json.dumps([told, [e.task for e in out.episodes], [s.splits for s in source.episodes]]))
"""


@pytest.mark.parametrize("kind", ["dataset", "folder"])
def test_names_and_words_in_an_ascii_locale(tmp_path, kind):
    """As in a bare container: the system's encoding is ASCII, the data's is UTF-8."""
    if kind == "dataset":
        root = foreign_dataset(tmp_path / "机器人 data", [20] * 4, camera="observation.images.前")
        info = json.loads((root / "meta/info.json").read_text())
        info |= {"robot_type": "臂"}
        info["features"]["action"]["names"] = ["左", "右"]
        (root / "meta/info.json").write_text(json.dumps(info, ensure_ascii=False), encoding="utf-8")
    else:
        root = tmp_path / "vidéos"
        for k in range(4):
            write_video(root / f"día {k}.mp4", 20, offset=20 * k)
    here = [e.splits for e in open_source(root).episodes]
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-c", IN_ASCII, str(root), str(tmp_path / "出 out")]
    done = subprocess.run(command, env=environment, capture_output=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    told, tasks, splits = json.loads(done.stdout)
    assert sorted(told) == sorted([list(range(20 * e, 20 * e + 20)) for e in range(4)] * 2)
    assert tasks == ["push the cube" if kind == "dataset" else ""] * 4
    assert splits == json.loads(json.dumps(here))  # the splits do not hang on the locale
    assert (tmp_path / "出 out" / DATA).exists()
    if kind == "dataset":
        written = json.loads((tmp_path / "出 out/meta/info.json").read_bytes())
        assert written["robot_type"] == "臂" and (tmp_path / "出 out/videos/observation.images.前").is_dir()


@pytest.mark.parametrize("name", ["a:b", "file:a", "s3:x", "http:x"])
def test_a_colon_in_a_relative_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    foreign_dataset(tmp_path / name / "set", [20] * 3)
    write_video(tmp_path / name / "c:d.mp4", 20, offset=500)
    out = write_labels(open_source(f"{name}/set"), f"{name}/o:ut", LABELS, label, {})
    after = open_source(out)
    assert not after.root.is_absolute() and numbers(after, 2) == list(range(40, 60))
    assert after.column(after.episodes[2], "latent_action")[7].tolist() == [2, 7]
    out = write_labels(open_source(f"{name}/c:d.mp4"), f"{name}/video:out", LABELS, label, {})
    assert numbers(open_source(out), 0) == list(range(500, 520))
    monkeypatch.chdir(tmp_path / name)
    assert numbers(open_source("c:d.mp4"), 0) == list(range(500, 520))


def test_a_moved_folder_is_the_same_data(tmp_path):
    def settings(root: Path) -> DataConfig:
        return DataConfig((str(root),), size=(16, 48), workers=0, shuffle=20)

    for k in range(4):
        write_video(tmp_path / f"before/v{k}.mp4", 40, offset=40 * k)
    state = ClipStream(settings(tmp_path / "before"), 8, seed=0).state_dict()
    (tmp_path / "before").rename(tmp_path / "moved")
    ClipStream(settings(tmp_path / "moved"), 8, seed=0).load_state_dict(state)
    write_video(tmp_path / "moved/v4.mp4", 40, offset=160)
    with pytest.raises(LaminaError, match="--init"):
        ClipStream(settings(tmp_path / "moved"), 8, seed=0).load_state_dict(state)


def test_system_folders_are_not_read(tmp_path):
    write_video(tmp_path / "a.mp4", 20)
    for folder in ("$RECYCLE.BIN/S-1", "#recycle", "@eaDir/a.mp4", "__MACOSX", "lost+found"):
        write_video(tmp_path / folder / "deleted.mp4", 20, offset=700)
    assert firsts(tmp_path) == [0]


def test_video_that_is_not_read_is_named(tmp_path):
    write_video(tmp_path / "a.mp4", 20)
    (tmp_path / "b.AVI").write_bytes(b"RIFF")
    with pytest.warns(LaminaWarning, match=r"b\.AVI: is not read \(1 such file"):
        assert firsts(tmp_path) == [0]


def test_a_dataset_that_lost_its_meta_folder_is_not_plain_video(tmp_path):
    root = foreign_dataset(tmp_path / "all/set", [10] * 6)
    (root / "meta").rename(tmp_path / "lost")
    with pytest.raises(LaminaError, match=r"meta/info\.json"):
        open_source(root)
    with pytest.raises(LaminaError, match="holds 1 LeRobot dataset"):
        open_source(tmp_path / "all")
