"""Sample streams: content, order, and resuming after an interruption."""

import dataclasses
import gc
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from av.video.reformatter import VideoReformatter
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_files import read_number, write_dataset, write_video
from lamina.data.dataset import Dataset
from lamina.data.decoding import DecodingDied, InProcesses
from lamina.data.episodes import Episode
from lamina.data.memory import InMemoryDataset
from lamina.data.sampling import (
    TIE,
    DataConfig,
    SampleIndex,
    Segment,
    actions_of_gap,
    count_starts,
    count_transitions,
    draw_samples,
    open_source,
)
from lamina.data.stream import ClipStream, divide_evenly, evenly_spaced, sample_split
from lamina.errors import LaminaError, LaminaWarning
from lamina.inference.encode import frame_pairs
from lamina.types import Clip
from processes import in_child

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two videos of 10 and 20 frames per second; their train parts hold 160 and 240 frames."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "a.mp4", frames=200, fps=10)
    write_video(root / "b.mp4", frames=300, fps=20, offset=1000, options={"g": "90", "bf": "2"})
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("sets") / "set", [30, 20, 25, 40, 9, 30, 12, 33, 21, 28])


def config(*data: Path | str, **options) -> DataConfig:
    return DataConfig(tuple(str(d) for d in data), **{"size": (16, 48), "workers": 0, "shuffle": 50, **options})


def take(stream: ClipStream, count: int) -> list[Clip]:
    return list(itertools.islice(stream, count))


def skipped(stream: ClipStream) -> int:
    """Segments that could not be decoded so far."""
    return sum(len(shard["bad"]) for shard in stream.state_dict()["shards"].values())


def assert_same(a: Clip, b: Clip) -> None:
    for f in dataclasses.fields(Clip):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), f.name
        else:
            assert x == y or {n: v.tolist() for n, v in x.items()} == {n: v.tolist() for n, v in y.items()}


def samples(clip: Clip) -> list[tuple[int, ...]]:
    """(episode, frame numbers) of each sample."""
    return [(e, *i) for e, i in zip(clip.episode.tolist(), clip.index.tolist(), strict=True)]


# ------------------------------------------------------------------------------------------------- what a sample is


@st.composite
def recordings(draw):
    fps = draw(st.sampled_from([5.0, 8.75, 30.0]))
    if draw(st.booleans()):
        return np.arange(draw(st.integers(2, 80))) / fps, fps, True
    steps = draw(st.lists(st.floats(0.5, 8.0), min_size=1, max_size=60))
    return np.cumsum([0.0, *steps]) / fps, fps, False


@given(recordings(), st.integers(2, 4), st.floats(0.02, 2.0), st.floats(0.0, 2.0), st.integers(0, 2**32))
def test_samples_keep_their_gaps(recording, frames, low, width, seed):
    times, fps, regular = recording
    gap = (low, low + width)
    starts = np.arange(count_starts(times, fps, frames, low))
    index = draw_samples(times, fps, starts, frames, gap, np.random.default_rng(seed))
    assert (np.diff(index) >= 1).all() and (index >= 0).all() and (index < len(times)).all()
    assert np.isin(index[:, 0], starts).all()
    gaps = np.diff(times[index])
    off = 0.51 * max(2, frames - 1) / fps
    assert (gaps >= low - off).all() and (gaps <= gap[1] + off).all()
    if regular:
        assert np.array_equal(index[:, 0], starts)  # each frame with room begins exactly one sample


@given(recordings(), st.integers(2, 4), st.floats(0.02, 2.0))
def test_every_start_with_room_is_counted(recording, frames, low):
    times, fps, _ = recording
    count = count_starts(times, fps, frames, low)
    room = [
        n
        for n in range(len(times))
        if times[n] + (frames - 1) * low <= times[-1] + 0.5 / fps + TIE and n + frames <= len(times)
    ]
    assert count == len(room)


