"""The training loop: its computation, and resuming after a kill."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lamina.models.code_usage
import lamina.training.checkpoints
import lamina.training.loop
from lamina.data.sampling import open_source
from lamina.data.stream import ClipStream
from lamina.errors import LaminaError
from lamina.models.hub import LatentActionModel
from lamina.models.layers import TransformerBlock
from lamina.rng import Rng
from lamina.training.average import WeightAverage
from lamina.training.checkpoints import Checkpoints
from lamina.training.distributed import Processes
from lamina.training.loop import fit, learning_rate
from lamina.training.settings import TrainConfig
from parallel import METHODS, SETTINGS, data, train, train_method
from planted import write_complete, write_planted
from processes import die, dies_after_step, dies_before_step, dies_in, in_child

torch.set_num_threads(1)

# ------------------------------------------------------------------------------------------------- a toy to count on


@dataclass(frozen=True)
class Rows:
    x: torch.Tensor
    y: torch.Tensor

    def to(self, device) -> Rows:
        return self


class Lines:
    """Batches of an exactly linear relation, row n a function of n."""

    def __init__(self, batch: int):
        self.batch, self.drawn, self.closed = batch, 0, False

    def __iter__(self) -> Iterator[Rows]:
        while True:
            numbers = torch.arange(self.drawn, self.drawn + self.batch, dtype=torch.float32)
            x = torch.stack([torch.sin(numbers), torch.cos(1.7 * numbers), torch.sin(0.3 * numbers)], 1)
            self.drawn += self.batch
            yield Rows(x, x @ torch.tensor([[1.0], [-2.0], [0.5]]))

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]

    def close(self) -> None:
        self.closed = True


def error(module: nn.Module, batch: Rows, rng: Rng) -> dict[str, torch.Tensor]:
    return {"error": (module(batch.x) - batch.y).square().mean(1)}


def toy(run: Path, losses=error, weights={"error": 1.0}, validate=None, **settings):  # noqa: B006
    """Train a linear map; returns what ``fit`` returns."""
    torch.manual_seed(0)
    defaults = {"steps": 12, "batch": 8, "lr": 0.05, "device": "cpu", "log_every": 1, "checkpoint_every": 4}
    config = TrainConfig(**{**defaults, **settings})
    stream = Lines(config.batch // config.accumulate)
    state = fit(run, nn.Linear(3, 1), losses, weights, lambda *_: stream, config, validate)
    assert stream.closed
    return state


def log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def curve(run: Path) -> list[dict]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in ("samples_per_second", "data_wait")} for row in log(run)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_learning_rate_warms_up_and_then_falls_to_a_tenth():
    config = TrainConfig(steps=1000, lr=2.0, warmup=50)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[:50] == pytest.approx([2.0 * (i + 1) / 50 for i in range(50)])
    assert rates[50] == pytest.approx(2.0)
    middle = 50 + 950 // 2
    assert rates[middle] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert learning_rate(config, 1000) == pytest.approx(0.2) and learning_rate(config, 5000) == pytest.approx(0.2)
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert learning_rate(dataclasses.replace(config, steps=100), 9) == pytest.approx(2.0)  # a tenth of the run at most
    assert learning_rate(dataclasses.replace(config, steps=1), 0) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "--steps"),
        ({"batch": 0}, "--batch"),
        ({"accumulate": 0}, "--accumulate"),
        ({"checkpoint_every": 0}, "--checkpoint-every"),
        ({"log_every": 0}, "--log-every"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": math.nan}, "--lr"),
        ({"batch": 10, "accumulate": 4}, "--batch 10"),
        ({"batch": 10, "shards": 4}, "--batch 10"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(LaminaError, match=words):
        TrainConfig(**settings)


def test_shards_follow_the_processes():
    config = TrainConfig(batch=8)
    assert Processes(0, 1).shards(config) == (1, range(1))
    assert Processes(0, 1).shards(dataclasses.replace(config, shards=4)) == (4, range(4))
    assert Processes(2, 4).shards(config) == (4, range(2, 3))
    assert Processes(1, 2).shards(dataclasses.replace(config, shards=4)) == (4, range(2, 4))
    assert Processes(0, 1).shards(config, begun=2) == (2, range(2))
    for world, settings in (
        (Processes(0, 3), {}),
        (Processes(0, 2), {"shards": 1}),
        (Processes(0, 4), {"accumulate": 4}),
    ):
        with pytest.raises(LaminaError, match="do not divide"):
            world.shards(dataclasses.replace(config, **settings))


def test_the_loop_learns_and_logs_every_step(tmp_path):
    state = toy(tmp_path, steps=200, ema=0.0, weight_decay=0.0)
    torch.testing.assert_close(state["weight"], torch.tensor([[1.0, -2.0, 0.5]]), atol=0.02, rtol=0)
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 201))
    assert all(row.keys() >= {"step", "loss", "error", "lr", "gradient_norm", "samples_per_second"} for row in rows)
    assert rows[-1]["loss"] < 1e-3 * rows[0]["loss"]
    assert all(row["loss"] == row["error"] for row in rows)


def test_lines_come_every_log_every_steps_and_with_each_validation(tmp_path):
    calls = []

    def validate(module):
        assert not module.training
        calls.append(1)
        return {"figure": float(len(calls))}, []

    toy(tmp_path, steps=11, log_every=4, validate_every=5, validate=validate)
    assert [row["step"] for row in log(tmp_path)] == [4, 5, 8, 10, 11]
    assert [row.get("validation/figure") for row in log(tmp_path)] == [None, 1, None, 2, 3]


def test_warnings_of_a_validation_are_told_once(tmp_path, capsys):
    toy(tmp_path, steps=6, validate_every=2, validate=lambda module: ({}, ["do something"]))
    assert capsys.readouterr().out.count("warning: step 2: do something") == 1


def test_the_log_holds_the_weighted_loss_and_each_term(tmp_path):
    def losses(module, batch, rng):
        return {**error(module, batch, rng), "size": module.weight.square().sum().expand(len(batch.x))}

    toy(tmp_path, losses, {"error": 1.0, "size": 0.5}, steps=3)
    for row in log(tmp_path):
        assert row["loss"] == pytest.approx(row["error"] + 0.5 * row["size"])


@pytest.mark.parametrize("weights", [{}, {"error": 1.0, "other": 1.0}, {"eror": 1.0}])
def test_every_loss_has_a_weight_and_every_weight_a_loss(tmp_path, weights):
    with pytest.raises(ValueError, match="different terms"):
        toy(tmp_path, weights=weights)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path):
    calls = iter(range(100))

    def losses(module, batch, rng):
        return {"error": error(module, batch, rng)["error"] * (math.nan if next(calls) == 5 else 1.0)}

    with pytest.raises(LaminaError, match=r"loss is nan at step 6.*--lr"):
        toy(tmp_path, losses)
    assert [row["step"] for row in log(tmp_path)] == [1, 2, 3, 4, 5]
    assert Checkpoints(tmp_path, 2).steps() == [4]


def test_micro_batches_add_up_to_one_step(tmp_path):
    whole = toy(tmp_path / "whole", ema=0.0)
    parts = toy(tmp_path / "parts", ema=0.0, accumulate=4)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-6)
    for a, b in zip(log(tmp_path / "whole"), log(tmp_path / "parts"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)


def test_gradients_are_clipped_to_the_largest_norm(tmp_path):
    norms = []

    class Recorder(torch.optim.AdamW):
        def step(self, *args, **options):
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
            return super().step(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Recorder)
        toy(tmp_path, clip=0.1)
    logged = [row["gradient_norm"] for row in log(tmp_path)]
    assert max(logged) > 0.2
    assert norms == pytest.approx([min(n, 0.1) for n in logged], rel=1e-3)


def test_the_average_is_the_exponential_mean_of_the_weights(tmp_path):
    seen: list[torch.Tensor] = []

    def losses(module, batch, rng):
        seen.append(module.weight.detach().clone())
        return error(module, batch, rng)

    averaged = toy(tmp_path, losses, ema=0.5, steps=20)
    seen.append(load_file(tmp_path / "checkpoints/step-00000020/model.safetensors")["module.weight"])
    mean = seen[0]
    for step, weight in enumerate(seen[1:]):
        decay = min(0.5, (1 + step) / (10 + step))  # the start does not linger
        mean = decay * mean + (1 - decay) * weight
    torch.testing.assert_close(averaged["weight"], mean)
    assert not torch.allclose(averaged["weight"], seen[-1], atol=1e-4)


def test_what_is_not_trained_is_copied_into_the_average():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].bias.requires_grad_(False)
    average = WeightAverage(module, 0.5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value.add_(1)
    average.update(module)
    for name, value in average.module.state_dict().items():
        moved = (
            1 if name in ("0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked") else 0.9
        )  # n / (n + 9) at n = 1
        torch.testing.assert_close(value, before[name] + moved, msg=name)
    average.update(module)
    assert float(average.module[0].weight.detach()[0, 0] - before["0.weight"][0, 0]) == pytest.approx(1 - 0.1 * 2 / 11)


def test_an_optimiser_with_another_state_resumes(tmp_path, monkeypatch):
    def momentum(module, config):
        groups = [{"params": list(module.parameters()), "initial_lr": 0.1, "moments": ("momentum_buffer",)}]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    monkeypatch.setattr(lamina.training.loop, "make_optimizer", momentum)
    whole = toy(tmp_path / "whole")
    calls = iter(range(100))

    def losses(module, batch, rng):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return error(module, batch, rng)

    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path / "cut", losses)
    assert same(toy(tmp_path / "cut", resume=True), whole)
    assert load_file(tmp_path / "cut/checkpoints/step-00000012/optimizer.safetensors").keys() == {
        "module.weight.momentum_buffer",
        "module.bias.momentum_buffer",
    }
    monkeypatch.undo()
    with pytest.raises(LaminaError, match=r"damaged checkpoint.*exp_avg"):
        toy(tmp_path / "cut", steps=20, resume=True)


def test_bf16_trains_float32_weights(tmp_path):
    kinds = set()

    def losses(module, batch, rng):
        kinds.add(module(batch.x).dtype)
        return error(module, batch, rng)

    state = toy(tmp_path, losses, precision="bf16", steps=60)
    assert kinds == {torch.bfloat16} and state["weight"].dtype == torch.float32
    rows = log(tmp_path)
    assert rows[-1]["loss"] < 0.05 * rows[0]["loss"]


def test_blocks_are_what_is_compiled(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    toy(tmp_path, compile=True, steps=1)
    assert compiled == []
    module = nn.Sequential(TransformerBlock(3, 1), nn.Linear(3, 1))

    def losses(module, batch, rng):
        return {"error": (module(batch.x[:, None])[:, 0] - batch.y).square().mean(1)}

    config = TrainConfig(steps=1, batch=8, device="cpu", compile=True)
    fit(tmp_path / "blocks", module, losses, {"error": 1.0}, lambda *_: Lines(8), config)
    assert compiled == ["TransformerBlock"]


def test_a_device_that_is_not_there_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(LaminaError, match=r"--device cuda.*--device cpu"):
        toy(tmp_path, device="cuda")


def test_tensorboard_gets_the_figures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    toy(tmp_path, tensorboard=True, steps=3)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [row["loss"] for row in log(tmp_path)]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(losses)


def test_each_training_of_a_process_is_a_run_of_its_own_on_wandb(tmp_path, monkeypatch):
    """Two folders of one name are two runs, a resumed one is the same, and a diverged one ends before the next begins."""
    rows: dict[str, list[int]] = {}
    active: list[str] = []

    def init(*, id: str, **options: Any) -> SimpleNamespace:
        assert not active and options["resume"] == "allow"
        active.append(id)
        return SimpleNamespace(log=lambda row, step: rows.setdefault(id, []).append(step), finish=active.clear)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, errors=SimpleNamespace(Error=OSError)))
    toy(tmp_path / "a" / "run", wandb=True, steps=3)
    with pytest.raises(LaminaError, match="the loss is nan"):
        toy(tmp_path / "b" / "run", lambda *given: {"error": error(*given)["error"] * math.nan}, wandb=True, steps=3)
    toy(tmp_path / "a" / "run", wandb=True, steps=5, resume=True)
    assert not active and list(rows.values()) == [[1, 2, 3, 4, 5]] and next(iter(rows)).startswith("run-")


def test_wandb_without_a_key_is_one_line(tmp_path, monkeypatch):
    class Error(Exception):
        """As wandb.errors.Error, of which no other error of Python is a base."""

    def init(**options: Any) -> None:
        raise Error("No API key configured.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, errors=SimpleNamespace(Error=Error)))
    with pytest.raises(LaminaError, match=r"--wandb: No API key configured\. Or set WANDB_MODE=offline"):
        toy(tmp_path, wandb=True, steps=3)


# ------------------------------------------------------------------------------------------ checkpoints and resuming


def test_only_the_last_checkpoints_are_kept(tmp_path):
    toy(tmp_path, steps=10, checkpoint_every=2, keep=3)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000006",
        "step-00000008",
        "step-00000010",
    ]


def test_a_run_that_has_finished_resumes_to_the_same_weights(tmp_path):
    before = toy(tmp_path)
    lines = (tmp_path / "log.jsonl").read_text()
    assert same(toy(tmp_path, resume=True), before)
    assert (tmp_path / "log.jsonl").read_text() == lines


def test_dropout_is_unchanged_by_a_resume(tmp_path):
    def run(folder: Path, stop: int | None = None, **more) -> dict[str, torch.Tensor]:
        calls = iter(range(100))

        def losses(module, batch, rng):
            if next(calls) == stop:
                raise KeyboardInterrupt
            return {"error": (module(torch.nn.functional.dropout(batch.x, 0.5)) - batch.y).square().mean(1)}

        return toy(folder, losses, **more)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 7)
    assert same(run(tmp_path / "cut", resume=True), run(tmp_path / "whole"))
    noise = [row["loss"] for row in log(tmp_path / "whole")]
    other = toy(tmp_path / "none")
    assert noise != [row["loss"] for row in log(tmp_path / "none")] and other


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path):
    assert same(toy(tmp_path / "a", resume=True), toy(tmp_path / "b"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "dataset")


#: One shard, checkpoints at 3, 6, ...: what the killed runs are compared with.
ONE = {"shards": 1, "steps": 10, "checkpoint_every": 3, "validate_every": 4}


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(run, dataset, **ONE)
    return run


def dies_before_name(number: int) -> None:
    """This process is killed before file ``number`` (from 1) gets its name: 1 config.json, 2 log.jsonl, then two files and the folder
    of each of the four checkpoints, then weights, config and folder of the model."""
    dies_in(os, "replace", number - 1)


KILLS = [
    *((dies_before_step, n) for n in (1, 5, 10)),
    (dies_after_step, 8),
    *((dies_before_name, n) for n in (1, 4, 5, 8, 15, 17)),
]


def check_resumed(run: Path, dataset: Path, uninterrupted: Path) -> None:
    assert not (run / "model/config.json").exists()
    train(run, dataset, resume=True, **ONE)
    assert curve(run) == curve(uninterrupted)
    for file in ("model/model.safetensors", "checkpoints/step-00000010/model.safetensors"):
        assert (run / file).read_bytes() == (uninterrupted / file).read_bytes()
    names = {p.name for p in (uninterrupted / "checkpoints").iterdir()}
    assert {p.name for p in (run / "checkpoints").iterdir()} == names
    for folder in (run, run / "model"):
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize(("arm", "moment"), KILLS)
def test_a_killed_run_resumes_bit_for_bit(arm, moment, dataset, uninterrupted, tmp_path):
    run = tmp_path / "run"

    def work():
        arm(moment)
        train(run, dataset, **ONE)

    assert in_child(work) == signal.SIGKILL
    for folder in run.glob("checkpoints/step-*"):
        assert len(list(folder.iterdir())) == 5
    if (run / "log.jsonl").exists():  # a line that was being written
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 8, "lo')
    check_resumed(run, dataset, uninterrupted)


def test_a_run_killed_by_others_again_and_again_resumes_bit_for_bit(dataset, uninterrupted, tmp_path):
    run = tmp_path / "run"

    def kill_at(lines: int) -> Callable[[int], None]:
        def killer(pid: int) -> None:
            path = run / "log.jsonl"
            deadline = time.monotonic() + 60
            while not (path.exists() and path.read_text().count("\n") >= lines) and time.monotonic() < deadline:
                time.sleep(0.001)
            os.kill(pid, signal.SIGKILL)

        return killer

    for lines in (2, 5, 8):
        assert in_child(lambda: train(run, dataset, resume=run.exists(), **ONE), kill_at(lines)) == signal.SIGKILL
        assert not (run / "model/config.json").exists()
    check_resumed(run, dataset, uninterrupted)


def test_a_killed_run_leaves_no_decoding_process_behind(dataset, tmp_path):
    note = tmp_path / "workers"

    def work():
        stream = ClipStream(dataclasses.replace(data(dataset), workers=1), 4, 0)
        next(stream)
        time.sleep(0.5)  # by now the worker waits for room to deliver
        note.write_text(" ".join(str(child.pid) for child in psutil.Process().children()))
        die()

    assert in_child(work) == signal.SIGKILL
    (worker,) = map(int, note.read_text().split())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker)


@pytest.fixture
def stopped(uninterrupted, tmp_path) -> Path:
    """A run with its checkpoints, but without its model."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "model")
    return run


