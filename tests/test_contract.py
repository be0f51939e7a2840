"""Every method through every stage: label, policy, saving and loading, joint alignment, kill and resume, both auxiliary losses.

`test_methods.py` has the contract of a method's file; here each method (and the one of `examples/`) is trained on a dataset that has
everything a method can ask for, and used.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import lamina
from lamina import methods
from lamina.data.sampling import open_source
from lamina.inference.encode import frame_pairs
from lamina.models.lam import LAM
from lamina.policies.base import Policy
from lamina.training import joint
from lamina.training.recipe import recipe_of
from planted import SIZE, write_complete
from processes import dies_after_step, in_child

torch.set_num_threads(1)
pytestmark = pytest.mark.typed

OWN = Path(__file__).resolve().parent.parent / "examples" / "own_method.py"
METHODS = [*methods.names(), OWN]
TRAINING = {
    "steps": 4, "batch": 4, "checkpoint_every": 2, "log_every": 1, "workers": 0, "device": "cpu",
    "image": (SIZE, SIZE), "gap": (0.1, 0.1), "size": "debug", "slots": 4, "camera": "observation.images.camera",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_complete(tmp_path_factory.mktemp("contract") / "data")


@pytest.fixture(scope="module", params=METHODS, ids=[methods.name_of(method) for method in METHODS])
def method(request: pytest.FixtureRequest) -> str | Path:
    return request.param


@pytest.fixture(scope="module")
def run(method: str | Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> lamina.Run:
    return lamina.train(method, data, out=tmp_path_factory.mktemp(methods.name_of(method)) / "run", **TRAINING)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def pairs_of_frames(data: Path, gap: float) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Both frames [n c h w] of every transition of the first episode, and the rows that they start at."""
    source = open_source(data)
    first = source.episodes[0]
    frames = torch.from_numpy(source.frames(first, "observation.images.camera", 0, first.length)).permute(0, 3, 1, 2)
    partner, valid = frame_pairs(first.times, gap)
    rows = np.flatnonzero(valid)
    assert 20 <= len(rows) < first.length
    return frames[rows], frames[partner[rows]], rows


def test_labels_are_the_latent_actions_of_the_model(run, data, tmp_path):
    lamina.label(run, data, out=tmp_path / "labelled", camera="observation.images.camera", continuous=True)
    labelled, model = open_source(tmp_path / "labelled"), run.model()
    src, dst, rows = pairs_of_frames(data, model.provenance.label_gap)
    latent = model.encode(src, dst)

    def column(name: str) -> np.ndarray:
        return labelled.column(labelled.episodes[0], name)

    assert np.array_equal(np.flatnonzero(column("latent_action.valid")), rows)
    for name, side in (("latent_action", "quantised"), ("latent_action.continuous", "continuous")):
        expected = model.lam.action(latent, side)
        written = torch.from_numpy(column(name)[rows]).view_as(expected)
        torch.testing.assert_close(written, expected, rtol=1e-4, atol=1e-5)
    assert written.std(0).min() > 0  # the labels tell transitions apart
    if model.lam.bottleneck.codebook_size is None:
        assert "latent_action.index" not in labelled.features and latent.index is None
    else:
        index = torch.from_numpy(column("latent_action.index")[rows]).long()
        assert torch.equal(index, model.lam.action_index(latent))
        codes = model.lam.index_to_codes(index).flatten(1)
        torch.testing.assert_close(torch.from_numpy(column("latent_action")[rows]), codes, rtol=1e-4, atol=1e-5)


def test_a_model_says_over_which_times_it_was_trained(run, method):
    trained, module = run.model().provenance, methods.load(method)
    assert trained.gap_seconds == (0.1, 0.1) and trained.frames == getattr(module, "OBJECTIVE_FRAMES", 2)
    assert trained.span == getattr(module.Config(), "span", None)


