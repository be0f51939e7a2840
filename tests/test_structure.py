"""Structure probes against values computed by hand: encoders that are additive, constant or leak the goal, and unused latents."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clips import clip_of
from data_files import write_dataset
from lamina.data.sampling import DataConfig
from lamina.errors import LaminaError
from lamina.evaluation.probes import algebra
from lamina.evaluation.probes.horizon import other_episode, reconstruct_horizons, transfer
from lamina.evaluation.probes.leakage import leakage
from lamina.evaluation.probes.structure import (
    StructureData,
    held_out,
    horizon_rows,
    measure,
    measure_sides,
    structure_rows,
)
from lamina.evaluation.probes.trajectory import trajectory
from lamina.evaluation.probes.usage import latent_use
from lamina.images import to_float
from lamina.inference.directions import decoder_gradients
from lamina.inference.subject import Subject, pixel_change, subject_of
from lamina.intervals import Estimate, bootstrap_correlation, bootstrap_mean, bootstrap_ratio
from lamina.methods import ac_lam, alam, lapa, univla
from lamina.models.hub import LatentActionModel, Provenance
from lamina.rng import Rng
from lamina.training.recipe import recipe

pytestmark = pytest.mark.typed
N, T = 40, 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("structure") / "set"
    write_dataset(root, [30] * 4)
    return root


def code(frames: Tensor) -> Tensor:
    """A frame's hidden place on a line and in a plane, as its first two pixels say it."""
    return frames[:, 0, 0, :2].float()


