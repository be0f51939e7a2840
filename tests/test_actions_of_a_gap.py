"""Latents that span several actions: first, mean and chunk, from the data to the policy."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lamina
from lamina import methods
from lamina.cli import main
from lamina.data.lerobot.writer import LeRobotWriter
from lamina.data.sampling import DataConfig, SampleIndex, actions_of_gap, draw_samples, open_source
from lamina.data.stream import sample_split
from lamina.errors import LaminaError, LaminaWarning
from lamina.models.heads import Translator, TranslatorConfig
from lamina.models.hub import LatentActionModel, Provenance
from lamina.play.stage import Stage
from lamina.policies.token_model import TokenConfig, TokenModel
from lamina.policies.token_policy import TokenPolicy
from lamina.training.adaptive import AdaptiveConfig, adaptive_k
from lamina.training.alignment import load_translator
from lamina.training.labelled import actions_of
from lamina.types import ActionSpec
from planted import write_planted

torch.set_num_threads(1)
pytestmark = pytest.mark.typed

MIXED = ActionSpec(discrete=(3,), continuous=1, names=("sideways", "up"))
GAP = 0.3  # seconds: three actions at 10 a second


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "dataset", episodes=5, length=20)


def continuous(root: Path) -> Path:
    """The same frames with continuous actions alone: (n, 100 + n) at frame n."""
    features = {
        "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
        "observation.images.camera": {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]},
    }
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, 10, features) as writer:
        for _ in range(4):
            n = np.arange(12, dtype=np.float32)
            frames = rng.integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
            writer.add_episode({"action": np.stack([n, 100 + n], 1)}, {"observation.images.camera": frames}, task="")
    return root


def config(dataset: Path, actions: str, **changes) -> DataConfig:
    return DataConfig((str(dataset),), (16, 16), gap=(GAP, GAP), workers=0, actions=actions, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fps", "gap", "count"), [(10, 0.3, 3), (50, 0.15, 7), (10, 0.15, 1), (80, 0.15, 12), (5, 0.1, 1), (30, 0.1, 3)]
)
def test_how_many_actions_a_gap_spans(fps: float, gap: float, count: int) -> None:
    assert actions_of_gap(fps, gap) == count


@given(st.lists(st.integers(2, 5), max_size=3), st.integers(0, 3), st.integers(1, 4), st.integers(0, 99))
def test_a_chunk_is_packed_and_unpacked(discrete: list[int], real: int, steps: int, seed: int) -> None:
    if not discrete and not real:
        return
    spec = ActionSpec(tuple(discrete), real)
    rng = np.random.default_rng(seed)
    actions = np.concatenate([rng.integers(0, 2, (5, steps, len(discrete))), rng.normal(size=(5, steps, real))], -1)
    packed = spec.pack(actions)
    assert packed.shape == (5, spec.chunk(steps).dim) and np.array_equal(spec.unpack(packed), actions)
    assert (packed[:, : steps * len(discrete)] % 1 == 0).all()  # the discrete dimensions come first, of every step


def test_the_names_of_a_chunk() -> None:
    assert MIXED.chunk(2).names == ("sideways, step 1", "sideways, step 2", "up, step 1", "up, step 2")
    assert MIXED.chunk(1) is MIXED


@pytest.mark.parametrize("actions", ["first", "mean", "chunk"])
def test_labels_are_the_actions_that_were_taken(actions: str, tmp_path: Path) -> None:
    data = config(continuous(tmp_path / "data"), actions)
    clip = sample_split(data, "train", None, require_action=True)
    n = clip.index[:, 0].float()
    assert (clip.index[:, 1] - clip.index[:, 0] == 3).all()
    expected = {
        "first": torch.stack([n, 100 + n], 1),
        "mean": torch.stack([n + 1, 101 + n], 1),
        "chunk": torch.stack([n, 100 + n, n + 1, 101 + n, n + 2, 102 + n], 1),
    }[actions]
    torch.testing.assert_close(clip.action[:, 0], expected)  # type: ignore[index]
    before = torch.where(n > 0, n - 1, 0)
    torch.testing.assert_close(clip.previous_action[:, 0, 0], before)  # type: ignore[index]
    found = actions_of(data)
    assert (found.spanned, found.steps) == (3, 3 if actions == "chunk" else 1)
    assert found.spec.continuous == 2 and found.label.continuous == expected.shape[1]


def test_a_chunk_of_classes_and_numbers(dataset: Path) -> None:
    clip = sample_split(config(dataset, "chunk"), "train", None, require_action=True)
    source = open_source(dataset)
    for row in range(0, len(clip), 7):
        action = source.column(source.episodes[int(clip.episode[row])], "action")
        at = int(clip.index[row, 0])
        np.testing.assert_array_equal(clip.action[row, 0], [*action[at : at + 3, 0], *action[at : at + 3, 1]])  # type: ignore[index]


@pytest.mark.typed(False)
def test_undefined_action_labels_are_refused(dataset: Path) -> None:
    with pytest.raises(LaminaError, match="classes have no mean"):
        SampleIndex(config(dataset, "mean"), "train")
    with pytest.raises(LaminaError, match="needs gaps of one length"):
        DataConfig((str(dataset),), gap=(0.1, 0.2), actions="chunk")
    with pytest.raises(LaminaError, match="first, mean or chunk"):
        config(dataset, "last")


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that labels at a gap of three actions."""
    folder = tmp_path_factory.mktemp("run") / "run"
    torch.manual_seed(0)
    module = methods.load("flexlam")
    settings = module.Config(size="debug", image=(16, 16), slots=3, decoder="unet")
    LatentActionModel(module.build(settings), Provenance("flexlam", (str(dataset),), (GAP, GAP))).save_pretrained(
        folder / "model"
    )
    return folder


