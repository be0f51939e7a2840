"""Datasets that are no files: frames in memory, and a class of one's own. They are read, trained on and labelled as files are."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import planted
from data_files import picture, write_dataset, write_video
from lamina import methods
from lamina.data import (
    ClipStream,
    DataConfig,
    Dataset,
    Episode,
    InMemoryDataset,
    open_source,
    sample_split,
    split_episodes,
)
from lamina.data.dataset import name_of
from lamina.errors import LaminaError, LaminaWarning
from lamina.evaluation.evaluate import evaluate
from lamina.evaluation.settings import EvaluateConfig
from lamina.files import read_json
from lamina.images import resize_frames
from lamina.inference.label import label
from lamina.models.heads import TranslatorConfig
from lamina.policies.token_model import TokenConfig
from lamina.policies.token_training import train_token_model
from lamina.training.alignment import AlignConfig, align
from lamina.training.heads import head_training
from lamina.training.log import read_log
from lamina.training.pretraining import fixed_settings, pretrain
from lamina.training.recipe import filled_in, recipe
from lamina.training.settings import TrainConfig
from lamina.types import ActionSpec, Clip

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")


def in_memory(path: Path, name: str = "memory", **changes) -> InMemoryDataset:
    """What the files at ``path`` hold, as arrays: every camera, the actions and all columns."""
    source = open_source(path)
    made = []
    for e in source.episodes:
        views = {camera: source.frames(e, camera, 0, e.length) for camera in source.cameras}
        columns = {n: source.column(e, n) for n in source.columns if n in ("action", "observation.state")}
        actions = columns.pop("action", None)
        if (
            actions is not None
            and source.action_spec("action").discrete
            and not source.action_spec("action").continuous
        ):
            actions = actions.astype(np.int64)
        split = e.splits[0][0] if len(e.splits) == 1 else None
        made.append(
            SimpleNamespace(frames=views, actions=actions, columns=columns, fps=e.fps, task=e.task, split=split)
        )
    return InMemoryDataset(made, name, **changes)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    splits = ["train"] * 5 + ["validation", "test"]
    return write_dataset(tmp_path_factory.mktemp("sets") / "set", [30, 20, 25, 90, 9, 30, 12], splits=splits)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for n in range(4):
        write_video(root / f"{n}.mkv", 20 + n, codec="ffv1", pix_fmt="bgr0", offset=100 * n)
    return root


def same(a: Clip, b: Clip) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Clip)]
    pairs += [(a.targets[name], b.targets[name]) for name in a.targets]
    return a.targets.keys() == b.targets.keys() and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x is y or isinstance(x, dict) for x, y in pairs
    )


def config(data: object, **options) -> DataConfig:
    return DataConfig((data,), **{"size": (16, 24), "workers": 0, "shuffle": 20, **options})


# ------------------------------------------------------------------------------------------- memory is read as files are


@pytest.mark.parametrize("workers", [0, 1])
def test_frames_in_memory_give_the_samples_of_the_files_they_are_from(dataset: Path, workers: int) -> None:
    options = {"paired": "observation.images.twin", "proprio": "observation.state", "targets": ("observation.state",)}
    options |= {"frames": 3, "gap": (0.1, 0.3), "workers": workers}
    files, memory = config(str(dataset), **options), config(in_memory(dataset), **options)
    streams = [ClipStream(c, 8, seed=3) for c in (files, memory)]
    for a, b in itertools.islice(zip(*streams, strict=True), 30):
        assert same(a, b) and a.action is not None and a.paired is not None and a.proprio is not None
    for split in ("train", "validation", "test"):
        assert same(sample_split(files, split, 40), sample_split(memory, split, 40))
    for stream in streams:
        stream.close()


def test_lossless_video_and_its_frames_in_memory_are_divided_alike(videos: Path) -> None:
    source = open_source(videos)
    frames = [source.frames(e, "video", 0, e.length) for e in source.episodes]
    np.testing.assert_array_equal(frames[2][5], picture(205))
    memory = InMemoryDataset(
        [SimpleNamespace(frames=torch.from_numpy(f), name=f"{n}.mkv") for n, f in enumerate(frames)], fps=10
    )
    assert [e.splits for e in memory.episodes] == [e.splits for e in source.episodes]
    assert memory.fps == 10 and memory.cameras == ("image",) and memory.columns == ()
    assert same(*(sample_split(config(d, action=None, shots="none"), "train", None) for d in (str(videos), memory)))


def test_paths_and_datasets_are_mixed(dataset: Path, videos: Path) -> None:
    data = DataConfig((str(videos), in_memory(dataset, "mine")), size=(16, 24), workers=0, shuffle=20)
    alone = config(in_memory(dataset))
    assert data.names == (str(videos), "mine") and data.to_dict()["data"] == data.names
    assert json.loads(json.dumps(data.to_dict()))["data"] == [str(videos), "mine"]
    clip = sample_split(data, "validation", None)
    assert set(clip.episode.tolist()) == {
        4 + 5,
        *(e.number for e in open_source(videos).episodes if e.splits[0][0] == "validation"),
    }
    own = sample_split(alone, "validation", None)
    assert torch.equal(clip[clip.episode == 9].frames[:, 0], own.frames[:, 0])


def test_a_stream_continues_only_on_the_same_frames(dataset: Path) -> None:
    memory = in_memory(dataset)
    stream = ClipStream(config(memory), 4, seed=0)
    for _ in range(5):
        next(stream)
    state, after = stream.state_dict(), next(stream)
    again = ClipStream(config(in_memory(dataset)), 4, seed=0)
    again.load_state_dict(json.loads(json.dumps(state)))
    assert same(next(again), after)
    changed = in_memory(dataset)
    changed._frames[0]["observation.images.front"] = 255 - changed._frames[0]["observation.images.front"]
    with pytest.raises(LaminaError, match=r"^memory: the data or its settings are not those of the run"):
        ClipStream(config(changed), 4, seed=0).load_state_dict(state)


def test_an_episode_may_lack_a_camera(dataset: Path) -> None:
    memory = in_memory(dataset)
    del memory._frames[1]["observation.images.twin"]
    assert memory.missing_episodes("observation.images.twin") == {1: None}
    with pytest.warns(LaminaWarning, match="memory: 'observation.images.twin' does not show 1 of 7 episodes"):
        clip = sample_split(config(memory, camera="observation.images.twin"), "train", None)
    assert 1 not in clip.episode.tolist() and 0 in clip.episode.tolist()


# ------------------------------------------------------------------------------------------------------ what actions are


def recordings(actions: list, **more) -> list[SimpleNamespace]:
    return [SimpleNamespace(frames=np.zeros((len(a), 4, 4, 3), np.uint8), actions=a, **more) for a in actions]


def test_integers_are_classes_and_floats_are_continuous() -> None:
    whole = InMemoryDataset(recordings([np.array([0, 1]), np.array([[2], [0]]), torch.tensor([1, 1])]))
    assert whole.action_spec("action") == ActionSpec(discrete=(3,)) and whole.width("action") == 1
    assert whole.column(whole.episodes[1], "action").tolist() == [[2.0], [0.0]]
    real = InMemoryDataset(recordings([np.array([[0.0, 1.0]]), np.array([[2.0, 0.5]])]))
    assert real.action_spec("action") == ActionSpec(continuous=2)
    assert real.action_spec("state") is None and real.width("state") is None
    stated = InMemoryDataset(recordings([np.array([0, 1])]), action=ActionSpec((7,), names=("move",)))
    assert stated.action_spec("action") == ActionSpec((7,), names=("move",))
    with pytest.warns(LaminaWarning, match="memory: 'action' holds whole numbers from -1 to 1; they are no classes"):
        assert InMemoryDataset(recordings([np.array([-1, 1])])).action_spec("action") == ActionSpec(continuous=1)


F = np.zeros((4, 8, 8, 3), np.uint8)
Row = namedtuple("Row", "frames actions", defaults=[None])
BAD = {
    "no episode": ([], "mine: has no episode"),
    "no frames": ([SimpleNamespace()], r"mine episode 0: frames of 'image' must be uint8 \[time, height, width, 3\], got object"),
    "no camera": ([Row({})], "mine episode 0: has no frames"),
    "float frames": ([Row(F), Row(F.astype(np.float32))], "mine episode 1: frames of 'image' must be uint8 .* got float32"),
    "channels first": ([Row(F.transpose(0, 3, 1, 2))], r"must be uint8 .* got uint8 \[4, 3, 8, 8\]"),
    "empty": ([Row(F[:0])], r"got uint8 \[0, 8, 8, 3\]"),
    "lengths": ([Row(F), Row(F, np.zeros((3, 2)))], r"mine episode 1: its frames and columns have \[3, 4\] rows; they must agree"),
    "cameras": ([Row({"a": F, "b": F[:2]})], r"mine episode 0: its frames and columns have \[2, 4\] rows"),
    "NaN": ([Row(F, np.array([0, 1, np.nan, 2]))], "mine episode 0: 'action' is NaN at row 2; mend it"),
    "infinite": ([Row(F, np.array([0, np.inf, 1, 2]))], "mine episode 0: 'action' is infinite at row 1"),
    "words": ([Row(F, np.array(["a"] * 4))], "mine episode 0: 'action' must be numbers"),
    "three axes": ([Row(F, np.zeros((4, 2, 2)))], r"'action' must be numbers \[time\] or \[time, n\], got float64 \[4, 2, 2\]"),
    "other width": ([Row(F, np.zeros((4, 2))), Row(F, np.zeros((4, 3)))], "mine episode 1: 'action' is 3 numbers wide"),
    "some without": ([Row(F, np.zeros(4)), Row(F)], r"mine episode 1: has the features \[\], and others \['action'\]"),
    "twice": ([SimpleNamespace(frames=F, actions=np.zeros(4), columns={"action": np.zeros(4)})], "has actions, and a column 'action' too"),
    "rate": ([SimpleNamespace(frames=F, fps=-1)], "mine episode 0: fps must be a finite number above 0, not -1.0"),
    "split": ([SimpleNamespace(frames=F, split="dev")], "mine episode 0: its split is 'dev'; give every episode one of train,"),
    "some splits": ([SimpleNamespace(frames=F, split="train"), Row(F)], "mine episode 1: its split is None"),
}  # fmt: skip


def test_a_warning_names_the_line_that_called_the_library() -> None:
    with pytest.warns(LaminaWarning, match="too few to split") as caught:
        InMemoryDataset(recordings([np.zeros(4)]))
    assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_line(case: str) -> None:
    episodes, message = BAD[case]
    with pytest.raises(LaminaError, match=message) as error:
        InMemoryDataset(episodes, "mine")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("spec", "message"), [
    (ActionSpec((3,)), "mine episode 0: 'action' is 3 at row 3, dimension 0, none of its classes 0 to 2"),
    (ActionSpec(continuous=2), "mine: an action of 2 numbers was stated, and it has 1"),
])  # fmt: skip
def test_actions_fit_what_is_said_of_them(spec: ActionSpec, message: str) -> None:
    with pytest.raises(LaminaError, match=message):
        InMemoryDataset([Row(F, np.arange(4))], "mine", action=spec)


# -------------------------------------------------------------------------------------------------- a class of one's own


class Numbered(Dataset):
    """Two members are enough: its frames show 100 e + i."""

    def __init__(self, lengths: list[int], episodes: tuple[Episode, ...] | None = None) -> None:
        made = [Episode(n, f"recording {n}", length, 10.0) for n, length in enumerate(lengths)]
        self.made = split_episodes(made) if episodes is None else episodes

    @property
    def episodes(self) -> tuple[Episode, ...]:
        return self.made

    def frames(self, episode, camera, start, stop, size=None):
        numbers = range(start, min(stop, episode.length))
        return resize_frames(np.stack([picture(100 * episode.number + n) for n in numbers]), size)


def test_a_dataset_of_ones_own_needs_two_members() -> None:
    mine = Numbered([20, 30, 25, 40])
    arrays = [np.stack([picture(100 * e + n) for n in range(length)]) for e, length in enumerate([20, 30, 25, 40])]
    memory = InMemoryDataset([SimpleNamespace(frames=f, name=f"recording {n}") for n, f in enumerate(arrays)])
    assert (mine.name, mine.fps, mine.cameras, mine.columns) == ("Numbered", 10.0, ("image",), ())
    assert mine.fingerprint() == memory.fingerprint() != Numbered([20, 30, 25, 41]).fingerprint()
    streams = [ClipStream(config(d), 8, seed=1) for d in (mine, memory)]
    assert all(same(a, b) for a, b in itertools.islice(zip(*streams, strict=True), 20))
    with pytest.raises(LaminaError, match="Numbered: has no feature 'action'; it has: none"):
        mine.column(mine.episodes[0], "action")
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Dataset,), {"episodes": ()})()


@pytest.mark.parametrize(("episodes", "message"), [
    ((), "Numbered: has no episode"),
    ((Episode(0, "a", 9, 10.0),), "Numbered: no episode belongs to a split; give Episode.splits"),
    ((Episode(1, "a", 9, 10.0, (("train", 0, 9),)),), "Numbered: episode 0 has the number 1; number them in order"),
    ((Episode(0, "a", 0, 10.0, (("train", 0, 0),)),), "a: 0 frames at 10.0 a second; both must be above 0"),
])  # fmt: skip
def test_episodes_that_cannot_be_drawn_from(episodes: tuple[Episode, ...], message: str) -> None:
    with pytest.raises(LaminaError, match=message):
        open_source(Numbered([], episodes))


# ------------------------------------------------------------------------------------------------------------ every stage


TRAINING = TrainConfig(steps=6, batch=8, log_every=1, validate_every=3, checkpoint_every=6, device="cpu", warmup=1)


def train(data: object, out: Path, training: TrainConfig = TRAINING) -> list[dict]:
    """Train a small FlexLAM; its log without times."""
    method = methods.load("flexlam")
    given = DataConfig((data,), (16, 16), gap=(0.1, 0.1), workers=0, shuffle=32)
    options, given = filled_in(method.Config(size="debug", image=(16, 16), slots=3), given, training)
    pretrain(out, recipe("flexlam", method, options), given, training)
    return [
        {k: v for k, v in row.items() if k not in ("samples_per_second", "data_wait")}
        for row in read_log(out / "log.jsonl")
    ]


@pytest.fixture(scope="module")
def moving(tmp_path_factory) -> Path:
    return planted.write_planted(tmp_path_factory.mktemp("moving") / "set", episodes=10, length=30)


@pytest.fixture(scope="module")
def memory(moving: Path) -> InMemoryDataset:
    return in_memory(moving, action=open_source(moving).action_spec("action"))


@pytest.fixture(scope="module")
def run(memory: InMemoryDataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "memory"
    train(memory, out)
    return out


def test_training_on_memory_is_training_on_files(moving: Path, run: Path, tmp_path: Path) -> None:
    assert train(str(moving), tmp_path / "files") == [
        {k: v for k, v in row.items() if k not in ("samples_per_second", "data_wait")}
        for row in read_log(run / "log.jsonl")
    ]
    weights = [(path / "model/model.safetensors").read_bytes() for path in (run, tmp_path / "files")]
    assert weights[0] == weights[1]
    assert read_json(run / "config.json", "")["data"]["data"] == ["memory"]
    assert read_json(run / "model/config.json", "")["provenance"]["data"] == ["memory"]


def test_a_run_on_memory_is_resumed(memory: InMemoryDataset, tmp_path: Path) -> None:
    log = train(memory, tmp_path / "run")
    resumed = dataclasses.replace(TRAINING, resume=True)
    assert train(memory, tmp_path / "run", resumed) == log
    assert fixed_settings(read_json(tmp_path / "run/config.json", ""))["data"]["shares"] == [None]
    other = InMemoryDataset([SimpleNamespace(frames=f[::-1], split=s) for f, s in zip(
        (v["observation.images.camera"] for v in memory._frames), ("train", "validation", "test") * 4, strict=False)])  # fmt: skip
    with pytest.raises(LaminaError, match="memory: the data or its settings are not those of the run"):
        train(other, tmp_path / "run", resumed)


def test_labels_of_memory_are_a_lerobot_dataset(
    memory: InMemoryDataset, run: Path, moving: Path, tmp_path: Path
) -> None:
    out = label(run, memory, tmp_path / "labelled", device="cpu").path
    beside = open_source(label(run, str(moving), tmp_path / "files", device="cpu").path)
    source = open_source(out)
    assert [(e.length, e.splits, e.task) for e in source.episodes] == [(e.length, e.splits, e.task) for e in sorted(
        memory.episodes, key=lambda e: ("train", "validation", "test").index(e.splits[0][0]))]  # fmt: skip
    assert source.cameras == ("observation.images.camera",) and source.fps == memory.fps
    assert source.action_spec("action") == memory.action_spec("action")
    order = sorted(memory.episodes, key=lambda e: ("train", "validation", "test").index(e.splits[0][0]))
    for written, own in zip(source.episodes, order, strict=True):
        for name in ("latent_action", "latent_action.index", "latent_action.valid", "action"):
            np.testing.assert_array_equal(
                source.column(written, name), beside.column(beside.episodes[own.number], name)
            )
        shown = source.frames(written, source.cameras[0], 0, written.length)
        expected = memory.frames(own, "observation.images.camera", 0, own.length)
        assert np.abs(shown.astype(float) - expected).mean() < 3
    stats = [read_json(s.root / "meta/stats.json", "")["latent_action"] for s in (source, beside)]
    assert stats[0].keys() == stats[1].keys()
    np.testing.assert_allclose(stats[0]["mean"], stats[1]["mean"], atol=1e-6)  # without the rows that are not valid
    with pytest.raises(LaminaError, match="has a feature 'latent_action"):
        label(run, source, tmp_path / "again", device="cpu")


def test_a_dataset_of_ones_own_is_labelled(run: Path, tmp_path: Path) -> None:
    mine = Numbered([12, 10, 14])
    source = open_source(label(run, mine, tmp_path / "out", device="cpu").path)
    assert source.cameras == ("observation.images.image",)
    assert [e.length for e in source.episodes] == [
        e.length for e in sorted(mine.episodes, key=lambda e: ("train", "validation", "test").index(e.splits[0][0]))
    ]
    mixed = InMemoryDataset([Row(F), SimpleNamespace(frames=F, fps=20)], "mixed")
    with pytest.raises(LaminaError, match="mixed: has episodes of 15 and of 10 frames per second"):
        label(run, mixed, tmp_path / "rates", device="cpu")


def test_alignment_policy_and_evaluation_take_a_dataset(memory: InMemoryDataset, run: Path, moving: Path) -> None:
    small = AlignConfig(labels="64", side="quantised", translator=TranslatorConfig(size="debug", layers=1))
    translator = align(run, memory, small, head_training(6, 0, device="cpu"))
    assert read_json(translator / "translator.json", "")["data"] == "memory"
    policy = train_token_model(
        run, memory, TokenConfig(size="debug", context=4, grid=2), dataclasses.replace(TRAINING, steps=2, batch=4)
    )
    assert read_json(policy / "config.json", "")["data"] == "memory"
    settings = EvaluateConfig(transitions=40, reconstructions=8, linear=60, structure=12, scratch_steps=4, device="cpu")
    records = []
    for data in (memory, str(moving)):
        if (
            data is not memory
        ):  # an evaluation trains controls on the translator's labels, which a name alone does not give
            note = read_json(translator / "translator.json", "")
            (translator / "translator.json").write_text(json.dumps(note | {"data": data}))
        evaluate(run, data, settings)
        record = read_json(run / "evaluation.json", "")
        assert record["data"].pop("path") == name_of(data)
        del record["created"]
        records.append(record)
    assert records[0] == records[1]