@given(recordings(), st.one_of(st.floats(0.02, 2.0), st.integers(1, 40).map(lambda halves: halves / 20)))
@example((np.arange(40) / 10, 10.0, True), 0.15)
@example((np.arange(40) / 30, 30.0, True), 0.15)
@example((np.r_[np.arange(20), np.arange(70, 90)] / 10, 10.0, False), 1.0)  # a hole of five seconds
def test_the_pairs_that_are_drawn_for_one_gap_are_those_that_get_labels(recording, gap):
    """Ties and holes included: a translator is fitted to the pairs that labels are made of."""
    times, fps, regular = recording
    fps = fps if regular or len(times) < 2 else 1 / float(np.median(np.diff(times)))
    starts = np.arange(count_starts(times, fps, 2, gap))
    drawn = draw_samples(times, fps, starts, 2, (gap, gap), np.random.default_rng(0))
    second, valid = frame_pairs(times, gap)
    assert np.array_equal(drawn[:, 0], np.flatnonzero(valid)) and np.array_equal(drawn[:, 1], second[valid])
    assert (second[~valid] == np.flatnonzero(~valid)).all()
    if regular and len(drawn):
        assert (np.diff(drawn) == actions_of_gap(fps, gap)).all()  # and a chunk has an action for each frame between


def test_a_gap_of_other_lengths_in_actions_is_refused(tmp_path):
    still = np.zeros((30, 8, 8, 3), np.uint8)
    data = InMemoryDataset(
        [SimpleNamespace(frames=still, actions=np.zeros(30, np.float32), fps=10 if n else 20) for n in range(10)]
    )
    for actions in ("chunk", "mean"):
        with pytest.raises(LaminaError, match=r"at 10 to 20 frames per second a gap of 0\.2 s spans 2 to 4 actions"):
            SampleIndex(DataConfig((data,), (8, 8), gap=(0.2, 0.2), actions=actions), "train")
    assert SampleIndex(DataConfig((data,), (8, 8), gap=(0.2, 0.2)), "train").steps == 2


def test_gaps_are_uniform_over_their_range():
    times = np.arange(200_000) / 1000
    index = draw_samples(times, 1000.0, np.arange(100_000), 3, (0.1, 0.3), np.random.default_rng(0))
    gaps = np.diff(times[index])
    histogram = np.histogram(gaps, bins=10, range=(0.1, 0.3))[0] / gaps.size
    assert np.abs(histogram - 0.1).max() < 0.005


@given(st.integers(1, 2000), st.integers(1, 400), st.booleans())
def test_segments_cut_at_key_frames_and_cover_everything(length, distance, known):
    class Recording(Dataset):
        """An episode of ``length`` pairs, which can be decoded from every ``distance``-th frame on."""

        keys = np.arange(0, length, distance) if known else None
        episodes = (Episode(0, "one", length + 1, 10.0, (("train", 0, length + 1),), keys=keys),)

        def frames(self, *_: object) -> np.ndarray:
            raise AssertionError("nothing is decoded")

    index = SampleIndex(DataConfig((Recording(),), (16, 16), gap=(0.1, 0.1)), "train")
    segments = [Segment(*row) for row in index.segments[0].tolist()]
    starts = [segment.start for segment in segments]
    assert starts[0] == 0 and [*starts[1:], length] == [segment.stop for segment in segments]
    assert all(0 < segment.stop - segment.start <= 320 for segment in segments)
    if known and 64 <= distance <= 250:
        assert all(start % distance == 0 for start in starts)


def test_a_gap_is_in_seconds_whatever_the_frame_rate(folder):
    stream = ClipStream(config(folder, gap=(0.5, 0.5)), 400, seed=0)
    clip = next(stream)
    step = clip.index[:, 1] - clip.index[:, 0]
    assert set(step[clip.episode == 0].tolist()) == {5} and set(step[clip.episode == 1].tolist()) == {10}
    torch.testing.assert_close(clip.time[:, 1] - clip.time[:, 0], torch.full((400,), 0.5))