def windows() -> Tensor:
    """Frames [n t 1 12 12] whose place moves by a step of its own each time; every sample is an episode."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(1, 30, (N, T, 2), generator=generator)
    frames = torch.zeros(N, T, 1, 12, 12, dtype=torch.uint8)
    frames[:, :, 0, 0, :2] = steps.cumsum(1).to(torch.uint8)
    return frames


FRAMES, EPISODE = windows(), torch.arange(N)
STATE = FRAMES[:, :, 0, 0, :2].float()
PICTURES = torch.randint(0, 256, (2, N, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ADDITIVE = Subject("additive", lambda i, j: code(j) - code(i))
LEAKING = Subject("goal", lambda i, j: code(j))
CONSTANT = Subject("constant", lambda i, j: torch.tensor([[3.0, 4.0]]).expand(len(i), -1))


def test_an_additive_encoder_scores_zero_at_every_horizon() -> None:
    for h in algebra.horizons(ADDITIVE, FRAMES, EPISODE, seen=2):
        assert h.addition.raw.mean == h.addition.relative.mean == 0 and h.reversal.raw.mean == 0
        assert h.length.mean > 0 and h.seen == (h.t <= 2)
    s = algebra.structure(ADDITIVE, FRAMES, EPISODE, STATE)
    assert s.composition.raw.mean == s.identity.raw.mean == s.inverse.relative.mean == 0 and not s.collapsed
    assert s.displacement is not None and s.displacement.mean > 0.9  # |z| is |s_j - s_i| but for rescaling and clipping


@pytest.mark.parametrize("share", [0.0, 0.36, 0.64])
def test_an_offset_in_additive_latents_has_the_errors_of_the_closed_form(share: float) -> None:
    """z = c + additive, all of one length, with |c|^2 a share m of |z|^2: Eq. 7 is m, Eq. 9 sqrt(m), Eq. 10 2 sqrt(m); without c, 0."""
    step = torch.tensor([[3, 4], [4, 3], [5, 0], [0, 5]], dtype=torch.uint8)
    frames = torch.zeros(12, 3, 1, 12, 12, dtype=torch.uint8)
    frames[:, 1, 0, 0, :2], frames[:, 2, 0, 0, :2] = step.repeat(3, 1), step.repeat(3, 1) + step.roll(1, 0).repeat(3, 1)
    constant = 5 * math.sqrt(share / (1 - share))

    def encode(i: Tensor, j: Tensor) -> Tensor:
        return torch.cat([code(j) - code(i), torch.full((len(i), 1), constant)], dim=1)

    s = algebra.structure(Subject("offset", encode), frames, torch.arange(12))
    assert s.offset.mean == pytest.approx(share)
    assert s.composition.relative.mean == pytest.approx(share, abs=1e-6)
    assert s.identity.relative.mean == pytest.approx(math.sqrt(share), abs=1e-6)
    assert s.inverse.relative.mean == pytest.approx(2 * math.sqrt(share), abs=1e-6)
    for left in (s.centred.composition, s.centred.identity, s.centred.inverse):
        assert left.raw.mean == pytest.approx(0, abs=1e-5)


def test_an_error_that_the_decoder_does_not_read_does_not_count_as_it_reads_latents() -> None:
    """Latents of an additive pair of numbers beside a leaking one: the errors are those of the pair that is read."""
    both = Subject("both", lambda i, j: torch.cat([code(j) - code(i), code(j)], dim=1))
    additive, leaking = torch.eye(4)[:, :2], torch.eye(4)[:, 2:]
    s = algebra.structure(both, FRAMES, EPISODE, read=additive)
    assert s.read is not None and s.composition.relative.mean > 0.3
    assert s.read.composition.raw.mean == s.read.identity.raw.mean == s.read.inverse.raw.mean == 0
    assert s.read.composition.relative.mean == 0
    other, alone = algebra.structure(both, FRAMES, EPISODE, read=leaking), algebra.structure(LEAKING, FRAMES, EPISODE)
    assert (
        other.read is not None and other.read.composition == alone.composition and other.read.inverse == alone.inverse
    )
    for h, of_alone in zip(
        algebra.horizons(both, FRAMES, EPISODE, 2, leaking), algebra.horizons(LEAKING, FRAMES, EPISODE, 2), strict=True
    ):
        assert h.addition_read == of_alone.addition and h.reversal_read == of_alone.reversal
    assert algebra.structure(both, FRAMES, EPISODE).read is None
    assert algebra.horizons(both, FRAMES, EPISODE, 2)[0].addition_read is None


def test_a_constant_encoder_is_collapsed_and_wins_nothing() -> None:
    """z = c: z_ik - z_ij - z_jk = -c, so Add(t) = (t - 1)|c|, Rev = 2|c|; by |c| = 5: t - 1 and 2, and 1, 1, 2 (Eq. 7, 9, 10)."""
    for h in algebra.horizons(CONSTANT, FRAMES, EPISODE, seen=2):
        assert h.addition.raw.mean == 5 * (h.t - 1) and h.addition.relative.mean == h.t - 1
        assert h.reversal.raw.mean == 10 and h.reversal.relative.mean == 2
    s = algebra.structure(CONSTANT, FRAMES, EPISODE, STATE)
    assert s.collapsed and s.spread == 0
    assert s.composition.raw.mean == 25 and s.composition.relative.mean == 1
    assert (s.identity.relative.mean, s.inverse.relative.mean) == (1, 2)
    assert s.displacement is not None and math.isnan(s.displacement.mean)


def test_an_all_zero_encoder_is_collapsed_and_its_errors_have_no_scale() -> None:
    s = algebra.structure(Subject("zero", lambda i, j: torch.zeros(len(i), 3)), FRAMES, EPISODE)
    assert s.collapsed and s.composition.raw.mean == 0 and math.isnan(s.composition.relative.mean)
    assert math.isnan(s.identity.relative.mean) and s.displacement is None


def test_a_leaking_encoder_scores_what_algebra_says() -> None:
    """z_ij = g_j: z_ik - z_ij - z_jk = -g_j; z_ii = g_i; z_ij + z_ji = g_i + g_j; Z_t = sum of g_1 .. g_t."""
    g = code(FRAMES.flatten(0, 1)).view(N, T, 2).double()
    s = algebra.structure(LEAKING, FRAMES, EPISODE)
    assert s.composition.relative.mean == pytest.approx(1.0)  # |g_j|^2 over |g_j|^2
    assert s.identity.relative.mean == pytest.approx(float(g[:, 0].norm(dim=1).mean() / g[:, 1].norm(dim=1).mean()))
    assert s.inverse.raw.mean == pytest.approx(float((g[:, 0] + g[:, 1]).norm(dim=1).mean()))
    for h in algebra.horizons(LEAKING, FRAMES, EPISODE, seen=T):
        assert h.addition.raw.mean == pytest.approx(float(g[:, 1 : h.t].sum(1).norm(dim=1).mean()))
        assert h.reversal.raw.mean == pytest.approx(float((g[:, 0] + g[:, h.t]).norm(dim=1).mean()))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_shrinking_latents_changes_raw_errors_alone(scale: float) -> None:
    noisy = Subject("noisy", lambda i, j: scale * (code(j) - code(i) + torch.tensor([1.0, 0.0])))
    plain = Subject("noisy", lambda i, j: code(j) - code(i) + torch.tensor([1.0, 0.0]))
    s, p = algebra.structure(noisy, FRAMES, EPISODE), algebra.structure(plain, FRAMES, EPISODE)
    assert s.inverse.raw.mean == pytest.approx(scale * 2.0, rel=1e-4)  # z_ij + z_ji = 2 e
    assert s.inverse.relative.mean == pytest.approx(p.inverse.relative.mean, rel=1e-4)
    assert s.composition.relative.mean == pytest.approx(p.composition.relative.mean, rel=1e-4)
    assert s.spread == pytest.approx(p.spread, rel=1e-4)


def test_displacements_are_rescaled_by_quantiles_and_clipped() -> None:
    change = np.zeros((1001, 2))
    change[:, 0] = np.linspace(0, 100, 1001)  # the percentiles of its size are 1 and 99
    got = algebra.rescaled(change)
    assert got[10] == pytest.approx(0) and got[990] == pytest.approx(1) and got[505] == pytest.approx((50.5 - 1) / 98)
    assert got[0] == 0 and got[1000] == pytest.approx(1)  # clipped; the channel that never changes adds nothing
    assert np.array_equal(got, algebra.rescaled(-change))


def test_balancing_gives_every_bin_the_same_weight() -> None:
    magnitude = np.concatenate([np.full(90, 0.05), np.full(9, 0.55), np.full(1, 0.95)])
    weight = algebra.balance(magnitude)
    assert [weight[magnitude == m].sum() for m in (0.05, 0.55, 0.95)] == pytest.approx([1, 1, 1])


def test_a_weighted_correlation_is_numpys() -> None:
    rng = np.random.default_rng(0)
    x, episode = rng.normal(size=200), np.arange(200) // 4
    y = x + rng.normal(size=200)
    got = bootstrap_correlation(x, y, np.ones(200), episode)
    assert got.mean == pytest.approx(np.corrcoef(x, y)[0, 1]) and got.low < got.mean < got.high
    twice = np.concatenate([np.arange(200), np.arange(50)])  # a weight of 2 is a sample that occurs twice
    weighted = bootstrap_correlation(x, y, np.where(np.arange(200) < 50, 2.0, 1.0), episode)
    assert weighted.mean == pytest.approx(np.corrcoef(x[twice], y[twice])[0, 1])
    assert math.isnan(bootstrap_correlation(x, np.ones(200), np.ones(200), episode).mean)


def test_an_interval_draws_whole_episodes() -> None:
    rng = np.random.default_rng(0)
    values, episode = rng.normal(size=60), np.arange(60) // 6
    totals = values.reshape(10, 6).sum(1)
    drawn = totals[np.random.default_rng(3).integers(0, 10, (1000, 10))].sum(1) / 60
    got = bootstrap_mean(values, episode, seed=3)
    assert [got.mean, got.low, got.high] == pytest.approx([values.mean(), *np.quantile(drawn, [0.025, 0.975])])
    # Of three episodes each sample is drawn by itself.
    few = bootstrap_mean(values, np.arange(60) // 20)
    alone = bootstrap_mean(values, np.arange(60))
    assert few == alone


def test_an_interval_of_one_sample_or_of_nothing_to_divide_by() -> None:
    assert bootstrap_mean([2.5], [0]) == Estimate(2.5, 2.5, 2.5)
    assert math.isnan(bootstrap_ratio(np.ones(8), np.zeros(8), np.arange(8)).low)


def test_a_norm_trajectory_follows_the_displacement_or_says_that_it_does_not() -> None:
    frames, state = FRAMES[0], STATE[0].numpy()
    seconds = np.arange(6) / 2
    got = trajectory(ADDITIVE, frames, state, seconds)
    assert got.r == pytest.approx(1.0) and got.length == pytest.approx(got.displacement)
    assert got.seconds.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5] and got.length[0] == 0 and got.length[-1] == 1
    assert math.isnan(trajectory(CONSTANT, frames, state, seconds).r)


# The gate


def predicting(read: float) -> Subject:
    """Predicts the second frame's place from the first and ``read`` times the latent."""

    def predict(src: Tensor, z: Tensor) -> Tensor:
        frames = src.float()
        frames[:, 0, 0, :2] += read * z
        return frames / 127.5 - 1

    return Subject("toy", lambda i, j: code(j) - code(i), predict, lambda frames: frames.float() / 127.5 - 1)


