"""The Python API: the same results as the command line, options by name, typed results, data in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lamina
from lamina.cli import main
from lamina.data.sampling import open_source
from lamina.evaluation.record import Evaluation
from lamina.inference.encode import frame_pairs
from lamina.policies.base import Policy
from lamina.types import Latent

torch.set_num_threads(1)
SMALL = {
    "size": "debug",
    "slots": 4,
    "decoder": "unet",
    "batch": 8,
    "workers": 0,
    "device": "cpu",
    "checkpoint_every": 6,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    assert main(["collect", "grid", "--out", str(home / "data"), "--episodes", "12", "--size", "32", "32"]) == 0
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> lamina.Run:
    return lamina.train("flexlam", home / "data", out=home / "run", steps=6, image=(32, 32), **SMALL)


@pytest.fixture(scope="module")
def heads(home: Path, run: lamina.Run) -> lamina.Alignment:
    return lamina.align(run, home / "data", labels=40, steps=6, device="cpu", layers=1)


def weights(run: Path) -> bytes:
    return (Path(run) / "model/model.safetensors").read_bytes()


def test_pictures_have_the_methods_own_size_where_none_is_given(home, monkeypatch):
    plans = []
    monkeypatch.setattr(lamina.api, "pretrain", lambda out, plan, read, *_: plans.append((plan.lam.image, read.size)))
    options = {"out": home / "real", "size": "debug", "decoder": "unet", "device": "cpu"}
    lamina.train("flexlam_real", home / "data", **options)
    lamina.train("flexlam_real", home / "data", **options, image=(32, 48))
    assert plans == [((3, 224, 304), (224, 304)), ((3, 32, 48), (32, 48))]


def test_training_is_that_of_the_command_line(home, run):
    flags = "--steps 6 --image 32 32 --size debug --slots 4 --decoder unet --batch 8 --workers 0 --device cpu --checkpoint-every 6"
    assert main(["train", "flexlam", "--data", str(home / "data"), "--out", str(home / "cli"), *flags.split()]) == 0
    assert weights(home / "cli") == weights(run)
    ours, theirs = (json.loads((Path(p) / "config.json").read_text()) for p in (run, home / "cli"))
    assert ours == theirs
    assert run.model().config.slots == 4
    assert run.translator() is None


def test_a_finished_run_is_resumed_and_another_is_not_overwritten(home, run):
    before = weights(run)
    again = lamina.train("flexlam", home / "data", out=run, steps=6, image=(32, 32), resume=True, **SMALL)
    assert again == run and weights(run) == before
    with pytest.raises(lamina.LaminaError, match="there is a run here already"):
        lamina.train("flexlam", home / "data", out=run, steps=6, image=(32, 32), **SMALL)


@pytest.mark.parametrize(
    ("option", "hint"),
    [("step", "steps"), ("slot", "slots"), ("worker", "workers"), ("batchsize", "batch"), ("zzz", None)],
)
def test_an_option_that_does_not_exist_is_named_with_the_nearest(home, tmp_path, option, hint):
    with pytest.raises(lamina.LaminaError, match=f"train\\('flexlam'\\) has no option '{option}'") as caught:
        lamina.train("flexlam", home / "data", out=tmp_path / "run", **{option: 3})
    assert (f"did you mean {hint}?" in str(caught.value)) == (hint is not None)
    assert not (tmp_path / "run").exists()


def test_align_label_and_evaluate_return_typed_results(home, run, heads, tmp_path):
    assert heads.path == run.path / "translator"
    assert np.isfinite(heads.validation_loss)
    with torch.no_grad():
        z = torch.zeros(3, 4 * run.model().lam.dim)
        assert heads.translator()(z.unflatten(1, (4, -1)), torch.zeros(3, 1)).shape[0] == 3

    table = lamina.label(run, home / "data")
    written = lamina.label(run, home / "data", out=tmp_path / "labelled")
    source = open_source(tmp_path / "labelled")
    assert len(table) == len(written) == sum(e.length for e in source.episodes)
    np.testing.assert_array_equal(table.latents, written.latents)
    np.testing.assert_array_equal(table.valid, written.valid)
    np.testing.assert_array_equal(table.index, written.index)
    assert written.path == tmp_path / "labelled" and table.path is None
    rows = table.rows(3)
    stored = source.column(source.episodes[3], "latent_action")
    np.testing.assert_array_equal(table.latents[rows].reshape(len(stored), -1), stored.astype(np.float32))

    result = lamina.evaluate(
        run, home / "data", transitions=48, reconstructions=16, structure=0, scratch_steps=4, device="cpu"
    )
    assert isinstance(result, Evaluation)
    assert json.loads((run.path / "evaluation.json").read_text())["summary"] == result.summary
    assert (run.path / "report.html").exists()


def test_latents_of_the_table_are_those_of_the_model(home, run):
    table, model = lamina.label(run, home / "data"), run.model()
    source = open_source(home / "data")
    episode = source.episodes[5]
    frames = torch.from_numpy(source.frames(episode, source.cameras[0], 0, episode.length)).permute(0, 3, 1, 2)
    rows = np.flatnonzero((table.episode == 5) & table.valid)
    second, _ = frame_pairs(episode.times, model.provenance.label_gap)
    first = table.frame[rows]
    latent: Latent = model.encode(frames[first], frames[second[first]])
    np.testing.assert_allclose(table.latents[rows], model.lam.action(latent).numpy(), atol=1e-5)


def test_a_policy_is_trained_and_decides(home, run, heads):
    policy = lamina.train_policy(
        run, home / "data", steps=2, batch=2, size="debug", context=6, stride=4, device="cpu", checkpoint_every=2
    )
    assert isinstance(policy, Policy)
    policy.reset()
    action = policy.act(np.zeros((32, 32, 3), np.uint8))
    assert action.shape == (1,) and 0 <= action[0] < 4
    again = lamina.Policy.from_run(run)
    again.reset()
    assert again.act(np.zeros((32, 32, 3), np.uint8)) == action


def test_a_torch_dataset_of_frame_latent_and_action(home, run):
    samples = lamina.LatentDataset(run, home / "data", size=(16, 16))
    table, source = lamina.label(run, home / "data"), open_source(home / "data")
    assert len(samples) == int(table.valid.sum())
    row = int(np.flatnonzero(table.valid)[40])
    sample, episode = samples[40], source.episodes[int(table.episode[row])]
    frame = int(table.frame[row])
    np.testing.assert_array_equal(sample.latent, table.latents[row])
    picture = source.frames(episode, source.cameras[0], frame, frame + 1, (16, 16))[0]
    np.testing.assert_array_equal(sample.frame.permute(1, 2, 0), picture)
    np.testing.assert_array_equal(sample.action, source.column(episode, "action")[frame])
    loader = torch.utils.data.DataLoader(samples, batch_size=5, collate_fn=samples.collate)
    batch = next(iter(loader))
    assert batch.frame.shape == (5, 3, 16, 16) and batch.latent.shape[:2] == (5, 4) and batch.action.shape == (5, 1)


def test_resize_is_the_one_of_training(home, run):
    source = open_source(home / "data")
    episode = source.episodes[0]
    native = source.frames(episode, source.cameras[0], 0, 3)
    small = source.frames(episode, source.cameras[0], 0, 3, (20, 24))
    np.testing.assert_array_equal(lamina.resize(native, (20, 24)), small)
    tensor = torch.from_numpy(native).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(lamina.resize(tensor, (20, 24)).permute(0, 2, 3, 1), small)
    np.testing.assert_array_equal(lamina.resize(tensor[1], (20, 24)).permute(1, 2, 0), small[1])
    np.testing.assert_array_equal(lamina.resize(native[1], (20, 24)), small[1])
    np.testing.assert_array_equal(lamina.resize(native[None], (20, 24)), small[None])


@pytest.mark.parametrize(
    ("module", "slow"),
    [
        ("lamina", ("torch", "matplotlib", "scipy", "pyarrow")),
        (
            "lamina.api",
            ("sklearn", "torchmetrics", "transformers", "diffusers", "pandas"),
        ),  # together twice as slow as torch
    ],
)
def test_an_import_loads_nothing_slow_that_it_does_not_need(module, slow):
    code = f"import sys, {module}; print([m for m in {slow} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("given", [None, "77"])
def test_threads_of_the_command_line_spin_briefly_unless_the_user_says_otherwise(given):
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | (
        {"GOMP_SPINCOUNT": given} if given else {}
    )
    code = "import os, sys, lamina.cli; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"  # torch reads it
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said == f"{given or 3000} False\n"


def test_every_public_name_is_there():
    for name in lamina.__all__:
        assert getattr(lamina, name) is not None
    assert set(lamina.__all__) <= set(dir(lamina))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lamina.nonsense