def test_frames_further_apart_than_the_gap_are_taken_one_by_one_with_a_warning(tmp_path):
    write_video(tmp_path / "slow.mp4", frames=20, fps=1)
    with pytest.warns(LaminaWarning, match="more than the longest gap"):
        clip = next(ClipStream(config(tmp_path), 30, seed=0))
    assert (clip.index[:, 1] - clip.index[:, 0] == 1).all()


# -------------------------------------------------------------------------------------------------------- what comes


def test_pictures_times_and_numbers_agree(folder):
    clip = next(ClipStream(config(folder, frames=3, gap=(0.1, 0.4)), 300, seed=1))
    assert clip.frames.shape == (300, 3, 3, 16, 48) and clip.frames.dtype == torch.uint8 and clip.action is None
    fps = torch.tensor([10.0, 20.0])[clip.episode]
    torch.testing.assert_close(clip.time, clip.index / fps[:, None])
    for b in range(300):
        for t in range(3):
            shown = read_number(clip.frames[b, t].permute(1, 2, 0).numpy())
            assert shown == 1000 * clip.episode[b] + clip.index[b, t]
    assert clip.index[clip.episode == 0].max() < 160 and clip.index[clip.episode == 1].max() < 240  # train parts only


def test_an_epoch_is_every_start_once(folder):
    stream = ClipStream(config(folder, shuffle=1, shots="none"), 1, seed=0)
    for _ in range(2):
        starts = Counter(samples(next(stream))[0][:2] for _ in range(sum(stream.plan.counts)))
        assert len(starts) == sum(stream.plan.counts) == count_transitions(config(folder), "train") == 159 + 238
        assert set(starts.values()) == {1}


def test_shuffling_mixes_episodes_and_times(folder):
    clip = take(ClipStream(config(folder, shuffle=400), 100, seed=0), 5)[-1]
    assert 20 < (clip.episode == 0).sum() < 60
    assert np.abs(np.corrcoef(clip.index[:, 0].numpy(), np.arange(100))[0, 1]) < 0.6
    other = take(ClipStream(config(folder, shuffle=400), 100, seed=1), 5)[-1]
    assert samples(clip) != samples(other)


def test_everything_that_a_dataset_has_is_delivered(dataset):
    clip = next(
        ClipStream(
            config(
                dataset,
                paired="observation.images.twin",
                proprio="observation.state",
                targets=("observation.state", "action"),
                frames=3,
            ),
            200,
            seed=0,
        )
    )
    number = 100 * clip.episode[:, None] + clip.index
    assert clip.action.shape == (200, 3, 1) and torch.equal(clip.action[..., 0], (number % 5).float())
    before = torch.where(clip.index > 0, (number - 1) % 5, 0)
    assert torch.equal(clip.previous_action[..., 0], before.float()) and (clip.index == 0).any()
    state = torch.stack([clip.episode[:, None].expand(-1, 3), clip.index], -1).float()
    assert torch.equal(clip.proprio, state) and torch.equal(clip.targets["observation.state"], state)
    assert torch.equal(clip.targets["action"], clip.action)
    for b in range(200):
        assert read_number(clip.frames[b, 1].permute(1, 2, 0).numpy()) == number[b, 1]
        assert read_number(clip.paired[b, 1].permute(1, 2, 0).numpy()) == 2000 + number[b, 1]


def test_each_camera_is_a_view_of_its_own(dataset):
    both = ClipStream(config(dataset, camera="all"), 1000, seed=0)
    one = ClipStream(config(dataset, camera="observation.images.twin"), 10, seed=0)
    assert sum(both.plan.counts) == 2 * sum(one.plan.counts)
    shown = [read_number(f.permute(1, 2, 0).numpy()) >= 2000 for f in next(both).frames[:, 0]]
    assert 300 < sum(shown) < 700
    assert all(read_number(f.permute(1, 2, 0).numpy()) >= 2000 for f in next(one).frames[:, 0])


