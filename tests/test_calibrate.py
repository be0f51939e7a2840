"""Recalibration: whitening statistics and codebooks fit the saved weights, and controls have them too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from clips import clip_of
from lamina import methods
from lamina.data.sampling import DataConfig
from lamina.data.stream import sample_split
from lamina.models import calibration
from lamina.models.bottlenecks.vq import VQ
from lamina.models.bottlenecks.whitening import FirstBatchNorm
from lamina.models.calibration import calibrating, even_batches, has_statistics, random_weights
from lamina.models.hub import LatentActionModel
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina.training.diagnostics import latent_diagnostics
from lamina.training.pretraining import pretrain, recalibration
from lamina.training.recipe import filled_in, recipe
from lamina.training.settings import TrainConfig
from planted import write_planted
from test_methods import clip, every_method

torch.set_num_threads(1)
pytestmark = pytest.mark.typed


def test_one_pass_is_the_plain_mean_over_its_batches_and_one_step_of_k_means() -> None:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm1d(3, affine=False)
    norm.running_mean += 7.0
    book = VQ(3, 2)
    book.codebook.copy_(torch.tensor([[0.0, 0.0], [5.0, 5.0], [90.0, 90.0]]))
    book.updates += 10
    batches = torch.randn(4, 20, 3) * 2 + 1
    points = torch.cat([torch.randn(40, 2) * 0.1, torch.randn(40, 2) * 0.1 + 5])[torch.randperm(80)].view(4, 20, 1, 2)
    both = torch.nn.ModuleList([norm, book])
    with calibrating(both):
        for x, y in zip(batches, points, strict=True):
            norm(x)
            book(y)
    torch.testing.assert_close(norm.running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(norm.running_var, batches.var(1).mean(0))
    near = points.flatten(0, 2)[points.flatten(0, 2)[:, 0] < 2]
    torch.testing.assert_close(book.codebook[0], near.mean(0))
    assert book.codebook[2].tolist() == [90.0, 90.0]  # nothing falls on it, and nothing replaces it
    assert norm.momentum == 0.1 and book.calibration is None and not both.training
    before = book.codebook.clone()
    book.train()(points[0])
    assert not torch.equal(book.codebook, before)  # training goes on as before


@pytest.mark.parametrize(
    ("rows", "size", "parts"),
    [
        (130, 64, (44, 43, 43)),
        (66, 64, (33, 33)),
        (128, 64, (64, 64)),
        (5, 8, (5,)),
        (3, 2, (3,)),
        (4, 1, (2, 2)),
        (1, 8, (1,)),
    ],
)
def test_batches_of_a_calibration_count_alike(rows: int, size: int, parts: tuple[int, ...]) -> None:
    order = torch.randperm(rows)
    batches = even_batches(order, size)
    assert tuple(map(len, batches)) == parts and torch.equal(torch.cat(batches), order)


def test_a_remainder_of_two_samples_does_not_decide_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics of a control over 66 transitions, of which a batch holds 64, are within their error of those of one batch of all."""
    config = methods.load("lapo").build(
        methods.load("lapo").Config(size="debug", image=(16, 16), decoder="unet", whiten="batch")
    )
    frames = torch.randint(0, 256, (66, 2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    norms = []
    for batch in (calibration.BATCH, 66):
        monkeypatch.setattr(calibration, "BATCH", batch)
        lam = random_weights(config, clip_of(frames), 0)
        norms.append(next(part for part in lam.modules() if isinstance(part, _BatchNorm)))
    few, whole = norms
    assert few.num_batches_tracked == 2 and whole.num_batches_tracked == 1
    assert ((few.running_mean - whole.running_mean) / whole.running_var.sqrt()).abs().max() < 0.02
    torch.testing.assert_close(few.running_var, whole.running_var, rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in methods.names()), ("univla", {"stage": 2}), ("lapo", {"space": "ema"})],
)
def test_the_random_weights_control_has_seen_data(name: str, options: dict[str, Any]) -> None:
    """Also where a method's second stage keeps a codebook that a first one has trained."""
    module = methods.load(name)
    config = module.build(module.Config(size="debug", image=(16, 16), **options))
    pictures = clip((16, 16), batch=256)
    random = random_weights(config, pictures, seed=3)
    torch.manual_seed(3)
    fresh = LAM(config).eval()
    trained = {n for n, p in fresh.named_parameters()}
    same = {n for n, v in random.state_dict().items() if torch.equal(v, fresh.state_dict()[n])}
    assert trained <= same  # its weights are those of a LAM before training ...
    assert (same == fresh.state_dict().keys()) == (not has_statistics(fresh))  # ... and what data fills is filled
    assert not random.training
    for part in random.modules():
        assert not (isinstance(part, FirstBatchNorm) and not part.ready)
    latent = random.encode(random.view(pictures), [(0, 1)]).own[0, 1]
    if latent.index is not None and has_statistics(fresh):
        used = max(len(column.unique()) for column in latent.index.unbind(1))
        unfilled = fresh.encode(fresh.view(pictures), [(0, 1)]).own[0, 1].index
        assert used >= 3 and used >= max(len(column.unique()) for column in unfilled.unbind(1))  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_planted(tmp_path_factory.mktemp("planted") / "dataset")


