"""A run goes on with another number of processes than it began with, with the losses of one that was never stopped, whatever was killed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import hf_storage

from lamina.data.sampling import SampleIndex
from lamina.data.stream import divide
from lamina.errors import LaminaError
from lamina.training.checkpoints import Checkpoints
from lamina.training.distributed import Processes
from lamina.training.parts import layout_of_parts, read_parts, write_parts
from lamina.weights import layout
from parallel import data, train
from planted import write_planted

torch.set_num_threads(1)
#: Six shards, which one, two and three processes divide.
SIX = {"shards": 6, "batch": 12, "steps": 10, "checkpoint_every": 4, "validate_every": 10}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "dataset")


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("whole") / "run", dataset, **SIX).parent


def torchrun(processes: int, dataset: Path, out: Path, *jobs: dict) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = Path(__file__).parent / "parallel.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    texts = [json.dumps({**SIX, **job}) for job in jobs]
    done = subprocess.run(
        [*command, str(script), str(dataset), str(out), *texts],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 or any("dies" in job for job in jobs), done.stderr[-4000:]
    return done.returncode


def check(run: Path, uninterrupted: Path, since: int) -> None:
    """From step ``since`` on the run has the losses of the uninterrupted one, and it ends with its weights, to rounding."""
    rows, expected = (
        [json.loads(line) for line in (r / "log.jsonl").read_text().splitlines()] for r in (run, uninterrupted)
    )
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == list(range(1, 11))
    for row, other in zip(rows[since:], expected[since:], strict=True):
        for name in ("loss", "reconstruction", "gradient_norm"):
            assert row[name] == pytest.approx(other[name], rel=2e-5), (row["step"], name)
    weights = load_file(run / "model/model.safetensors")
    for name, value in load_file(uninterrupted / "model/model.safetensors").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-4)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_run_of_one_process_goes_on_with_two_and_one_of_two_with_three(dataset, uninterrupted, tmp_path):
    """Of the second one the first process is killed when all parts of a checkpoint are written, but not the manifest."""
    cut = tmp_path / "one"
    with pytest.raises(KeyboardInterrupt):
        train(cut, dataset, stop=7, **SIX)  # two calls measure how long a step takes
    assert names(cut) == ["step-00000004"]
    killed = {"run": "two", "parallel": "fsdp2", "dies": [0, "write_text", 3]}  # two files of step 4, one of step 8
    assert torchrun(2, dataset, tmp_path, {"run": "one", "resume": True}, killed) != 0
    check(cut, uninterrupted, 4)
    run = tmp_path / "two"
    assert names(run) == [".step-00000008.partial", "step-00000004"]
    assert len(list((run / "checkpoints/.step-00000008.partial").glob("shard-*"))) == 2
    shutil.copytree(run, tmp_path / "alone")
    torchrun(3, dataset, tmp_path, {"run": "two", "parallel": "fsdp2", "resume": True})
    check(run, uninterrupted, 4)
    assert names(run) == ["step-00000008", "step-00000010"]
    assert len(list((run / "checkpoints/step-00000008").glob("shard-*"))) == 3
    train(tmp_path / "alone", dataset, resume=True, **SIX)
    check(tmp_path / "alone", uninterrupted, 4)


def test_a_process_that_is_killed_while_it_writes_leaves_no_checkpoint(dataset, tmp_path, monkeypatch):
    """And with another optimiser, of which one group of parameters is empty."""
    muon = {**SIX, "optimizer": "muon"}
    uninterrupted = train(tmp_path / "whole", dataset, **muon).parent
    assert torchrun(2, dataset, tmp_path, {"run": "run", "dies": [1, "write_parts", 1], "optimizer": "muon"}) != 0
    run = tmp_path / "run"
    assert "step-00000008" not in names(run) and "step-00000004" in names(run)
    folder = run / "checkpoints/step-00000004"
    first, second = sorted(folder.glob("shard-*"))

    def refused(words: str) -> None:
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises(LaminaError, match=f"step-00000004: damaged checkpoint .*{words}.*; delete this folder"):
            train(run, dataset, resume=True, **muon)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before

    whole = second.read_bytes()
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("is not what was written")
    second.unlink()
    refused("of another folder")
    second.write_bytes(whole)
    shutil.copy(first, folder / "shard-00003-model-00001-of-00001.safetensors")
    refused("of another folder")
    (folder / "shard-00003-model-00001-of-00001.safetensors").unlink()
    assert Checkpoints(run, 2).shards(4) == 6

    def explode(*args: object, **options: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, explode)
    train(run, dataset, resume=True, **muon)
    check(run, uninterrupted, 4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parts_hold_tensors_of_every_shape_and_type(tmp_path):
    alone = Processes(0, 1)
    tensors = {
        "a.weight": torch.randn(3, 4), "scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "count": torch.arange(5),
        "half": torch.randn(7).bfloat16(), "flag": torch.tensor([True, False]), "turned": torch.randn(4, 2).T,
    }  # fmt: skip
    files = write_parts(tmp_path / "parts", tensors, alone)
    assert [path.name for path in files] == ["shard-00001-model-00001-of-00001.safetensors"]
    assert layout_of_parts(tmp_path / "parts") == layout(tensors)
    found = {name: torch.zeros_like(value) for name, value in tensors.items()}
    read_parts(tmp_path / "parts", found, alone)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_parts(tmp_path / "file/parts", tensors, alone)


def test_a_torch_without_such_storage_is_one_line_before_any_training(dataset, tmp_path, monkeypatch):
    class Older:
        def __init__(self, path: str) -> None: ...

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(hf_storage, "HuggingFaceStorageWriter", Older)
    with pytest.raises(
        LaminaError, match=r"torch 2.* cannot write checkpoints of several processes; install torch 2\.9"
    ):
        train(tmp_path / "run", dataset, **SIX)
    assert not (tmp_path / "run/log.jsonl").exists()


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 8, 9, 40, 90])
def test_the_shards_divide_the_data(dataset, shards):
    plan = SampleIndex(data(dataset), "train")
    every = plan.segments[0]
    own = [part[0] for part in divide(plan, 0, shards)]
    if shards > len(every):
        assert all(np.array_equal(part, np.arange(len(every))) for part in own)
        return
    assert sorted(np.concatenate(own).tolist()) == list(range(len(every))) and all(len(part) for part in own)
    if shards in (2, 4, 8):  # of eight episodes
        assert all(len(set(every[a, 2]) & set(every[b, 2])) == 0 for a in own for b in own if a is not b)


def test_long_episodes_are_divided_where_shards_would_differ_else(tmp_path):
    plan = SampleIndex(data(write_planted(tmp_path / "set", episodes=10, length=300)), "train")
    every = plan.segments[0]
    for shards in (2, 3, 4, 5, 7):
        own = [part[0] for part in divide(plan, 0, shards)]
        samples = [int((every[part, 6] - every[part, 5]).sum()) for part in own]
        shared = sum(len(set(every[a, 2]) & set(every[b, 2])) for n, a in enumerate(own) for b in own[:n])
        assert sum(samples) == plan.counts[0] and max(samples) - min(samples) <= 2 * 64
        assert shared <= (0 if shards in (2, 4) else shards - 1)
    assert [part[0].tolist() for part in divide(plan, 0, 3)] != [part[0].tolist() for part in divide(plan, 1, 3)]