def test_latent_usage_separates_used_from_ignored_latents() -> None:
    src, dst = FRAMES[:, 0], FRAMES[:, 4]
    used = latent_use(predicting(0.9), src, dst, EPISODE)
    assert used.used and used.another.mean > 3 and used.mean.mean > 3 and used.copy.mean == pytest.approx(20, abs=0.1)
    ignored = latent_use(predicting(0.0), src, dst, EPISODE)
    assert not ignored.used and ignored.another.mean == ignored.mean.mean == 0 and "ignored" in ignored.text()


# Horizons, transfer, and the whole record


def test_sums_of_additive_latents_reach_as_far_as_direct_ones() -> None:
    for h in reconstruct_horizons(predicting(1.0), FRAMES, seen=2):
        assert (h.direct["psnr"] == 60).all() and (h.cumulative["psnr"] == 60).all() and h.seen == (h.t <= 2)
        assert (h.copy["psnr"] < 60).all() and h.direct["ssim"] == pytest.approx(1)
    biased = dataclasses.replace(predicting(1.0), encode=lambda i, j: code(j) - code(i) + 8)
    first, *rest = reconstruct_horizons(biased, FRAMES, seen=2)  # z = difference + 8: a sum of t is 8 t off
    assert first.cumulative["psnr"] == pytest.approx(first.direct["psnr"])
    gaps = [float((h.direct["psnr"] - h.cumulative["psnr"]).mean()) for h in rest]
    assert gaps == pytest.approx([20 * math.log10(h.t) for h in rest], abs=1e-3)