def test_a_model_that_was_copied_elsewhere_gives_the_same_codes(run, data, tmp_path):
    model = run.model()
    shutil.copytree(run.path / "model", tmp_path / "copy")
    again = lamina.LatentActionModel.from_pretrained(tmp_path / "copy")
    again.save_pretrained(tmp_path / "saved")
    assert weights(tmp_path / "saved") == weights(run.path / "model")
    src, dst, _ = pairs_of_frames(data, model.provenance.label_gap)
    ours, theirs = model.encode(src, dst), again.encode(src, dst)
    assert torch.equal(theirs.post, ours.post) and torch.equal(theirs.pre, ours.pre)
    assert (theirs.index is None) == (ours.index is None)
    assert ours.index is None or torch.equal(theirs.index, ours.index)
    if model.config.space == "pixels":
        assert torch.equal(again.decode(src, ours, 1), model.decode(src, ours, 1))
    else:
        with pytest.raises(lamina.LaminaError, match="no picture"):
            model.decode(src, ours, 1)


def test_a_codebook_gives_a_policy_and_no_codebook_is_refused(run, data):
    small = {
        "steps": 2,
        "batch": 2,
        "size": "debug",
        "context": 6,
        "stride": 4,
        "device": "cpu",
        "camera": TRAINING["camera"],
    }
    if run.model().lam.bottleneck.codebook_size is None:
        with pytest.raises(lamina.LaminaError, match="has no codebook") as caught:
            lamina.train_policy(run, data, **small)
        assert "\n" not in str(caught.value) and not (run.path / "policy" / "config.json").exists()
        return
    # Quantised: what a token model predicts, whichever side a method's latent action is.
    align = {"labels": 40, "steps": 4, "layers": 1, "size": "debug", "side": "quantised"}
    lamina.align(run, data, device="cpu", camera=TRAINING["camera"], **align)
    src, _, _ = pairs_of_frames(data, 0.1)
    frames = src.permute(0, 2, 3, 1).numpy()[:5]

    def decisions(policy: Policy) -> np.ndarray:
        policy.reset()
        return np.stack([policy.act(frame) for frame in frames])

    policy = lamina.train_policy(run, data, **small)
    actions = decisions(policy)
    assert actions.shape == (5, 2) and set(actions[:, 0]) <= {0, 1, 2} and np.isfinite(actions).all()
    assert np.array_equal(decisions(policy), actions)
    assert np.array_equal(decisions(lamina.Policy.from_run(run)), actions)


def test_joint_alignment_moves_a_copy_of_the_model(method, run, data, monkeypatch):
    monkeypatch.setattr(joint, "START", 4)
    before, own = weights(run.path / "model"), method if method == OWN else None
    options = {
        "labels": 40,
        "steps": 3,
        "device": "cpu",
        "layers": 1,
        "size": "debug",
        "joint": True,
        "camera": TRAINING["camera"],
    }
    found = lamina.align(run, data, method=own, **options)
    assert found.path == run.path / "joint" and weights(run.path / "model") == before
    assert 0 < found.validation_loss < np.inf
    model, moved = run.model().lam, lamina.LatentActionModel.from_pretrained(found.path / "model").lam
    changed = {name for name, value in moved.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    assert any(name.startswith("encoder.") for name in changed)
    z = torch.zeros(3, moved.config.action_length, moved.dim)
    assert found.translator()(z, torch.zeros(3, 2)).shape == (3, 3 + 1)  # three classes and a number


def test_a_killed_run_resumes_to_the_same_weights(method, run, data, tmp_path):
    def killed() -> None:
        dies_after_step(3)
        lamina.train(method, data, out=tmp_path / "run", **TRAINING)

    assert in_child(killed) == signal.SIGKILL
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    resumed = lamina.train(method, data, out=tmp_path / "run", resume=True, **TRAINING)
    assert weights(resumed.path / "model") == weights(run.path / "model")


def test_both_auxiliary_losses_are_part_of_the_loss(method, data, tmp_path):
    both = lamina.train(
        method, data, out=tmp_path / "run", cross_exogenous=0.3, robust_target=0.5, **{**TRAINING, "steps": 2}
    )
    plan, _ = recipe_of(both.path, method if method == OWN else None)
    assert (plan.weights["cross_exogenous"], plan.weights["robust_target"]) == (0.3, 0.5)
    rows = [json.loads(line) for line in (both.path / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert row["cross_exogenous"] > 0 and row["robust_target"] > 0
        assert row["loss"] == pytest.approx(sum(weight * row[term] for term, weight in plan.weights.items()), rel=1e-5)
    head = both.model().lam.target
    assert head.out_features == 3 + 1
    torch.manual_seed(0)
    assert not torch.equal(LAM(plan.lam).target.weight, head.weight)