@pytest.mark.parametrize("weights", [(1, 1), (9, 1), (0.25, 0.75)])
def test_mixtures_keep_their_shares(folder, dataset, weights):
    data = (f"{folder}:{weights[0]}", f"{dataset}:{weights[1]}")
    stream = ClipStream(config(*data, size=(4, 4)), 500, seed=0)
    clips = [next(stream) for _ in range(6)]
    from_folder = sum((c.episode < 2).sum().item() for c in clips) / 3000
    assert abs(from_folder - weights[0] / sum(weights)) < 0.05
    assert all(c.action is None for c in clips)  # the folder has none
    assert stream.plan.offsets == [0, 2, 12]  # episode numbers are unique over the sources


def test_without_weights_every_start_counts_the_same(folder, dataset):
    stream = ClipStream(config(folder, dataset), 10, seed=0)
    folder_starts = count_transitions(config(folder), "train")
    assert stream.plan.shares[0] == pytest.approx(folder_starts / sum(stream.plan.counts))


# --------------------------------------------------------------------------------------------- order and interruption


def test_the_order_does_not_depend_on_the_number_of_workers(folder, dataset):
    def run(workers: int) -> list[Clip]:
        stream = ClipStream(config(folder, dataset, workers=workers), 32, seed=3)
        clips = take(stream, 20)
        stream.close()
        return clips

    reference = run(0)
    for workers in (1, 2):
        for a, b in zip(reference, run(workers), strict=True):
            assert_same(a, b)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=st.integers(0, 40), shuffle=st.sampled_from([1, 7, 300]), shards=st.sampled_from([1, 2]))
def test_a_stream_goes_on_at_the_exact_sample(folder, dataset, stop, shuffle, shards):
    data = config(folder, f"{dataset}", shuffle=shuffle, size=(8, 48))
    reference = take(ClipStream(data, 24, seed=5, shards=shards), stop + 4)
    stream = ClipStream(data, 24, seed=5, shards=shards)
    take(stream, stop)
    state = json.loads(json.dumps(stream.state_dict()))
    again = ClipStream(dataclasses.replace(data, max_bad=3), 24, seed=5, shards=shards)
    again.load_state_dict(state)
    assert again.state_dict() == state
    for a, b in zip(reference[stop:], take(again, 4), strict=True):
        assert_same(a, b)
    take(stream, 1)
    stream.load_state_dict(state)  # back in the same object
    assert_same(reference[stop], next(stream))


def test_a_state_is_a_few_numbers(folder):
    stream = ClipStream(config(folder), 16, seed=0)
    take(stream, 30)
    assert len(json.dumps(stream.state_dict())) < 300


def test_shards_together_are_the_whole(folder):
    both = ClipStream(config(folder), 32, seed=0, shards=2)
    parts = [ClipStream(config(folder), 32, seed=0, shards=2, own=[r]) for r in range(2)]
    seen: list[set] = [set(), set()]
    for _ in range(8):
        whole, halves = next(both), [next(p) for p in parts]
        assert all(len(h) == 16 for h in halves)
        assert_same(whole, Clip.cat(halves))
        for r, h in enumerate(halves):
            seen[r] |= set(samples(h))
    assert not seen[0] & seen[1]  # within an epoch no start is drawn by both
    merged = both.state_dict()
    assert merged["shards"] == {**parts[0].state_dict()["shards"], **parts[1].state_dict()["shards"]}