def test_motion_transfers_only_where_the_latent_leads() -> None:
    start = FRAMES[other_episode(EPISODE, EPISODE), 0]
    good = transfer(predicting(1.0), FRAMES, start)
    assert (good.agreement == 60).all() and good.margin.mean() > 5 and good.moved.mean() < 60
    blind = transfer(predicting(0.0), FRAMES, start)
    assert (blind.agreement == 60).all() and (blind.margin == 0).all() and (blind.moved == 60).all()


def test_other_episode_is_another_episode() -> None:
    pool = torch.tensor([0, 0, 1, 1, 2])
    rows = other_episode(pool, torch.tensor([0, 1, 2, 2]))
    assert all(int(pool[row]) != number for row, number in zip(rows, (0, 1, 2, 2), strict=True))
    assert other_episode(torch.zeros(3).long(), torch.zeros(4).long()) == [
        1,
        2,
        0,
        1,
    ]  # of one episode alone: half the pool away


def held() -> StructureData:
    clip = dataclasses.replace(clip_of(FRAMES), episode=EPISODE, proprio=STATE)
    return StructureData(clip, clip, 0.15, 2)


def test_the_record_of_a_valid_subject_and_of_invalid_ones() -> None:
    record = measure(predicting(1.0), held())
    assert record["void"] is None and json.loads(json.dumps(record)) == record
    assert [h["t"] for h in record["horizons"]] == [1, 2, 3, 4, 5] and record["transfer"]["margin"]["mean"] > 5
    ignored = measure(predicting(0.0), held())
    assert "ignored" in ignored["void"] and ignored["composition"]["raw"]["mean"] == 0  # perfect algebra, and void
    collapsed = measure(CONSTANT, held())
    assert "collapsed" in collapsed["void"] and collapsed["use"] is None and "direct" not in collapsed["horizons"][0]
    assert measure(LEAKING, held())["void"] is None  # a foreign encoder without a decoder: its use can't be told


