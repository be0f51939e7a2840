"""Structure probes against numbers worked out by hand: an additive encoder, a constant one, one that leaks the goal, and the gate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lamina.probes import algebra
from lamina.probes.encoders import Subject
from lamina.probes.intervals import bootstrap_correlation
from lamina.probes.use import latent_use

N, T = 40, 6


def code(frames: Tensor) -> Tensor:
    """A frame's hidden place on a line and in a plane, as its first two pixels say it."""
    return frames[:, 0, 0, :2].float()


def windows() -> Tensor:
    """Frames [n t 3 2 2] whose place moves by a step of its own each time; every sample is an episode."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(1, 8, (N, T, 2), generator=generator)
    frames = torch.zeros(N, T, 3, 2, 2, dtype=torch.uint8)
    frames[:, :, 0, 0] = steps.cumsum(1).to(torch.uint8)
    return frames


FRAMES, EPISODE = windows(), torch.arange(N)
STATE = FRAMES[:, :, 0, 0].float()
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


def test_a_norm_trajectory_follows_the_displacement_or_says_that_it_does_not() -> None:
    frames, state = FRAMES[0], STATE[0].numpy()
    got = algebra.trajectory(ADDITIVE, frames, state, fps=2.0)
    assert got.r == pytest.approx(1.0) and got.length == pytest.approx(got.displacement)
    assert got.seconds.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5] and got.length[0] == 0 and got.length[-1] == 1
    assert math.isnan(algebra.trajectory(CONSTANT, frames, state, fps=2.0).r)


# The gate


def predicting(read: float) -> Subject:
    """Predicts the second frame's place from the first and ``read`` times the latent."""

    def predict(src: Tensor, z: Tensor) -> Tensor:
        frames = src.float()
        frames[:, 0, 0, :2] += read * z
        return frames / 127.5 - 1

    return Subject("toy", lambda i, j: code(j) - code(i), predict, lambda frames: frames.float() / 127.5 - 1)


def test_the_gate_tells_a_latent_that_is_used_from_one_that_is_ignored() -> None:
    src, dst = FRAMES[:, 0], FRAMES[:, 4]
    used = latent_use(predicting(0.9), src, dst, EPISODE)
    assert used.used and used.another.mean > 3 and used.mean.mean > 3 and used.copy.mean == pytest.approx(20, abs=0.1)
    ignored = latent_use(predicting(0.0), src, dst, EPISODE)
    assert not ignored.used and ignored.another.mean == ignored.mean.mean == 0 and "ignored" in ignored.told()