def test_the_state_of_other_data_is_refused(folder, dataset, tmp_path):
    state = ClipStream(config(folder), 16, seed=0).state_dict()
    taught = ClipStream(config(dataset), 16, seed=0).state_dict()
    info = dataset / "meta/info.json"
    text = info.read_text()
    info.write_text(json.dumps({**json.loads(text), "splits": {"train": "2:10", "validation": "0:1", "test": "1:2"}}))
    try:  # other episodes are held out
        with pytest.raises(LaminaError, match="not those of the run to be resumed"):
            ClipStream(config(dataset), 16, seed=0).load_state_dict(taught)
    finally:
        info.write_text(text)
    videos = [write_video(tmp_path / f"videos/{n}.mp4", frames=10, offset=20 * n) for n in range(12)]
    named = ClipStream(config(tmp_path / "videos"), 16, seed=0).state_dict()
    ClipStream(config(tmp_path / "videos"), 16, seed=0).load_state_dict(named)
    (tmp_path / "videos/sub").mkdir()
    for path in videos:  # the splits of a folder of video hang on the files' names in it
        path.rename(tmp_path / "videos/sub" / path.name)
    with pytest.raises(LaminaError, match="not those of the run to be resumed"):
        ClipStream(config(tmp_path / "videos"), 16, seed=0).load_state_dict(named)
    for other in (
        ClipStream(config(dataset), 16, seed=0),
        ClipStream(config(folder, gap=(0.1, 0.3)), 16, seed=0),
        ClipStream(config(folder), 16, seed=1),
        ClipStream(config(folder), 32, seed=0),
        ClipStream(config(folder), 16, seed=0, shards=2, own=[1]),
    ):
        with pytest.raises(LaminaError, match="not those of the run to be resumed"):
            other.load_state_dict(state)


def test_the_global_random_state_is_left_alone(folder):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    stream = ClipStream(config(folder, workers=1), 16, seed=0)
    take(stream, 2)
    stream.close()
    assert torch.equal(torch.rand(3), expected)


def test_workers_leave_with_the_stream(folder):
    before = set(psutil.Process().children())
    stream = ClipStream(config(folder, workers=2), 16, seed=0)
    take(stream, 2)
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    stream.close()
    assert not [w for w in psutil.wait_procs(workers, timeout=10)[1] if w.is_running()]