@pytest.mark.parametrize("name", ["model.safetensors", "average.safetensors", "optimizer.safetensors", "streams.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "junk"])
def test_a_damaged_checkpoint_is_one_clear_line(name, damage, dataset, stopped):
    folder = Checkpoints(stopped, 2).path(10)
    file = folder / name
    whole = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(whole[: len(whole) // 2])
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
        case "junk":
            file.write_bytes(b"junk" * 100)
    with pytest.raises(LaminaError, match=r"step-00000010: damaged checkpoint.*delete this folder") as caught:
        train(stopped, dataset, resume=True, **ONE)
    assert "\n" not in str(caught.value)


def test_without_the_damaged_checkpoint_the_run_goes_on_from_the_one_before(dataset, stopped, uninterrupted):
    shutil.rmtree(Checkpoints(stopped, 2).path(10))
    check_resumed(stopped, dataset, uninterrupted)


def test_training_state_is_loaded_without_running_code(dataset, stopped, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"state": Bomb()}, Checkpoints(stopped, 2).path(10) / "optimizer.safetensors")
    with pytest.raises(LaminaError, match="damaged checkpoint"):
        train(stopped, dataset, resume=True, **ONE)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 0.5, "batch": 16}, "train.batch, train.lr"),
        ({"seed": 7}, "train.seed"),
        ({"method": "fixed_k"}, "method|options"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(change, named, dataset, stopped):
    with pytest.raises(LaminaError, match=rf"other settings \(.*({named})"):
        train(stopped, dataset, **{**ONE, **change}, resume=True)


def test_a_run_is_not_resumed_on_other_data(dataset, stopped, tmp_path):
    with pytest.raises(LaminaError, match=r"the data or its settings are not those.*--init"):
        train(stopped, write_planted(tmp_path / "other", episodes=3), resume=True, **ONE)


def test_settings_without_effect_on_the_result_may_change_on_resume(dataset, stopped, uninterrupted):
    shutil.rmtree(Checkpoints(stopped, 2).path(10))
    train(stopped, dataset, resume=True, **{**ONE, "checkpoint_every": 100, "keep": 1})
    assert curve(stopped) == curve(uninterrupted)


def test_a_run_is_not_overwritten(dataset, stopped, tmp_path):
    with pytest.raises(LaminaError, match=r"there is a run here already; add --resume"):
        train(stopped, dataset, **ONE)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").touch()
    with pytest.raises(LaminaError, match=r"not empty and not a run"):
        train(tmp_path / "photos", dataset, **ONE)


def test_a_run_that_ended_before_its_first_checkpoint_may_begin_again(dataset, tmp_path, monkeypatch):
    class Error(Exception):
        """As wandb.errors.Error."""

    def init(**options: Any) -> None:
        raise Error("No API key configured.")

    run = tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, errors=SimpleNamespace(Error=Error)))
    with pytest.raises(LaminaError, match="--wandb"):
        train(run, dataset, **ONE, wandb=True)
    assert (run / "config.json").exists()
    train(run, dataset, **{**ONE, "seed": 7, "steps": 2})  # other settings, which are those of the run now
    assert json.loads((run / "config.json").read_text())["train"]["seed"] == 7 and curve(run)[-1]["step"] == 2


