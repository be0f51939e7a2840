"""Retained prefixes, and the counter-based random numbers that draw them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina.errors import LaminaError
from lamina.models.bottlenecks.prefix import RetainedPrefix, prefix_weights
from lamina.rng import Rng

torch.set_num_threads(1)
pytestmark = pytest.mark.typed


def prefix(slots: int, dim: int = 3, law: str = "uniform") -> RetainedPrefix:
    module = RetainedPrefix(slots, dim, law)
    with torch.no_grad():
        module.null.copy_(torch.arange(1.0, dim + 1))
    return module


@given(st.integers(1, 20), st.data())
@settings(max_examples=40, deadline=None)
def test_the_first_k_slots_stay_and_the_rest_are_the_null_latent(slots, data):
    ks = torch.tensor(data.draw(st.lists(st.integers(0, slots), min_size=1, max_size=5)))
    module = prefix(slots)
    z = torch.randn(len(ks), slots, 3)
    out = module(z, ks)
    for row, k in enumerate(ks.tolist()):
        assert torch.equal(out[row, :k], z[row, :k])
        assert torch.equal(out[row, k:], module.null.expand(slots - k, 3))
        assert torch.equal(out[row], module(z[row : row + 1], k)[0])


def test_all_slots_are_a_no_op_and_none_is_all_null():
    module, z = prefix(6), torch.randn(4, 6, 3)
    assert torch.equal(module(z, 6), z)
    assert torch.equal(module(z, 0), module.null.expand(4, 6, 3))


def test_the_gradient_of_the_null_latent_counts_the_slots_it_fills():
    module, z = prefix(5), torch.randn(3, 5, 3, requires_grad=True)
    module(z, torch.tensor([5, 2, 0])).sum().backward()
    assert torch.equal(module.null.grad, torch.full((3,), 0.0 + 3 + 5))
    assert torch.equal(z.grad.sum(-1) / 3, torch.tensor([[1.0] * 5, [1.0, 1.0, 0, 0, 0], [0.0] * 5]))


@pytest.mark.parametrize("k", [-1, 7])
def test_a_k_that_is_not_there_is_refused(k):
    with pytest.raises(LaminaError, match=r"0 to 6.*k = "):
        prefix(6)(torch.randn(2, 6, 3), k)


@pytest.mark.typed(False)
def test_an_unknown_law_is_refused():
    with pytest.raises(LaminaError, match="choose full, uniform, short or long"):
        RetainedPrefix(4, 2, "middle")


@pytest.mark.parametrize(
    ("law", "shares"),
    [
        ("full", [0, 0, 0, 0, 1]),
        ("uniform", [1 / 5] * 5),
        ("short", [60 / 137, 30 / 137, 20 / 137, 15 / 137, 12 / 137]),
        ("long", [1 / 15, 2 / 15, 3 / 15, 4 / 15, 5 / 15]),
    ],
)
def test_k_is_drawn_by_its_law(law, shares):
    weights = prefix_weights(law, 4)
    torch.testing.assert_close(weights / weights.sum(), torch.tensor(shares, dtype=torch.float64))
    n = 40_000
    drawn = RetainedPrefix(4, 2, law).draw(Rng(seed=3), n)
    frequency = torch.bincount(drawn, minlength=5) / n
    expected = torch.tensor(shares)
    deviation = (expected * (1 - expected) / n).sqrt()
    assert ((frequency - expected).abs() <= 5 * deviation).all()


def test_only_a_law_that_drops_slots_learns_a_null_latent():
    assert not RetainedPrefix(4, 2, "full").null.requires_grad
    assert RetainedPrefix(4, 2, "uniform").null.requires_grad


@given(st.integers(0, 2**62), st.integers(0, 10**7), st.integers(1, 4), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_draws_of_several_shards_are_those_of_the_single_ones_end_to_end(seed, step, shards, each):
    together = Rng(seed, step, range(shards))
    alone = [Rng(seed, step, [shard]) for shard in range(shards)]
    weights = torch.tensor([1.0, 2.0, 3.0])
    for draw in (
        lambda d, n: d.uniform(n, 2),
        lambda d, n: d.normal(n, 3, 2),
        lambda d, n: d.categorical(n, weights),
        lambda d, n: d.uniform(n),
    ):
        assert torch.equal(draw(together, shards * each), torch.cat([draw(d, each) for d in alone]))


def test_random_numbers_depend_on_seed_step_and_shard():
    def draw(*address) -> torch.Tensor:
        return Rng(*address).normal(64)

    torch.manual_seed(1)
    here = draw(5, 10, (1,))
    torch.manual_seed(2)
    assert torch.equal(here, draw(5, 10, (1,)))
    others = [
        draw(6, 10, (1,)),
        draw(5, 11, (1,)),
        draw(5, 10, (0,)),
        draw(5, 11, (0,)),
        draw(10, 5, (1,)),
        draw(1, 10, (5,)),
    ]
    for i, other in enumerate([here, *others]):
        for another in [here, *others][i + 1 :]:
            assert abs(float(torch.corrcoef(torch.stack([other, another]))[0, 1])) < 0.6


def test_neighbouring_steps_are_not_correlated():
    x = torch.stack([Rng(0, step).uniform(2) for step in range(4000)])
    assert abs(float(x.mean()) - 0.5) < 0.02
    lagged = torch.corrcoef(torch.stack([x[:-1, 0], x[1:, 0]]))[0, 1]
    assert abs(float(lagged)) < 0.08


def test_categorical_never_draws_what_has_no_weight():
    drawn = Rng(0).categorical(5000, torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0]))
    assert set(drawn.tolist()) == {1, 3}


def test_a_batch_that_does_not_split_over_the_shards_is_an_error():
    with pytest.raises(ValueError, match="does not split"):
        Rng(0, 0, range(3)).uniform(4)


def test_the_row_before_is_one_of_the_same_shard():
    """So a process that has one of the shards finds the rows that one process with all of them does."""
    rows = torch.arange(6.0)
    assert Rng(0, 0, range(2)).previous(rows).tolist() == [2, 0, 1, 5, 3, 4]
    assert Rng(0, 0, (1,)).previous(rows[3:]).tolist() == [5, 3, 4]