@pytest.mark.parametrize("place", ["main thread", "other thread"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_while_it_delivers_is_told_in_one_line(folder, workers, place):
    told: list[str] = []
    before = set(psutil.Process().children())
    stream = ClipStream(config(folder, workers=workers, size=(320, 320), shuffle=2), 4, seed=0)
    take(stream, 1)
    time.sleep(0.5)  # by now each has more to deliver than a pipe holds
    worker = min(set(psutil.Process().children()) - before, key=lambda process: process.pid)
    os.kill(worker.pid, signal.SIGKILL)

    def draw() -> None:
        with pytest.raises(LaminaError, match=rf"a decoding process died \(process {worker.pid} was killed by SIGKILL"):
            take(stream, 500)
        told.append("in one line")

    if place == "main thread":
        draw()
    else:
        thread = threading.Thread(target=draw, daemon=True)
        thread.start()
        thread.join(30)
    assert told
    stream.close()
    assert set(psutil.Process().children()) <= before


def test_an_exception_in_a_worker_is_told_and_nothing_is_left_out_before(capfd):
    items = InProcesses(_count_to_seven, 2)
    found = []
    with pytest.raises(DecodingDied, match="ended with status 1"):
        for item in items:
            found.append(item)
    assert found == list(range(len(found))) and len(found) <= 7
    assert "ZeroDivisionError" in capfd.readouterr().err


def _count_to_seven(first: int, every: int) -> Iterator[int]:
    for n in range(first, 100, every):
        if n == 7:
            raise ZeroDivisionError
        yield n


def test_a_fork_of_the_owner_leaves_the_workers_alone():
    items = InProcesses(partial(itertools.count), 1)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    assert in_child(items.close) == 0
    assert [next(items) for _ in range(20)] == list(range(3, 23))
    items.close()


def test_a_decoder_that_the_parent_has_open_does_not_disturb_its_workers(folder):
    source = open_source(folder)
    source.frames(source.episodes[0], "video", 0, 5)
    reference = take(ClipStream(config(folder), 32, seed=3), 10)
    stream = ClipStream(config(folder, workers=2), 32, seed=3)
    for n, (a, b) in enumerate(zip(reference, stream, strict=False)):
        assert_same(a, b)
        frames = source.frames(source.episodes[0], "video", 5 + n, 6 + n)
        assert read_number(frames[0]) == 5 + n
    stream.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_leaves_the_parents_garbage_alone():
    """Freeing a scaler waits for its threads, which a forked process does not have: it would hang for ever."""
    gc.disable()
    cycle: list = [VideoReformatter()]
    cycle.append(cycle)
    frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
    cycle[0].reformat(frame, 32, 32, "yuv420p")
    del cycle
    child = os.fork()
    if child == 0:
        gc.collect()
        os._exit(0)
    gc.enable()
    for _ in range(200):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked process hangs")


# ------------------------------------------------------------------------------------------------------------- gather


def test_gather_takes_exactly_the_limit_evenly_and_always_the_same(dataset):
    total = count_transitions(config(dataset), "train")
    for limit in (1, 17, 60, total - 1, total, total + 5, None):
        clip = sample_split(config(dataset), "train", limit)
        assert len(clip) == min(total, total if limit is None else limit)
        assert samples(clip) == sorted(samples(clip)) and len(set(samples(clip))) == len(clip)
        assert_same(clip, sample_split(config(dataset), "train", limit))
    train = [n for n, e in enumerate(open_source(dataset).episodes) if e.splits[0][0] == "train"]
    assert sorted(set(sample_split(config(dataset), "train", 60).episode.tolist())) == train


def tasks_of(dataset: Path, clip: Clip) -> Counter:
    episodes = open_source(dataset).episodes
    return Counter(episodes[e].task for e in clip.episode.tolist())


@given(total=st.integers(0, 300), count=st.integers(0, 320), seed=st.integers(0, 99))
def test_numbers_drawn_evenly_are_one_of_each_part(total, count, seed):
    found = evenly_spaced(total, count, np.random.default_rng(seed))
    count = min(total, count)
    assert len(found) == count and all(n * total // count <= x < (n + 1) * total // count for n, x in enumerate(found))
    assert np.array_equal(found, evenly_spaced(total, count, np.random.default_rng(seed)))


def test_another_seed_gathers_other_samples_as_evenly(dataset):
    middle, *drawn = (samples(sample_split(config(dataset), "train", 40, seed)) for seed in range(6))
    assert all(len(set(own)) == 40 and own == sorted(own) for own in drawn)
    assert all(len(set(one) & set(other)) < 36 for one, other in itertools.combinations([middle, *drawn], 2))
    assert drawn[0] == samples(sample_split(config(dataset), "train", 40, 1))  # the same every time
    for own in drawn:  # each episode gives about as many
        counts, expected = (Counter(episode for episode, *_ in each) for each in (own, middle))
        assert all(abs(counts[e] - expected[e]) <= 4 for e in expected)


def test_gather_takes_equally_many_of_every_task(tmp_path):
    # Of "task 0" one long episode, of "task 1" many short ones; the last two episodes are for validation and test.
    lengths = [400, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 20, 20]
    root = write_dataset(tmp_path / "set", lengths, splits=["train"] * 12 + ["validation", "test"])
    sizes = {"task 0": 399, "task 1": 6 * 8}
    for limit in (2, 10, 40, 96):
        clip = sample_split(config(root, gap=(0.1, 0.1)), "train", limit)
        assert tasks_of(root, clip) == {"task 0": limit / 2, "task 1": limit / 2}
        assert samples(clip) == sorted(samples(clip)) and len(set(samples(clip))) == limit
    assert tasks_of(root, sample_split(config(root, gap=(0.1, 0.1)), "train", 200)) == {"task 0": 152, "task 1": 48}
    assert tasks_of(root, sample_split(config(root, gap=(0.1, 0.1)), "train", None)) == sizes


@given(st.integers(0, 300), st.lists(st.integers(0, 60), min_size=1, max_size=9))
def test_shares_are_equal_as_far_as_there_are_enough(limit, totals):
    shares = divide_evenly(limit, totals)
    assert sum(shares) == min(limit, sum(totals))
    assert all(share <= total for share, total in zip(shares, totals, strict=True))
    for share, total in zip(shares, totals, strict=True):
        assert share == total or share >= max(shares) - 1


def test_only_the_tasks_that_are_asked_for_are_drawn(dataset):
    for task, other in (("task 0", "task 1"), ("task 1", "task 0")):
        one = config(dataset, tasks=(task,))
        for split in ("train", "validation"):
            everything = sample_split(config(dataset), split, None)
            if tasks_of(dataset, everything)[task]:
                assert tasks_of(dataset, sample_split(one, split, None)) == {task: tasks_of(dataset, everything)[task]}
            else:
                with pytest.raises(LaminaError, match=f"no {split} episode of '{task}'"):
                    sample_split(one, split, None)
        stream = ClipStream(one, 8, seed=0)
        drawn = sum((tasks_of(dataset, clip) for clip in take(stream, 20)), Counter())
        assert set(drawn) == {task} and sum(stream.plan.counts) == count_transitions(one, "train")
        both = config(dataset, tasks=(task, other))
        assert_same(sample_split(both, "train", 40), sample_split(config(dataset), "train", 40))


def test_a_stream_goes_on_with_the_same_tasks_only(dataset):
    state = ClipStream(config(dataset), 4, seed=0).state_dict()
    ClipStream(config(dataset, tasks=()), 4, seed=0).load_state_dict(state)
    with pytest.raises(LaminaError, match="not those of the run"):
        ClipStream(config(dataset, tasks=("task 0", "task 1")), 4, seed=0).load_state_dict(state)


def test_splits_do_not_overlap(folder, dataset):
    for data in (folder, dataset):
        parts = [set(samples(sample_split(config(data), s, None))) for s in ("train", "validation", "test")]
        frames = [{(s[0], i) for s in part for i in s[1:]} for part in parts]
        assert all(frames) and not frames[0] & frames[1] and not frames[0] & frames[2] and not frames[1] & frames[2]


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proprio": "observation.stat"}, "no feature 'observation.stat'; it has: action, observation.state"),
        ({"targets": ("flow",)}, "no feature 'flow'; it has: action, observation.state"),
        ({"action": "move"}, "no feature 'move'; it has: action, observation.state"),
        ({"camera": "wrist"}, "no camera 'wrist'; it has: observation.images.front, observation.images.twin"),
        ({"paired": "wrist"}, "no camera 'wrist'; it has: observation.images.front, observation.images.twin"),
        ({"tasks": ("task 0", "task 2")}, "no task 'task 2'; it has: task 0; task 1"),
        ({"gap": (20.0, 30.0)}, "holds 2 frames at least 20 s apart"),
        ({"frames": 100, "gap": (0.1, 0.2)}, "holds 100 frames at least 0.1 s apart"),
    ],
)
def test_what_is_not_there_is_named(dataset, options, message):
    with pytest.raises(LaminaError, match=message) as error:
        ClipStream(config(dataset, **options), 4, seed=0)
    assert str(dataset) in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"gap": (0.0, 0.1)},
        {"gap": (0.2, 0.1)},
        {"gap": (0.1, float("nan"))},
        {"frames": 1},
        {"size": (0, 4)},
        {"data": ()},
        {"data": ("a:1", "b")},
        {"data": ("a:0",)},
        {"data": ("a:-1",)},
    ],
)
def test_settings_that_make_no_sense(folder, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / name).symlink_to(folder)
    with pytest.raises(LaminaError):
        ClipStream(DataConfig(**{"data": (str(folder),), **options}), 4, seed=0)


