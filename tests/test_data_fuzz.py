"""Damaged files: a one-line error or correct frames; never a crash, a hang, or frames in the wrong place."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_files import write_dataset, write_video
from lamina.data import video as video_module
from lamina.data.sampling import DataConfig, open_source
from lamina.data.stream import ClipStream
from lamina.errors import LaminaError, LaminaWarning

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")
VIDEOS = {
    "a.mp4": {"options": {"g": "2", "bf": "0"}},
    "b.mp4": {"options": {"g": "20", "bf": "2"}},
    "c.mkv": {"options": {"g": "20"}},
    "d.webm": {"codec": "libvpx-vp9", "options": {"g": "20"}},
}
quick = settings(max_examples=60, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damages(draw, kinds=("flip", "cut", "zero", "noise", "drop", "repeat"), shortest=1):
    """A function that damages bytes, at a place given as a share of the file."""
    kind, where, seed = draw(st.sampled_from(kinds)), draw(st.floats(0, 1)), draw(st.integers(0, 2**32 - 1))
    length = draw(st.integers(shortest, 400))

    def damage(data: bytes) -> bytes:
        at = min(int(where * len(data)), len(data) - 1)
        rng = np.random.default_rng(seed)
        out = bytearray(data)
        if kind == "flip":
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == "cut":
            del out[at:]
        elif kind == "zero":
            out[at : at + length] = bytes(len(out[at : at + length]))
        elif kind == "noise":
            out[at : at + length] = rng.bytes(len(out[at : at + length]))
        elif kind == "drop":
            del out[at : at + length]
        else:
            out[at:at] = out[at : at + length]
        return bytes(out)

    damage.__name__ = f"{kind}@{where:.3f}+{length}#{seed}"
    return damage


class Originals(dict):
    """name -> (path, bytes, frames)"""

    __repr__ = object.__repr__


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Originals:
    root = tmp_path_factory.mktemp("videos")
    found = Originals()
    for name, options in VIDEOS.items():
        path = write_video(root / name, frames=40, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LaminaWarning)
            source = open_source(path)
        found[name] = (path, path.read_bytes(), source.frames(source.episodes[0], "video", 0, 40))
    return found


def read_all(path: Path) -> list[np.ndarray] | None:
    """Every frame of every episode; None if a LaminaError of one line says why not."""
    video_module._decoders.clear()
    try:
        source = open_source(path)
        return [source.frames(e, source.cameras[0], 0, e.length) for e in source.episodes]
    except LaminaError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return None


@quick
@given(name=st.sampled_from(list(VIDEOS)), damage=damages())
def test_damaged_video(originals, name, damage):
    path, data, _ = originals[name]
    path = path.with_stem("damaged")
    path.write_bytes(damage(data))
    frames = read_all(path)
    if frames is not None:
        assert frames[0].dtype == np.uint8 and frames[0].ndim == 4


@quick
@given(name=st.sampled_from(list(VIDEOS)), damage=damages(kinds=("cut", "zero"), shortest=150))
def test_lost_data_is_noticed(originals, name, damage):
    """Where stretches of bytes are gone, what comes back is what was there at that time, or an error."""
    path, data, reference = originals[name]
    path = path.with_stem("damaged")
    path.write_bytes(damage(data))
    frames = read_all(path)
    if frames is not None:
        numbers = (open_source(path).episodes[0].times * 10).round().astype(int)
        assert len(numbers) >= 30  # a tail of less than a second may go unnoticed
        off = np.abs(frames[0].astype(int) - reference[numbers]).mean((1, 2, 3))
        assert (off > 8).sum() <= 1


@settings(max_examples=25, deadline=10000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages(), share=st.integers(1, 3))
def test_a_stream_over_damaged_files_ends_in_batches_or_an_error(originals, tmp_path_factory, damage, share):
    root = tmp_path_factory.mktemp("mixed")
    for n in range(12):
        data = originals["b.mp4"][1]
        (root / f"{n:02d}.mp4").write_bytes(damage(data) if n < share else data)
    video_module._decoders.clear()
    try:
        stream = ClipStream(DataConfig((str(root),), size=(16, 48), workers=0, shuffle=100, max_bad=3), 32, seed=0)
        for _ in range(20):
            assert len(next(stream)) == 32
        assert sum(len(shard["bad"]) for shard in stream.state_dict()["shards"].values()) <= share
    except LaminaError as error:
        assert "\n" not in str(error)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("sets") / "set", [20, 12, 15, 8])


@quick
@given(
    name=st.sampled_from(
        [
            "data/chunk-000/file-000.parquet",
            "meta/episodes/chunk-000/file-000.parquet",
            "meta/info.json",
            "meta/stats.json",
            "videos/observation.images.front/chunk-000/file-000.mp4",
        ]
    ),
    damage=damages(),
)
def test_damaged_dataset(dataset, name, damage):
    path = dataset / name
    data = path.read_bytes()
    video_module._decoders.clear()
    try:
        path.write_bytes(damage(data))
        source = open_source(dataset)
        for episode in source.episodes:
            for column in source.columns:
                values = source.column(episode, column)
                assert len(values) == episode.length and np.isfinite(values).all()
            for camera in source.cameras:
                frames = source.frames(episode, camera, 0, episode.length)
                assert len(frames) == episode.length
        _ = source.action_spec("action")
    except LaminaError as error:
        assert "\n" not in str(error) and str(dataset) in str(error)
    finally:
        path.write_bytes(data)