def test_a_foreign_model_needs_no_care_about_gradients_or_arrays() -> None:
    line, paint = torch.nn.Linear(2, 2), torch.nn.Linear(2, 12 * 12)

    def encode(src: Tensor, dst: Tensor) -> Tensor:
        return line(code(dst) - code(src))

    def predict(src: Tensor, z: Tensor) -> Tensor:
        return to_float(src) + paint(z).view(-1, 1, 12, 12)

    record = measure(Subject("theirs", encode, predict), held())
    assert record["use"] is not None and record["transfer"]["moved"]["mean"] < 60
    array = measure(Subject("array", lambda i, j: (code(j) - code(i)).numpy()), held())
    assert array["inverse"] == measure(ADDITIVE, held())["inverse"]


def test_the_records_of_a_subject_are_of_its_sides_each_with_its_control() -> None:
    data = dataclasses.replace(held(), unlabelled=dataclasses.replace(clip_of(FRAMES), episode=EPISODE))
    named = [(r["place"], r["role"], r["name"]) for r in measure_sides(ADDITIVE, data)]
    assert named == [("post", "model", "latent"), (None, "reference", "change of the pixels")]
    one = dataclasses.replace(
        ADDITIVE, control=lambda clip, seed: dataclasses.replace(LEAKING, name=f"{len(clip)}, {seed}")
    )
    both = dataclasses.replace(ADDITIVE, sides={"continuous": one, "quantised": ADDITIVE})
    assert [(r["place"], r["role"], r["name"]) for r in measure_sides(both, data)] == [
        ("pre", "model", "before the quantiser"),
        ("pre", "control", "random-weights encoder, before the quantiser"),
        ("post", "model", "after the quantiser"),
        (None, "reference", "change of the pixels"),
    ]


def test_the_change_of_pixels_has_perfect_algebra() -> None:
    record = measure(pixel_change(), held())
    assert max(record[name]["relative"]["mean"] for name in ("composition", "identity", "inverse")) < 1e-5
    assert record["read"] is None and record["offset"]["mean"] == 0
    rows = horizon_rows([{**record, "role": "reference"}])
    assert [row["k"] for row in rows] == [1, 2, 3, 4, 5] and max(row["addition"]["mean"] for row in rows) < 1e-5


@pytest.mark.parametrize(("group", "seen"), [(2, 1), (3, 2)])
def test_horizons_are_seen_as_far_as_the_objective_reaches(dataset: Path, group: int, seen: int) -> None:
    data = DataConfig((str(dataset),), (16, 16), frames=4, workers=0)
    found = held_out(data, Provenance(gap_seconds=(0.1, 0.2), frames=group), 8, "train", stride=0.2)
    assert found.seen == seen and found.windows.frames.shape[1] == 6 and found.triplets.frames.shape[1] == 3
    assert (
        recipe(
            "m", {2: lapa, 3: ac_lam}[group], {2: lapa, 3: ac_lam}[group].Config(size="debug", frames=4)
        ).objective_frames
        == group
    )


def test_triplets_and_seen_horizons_keep_to_the_span_of_training(dataset: Path) -> None:
    data = DataConfig((str(dataset),), (16, 16), workers=0)

    def found(span: float | None) -> StructureData:
        trained = Provenance(gap_seconds=(0.1, 0.4), frames=3, span=span)
        return held_out(data, trained, 32, "train", stride=0.1)

    free, bound = found(None), found(0.5)
    assert (free.seen, bound.seen) == (8, 5)
    longest = [float((each.triplets.time[:, 2] - each.triplets.time[:, 0]).max()) for each in (free, bound)]
    assert longest[0] > 0.6 and longest[1] < 0.51


def test_a_checkpoint_is_read_before_and_after_its_quantiser() -> None:
    torch.manual_seed(0)
    model = LatentActionModel(
        ac_lam.build(ac_lam.Config(size="debug", image=(16, 16), decoder="unet", codebook_size=3))
    ).eval()
    src, dst = PICTURES
    latent = model.encode(src, dst)
    sides = subject_of(model).sides
    assert tuple(sides) == ("continuous", "quantised") and subject_of(model).quantised is not subject_of(model)
    for side, z in (("continuous", latent.pre), ("quantised", latent.post)):
        subject = sides[side]  # type: ignore[index]
        assert torch.equal(subject.latents(src, dst), z.flatten(1))
        # before the quantiser the decoder still reads codes: the same picture from both
        assert torch.equal(subject.draw(src, z.flatten(1)), model.decode(src, latent))