def test_a_batch_that_shards_cannot_share(folder):
    with pytest.raises(LaminaError, match="a batch of 5 cannot be shared evenly by 2"):
        ClipStream(config(folder), 5, seed=0, shards=2)


def test_one_frame_is_too_few(tmp_path):
    path = write_video(tmp_path / "one.mp4", frames=1)
    with pytest.raises(LaminaError, match=r"one\.mp4: .*2 frames at least 0.1 s apart"):
        ClipStream(config(tmp_path), 4, seed=0)
    assert len(open_source(path).episodes) == 1  # one row can still be labelled


def test_short_episodes_are_left_out_with_a_warning(tmp_path):
    for n, frames in enumerate([30, 3, 30, 3, 30, 30, 3, 30]):
        write_video(tmp_path / f"{n}.mp4", frames=frames)
    with pytest.warns(LaminaWarning, match="too short for 2 frames at least 0.5 s apart"):
        stream = ClipStream(config(tmp_path, gap=(0.5, 1.0)), 50, seed=0)
    episodes = set(next(stream).episode.tolist())
    assert episodes and not episodes & {1, 3, 6}


def test_actions_where_they_are_needed(folder, dataset):
    clip = sample_split(config(dataset), "train", 20, require_action=True)
    assert clip.action is not None
    with pytest.raises(LaminaError, match=r"has no feature 'action'; it has: none; actions are needed"):
        sample_split(config(folder), "train", 20, require_action=True)
    assert sample_split(config(dataset, action=None), "train", 20).action is None


