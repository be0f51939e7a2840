"""Damaged, edited or malicious models, checkpoints and run folders: a one-line error, or exactly what was saved."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clips import clip_of
from lamina import methods
from lamina.data.stream import ClipStream
from lamina.errors import LaminaError
from lamina.files import LONGEST
from lamina.images import to_float
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.encoders import ENCODERS
from lamina.models.heads import TranslatorConfig
from lamina.models.hub import LatentActionModel, Provenance
from lamina.models.lam import LAM
from lamina.models.layers import patch_count
from lamina.policies.token_model import TokenConfig, TokenModel
from lamina.policies.token_training import load_token_model, train_token_model
from lamina.policies.windows import WindowStream
from lamina.rng import Rng
from lamina.training.alignment import AlignConfig, align, load_translator
from lamina.training.checkpoints import BestCheckpoint, Checkpoints, TrainingState
from lamina.training.distributed import Processes
from lamina.training.labelled import Minibatches
from lamina.training.loop import _Step, fit
from lamina.training.settings import TrainConfig
from lamina.weights import LONGEST_HEADER, load_weights, save_weights
from parallel import data, options, train
from planted import write_planted
from processes import in_child

torch.set_num_threads(1)

THREE = ("model/model", "translator/translator", "policy/model")
SETTINGS = {"shards": 1, "steps": 4, "checkpoint_every": 2, "validate_every": 4}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "dataset")


@pytest.fixture(scope="module")
def home(dataset, tmp_path_factory) -> Path:
    """A run folder with everything in it: model, checkpoints, translator, policy. Not to be changed."""
    run = tmp_path_factory.mktemp("home") / "run"
    train(run, dataset, **SETTINGS)
    small = TrainConfig(steps=4, batch=8, device="cpu", checkpoint_every=2, validate_every=2, ema=0.0)
    config = AlignConfig("60", translator=TranslatorConfig(size="debug", layers=1))
    align(run, str(dataset), config, small)
    tokens = TokenConfig(size="debug", context=4, stride=2, grid=2, layers=1)
    train_token_model(run, str(dataset), tokens, small)
    return run


@pytest.fixture
def run(home, tmp_path) -> Path:
    """A copy that may be damaged, whose run has not finished."""
    shutil.copytree(home, tmp_path / "run", ignore=shutil.ignore_patterns("tokens"))
    return tmp_path / "run"


def refused(work: Callable[[], Any], *words: str) -> str:
    """What ``work`` is refused with: one line that says all of ``words``."""
    with pytest.raises(LaminaError) as caught:
        work()
    text = str(caught.value)
    assert "\n" not in text, text
    assert all(word in text for word in words), text
    return text


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def edited(path: Path, change: Callable[[dict], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def without_record(path: Path) -> None:
    """As an older lamina wrote it: nothing in the file says what its numbers mean."""
    state = load_file(path)
    save_file(state, path, metadata={"format": "pt"})


# --------------------------------------------------------------------------------------------------------- checkpoints


class Numbers:
    """A stream that is a number."""

    def __init__(self):
        self.drawn = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.drawn += 1
            yield Row(torch.full((4, 3), float(self.drawn)).sin())

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    load_state_dict = Minibatches.load_state_dict

    def close(self) -> None:
        """Nothing is open."""


@dataclasses.dataclass
class Row:
    x: Tensor

    def to(self, device) -> Row:
        return self


def toy(folder: Path, module: nn.Module | None = None, scale: Callable[[int], float] = lambda n: 1.0, **changes):
    """Train a linear map for 10 steps, with a checkpoint every 5; what ``fit`` returns."""
    torch.manual_seed(0)
    calls = iter(range(1000))

    def losses(module, batch, draws):
        return {"error": (module(batch.x) - 1).square().mean(1) * scale(next(calls))}

    config = TrainConfig(**{"steps": 10, "batch": 4, "lr": 0.05, "device": "cpu", "checkpoint_every": 5} | changes)
    return fit(folder, module or nn.Linear(3, 1), losses, {"error": 1.0}, lambda *_: Numbers(), config)


@pytest.fixture(scope="module")
def ten(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ten") / "run"
    return folder, toy(folder)


@pytest.fixture
def toys(ten, tmp_path) -> Path:
    shutil.copytree(ten[0], tmp_path / "toys")
    return tmp_path / "toys"


def sealed(folder: Path) -> None:
    """Make the manifest agree with the files, as somebody does who wants a damaged checkpoint to be taken."""
    import hashlib

    def seal(values: dict) -> None:
        for name, file in values["files"].items():
            content = (folder / name).read_bytes()
            file.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    edited(folder / "manifest.json", seal)


def changed(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    state = change(load_file(path))
    save_file({name: value.clone() for name, value in state.items()}, path)


def without(*names: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if name not in names}


def with_one(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {name: value}


def filled(name: str, value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {name: torch.full_like(state[name], value)}


def tensors(file: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    return lambda folder: changed(folder / f"{file}.safetensors", change)


def streams(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "streams.json").write_text(text)


#: What is done to a checkpoint's folder: a name, the damage, and what is said of it.
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no average": (tensors("average", lambda s: {}), "'bias' is missing"),
    "an average of fewer tensors": (tensors("average", without("bias")), "'bias' is missing"),
    "an average of more tensors": (tensors("average", with_one("more", torch.zeros(1))), "'more'"),
    "weights of fewer tensors": (tensors("model", without("module.bias")), "'module.bias'"),
    "NaN weights": (tensors("model", filled("module.weight", torch.nan)), "not finite"),
    "an infinite average": (tensors("average", filled("weight", torch.inf)), "not finite"),
    "NaN moments": (tensors("optimizer", filled("module.weight.exp_avg", torch.nan)), "not finite"),
    "weights of another shape": (
        tensors("model", with_one("module.weight", torch.zeros(1, 4))),
        "[1, 4], not F32 [1, 3]",
    ),
    "half weights": (tensors("model", lambda s: {k: v.half() for k, v in s.items()}), "F16"),
    "whole-numbered weights": (tensors("average", lambda s: {k: v.long() for k, v in s.items()}), "I64"),
    "another model's optimiser": (tensors("optimizer", lambda s: {f"x.{k}": v for k, v in s.items()}), "is missing"),
    "moments of another shape": (tensors("optimizer", with_one("module.weight.exp_avg", torch.zeros(2))), "exp_avg"),
    "streams that are an object": (streams('{"drawn": 5}'), "not a JSON list"),
    "a stream that is a number": (streams("[5]"), "'drawn'"),
    "a stream at a text": (streams('[{"drawn": "5"}]'), "'drawn'"),
    "a stream at a fraction": (streams('[{"drawn": 5.0}]'), "'drawn'"),
    "a stream before its start": (streams('[{"drawn": -5}]'), "'drawn'"),
    "a stream at yes": (streams('[{"drawn": true}]'), "'drawn'"),
    "streams nested for ever": (streams("[" * 10**6), "nested"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seal", [False, True])
def test_a_damaged_checkpoint_is_refused_before_any_of_it_is_loaded(damage, seal, toys):
    folder = toys / "checkpoints/step-00000010"
    work, word = DAMAGES[damage]
    work(folder)
    if seal:
        sealed(folder)
    module = nn.Linear(3, 1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    told = refused(lambda: toy(toys, module, resume=True), f"{folder}: damaged checkpoint", "delete this folder")
    assert (word if seal else "is not what was written") in told
    assert same(dict(module.state_dict()), before)


def test_a_manifest_is_checked(toys):
    folder = toys / "checkpoints/step-00000010"
    path = folder / "manifest.json"
    whole = path.read_text()
    values = json.loads(whole)
    assert values["step"] == 10 and set(values["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    for change, word in [
        (lambda v: v.update(step=5), "another folder"),
        (lambda v: v["files"].pop("average.safetensors"), "another folder"),
        (lambda v: v["files"].update({"../../../log.jsonl": v["files"]["streams.json"]}), "another folder"),
        (lambda v: v.update(format=9), "manifest.json.format"),
        (lambda v: v["files"]["streams.json"].update(size=-1), "manifest.json.files.streams.json.size"),
        (lambda v: v["files"]["streams.json"].update(sha256=None), "sha256"),
        (lambda v: v.update(files=[]), "manifest.json.files"),
    ]:
        edited(path, change)
        refused(lambda: toy(toys, resume=True), "step-00000010: damaged checkpoint", word)
        path.write_text(whole)
    path.unlink()
    refused(lambda: toy(toys, resume=True), "no manifest.json", "wrote none", "delete this folder")


def test_without_the_damaged_checkpoint_a_run_goes_on_to_the_same_weights(toys, ten):
    (toys / "checkpoints/step-00000010/average.safetensors").write_bytes(b"")
    refused(lambda: toy(toys, resume=True), "damaged checkpoint")
    shutil.rmtree(toys / "checkpoints/step-00000010")
    assert same(toy(toys, resume=True), ten[1])


def test_folders_of_other_names_are_somebody_elses(toys, ten):
    folder = toys / "checkpoints"
    for name in ("step-00000005 (copy)", "step-abc", "step-5", "step-000000005", "step-٠٠٠٠٠٠١٠", "step-00000000"):
        shutil.copytree(folder / "step-00000005", folder / name)
    shutil.rmtree(folder / "step-00000010")
    assert Checkpoints(toys, 1).steps() == [5]
    assert same(toy(toys, resume=True, keep=1), ten[1])
    assert len(list(folder.iterdir())) == 7 and (folder / "step-00000010").is_dir()
    assert not (folder / "step-00000005").exists()


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "pipe"])
def test_a_checkpoint_path_that_is_no_folder_is_named(kind, toys):
    path = toys / "checkpoints/step-00000010"
    path.rename(toys / "elsewhere")
    match kind:
        case "file":
            path.write_text("x")
        case "link":
            path.symlink_to(toys / "elsewhere")
        case "dangling link":
            path.symlink_to("nowhere")
        case "pipe":
            os.mkfifo(path)
    refused(lambda: toy(toys, resume=True), str(path), "move it away")
    assert os.path.lexists(path)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_foreign_files_in_the_place_of_a_checkpoint_are_kept(kind, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo").touch()
    path = tmp_path / "run/checkpoints/step-00000005"
    path.write_text("x") if kind == "file" else path.symlink_to(tmp_path / "mine")
    refused(lambda: toy(tmp_path / "run"), str(path), "move it away")
    assert os.path.lexists(path) and (tmp_path / "mine/photo").exists()


def test_a_step_beyond_the_end_is_refused_and_never_pushes_out_a_runs_own(toys, ten):
    far = toys / "checkpoints/step-99999999"
    shutil.copytree(toys / "checkpoints/step-00000010", far)
    edited(far / "manifest.json", lambda v: v.update(step=99999999))
    refused(lambda: toy(toys, resume=True), str(far), "beyond this run's 10")
    live = toys.parent / "live"
    shutil.copytree(far, live / "checkpoints/step-99999999")
    assert same(toy(live, keep=1), ten[1])
    assert Checkpoints(live, 1).steps() == [10, 99999999]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_never_saved(bad, tmp_path):
    module = nn.Linear(3, 1)

    def poison(call: int) -> float:
        if call == 3:
            with torch.no_grad():
                module.weight.fill_(bad)
        return 1.0

    # The loss is looked at every 100 steps only: the checkpoint is what notices.
    refused(lambda: toy(tmp_path, module, poison, log_every=100), "is not finite at step 5", "lower --lr")
    assert Checkpoints(tmp_path, 2).steps() == []
    path = tmp_path / "w.safetensors"
    refused(lambda: save_weights(path, module.state_dict(), {}), "w.safetensors: not saved, 'weight' is not finite")
    assert not path.exists() and not list(tmp_path.glob(".*"))


def test_a_garbled_log_does_not_stop_a_resume(toys, ten):
    with (toys / "log.jsonl").open("ab") as file:
        file.write(b'{"step": "9"}\n{"step": null}\n[]\n{"step": 1e999}\n\xff\xfe\n' + b"[" * 100_000 + b"\n")
    assert same(toy(toys, resume=True), ten[1])
    assert [json.loads(line)["step"] for line in (toys / "log.jsonl").read_text().splitlines()] == [10]


# ------------------------------------------------------------------------------------------------------------- streams


STATES: list[Callable[[dict], Any]] = [
    lambda s: s.clear(),
    lambda s: s.update(data=None),
    lambda s: s.update(shards=[]),
    lambda s: s.update(shards={"0": None}),
    lambda s: s.update(more=1),
    lambda s: s["shards"]["0"].pop("arrived"),
    lambda s: s["shards"]["0"].update(serial="3"),
    lambda s: s["shards"]["0"].update(serial=-1),
    lambda s: s["shards"]["0"].update(serial=10**9),
    lambda s: s["shards"]["0"].update(segments=[]),
    lambda s: s["shards"]["0"].update(segments=[1, 2]),
    lambda s: s["shards"]["0"].update(samples=[1.5]),
    lambda s: s["shards"]["0"].update(samples=[True]),
    lambda s: s["shards"]["0"].update(last=[1]),
    lambda s: s["shards"]["0"].update(last="ab"),
    lambda s: s["shards"]["0"].update(bad=[[1, 2]]),
    lambda s: s["shards"]["0"].update(bad=7),
]


@pytest.mark.parametrize("number", range(len(STATES)))
def test_the_state_of_a_stream_is_checked_by_type(number, dataset):
    stream = ClipStream(data(dataset), 4, 0)
    next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    other = ClipStream(data(dataset), 4, 0)
    STATES[number](state)
    refused(lambda: other.load_state_dict(state))
    fresh = ClipStream(data(dataset), 4, 0)
    assert torch.equal(next(other).frames, next(fresh).frames)  # nothing has moved


@pytest.mark.parametrize("state", [None, [], {}, {"drawn": None}, {"drawn": -1}, {"drawn": 1.0}, {"drawn": "1"}])
@pytest.mark.parametrize("kind", [Minibatches, WindowStream])
def test_the_state_of_a_small_stream_is_checked_too(kind, state):
    refused(lambda: kind.load_state_dict(kind.__new__(kind), state), "'drawn'")


# -------------------------------------------------------------------------------------------------------------- models


def set_in(*path: Any, to: Any) -> Callable[[dict], None]:
    def change(values: dict) -> None:
        for key in path[:-1]:
            values = values[key]
        values[path[-1]] = to

    return change


GAPS = [
    float("nan"), float("inf"), [float("nan"), 0.2], [0.1, float("inf")], [-0.1, 0.2], [0, 0], [], [0.2, 0.1], [0.1], 0.1, ["0.1", "0.2"],
    [0.1, 0.2, 0.3], None, [True, True], [1e-3, 1e300],
]  # fmt: skip
PROVENANCES = [
    ("method", 3), ("method", None), ("data", "videos"), ("data", [1]), ("steps", "many"), ("steps", -1), ("steps", 1.5),
    ("metrics", [1]), ("metrics", {"a": "b"}), ("code_version", {}), ("frames", 0), ("frames", "2"),
]  # fmt: skip
SIZES = [
    (("image",), [3, 10_000, 10_000]), (("image",), [3, 16]), (("image",), [3, 16, 16, 1]), (("image",), [3, 17, 16]),
    (("image",), [3, -16, 16]), (("image",), [3, 16.0, 16]), (("image",), "3x16x16"), (("image",), [0, 16, 16]), (("image",), [4, 16, 16]),
    (("slots",), 10**8), (("slots",), 4), (("slots",), -1), (("slots",), True), (("slots",), 3.0), (("slots",), 10**30),
    (("encoder", "width"), 10**7), (("encoder", "width"), -64), (("encoder", "channels"), 10**9), (("encoder", "channels"), None),
    (("encoder", "pair"), [2] * 10**6), (("encoder", "pair"), []), (("encoder", "kind"), ["conv"]), (("encoder",), None),
    (("decoder", "condition"), float("nan")), (("decoder", "condition"), float("inf")), (("decoder", "channels"), 10**7),
    (("decoder", "multiples"), [1] * 10**6), (("decoder", "multiples"), []), (("decoder", "multiples"), [10**9]),
    (("bottleneck", "levels"), [2] * 10**6), (("bottleneck", "levels"), [1000] * 5), (("bottleneck", "levels"), [10**18] * 5),
    (("bottleneck", "levels"), [7, 5, 5, 5]), (("bottleneck", "levels"), [7, 5, 5, 5, 1]), (("bottleneck", "levels"), [7, 5, 5, 5, 5.5]),
    (("bottleneck", "levels"), ["7", 5, 5, 5, 5]), (("bottleneck", "levels"), 5), (("state",), 10**12), (("state",), -3), (("target",), 9),
    (("task",), 2), (("task",), 99), (("action_slots",), [0, 9]), (("action_slots",), [2, 1]), (("action_slots",), [-2, 3]),
    (("prefix",), "long"), (("prefix",), 1), (("whiten",), "first"), (("space",), "ema"), (("space",), "features"), (("more",), 1),
]  # fmt: skip


@pytest.mark.parametrize("gap", GAPS, ids=str)
def test_a_gap_that_is_none_is_refused(gap, run):
    edited(run / "model/config.json", set_in("provenance", "gap_seconds", to=gap))
    refused(lambda: LatentActionModel.from_pretrained(run), "config.json", "gap_seconds")


@pytest.mark.parametrize(("name", "value"), PROVENANCES)
def test_where_a_model_comes_from_is_said_in_the_right_types(name, value, run):
    edited(run / "model/config.json", set_in("provenance", name, to=value))
    refused(lambda: LatentActionModel.from_pretrained(run), "config.json", f"provenance.{name}")


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("number", range(len(SIZES)))
def test_a_config_that_is_not_that_of_the_weights_is_refused_at_once(number, old, run):
    path, value = SIZES[number]
    if old:
        without_record(run / "model/model.safetensors")
    edited(run / "model/config.json", set_in("model", *path, to=value))
    if old and path == ("prefix",) and value == "long":  # which no tensor tells
        return
    began = time.perf_counter()
    refused(lambda: LatentActionModel.from_pretrained(run), str(run / "model"))
    assert time.perf_counter() - began < 2


#: What no shape of a tensor tells: each gives the same numbers another meaning.
MEANINGS = [
    (("bottleneck", "levels"), [5, 7, 5, 5, 5]), (("bottleneck", "levels"), [8, 5, 5, 5, 5]), (("prefix",), "short"),
    (("action_slots",), [0, 1]), (("action_side",), "continuous"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), MEANINGS)
def test_settings_of_the_weights_cannot_be_edited(path, value, run):
    edited(run / "model/config.json", set_in("model", *path, to=value))
    refused(lambda: LatentActionModel.from_pretrained(run), "model.safetensors", "saved with", path[0])


def test_the_gap_cannot_be_edited_but_descriptive_provenance_can(run):
    path = run / "model/config.json"
    edited(path, lambda v: v["provenance"].update(data=["elsewhere"], metrics={"psnr": 30.0}))
    model = LatentActionModel.from_pretrained(run)
    assert model.provenance.data == ("elsewhere",) and model.provenance.metrics == {"psnr": 30.0}
    edited(path, lambda v: v["provenance"].update(gap_seconds=[0.2, 0.2]))
    refused(lambda: LatentActionModel.from_pretrained(run), "saved with", "gap_seconds")


def test_a_model_of_an_older_version_loads_with_what_it_has(run):
    whole = LatentActionModel.from_pretrained(run)
    without_record(run / "model/model.safetensors")
    old = LatentActionModel.from_pretrained(run)
    assert same(old.state_dict(), whole.state_dict()) and old.config == whole.config


WEIGHTS: list[tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
    (lambda s: {k: v.half() for k, v in s.items()}, "F16"),
    (lambda s: {k: v.bfloat16() for k, v in s.items()}, "BF16"),
    (lambda s: {k: v.double() for k, v in s.items()}, "F64"),
    (lambda s: {k: v.round().int() for k, v in s.items()}, "I32"),
    (lambda s: {k: torch.full_like(v, torch.nan) for k, v in s.items()}, "not finite"),
    (lambda s: {k: torch.where(v == v.max(), torch.inf, v) for k, v in s.items()}, "not finite"),
    (lambda s: {k: v.flatten() for k, v in s.items()}, "do not fit"),
    (lambda s: dict(list(s.items())[1:]), "is missing"),
    (lambda s: s | {"more\n\x1b[2J": torch.zeros(3)}, r"'more\n\x1b[2J'"),
    (lambda s: {}, "is missing"),
]


@pytest.mark.parametrize("number", range(len(WEIGHTS)))
@pytest.mark.parametrize("file", THREE)
def test_weights_of_another_kind_are_refused(number, file, run):
    change, word = WEIGHTS[number]
    changed(run / f"{file}.safetensors", change)
    refused(lambda: everything(run), str(run / f"{file}.safetensors"), word)


def test_a_tensor_that_was_changed_by_one_bit_is_noticed(run):
    for file in (f"{name}.safetensors" for name in THREE):
        whole = (run / file).read_bytes()
        (run / file).write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
        refused(lambda: everything(run), file, "not what was saved")
        (run / file).write_bytes(whole)


def test_a_header_or_a_json_file_that_is_too_long_is_not_read(run):
    path = run / "model/model.safetensors"
    with path.open("r+b") as file:
        file.write((LONGEST_HEADER + 1).to_bytes(8, "little"))
    refused(lambda: LatentActionModel.from_pretrained(run), "a header of")
    with (run / "model/config.json").open("r+b") as file:
        file.truncate(LONGEST + 1)
    refused(lambda: LatentActionModel.from_pretrained(run), "config.json", str(LONGEST + 1))
    for name in ("config.json", "model.safetensors"):
        (run / "model" / name).unlink()
        os.mkfifo(run / "model" / name)  # reading it would wait for ever
    refused(lambda: LatentActionModel.from_pretrained(run), "config.json")
    refused(lambda: load_weights(nn.Linear(1, 1), run / "model/model.safetensors"), "not a regular file")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": 1, "model": ' * 10_000, '{"format": ' + "9" * 5000 + "}", '{"format": NaN}']
)
def test_json_that_is_built_to_harm_is_one_clear_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    refused(lambda: LatentActionModel.from_pretrained(tmp_path), "config.json")


#: Configs that would take gigabytes, or for ever, if the module were simply built: what is changed, in which file of a run.
GREEDY: dict[str, tuple[str, Callable[[dict], Any]]] = {
    "image": ("model/config.json", set_in("model", "image", to=[3, 1024, 1024])),
    "width": ("model/config.json", set_in("model", "encoder", "width", to=65_536)),
    "slots": ("model/config.json", set_in("model", "slots", to=1024)),
    "condition": ("model/config.json", set_in("model", "decoder", "condition", to=65_536)),
    "state": ("model/config.json", set_in("model", "state", to=65_536)),
    "levels": ("model/config.json", set_in("model", "bottleneck", "levels", to=[1024] * 2 + [2] * 18)),
    "classes": ("translator/translator.json", set_in("spec", "discrete", to=[10**9])),
    "some classes": ("translator/translator.json", set_in("spec", "discrete", to=[65_000])),
    "steps": ("translator/translator.json", set_in("steps", to=10**9)),
    "some steps": ("translator/translator.json", set_in("steps", to=10_000)),
    "latent": ("translator/translator.json", set_in("latent", to=10**12)),
    "wide translator": ("translator/translator.json", set_in("config", "width", to=65_536)),
    "layers": ("translator/translator.json", set_in("config", "layers", to=10**6)),
    "policy width": ("policy/config.json", set_in("config", "width", to=65_536)),
    "policy layers": ("policy/config.json", set_in("config", "layers", to=10**6)),
    "policy hidden": ("policy/config.json", set_in("config", "hidden", to=65_536)),
    "codebook": ("policy/config.json", lambda v: v.update(codebook_size=2**20, levels=[1024, 1024])),
    "context": ("policy/config.json", set_in("config", "context", to=10**9)),
    "policy image": ("policy/config.json", set_in("image", to=[3, 1024, 1024])),
}  # fmt: skip


def test_no_config_takes_memory_or_time_that_its_weights_do_not_account_for(home, tmp_path):
    """In a process that may have half a gigabyte more than it has, for seconds."""
    told = tmp_path / "told.json"

    def work() -> None:
        everything(home)  # so that what is imported late is there
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + 2**29
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        found = {}
        for name, (file, change) in GREEDY.items():
            run = tmp_path / "run"
            shutil.copytree(home, run, ignore=shutil.ignore_patterns("tokens", "checkpoints"))
            for weights in THREE:  # whoever means harm writes no record
                without_record(run / f"{weights}.safetensors")
            edited(run / file, change)
            began = time.perf_counter()
            try:
                everything(run)
                found[name] = ["loaded", 0]
            except LaminaError as error:
                found[name] = [str(error), time.perf_counter() - began]
            except BaseException as error:
                found[name] = [repr(error), 1e9]
            shutil.rmtree(run)
        told.write_text(json.dumps(found))

    assert in_child(work) == 0
    found = json.loads(told.read_text())
    for name, (file, _) in GREEDY.items():
        text, seconds = found[name]
        assert text.startswith(str(tmp_path / "run" / Path(file).parent)) and "\n" not in text, (name, text)
        assert "DefaultCPUAllocator" not in text and "MemoryError" not in text, (name, text)
        assert seconds < 5, name


def test_a_picture_of_four_channels_is_not_fed_to_the_model(dataset, tmp_path):
    from lamina.training.labelled import probe_data

    plan = methods.load("lapo").build(options("lapo"))
    model = LatentActionModel(dataclasses.replace(plan, image=(4, 16, 16)))
    model.save_pretrained(tmp_path)
    refused(lambda: probe_data(LatentActionModel.from_pretrained(tmp_path), str(dataset)), "4 channels")


@pytest.mark.parametrize("space", ["pixels", "features", "ema"])
@pytest.mark.parametrize("decoder", ["unet", "pixel", "flow"])
@pytest.mark.parametrize("method", methods.names())
def test_a_loaded_model_of_every_method_computes_exactly_what_the_saved_one_did(method, decoder, space, tmp_path):
    module = methods.load(method)
    plan = module.build(dataclasses.replace(options(method), decoder=decoder, whiten="batch"))
    plan = dataclasses.replace(plan, space=space, prefix="short", state=3, target=4)
    if (
        space != "pixels" and ENCODERS.name_of(plan.encoder) == "videomae"
    ):  # a pretrained encoder of pictures reads nothing else
        refused(lambda: LatentActionModel(plan), "reads RGB frames")
        return
    torch.manual_seed(5)
    saved = LatentActionModel(plan)
    with torch.no_grad():
        for parameter in saved.parameters():  # zeros would hide a difference
            parameter.add_(0.05 * torch.randn_like(parameter))
        pictures = torch.randint(0, 256, (6, 2, 3, 16, 16), dtype=torch.uint8)
        saved.lam.train().encode(saved.lam.view(clip_of(pictures)), [(0, 1)])  # statistics and codebooks move
    saved.eval().save_pretrained(tmp_path)
    torch.manual_seed(6)
    again = LatentActionModel.from_pretrained(tmp_path)
    buffers = dict(again.named_buffers())
    assert buffers.keys() == dict(saved.named_buffers()).keys()
    for name, value in saved.named_buffers():  # the ones that are in no file too
        assert torch.equal(value, buffers[name]) and value.dtype == buffers[name].dtype, name
    src, dst = pictures[:, 0], pictures[:, 1]
    ours, theirs = saved.encode(src, dst), again.encode(src, dst)
    assert torch.equal(ours.pre, theirs.pre) and torch.equal(ours.post, theirs.post)
    assert (ours.index is None and theirs.index is None) or torch.equal(ours.index, theirs.index)
    draws = [lam.prefix.draw(Rng(0), 50) for lam in (saved.lam, again.lam)]
    assert torch.equal(*draws)
    frames = saved.lam.space(to_float(src))
    pictured = [lam.decoder.sample(frames, ours.post, Rng(1)) for lam in (saved.lam, again.lam)]
    assert torch.equal(*pictured)


def test_laying_a_model_out_draws_no_random_numbers(run):
    config = LatentActionModel.from_pretrained(run).config
    torch.manual_seed(3)
    LAM(config)
    expected = torch.rand(3)
    torch.manual_seed(3)
    LatentActionModel.from_pretrained(run)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_that_could_not_be_loaded_is_not_trained(dataset, tmp_path):
    from lamina.training.pretraining import pretrain
    from lamina.training.recipe import recipe

    module = methods.load("flexlam")
    plan = recipe("flexlam", module, options("flexlam"))
    for change in ({"slots": 2000}, {"image": (3, 2048, 2048)}):
        wide = dataclasses.replace(plan, lam=dataclasses.replace(plan.lam, **change))
        refused(
            lambda wide=wide: pretrain(tmp_path / "run", wide, data(dataset), TrainConfig(steps=1, device="cpu")),
            *change,
        )
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_no_utf8_does_not_stop_a_model_from_loading(tmp_path):
    plan = methods.load("lapo").build(options("lapo"))
    LatentActionModel(plan, Provenance(data=("videos/\udcff",))).save_pretrained(tmp_path)
    assert LatentActionModel.from_pretrained(tmp_path).provenance.data == ("videos/?",)
    assert "videos/" in (tmp_path / "README.md").read_text()


def test_parts_that_do_not_go_together_are_refused():
    plan = methods.load("univla").build(options("univla"))
    for change in ({"task": 99}, {"action_slots": (0, 99)}, {"action_slots": (2, 2)}, {"slots": 1}):
        refused(lambda change=change: LAM(dataclasses.replace(plan, action_slots=None, **change)) if "action_slots" not in change
                else LAM(dataclasses.replace(plan, **change)))  # fmt: skip
    split = dataclasses.replace(plan.bottleneck, frozen=(2,))
    refused(lambda: LAM(dataclasses.replace(plan, bottleneck=split)), "frozen")
    refused(lambda: FSQ((1024,) * 3), "codes")
    refused(lambda: TokenModel(TokenConfig(size="debug", context=4096), (3, 64, 64), 64, 16), "tokens", "--context")
    refused(lambda: patch_count((3, 1024, 1024), 1, 32, 2), "patches", "--patch")


# ---------------------------------------------------------------------------------------- translator, policy, settings


NOTES: list[tuple[str, Any]] = [
    ("spec", None), ("spec", {"discrete": [3], "continuous": -1, "names": []}), ("spec", {"discrete": [3.0], "continuous": 1, "names": []}),
    ("spec", {"discrete": [3], "continuous": 1, "names": [1]}), ("spec", {"discrete": [], "continuous": 0, "names": []}),
    ("config", []), ("config", {"dropout": float("nan")}), ("config", {"width": -64}), ("config", {"size": "huge"}),
    ("config", {"depth": 3}),
    ("slots", "3"), ("slots", 0), ("side", "left"), ("side", None), ("latent", -1), ("latent", 1.5), ("observation", None), ("steps", 0),
    ("steps", True), ("actions", "all"), ("tasks", "move"), ("labels", "many"), ("data", 5), ("camera", 5), ("format", None),
]  # fmt: skip
POLICIES: list[tuple[str, Any]] = [
    ("config", None), ("config", {"context": 0}), ("config", {"theta": float("nan")}), ("config", {"theta": -1}), ("config", {"heads": 0}),
    ("config", {"heads": 7}), ("config", {"width": 1.5}), ("config", {"more": 1}), ("image", [3, 16]), ("image", "x"), ("slots", 10**8),
    ("codebook_size", -1), ("codebook_size", None), ("levels", [10**9]), ("levels", None), ("levels", [2] * 10**6), ("fingerprint", 3),
    ("decision_seconds", float("nan")), ("decision_seconds", -1), ("decision_seconds", "x"), ("format", "3"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), NOTES)
def test_a_translators_note_is_read_strictly(name, value, run):
    edited(run / "translator/translator.json", set_in(name, to=value))
    refused(lambda: load_translator(run / "translator"), "translator.json: damaged", "align again", name)


@pytest.mark.parametrize(("name", "value"), POLICIES)
def test_a_token_models_config_is_read_strictly(name, value, run):
    edited(run / "policy/config.json", set_in(name, to=value))
    refused(lambda: load_token_model(run / "policy"), str(run / "policy/config.json"))


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("translator/translator.json", ("side",), "continuous"),
        ("translator/translator.json", ("spec", "names"), ["up", "sideways"]),
        ("translator/translator.json", ("config", "dropout"), 0.5),
        ("policy/config.json", ("config", "theta"), 5000.0),
        ("policy/config.json", ("config", "context"), 5),
        ("policy/config.json", ("decision_seconds",), 0.2),
    ],
)
def test_settings_of_a_translator_or_policy_cannot_be_edited(file, path, value, run):
    edited(run / file, set_in(*path, to=value))
    refused(lambda: everything(run), "saved with", path[-1])


def test_how_a_translator_was_trained_is_read_strictly(run):
    _, note = load_translator(run / "translator")
    assert note.train_config(steps=7).steps == 7
    for change in ({"steps": "4"}, {"lr": None}, {"device": "abacus"}, {"speed": 3}, {"ema": "x"}, {"batch": 8.0}):
        edited = dataclasses.replace(note, training=note.training | change)
        refused(lambda edited=edited: edited.train_config(), "training.")
    refused(lambda: dataclasses.replace(note, training={}).train_config(), "does not say how")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000, '{"align": '])
@pytest.mark.parametrize("file", ["translator/training/settings.json", "policy/training.json"])
def test_settings_that_cannot_be_read_are_one_clear_line(file, text, run, dataset, home):
    from lamina.training.settings import keep_settings

    (run / file).write_text(text)
    refused(
        lambda: keep_settings(run / file, {"align": 1}, resume=True), str(run / file), "cannot be read", "start again"
    )
    assert (run / file).read_text() == text


@pytest.mark.parametrize("loss", ["nan", "-inf", "x", None])
def test_the_loss_of_the_best_weights_must_be_finite(loss, tmp_path):
    module = nn.Linear(2, 1)
    best = BestCheckpoint(tmp_path / "best.safetensors")
    best.update(module, 0.5)
    assert BestCheckpoint(tmp_path / "best.safetensors").loss == 0.5
    state = load_file(tmp_path / "best.safetensors")
    note = {"record": {"loss": loss}, "sha256": "0" * 64}
    save_file(state, tmp_path / "best.safetensors", metadata={"lamina": json.dumps(note)})
    refused(lambda: BestCheckpoint(tmp_path / "best.safetensors"), "best.safetensors: damaged", "loss")
    save_file(state, tmp_path / "best.safetensors", metadata={"loss": "0.5"})
    refused(lambda: BestCheckpoint(tmp_path / "best.safetensors"), "best.safetensors: damaged")


# ---------------------------------------------------------------------------------------------------------- model card


HOSTILE = "a|b\n---\nlicense: mit\n---\n# <script>alert(1)</script> [x](http://e) ![y](z) `code` **b** _i_ ~~s~~ \x1b[2J\u202e\\ &amp; $m$"


def test_a_model_card_shows_names_as_they_are(tmp_path):
    from huggingface_hub import ModelCard

    plan = methods.load("lapo").build(options("lapo"))
    names = (HOSTILE, "videos/my_kitchen, demo:2")
    model = LatentActionModel(
        plan, Provenance(HOSTILE, names, (0.1, 0.2), HOSTILE, 3, {HOSTILE: 1.5, "psnr of k = 1": 30.0})
    )
    model.save_pretrained(tmp_path)
    model.write_metrics(
        tmp_path, {HOSTILE: 1.5, "nothing": float("nan"), "endless": float("inf"), "psnr of k = 1": 30.0}
    )
    text = (tmp_path / "README.md").read_text()
    assert text.isprintable() or set(c for c in text if not c.isprintable()) == {"\n"}
    assert text.count("\n---\n") == 1 and text.count("\n#") == 1  # the end of the front matter; one heading
    for markup in ("<script", "](", "**", "`code", "~~", " _i", "&amp;", "$m", "\\"):
        assert markup not in text, markup
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and all(line.count("|") == 3 for line in rows)
    assert "videos/my_kitchen, demo:2" in text and "| psnr of k = 1 | 30 |" in text
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict().keys() == {"library_name", "tags"}
    assert LatentActionModel.from_pretrained(tmp_path).provenance.metrics.keys() == {HOSTILE, "psnr of k = 1"}


# ---------------------------------------------------------------------------------------------------- every byte of it


def everything(run: Path) -> list[Any]:
    """All that is computed from a run folder, as values that can be compared."""
    model = LatentActionModel.from_pretrained(run)
    p = model.provenance
    translator, note = load_translator(run / "translator")
    meaning = note.meaning()
    policy = load_token_model(run / "policy")
    about = (policy.config, policy.image, policy.slots, policy.codebook_size, policy.levels, policy.decision_seconds)
    return [
        model.state_dict(), (model.config, p.gap_seconds, p.frames), translator.state_dict(), meaning,
        policy.state_dict(), (*about, policy.fingerprint),
    ]  # fmt: skip


def checkpoint(run: Path, dataset: Path) -> list[Any]:
    """All that a run goes on from."""
    torch.manual_seed(9)
    lam = LAM(methods.load("flexlam").build(options("flexlam")))
    step = _Step(lam, lambda *_: {})
    trained = [p for p in lam.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trained}], lr=1.0)
    average = {name: value.detach().clone() for name, value in lam.state_dict().items()}
    stream = ClipStream(data(dataset), 8, 0)
    checkpoints = Checkpoints(run, 2)
    assert checkpoints.last(4) == 4
    checkpoints.load(4, TrainingState(Processes(0, 1), step, optimizer, average, stream, 1))
    moments = {f"{n}.{k}": v for n, kept in enumerate(optimizer.state.values()) for k, v in kept.items()}
    return [lam.state_dict(), average, moments, stream.state_dict()]


def alike(a: list[Any], b: list[Any]) -> bool:
    def one(x: Any, y: Any) -> bool:
        tensors = isinstance(x, dict) and any(isinstance(v, Tensor) for v in x.values())
        return same(x, y) if tensors else x == y

    return all(one(x, y) for x, y in zip(a, b, strict=True))


FOLDERS = ("model", "translator", "policy", "checkpoints/step-00000004")


def files_of(home: Path) -> list[str]:
    return [
        str(p.relative_to(home))
        for f in FOLDERS
        for p in sorted((home / f).iterdir())
        if p.suffix in (".json", ".safetensors")
    ]


def mutated(content: bytes, how: str, where: float, value: int, size: int) -> bytes:
    """``content`` with one change at ``where`` (0 to 1); most of a file of weights is numbers, so that half of the places are near its
    start."""
    place = min(int(where * len(content)), max(0, len(content) - 1))
    match how:
        case "bit":
            return content[:place] + bytes([content[place] ^ (1 << value % 8)]) + content[place + 1 :]
        case "byte":
            return content[:place] + bytes([value]) + content[place + 1 :]
        case "zeros":
            return content[:place] + bytes(len(content[place : place + size])) + content[place + size :]
        case "cut":
            return content[:place]
        case "lost":
            return content[:place] + content[place + size :]
        case "more":
            return content[:place] + bytes([value]) * size + content[place:]
        case _:
            return bytes([value]) * size


@pytest.fixture(scope="module")
def playground(home, dataset, tmp_path_factory) -> tuple[Path, list[Any], list[Any]]:
    run = tmp_path_factory.mktemp("playground") / "run"
    for folder in FOLDERS:
        shutil.copytree(home / folder, run / folder, ignore=shutil.ignore_patterns("tokens", "training", "checkpoints"))
    return run, everything(run), checkpoint(run, dataset)


@given(
    file=st.integers(0, 10),
    how=st.sampled_from(["bit", "byte", "zeros", "cut", "lost", "more", "junk"]),
    where=st.one_of(st.floats(0, 1), st.floats(0, 0.01)),
    value=st.integers(0, 255),
    size=st.integers(1, 64),
)
@settings(max_examples=250, deadline=None)
def test_whatever_happens_to_a_file_the_model_is_the_same_or_refused(
    playground, dataset, file, how, where, value, size
):
    run, models, state = playground
    files = files_of(run)
    path = run / files[file % len(files)]
    whole = path.read_bytes()
    try:
        path.write_bytes(mutated(whole, how, where, value, size))
        read = (lambda: checkpoint(run, dataset)) if "checkpoints" in str(path) else (lambda: everything(run))
        try:
            found = read()
        except LaminaError as error:
            assert "\n" not in str(error) and "internal" not in str(error)
        else:
            assert alike(found, state if "checkpoints" in str(path) else models), (path, how, where, value, size)
    finally:
        path.write_bytes(whole)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_a_json_file_says_the_model_is_the_same_or_refused(playground, dataset, data):
    """Values in the place of bytes: what is still JSON."""
    run, models, state = playground
    path = run / data.draw(st.sampled_from([f for f in files_of(run) if f.endswith(".json")]))
    whole = path.read_text()
    values = json.loads(whole)
    place, key = values, None
    while isinstance(place, dict | list) and place and (key is None or data.draw(st.booleans())):
        parent = place
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place = place[key]
    odd = [
        None,
        True,
        0,
        -1,
        1,
        2,
        0.5,
        2**63,
        10**30,
        "",
        "x",
        "\ud800",
        [],
        {},
        [1, 2],
        {"a": 1},
        [[[]]],
        float("nan"),
        float("inf"),
    ]
    parent[key] = data.draw(st.sampled_from(odd))
    try:
        path.write_text(json.dumps(values))
        read = (lambda: checkpoint(run, dataset)) if "checkpoints" in str(path) else (lambda: everything(run))
        try:
            found = read()
        except LaminaError as error:
            assert "\n" not in str(error)
        else:
            assert alike(found, state if "checkpoints" in str(path) else models), (path, key, parent[key])
    finally:
        path.write_text(whole)