QUICK = ["--steps", "4", "--batch", "8", "--device", "cpu"]
FEW = ["--transitions", "32", "--reconstructions", "8", "--structure", "0", "--linear", "64", "--device", "cpu"]


def test_align_says_that_a_gap_spans_several_actions_and_evaluate_follows_the_choice(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for actions, width in (("first", 2), ("chunk", 6)):
        folder = shutil.copytree(run, tmp_path / actions)
        align = ["align", str(folder), "--data", str(dataset), "--labels", "40", "--actions", actions, *QUICK]
        assert main(align) == 0
        said = capsys.readouterr().err
        assert ("3 actions are taken; it is tied to the first of them" in said) == (actions == "first")
        translator, note = load_translator(folder / "translator")
        assert note.actions == actions and translator.action.spec.dim == width and translator.spec.dim == 2
        assert main(["evaluate", str(folder), "--data", str(dataset), *FEW]) == 0
        record = json.loads((folder / "evaluation.json").read_text())
        which = "the first of them" if actions == "first" else "all of them"
        assert any(f"3 actions are taken; what is read off it is {which}" in note for note in record["notes"])
        capsys.readouterr()
    assert main(["evaluate", str(folder), "--data", str(dataset), "--actions", "first", *FEW]) == 2
    assert "was aligned to the chunk" in capsys.readouterr().err


def test_a_policy_carries_a_chunk_out_in_turn() -> None:
    torch.manual_seed(0)
    module = methods.load("flexlam")
    model = LatentActionModel(module.build(module.Config(size="debug", image=(16, 16), slots=3))).eval()
    tokens = TokenModel(
        TokenConfig(size="debug", grid=2), (3, 16, 16), 3, model.lam.bottleneck.codebook_size, decision_seconds=GAP
    ).eval()  # type: ignore[arg-type]
    head = Translator(3 * model.lam.dim, MIXED, TranslatorConfig(size="debug"), steps=3)
    policy = TokenPolicy(model, tokens, head, batch=2)
    frames = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    given: list[torch.Tensor] = []
    forward = head.forward
    head.forward = lambda z, previous, *more: given.append(previous.clone()) or forward(z, previous, *more)  # type: ignore[func-returns-value,method-assign,assignment]
    chunk = policy.act_batch(frames)
    assert chunk.shape == (2, 3, 2) and policy.spec == MIXED and policy.chunk == 3
    assert (chunk[..., 0] % 1 == 0).all() and (chunk[..., 0] < 3).all()
    policy.act_batch(frames)
    np.testing.assert_array_equal(given[1].numpy(), chunk[:, -1])  # what is fed back is the last action carried out


@pytest.mark.parametrize("span", [None, 0.6, 1.0])
def test_the_span_of_a_sample_is_bounded_whatever_its_gaps(span: float | None) -> None:
    times = np.arange(100) / 10
    drawn = draw_samples(times, 10.0, np.arange(60), 3, (0.1, 3.0), np.random.default_rng(0), span)
    whole = times[drawn[:, 2]] - times[drawn[:, 0]]
    assert (np.diff(drawn, axis=1) >= 1).all()
    if span is None:
        assert whole.max() > 3.0
    else:
        assert whole.max() <= span + 0.051 and whole.max() > span - 0.2
        assert len(drawn) > 50


def test_ac_lam_bounds_its_triplets_as_the_paper_does() -> None:
    module = methods.load("ac_lam")
    assert module.Config().span == 3.0
    with pytest.raises(LaminaError, match="do not fit into a span"):
        DataConfig(("x",), frames=3, gap=(2.0, 3.0), span=3.0)
    assert dataclasses.replace(module.Config(), span=None).span is None


def two_actions(root: Path) -> Path:
    """Two cameras, an action of noise, and a ``move`` of 0 or 1 that the second camera shows in full: black or white at the next frame."""
    picture = {"dtype": "video", "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    features = {
        "action": {"dtype": "int64", "shape": [1], "names": None, "num_classes": 2},
        "move": {"dtype": "int64", "shape": [1], "names": None, "num_classes": 2},
        "observation.images.front": picture,
        "observation.images.wrist": picture,
    }
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, 10, features) as writer:
        for _ in range(8):
            move = rng.integers(0, 2, (30, 1))
            shown = np.roll(move[:, 0], 1).astype(np.uint8)[:, None, None, None] * 255
            frames = np.broadcast_to(shown, (30, 16, 16, 3)).copy()
            still = np.full_like(frames, 90)
            views = {"observation.images.front": still, "observation.images.wrist": frames}
            writer.add_episode({"action": rng.integers(0, 2, (30, 1)), "move": move}, views, task="")
    return root


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that is aligned to ``move`` on the second camera, and its data."""
    home = tmp_path_factory.mktemp("moved")
    data, run = two_actions(home / "data"), home / "run"
    torch.manual_seed(0)
    module = methods.load("flexlam")
    settings = module.Config(size="debug", image=(16, 16), slots=2, decoder="unet")
    model = LatentActionModel(module.build(settings), Provenance("flexlam", (str(data),), (0.1, 0.1)))
    model.save_pretrained(run / "model")
    chosen = {"action": "move", "camera": "observation.images.wrist"}
    lamina.align(run, data, labels=120, steps=150, device="cpu", size="debug", **chosen)
    return run, data


def test_a_translator_is_scored_on_the_action_and_the_camera_that_it_was_aligned_to(
    moved: tuple[Path, Path], tmp_path: Path
) -> None:
    run, data = moved
    few = {"transitions": 32, "reconstructions": 8, "structure": 0, "linear": 64, "scratch_steps": 4, "device": "cpu"}
    for chosen in ({}, {"action": "move", "camera": "observation.images.wrist"}):
        found = lamina.evaluate(run, data, out=tmp_path / "out", **few, **chosen)
        row = next(r for r in found.translator if r.role == "model" and r.k == 2)
        assert row.accuracy.mean == 1.0, chosen  # of noise it would be one half
    for chosen, told in (
        ({"action": "action"}, "was aligned to the action 'move'; leave out --action, or align again"),
        (
            {"camera": "observation.images.front"},
            "was aligned on camera 'observation.images.wrist'; leave out --camera",
        ),
    ):
        with pytest.raises(LaminaError, match=told) as caught:
            lamina.evaluate(run, data, out=tmp_path / "out", **few, **chosen)
        assert "\n" not in str(caught.value)


def test_a_joint_translator_of_another_action_is_left_out(moved: tuple[Path, Path], tmp_path: Path) -> None:
    run = shutil.copytree(moved[0], tmp_path / "run")
    shutil.copytree(run / "translator", run / "joint")
    shutil.copytree(run / "model", run / "joint" / "model")
    few = {"transitions": 16, "reconstructions": 4, "structure": 0, "linear": 16, "scratch_steps": 2, "device": "cpu"}
    assert "flexlam, joint" in {r.name for r in lamina.evaluate(run, moved[1], **few).translator}
    note = json.loads((run / "joint" / "translator.json").read_text())
    (run / "joint" / "translator.json").write_text(json.dumps(note | {"action": "action"}))
    with pytest.warns(LaminaWarning, match="joint: was aligned to other actions"):
        found = lamina.evaluate(run, moved[1], **few)
    assert "flexlam, joint" not in {r.name for r in found.translator}


def test_a_page_and_a_rule_take_the_action_and_the_camera_of_the_translator(moved: tuple[Path, Path]) -> None:
    run, data = moved
    stage = Stage.load(run, str(data), transitions=12, device="cpu")
    white = (stage.clip.frames[:, 1].float().mean((1, 2, 3)) > 128).long()
    assert stage.clip.action[:, 0, 0].tolist() == white.tolist() and len(white.unique()) == 2
    with pytest.raises(LaminaError, match=r"was aligned on camera 'observation\.images\.wrist'"):
        adaptive_k(run, str(data), AdaptiveConfig(camera="observation.images.front", steps=5), "cpu")
    adaptive_k(
        run, str(data), AdaptiveConfig(steps=5, tokens=1.5), "cpu"
    )  # the first camera is still: nothing would change