@pytest.mark.parametrize("workers", [0, 1])
def test_nan_actions_are_named(dataset, tmp_path, workers):
    root = shutil.copytree(dataset, tmp_path / "set")
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    state = np.stack(table["observation.state"].to_numpy())
    state[::5] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(state.ravel()), 2)
    pq.write_table(
        table.set_column(table.schema.get_field_index("observation.state"), "observation.state", column), path
    )
    stream = ClipStream(config(root, proprio="observation.state", workers=workers), 4, seed=0)
    with pytest.raises(LaminaError, match=r"file-000.parquet: 'observation.state' is NaN at episode \d+, row") as error:
        take(stream, 100)
    assert "\n" not in str(error.value)
    stream.close()


def spoiled(root: Path, spoil: int, good: int) -> Path:
    """Videos whose index is whole; in the first ``spoil`` of them the pictures are not."""
    for n in range(spoil + good):
        path = write_video(root / f"{n}.mp4", frames=40, options={"g": "2"})
        if n < spoil:
            data = bytearray(path.read_bytes())
            at = data.index(b"mdat") + 900
            data[at : at + 200] = bytes(200)
            path.write_bytes(data)
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_stretches_are_counted_and_skipped(tmp_path, workers):
    root = spoiled(tmp_path, spoil=2, good=30)
    with pytest.warns(LaminaWarning, match=r"skipped frames 0-38: .*[01]\.mp4: cannot be decoded"):
        stream = ClipStream(config(root, workers=workers), 64, seed=0)
        clips = take(stream, 40)
    train = {n for n in (0, 1) if open_source(root).episodes[n].splits[0][0] == "train"}
    assert skipped(stream) == len(train) > 0  # once each, however many epochs have passed
    assert 2 * sum(stream.plan.counts) < 64 * 40
    assert not {0, 1} & set(torch.cat([c.episode for c in clips]).tolist())
    state = stream.state_dict()
    stream.close()
    again = ClipStream(config(root), 64, seed=0)
    again.load_state_dict(state)
    assert skipped(again) == len(train)


def test_too_many_bad_stretches_are_an_error(tmp_path):
    root = spoiled(tmp_path, spoil=12, good=2)
    with pytest.raises(LaminaError, match=r"\.mp4: cannot be decoded .* \(more than 3 stretches") as error:
        take(ClipStream(config(root, max_bad=3), 64, seed=0), 20)
    assert "\n" not in str(error.value)
    with pytest.raises(LaminaError, match=r"more than 3 stretches"):
        sample_split(config(root, max_bad=3), "train", None)


def test_video_full_of_holes_is_an_error_and_not_a_wait(tmp_path):
    write_video(tmp_path / "a.mkv", frames=16, pts=[10 * i for i in range(11)] + [9000 + 10 * i for i in range(5)])
    with pytest.raises(LaminaError, match="no sample can be drawn"):
        next(ClipStream(config(tmp_path, gap=(1.0, 1.0)), 4, seed=0, split="train"))
