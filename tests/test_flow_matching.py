"""Rectified flow: the direction of time, and velocity fields with known solutions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.losses.flow_matching import SMALLEST_T, integrate, interpolate, sample_time, velocity, velocity_of_data
from lamina.models.decoders.flow import FlowDecoder
from lamina.rng import Rng

torch.set_num_threads(1)
pytestmark = pytest.mark.typed


def pair(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, 4, 4, generator=g), torch.randn(batch, 3, 4, 4, generator=g)


def test_time_runs_from_data_at_0_to_noise_at_1():
    x, noise = pair()
    assert torch.equal(interpolate(x, noise, torch.zeros(4)), x)
    assert torch.equal(interpolate(x, noise, torch.ones(4)), noise)


def test_the_velocity_is_the_derivative_of_the_path():
    x, noise = (v.double() for v in pair())
    t = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    for element in ((0, 0, 1), (2, 3, 3)):
        (slope,) = torch.autograd.grad(interpolate(x, noise, t)[:, *element].sum(), t)
        torch.testing.assert_close(slope, velocity(x, noise)[:, *element])


@given(st.lists(st.floats(SMALLEST_T, 1.0), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_velocity_of_the_true_data_is_the_true_velocity(times):
    t = torch.tensor(times, dtype=torch.float64)
    x, noise = (v[:1].double().expand(len(t), -1, -1, -1) for v in pair())
    torch.testing.assert_close(velocity_of_data(interpolate(x, noise, t), x, t), velocity(x, noise))


def test_near_the_data_the_velocity_stays_bounded():
    x, _ = pair()
    v = velocity_of_data(x + 1e-3, x, torch.zeros(4))
    torch.testing.assert_close(v, torch.full_like(v, 1e-3 / SMALLEST_T), rtol=1e-3, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_one_data_point_is_recovered_exactly_whatever_the_number_of_steps(steps):
    # One data point x: the field (x_t - x) / t is constant along each path, so Euler makes no error.
    x, noise = (v.double() for v in pair())
    seen = []

    def field(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t[0]))
        return velocity_of_data(x_t, x, t)

    torch.testing.assert_close(integrate(field, noise, steps), x)
    assert seen == pytest.approx([1 - i / steps for i in range(steps)])


def test_gaussian_data_is_recovered_in_distribution_and_in_closed_form():
    # Data N(m, s^2): v(x, t) = E[e - x_0 | x_t = x], the flow maps the noise e to m + s e.
    m, s = 1.5, 0.4

    def field(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t[:, None]
        variance = (1 - t) ** 2 * s**2 + t**2
        away = x_t - (1 - t) * m
        return (t - (1 - t) * s**2) / variance * away - m

    noise = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    coarse, fine = ((integrate(field, noise, n) - (m + s * noise)).abs().max() for n in (50, 400))
    assert fine < 0.01
    assert coarse / fine == pytest.approx(8, rel=0.2)  # Euler: the error falls as 1 / steps


def test_times_are_logit_normal():
    t = sample_time(Rng(0), 20_000)
    assert t.min() > 0 and t.max() < 1
    logit = torch.logit(t.double())
    assert abs(float(logit.mean())) < 0.03 and abs(float(logit.std()) - 1) < 0.03


def test_as_many_steps_as_one_likes_reach_the_predicted_frame():
    """A new flow decoder predicts the first frame, whatever it is shown: every number of steps must end there."""
    src = torch.rand(2, 3, 16, 16) * 2 - 1
    for steps in (8, 28, 100):
        config = FlowDecoder.Config(patch=8, width=32, heads=2, layers=1, steps=steps)
        drawn = FlowDecoder(config, (3, 16, 16), 2, 3).sample(src, torch.zeros(2, 2, 3), Rng(0))
        torch.testing.assert_close(drawn, src, rtol=0, atol=1e-4)