@every_method
def test_what_is_saved_fits_itself_and_is_what_validation_saw(name: str, dataset: Path, tmp_path: Path) -> None:
    """Averaged weights far from the last ones: statistics of the latter would be wrong for them."""
    module = methods.load(name)
    options = module.Config(size="debug", image=(16, 16), slots=4)
    data = DataConfig((str(dataset),), (16, 16), options.frames, gap=(0.1, 0.1), workers=0)
    options, data = filled_in(options, data)
    plan = recipe(name, module, options)
    training = TrainConfig(steps=12, batch=16, lr=3e-3, warmup=1, ema=0.9, device="cpu", log_every=1, validate_every=6)
    pretrain(tmp_path / "run", plan, data, training)
    saved = LatentActionModel.from_pretrained(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    held = sample_split(data, "validation", 256)
    again, _ = latent_diagnostics(saved.lam, held, training.seed)(saved.lam)
    for figure in ("reconstruction", "latent_length", "gain_over_the_mean_latent_db"):
        assert rows[-1][f"validation/{figure}"] == pytest.approx(again[figure], rel=1e-4, abs=1e-5), figure
    if not has_statistics(saved.lam):
        return
    # One more pass changes nothing but the assignment of points to codes.
    before = {n: b.clone() for n, b in saved.lam.named_buffers() if "running" in n}
    recalibration(plan, data, training)(saved.lam)
    for key, value in before.items():
        torch.testing.assert_close(dict(saved.lam.named_buffers())[key], value, atol=1e-5, rtol=1e-4)
    if options.whiten == "batch":  # mean 0 and variance 1 over the data, by the saved weights
        view = saved.lam.view(sample_split(data, "train", 256))
        pairs = [(0, 1), (1, 2), (0, 2), (1, 0)] if options.frames > 2 else [(0, 1)]
        pre = saved.lam.encode(view, pairs).own.values()
        flat = torch.cat([latent.pre.flatten(1) for latent in pre])
        assert flat.mean(0).abs().max() < 0.2 and (flat.std(0) - 1).abs().mean() < 0.1


def test_a_run_recalibrates_by_batches_of_one_size(dataset: Path) -> None:
    module = methods.load("lapo")
    options, data = filled_in(
        module.Config(size="debug", image=(16, 16)), DataConfig((str(dataset),), (16, 16), gap=(0.1, 0.1), workers=0)
    )
    plan, sizes = recipe("lapo", module, options), []
    plan = dataclasses.replace(plan, losses=lambda lam, clip, rng: sizes.append(len(clip)))
    recalibration(plan, data, TrainConfig(steps=1, batch=60, device="cpu"))(LAM(plan.lam))
    assert sizes == [43, 43, 42]  # of 128 samples; not 60, 60 and 8


def test_validation_leaves_training_as_it_was(dataset: Path, tmp_path: Path) -> None:
    module = methods.load("alam")
    options = module.Config(size="debug", image=(16, 16), slots=4)
    data = DataConfig((str(dataset),), (16, 16), 3, gap=(0.1, 0.1), workers=0)
    plan = recipe("alam", module, options)

    def losses(every: int) -> list[float]:
        run = tmp_path / str(every)
        training = TrainConfig(steps=8, batch=8, lr=1e-3, device="cpu", log_every=1, validate_every=every)
        pretrain(run, plan, data, training)
        return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]

    assert losses(2) == losses(8)


@pytest.mark.parametrize("name", ["alam", "ac_lam", "villa_x", "lapa", "lapo"])
def test_two_views_move_statistics_once_a_step_and_both_are_committed(name: str) -> None:
    module = methods.load(name)
    options = module.Config(size="debug", image=(16, 16), slots=4, cross_exogenous=1.0)
    plan = recipe(name, module, options)
    torch.manual_seed(0)
    lam = LAM(plan.lam).train()
    own = clip((16, 16), batch=8, frames=options.frames)
    batch = dataclasses.replace(own, paired=clip((16, 16), batch=8, frames=options.frames, seed=5).frames)
    found = plan.losses(lam, batch, Rng(0))
    book = lam.bottleneck
    assert int(book.updates) == 1  # type: ignore[arg-type]
    if options.whiten == "batch":
        assert int(lam.whiten.num_batches_tracked) == 1  # type: ignore[arg-type]
    # The codebook has seen both views: a tenth of a percent of every slot of every pair that was encoded.
    pairs = 4 + 2 if name == "alam" else 3 + 2 if name == "ac_lam" else 1 + 1
    slots = 8 * 4 * pairs
    assert float(book.count.sum()) == pytest.approx(0.99 * len(book.count) + 0.01 * slots, rel=1e-4)  # type: ignore[arg-type]
    # In evaluation nothing moves: commitment is the mean of the two views' own.
    lam.eval()
    frames = {"own": batch.frames, "paired": batch.paired}
    found = plan.losses(lam, batch, Rng(0))
    alone = {
        view: module.losses(options)(lam, lam.view(dataclasses.replace(own, frames=x)), Rng(0)).terms["commitment"]
        for view, x in frames.items()
    }
    if name not in ("alam", "ac_lam"):  # whose own views have other pairs than the twins
        torch.testing.assert_close(found["commitment"], (alone["own"] + alone["paired"]) / 2)
    assert not torch.allclose(found["commitment"], alone["own"])