@pytest.mark.parametrize(
    "theirs",
    [{"config.json": '{"model_type": "vit"}'}, {"config.json": None, "weights.bin": "1"}, {"config.json": "{"}],
)
def test_a_folder_with_a_config_of_something_else_is_not_taken_for_a_run_that_ended_early(
    theirs, dataset, uninterrupted, tmp_path
):
    texts = {name: text or (uninterrupted / "config.json").read_text() for name, text in theirs.items()}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(LaminaError, match="there is a run here already"):
        train(tmp_path, dataset, **ONE)
    assert {name: (tmp_path / name).read_text() for name in texts} == texts


def test_a_run_whose_config_is_damaged_is_not_resumed(dataset, stopped):
    (stopped / "config.json").write_text('{"format": 1, "met')
    with pytest.raises(LaminaError, match=r"config.json: cannot be read"):
        train(stopped, dataset, resume=True, **ONE)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_written(file, dataset, uninterrupted, tmp_path):
    """A limit on the size of a file stands for the full disk."""
    run, told = tmp_path / "run", tmp_path / "told"
    limit = (Checkpoints(uninterrupted, 2).path(10) / file).stat().st_size - 5000

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            train(run, dataset, **ONE)
        except LaminaError as error:
            told.write_text(str(error))

    assert in_child(work) == 0
    assert "step-00000003" in told.read_text() and "cannot be written" in told.read_text()
    assert "\n" not in told.read_text()
    assert list((run / "checkpoints").iterdir()) == []


