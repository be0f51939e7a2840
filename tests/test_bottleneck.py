"""Bottlenecks against the reference library, closed forms and examples worked by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ as ReferenceFSQ

from lamina.errors import LaminaError
from lamina.models.bottlenecks.base import Identity
from lamina.models.bottlenecks.fsq import FSQ
from lamina.models.bottlenecks.vq import VQ, SplitVQ

torch.set_num_threads(1)
pytestmark = pytest.mark.typed

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=6)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(3, 9), min_size=1, max_size=6),  # the reference refuses 2
    st.integers(1, 4),
    st.integers(1, 5),
    st.floats(0.1, 20),
    st.integers(0, 2**31),
)
def test_fsq_equals_the_reference_library(levels, batch, slots, scale, seed):
    x = normal(batch, slots, len(levels), seed=seed, scale=scale)
    latent = FSQ(levels)(x)
    codes, index = ReferenceFSQ(levels, return_indices=True).eval()(x)
    torch.testing.assert_close(latent.post, codes, rtol=0, atol=1e-6)
    assert torch.equal(latent.index, index.long())
    assert torch.equal(latent.pre, x)


@settings(max_examples=40, deadline=None)
@given(LEVELS, st.integers(0, 2**31))
def test_fsq_index_and_codes_are_inverse(levels, seed):
    fsq = FSQ(levels)
    size = fsq.codebook_size
    index = torch.randint(size, (3, 7), generator=torch.Generator().manual_seed(seed))
    codes = fsq.index_to_codes(index)
    assert torch.equal(fsq.codes_to_index(codes), index)
    assert codes.abs().max() <= 1
    latent = fsq(normal(4, 5, len(levels), seed=seed, scale=3.0))
    torch.testing.assert_close(fsq.index_to_codes(latent.index), latent.post, rtol=0, atol=1e-6)
    assert latent.index.min() >= 0 and latent.index.max() < size


def test_fsq_reaches_every_code_and_nothing_else():
    fsq = FSQ((3, 4))
    grid = torch.cartesian_prod(*[torch.linspace(-6, 6, 200)] * 2).unsqueeze(1)
    assert set(fsq(grid).index.flatten().tolist()) == set(range(12))


def test_fsq_gradient_passes_straight_through_the_rounding():
    levels = (5, 4, 7)
    x = normal(6, 2, 3).requires_grad_()
    FSQ(levels)(x).post.sum().backward()
    n = torch.tensor(levels)
    half, offset = (n - 1) * 1.001 / 2, torch.where(n % 2 == 0, 0.5, 0.0)
    bounding = (1 - torch.tanh(x + torch.atanh(offset / half)).square()) * half / (n // 2)
    torch.testing.assert_close(x.grad, bounding.detach())


@pytest.mark.parametrize(
    "quantiser", [FSQ((7, 5, 5, 5, 5)), VQ(64, 5), VQ(64, 5, gradient="noise"), SplitVQ(2, codebook_size=64, dim=5)]
)
def test_codes_of_the_same_inputs_are_the_same_under_bf16_autocast(quantiser):
    x = normal(256, 8, 5, seed=3)
    exact = quantiser.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = quantiser(x)
    assert torch.equal(exact.index, half.index) and torch.equal(exact.post, half.post)


@pytest.mark.typed(False)
@pytest.mark.parametrize("levels", [(), (1, 5), (5, 2.5), (0,)])
def test_fsq_refuses_levels_that_are_none(levels):
    with pytest.raises(LaminaError, match="levels"):
        FSQ(levels)


def test_identity_lets_everything_through():
    x = normal(2, 3, 4).requires_grad_()
    latent = Identity(4)(x)
    assert latent.pre is x and latent.post is x and latent.index is None and not latent.aux


def vq(codebook: list[list[float]], **options) -> VQ:
    """A VQ whose moving averages stand at one use of each of these codes."""
    quantizer = VQ(len(codebook), len(codebook[0]), **options)
    quantizer.codebook.copy_(torch.tensor(codebook))
    quantizer.count.fill_(1.0)
    quantizer.total.copy_(quantizer.codebook)
    return quantizer


def test_vq_moves_codes_as_worked_out_by_hand():
    # decay 0.5; code 0 gets (0.2, 0) and (0.4, 0.4), code 1 gets (3, 1):
    #   count 0: .5 * 1 + .5 * 2 = 1.5   total 0: .5 * (0, 0) + .5 * (.6, .4) = (.3, .2)   code 0: (.2, .13333)
    #   count 1: .5 * 1 + .5 * 1 = 1     total 1: .5 * (2, 2) + .5 * (3, 1) = (2.5, 1.5)   code 1: (2.5, 1.5)
    quantizer = vq([[0.0, 0.0], [2.0, 2.0]], decay=0.5)
    x = torch.tensor([[[0.2, 0.0]], [[0.4, 0.4]], [[3.0, 1.0]]])
    latent = quantizer.train()(x)
    assert latent.index.tolist() == [[0], [0], [1]]
    assert torch.equal(latent.post, torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]], [[2.0, 2.0]]]))
    torch.testing.assert_close(latent.aux["commitment"], torch.tensor([0.02, 0.16, 1.0]))
    torch.testing.assert_close(quantizer.count, torch.tensor([1.5, 1.0]))
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[0.2, 0.2 / 1.5], [2.5, 1.5]]))


def test_vq_takes_the_nearest_code():
    quantizer = VQ(17, 5).eval()
    x = normal(6, 4, 5)
    index = quantizer(x).index
    assert torch.equal(index, torch.cdist(x.flatten(0, 1), quantizer.codebook).argmin(-1).view(6, 4))
    assert torch.equal(quantizer.index_to_codes(index), quantizer(x).post)


def test_vq_gradient_passes_straight_through_and_commitment_pulls_to_the_code():
    quantizer = VQ(8, 3).eval()
    x = normal(5, 2, 3).requires_grad_()
    quantizer(x).post.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    x.grad = None
    latent = quantizer(x)
    latent.aux["commitment"].sum().backward()
    torch.testing.assert_close(x.grad, 2 * (x - quantizer.index_to_codes(latent.index)).detach() / 6)


def test_vq_does_not_learn_in_evaluation():
    quantizer = VQ(8, 3).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(normal(5, 2, 3))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_vq_replaces_dead_codes_by_outputs_of_the_batch_in_the_same_step():
    far = [1e3, 1e3]
    quantizer = vq([[0.0, 0.0], far, far], decay=0.5)
    quantizer.count[1:] = 0.01
    x = normal(64, 1, 2)
    quantizer.train()(x)
    revived = quantizer.codebook[1:]
    spread = x.std(0, correction=0).max()
    assert torch.cdist(revived, x.flatten(0, 1)).min(1).values.max() < spread
    assert (quantizer.count > quantizer.dead_below).all()
    quantizer.eval()
    assert set(quantizer(x).index.flatten().tolist()) == {0, 1, 2}


def test_vq_fills_the_codebook_from_the_first_batch():
    quantizer = VQ(16, 2).train()
    x = 50 + normal(256, 1, 2)
    quantizer(x)
    assert (quantizer.codebook - 50).abs().max() < 10
    assert len(quantizer(x).index.unique()) > 8


def test_vq_reset_is_a_function_of_its_state():
    x = normal(32, 2, 4)
    torch.manual_seed(0)
    first = VQ(16, 4).train()
    second = VQ(16, 4).train()
    second.load_state_dict(first.state_dict())
    for step in range(5):
        torch.manual_seed(step)  # the global generator must not matter
        a = first(x + step)
        torch.manual_seed(step + 100)
        b = second(x + step)
        assert torch.equal(a.post, b.post) and torch.equal(a.index, b.index)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_nsvq_replaces_the_error_by_noise_of_its_length():
    quantizer = VQ(8, 6, gradient="noise").train()
    quantizer.count.fill_(1.0)
    quantizer.total.copy_(quantizer.codebook)
    codebook = quantizer.codebook.clone()
    x = normal(16, 3, 6).requires_grad_()
    latent = quantizer(x)
    error = (x - codebook[latent.index]).norm(dim=-1)
    torch.testing.assert_close((latent.post - x).norm(dim=-1), error)
    assert not torch.allclose(latent.post, codebook[latent.index])
    latent.post.square().sum().backward()
    assert x.grad.abs().min() > 0
    # At evaluation the code itself is what the decoder reads.
    assert torch.equal(quantizer.eval()(x).post, quantizer.index_to_codes(quantizer(x).index))


@pytest.mark.parametrize(("size", "dim"), [(1, 4), (0, 4), (8, 0)])
def test_vq_refuses_a_codebook_that_holds_nothing(size, dim):
    with pytest.raises(LaminaError, match="codes"):
        VQ(size, dim)