def test_the_probes_read_the_side_and_the_slots_that_are_the_latent_action() -> None:
    torch.manual_seed(0)
    src, dst = PICTURES
    for stage, slots in ((1, slice(4, 8)), (2, slice(0, 4))):
        model = LatentActionModel(univla.build(univla.Config(size="debug", image=(16, 16), stage=stage))).eval()  # type: ignore[arg-type]
        subject = subject_of(model)
        post = model.encode(src, dst).post
        assert torch.equal(subject.actions(src, dst), post[:, slots].flatten(1))
        assert torch.equal(subject.latents(src, dst), post.flatten(1))  # a decoder needs all of them
        assert (subject.decode is None) == (stage == 1)  # whose decoder reads the instruction vector
    model = LatentActionModel(alam.build(alam.Config(size="debug", image=(16, 16)))).eval()
    assert torch.equal(subject_of(model).actions(src, dst), model.encode(src, dst).pre.flatten(1))


@pytest.mark.parametrize("module", [alam, univla])
def test_what_the_decoder_reads_of_a_checkpoint_is_measured_and_shown(module: Any) -> None:
    torch.manual_seed(0)
    options = {"stage": 2} if module is univla else {"decoder": "unet"}
    model = LatentActionModel(module.build(module.Config(size="debug", image=(16, 16), slots=4, **options))).eval()
    subject = subject_of(model)
    assert subject.read is not None and subject.read(*PICTURES) is None  # an untrained decoder reads nothing
    with torch.no_grad():
        for parameter in model.lam.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    read = subject.read(*PICTURES)
    assert read is not None and read.shape[0] == subject.actions(*PICTURES).shape[1]
    # A longer way: the mean square of the slope of the loss along a change of the latent action.
    src, dst = (model.lam.space(model.read(p)) for p in PICTURES)
    gradients = decoder_gradients(model.lam, src, dst, model.encode(*PICTURES).pre, Rng(0))
    v = torch.randn(7, read.shape[0])
    slopes = (v @ gradients.T).square().mean(1) / gradients.square().sum(1).mean()
    torch.testing.assert_close((v @ read).square().sum(1), slopes, rtol=1e-3, atol=1e-6)
    if module is alam:
        clip = dataclasses.replace(
            clip_of(torch.randint(0, 256, (24, T, 3, 16, 16), dtype=torch.uint8)), episode=EPISODE[:24]
        )
        records = measure_sides(subject, StructureData(clip, clip, 0.15, 2, clip))
        row, reference = structure_rows(records)[0], structure_rows(records)[-1]
        assert (
            row["composition_read"] == records[0]["read"]["composition"]["relative"]
            and "composition_read" not in reference
        )
        assert (
            row["offset"] == records[0]["offset"]
            and row["inverse_centred"] == records[0]["centred"]["inverse"]["relative"]
        )
        across = horizon_rows(records)[1]
        assert across["addition_read"] == records[0]["horizons"][1]["addition_read"]["relative"]


def test_a_model_of_features_is_gated_in_its_own_space() -> None:
    torch.manual_seed(0)
    model = LatentActionModel(univla.build(univla.Config(size="debug", image=(16, 16), stage=2))).eval()
    subject = subject_of(model)
    use = latent_use(subject, *PICTURES, EPISODE)
    assert not subject.pictures and not use.used and abs(use.copy.mean) < 1e-4  # untrained: it predicts no change


# Leakage


def test_the_leakage_probe_reads_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    environment = np.arange(400) % 4
    episode = np.arange(400) // 20 * 4 + environment  # 80 episodes, 20 of each environment
    noise = rng.normal(size=(400, 3))
    told = leakage(np.c_[noise, environment + 0.1 * noise[:, 0]], environment, episode)
    assert told.accuracy.mean > 0.95 and told.unseen is not None and told.unseen.mean > 0.95
    silent = leakage(noise, environment, episode)
    assert silent.accuracy.low < 0.3 and silent.unseen is not None and silent.unseen.low < 0.3
    # A latent that names the episode names the environment of episodes that were seen, and of no other.
    names = leakage(np.c_[noise, rng.permutation(80)[episode]], environment, episode)
    assert names.unseen is not None and names.accuracy.mean > 0.6 and names.unseen.mean < 0.4
    with pytest.raises(LaminaError, match="two or more"):
        leakage(noise, np.zeros(400, int), episode)