def test_the_model_of_a_run_says_where_it_comes_from(dataset, uninterrupted):
    model = LatentActionModel.from_pretrained(uninterrupted)
    p = model.provenance
    assert (p.method, p.data, p.gap_seconds, p.steps) == ("flexlam", (str(dataset),), (0.1, 0.1), 10)
    assert p.label_gap == pytest.approx(0.1)
    average = load_file(uninterrupted / "checkpoints/step-00000010/average.safetensors")
    assert same({k: v for k, v in model.lam.state_dict().items()}, average)
    values = json.loads((uninterrupted / "config.json").read_text())
    assert values["method"] == "flexlam" and values["train"]["steps"] == 10 and values["data"]["data"] == [str(dataset)]


# ----------------------------------------------------------------------------------------------------- two processes


def torchrun(dataset: Path, out: Path, *which: str) -> tuple[Path, str]:
    """The folder of trainings of parallel.py in two processes, and what they printed."""
    script = Path(__file__).parent / "parallel.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(dataset), str(out), *which], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out, done.stdout + done.stderr


@pytest.fixture(scope="module")
def two_processes(dataset, tmp_path_factory) -> tuple[Path, str]:
    return torchrun(dataset, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one_process(dataset, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    train(run, dataset)
    return run


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_are_one_with_the_same_batch(parallel, two_processes, one_process):
    run = two_processes[0] / parallel
    rows, expected = curve(run), curve(one_process)
    assert len(rows) == len(expected) == SETTINGS.steps
    for row, other in zip(rows, expected, strict=True):
        for name in ("loss", "reconstruction", "gradient_norm", "lr"):
            assert row[name] == pytest.approx(other[name], rel=1e-5)
    weights = load_file(run / "model/model.safetensors")
    for name, value in load_file(one_process / "model/model.safetensors").items():
        # Adam divides by the size of the gradient, so rounding moves a weight whose gradient is hardly any by a part of a step (1e-3).
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=5e-5)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    return write_complete(tmp_path_factory.mktemp("complete") / "dataset")


@pytest.fixture(scope="module")
def methods_of_two_processes(complete, tmp_path_factory) -> Path:
    return torchrun(complete, tmp_path_factory.mktemp("methods"), "methods")[0]


@pytest.mark.parametrize("case", METHODS)
def test_two_processes_have_the_losses_of_one(case, methods_of_two_processes, complete, tmp_path):
    """Also where a sample's losses depend on the whole batch: whitening, codebooks, noise, other samples' latents."""
    rows, expected = curve(methods_of_two_processes / case), curve(train_method(tmp_path, complete, case))
    assert len(rows) == len(expected) == 3
    for row, other in zip(rows, expected, strict=True):
        # From the second step on rounding has passed through Adam, which divides by the size of the gradient.
        rounding = 1e-5 if row["step"] == 1 else 2e-3
        assert row == pytest.approx(other, rel=rounding, abs=1e-6)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_that_were_stopped_resume(parallel, two_processes):
    out = two_processes[0]
    assert curve(out / f"{parallel}-cut") == curve(out / parallel)
    cut, whole = (load_file(out / name / "model/model.safetensors") for name in (f"{parallel}-cut", parallel))
    assert same(cut, whole)


def test_every_process_has_the_same_codebook_and_it_has_moved(two_processes, dataset, tmp_path):
    first, second = (load_file(two_processes[0] / f"vq/codebook-{rank}.safetensors") for rank in (0, 1))
    assert same(first, second)
    assert int(first["updates"]) == SETTINGS.steps
    assert (first["count"] > 0).all()


def test_two_processes_warn_once(two_processes):
    assert two_processes[1].count("warning: step 3: the decoder ignores the latent") == 4  # one for each run


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
@pytest.mark.parametrize("stated", [2, None])
def test_a_run_of_two_processes_resumes_on_one(parallel, stated, two_processes, dataset, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(two_processes[0] / parallel, run)
    shutil.rmtree(run / "checkpoints/step-00000006")
    settings = json.loads((run / "config.json").read_text())
    settings["train"]["shards"] = stated  # None: it follows from the checkpoint
    (run / "config.json").write_text(json.dumps(settings))
    train(run, dataset, resume=True, shards=stated)
    before, now = (curve(folder)[4:] for folder in (two_processes[0] / parallel, run))
    assert [row["step"] for row in now] == [5, 6]
    for row, expected in zip(now, before, strict=True):
        for name in ("loss", "reconstruction", "gradient_norm"):
            assert row[name] == pytest.approx(expected[name], rel=1e-5)
    weights = load_file(run / "model/model.safetensors")
    for name, value in load_file(two_processes[0] / parallel / "model/model.safetensors").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_read_no_shard_of_the_data_twice(parallel, two_processes, dataset):
    """Each episode is decoded by one of them, and all are."""
    seen = [json.loads((two_processes[0] / f"{parallel}-episodes-{rank}.json").read_text()) for rank in (0, 1)]
    train_split = [e.number for e in open_source(dataset).episodes if e.splits[0][0] == "train"]
    assert sorted(seen[0] + seen[1]) == train_split and len(seen[0]) == len(seen[1])


def test_each_process_writes_its_own_part_of_a_checkpoint(two_processes):
    for parallel in ("ddp", "fsdp2"):
        folder = two_processes[0] / parallel / "checkpoints/step-00000006"
        parts = sorted(folder.glob("*.safetensors"))
        assert {path.name for path in folder.iterdir()} == {"manifest.json", "streams.json", *(p.name for p in parts)}
        held = [load_file(path) for path in parts]
        sizes = [sum(value.nbytes for value in each.values()) for each in held]
        assert len(parts) == 2 and min(sizes) > 0.4 * max(sizes)
        if parallel == "ddp":  # what both hold is written once
            assert not held[0].keys() & held[1].keys()
        weights = load_file(two_processes[0] / parallel / "model/model.safetensors")
        total = sum(value.nbytes for value in weights.values())
        assert 3.9 * total < sum(sizes) < 4.1 * total  # weights, their average, two moments
