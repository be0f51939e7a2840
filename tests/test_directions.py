"""The directions of a latent that a decoder uses, where they are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lamina.errors import LaminaError
from lamina.inference.directions import decoder_directions, decoder_gradients, read_by_decoder
from lamina.models.decoders.base import DirectDecoder
from lamina.rng import Rng
from lamina.types import Latent

SLOTS, WIDTH = 3, 2


class Painter(DirectDecoder):
    """Adds to the picture: 3 u and 1 w times a pattern each, where u and w are two mixtures of the latent's numbers."""

    def __init__(self, u: torch.Tensor, w: torch.Tensor):
        torch.nn.Module.__init__(self)
        self.mix, self.patterns = (
            torch.stack([u, w]),
            torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3)),
        )

    def forward(self, src: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        amounts = z.flatten(1) @ self.mix.T * torch.tensor([3.0, 1.0])
        return src + torch.einsum("bn,nchw->bchw", amounts, self.patterns)


@pytest.fixture
def painted():
    """A LAM whose decoder uses two of six directions, latents whose largest variance lies in a third, and pairs of pictures."""
    g = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=g))[0]
    amounts = torch.randn(400, 6, generator=g) * torch.tensor([0.5, 0.5, 5.0, 0.1, 0.1, 0.0])
    latents = (amounts @ axes.T).view(-1, SLOTS, WIDTH) + 0.3
    decoder = Painter(axes[:, 0], axes[:, 1])
    src = torch.randn(400, 3, 4, 4, generator=g)
    lam = SimpleNamespace(
        decoder=decoder, quantise=lambda pre: Latent(pre, pre), config=SimpleNamespace(latent_action=slice(None))
    )
    return lam, src, decoder(src, latents), latents, amounts


def test_the_directions_that_the_decoder_uses_come_first_whatever_their_variance(painted):
    lam, src, dst, latents, amounts = painted
    found = decoder_directions(lam, src, dst, latents, latents, Rng(0))
    assert found.matrix.shape == (6, 5)  # one direction is constant
    assert found.effect[:2].sum() > 0.999 and found.effect[0] > 3 * found.effect[1]
    y = found.project(latents.flatten(1), 2)
    torch.testing.assert_close(torch.cov(y.T), torch.eye(2), atol=0.01, rtol=0)
    # y spans just the two mixtures: a linear map gives them back.
    residual = amounts[:, :2] - amounts[:, :2].mean(0)
    fit = torch.linalg.lstsq(y, residual, driver="gelsd").solution
    assert (y @ fit - residual).square().mean() < 1e-3 * residual.square().mean()
    total = amounts.var(0).sum()
    assert abs(found.ignored() - float(1 - amounts[:, :2].var(0).sum() / total)) < 0.01


def test_the_gradient_is_the_slope_of_the_loss_at_another_pairs_latent(painted):
    lam, src, dst, latents, _ = painted
    src, dst, z = src[:5], dst[:5], latents[:5]
    wrong, change = z.roll(1, 0), torch.randn(5, SLOTS, WIDTH, generator=torch.Generator().manual_seed(1))
    # The loss is quadratic in the latent, so this difference is exact.
    slope = lam.decoder.loss(src, wrong + change, dst, Rng(0)) - lam.decoder.loss(src, wrong - change, dst, Rng(0))
    found = lam.decoder.latent_gradient(src, z, dst, Rng(0))
    torch.testing.assert_close(2 * (found * change).sum((1, 2)), slope, rtol=1e-4, atol=1e-4)


def test_a_length_as_the_decoder_reads_it_is_an_effect_on_its_loss(painted):
    lam, src, dst, latents, amounts = painted
    gradients = decoder_gradients(lam, src, dst, latents, Rng(0))
    read = read_by_decoder(gradients)
    assert read.shape == (6, 2)  # the two mixtures that it paints
    v = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
    expected = (v @ gradients.T).square().mean(1) / gradients.square().sum(1).mean()
    torch.testing.assert_close((v @ read).square().sum(1), expected, rtol=1e-3, atol=1e-6)
    # One amount is always 0, and torch's default driver fails at times where a column depends on others.
    largest = torch.linalg.lstsq(amounts, latents.flatten(1) - 0.3, driver="gelsd").solution[2]
    rest = latents.flatten(1) - amounts[:, 2:3] * largest
    torch.testing.assert_close(rest @ read, latents.flatten(1) @ read, rtol=1e-3, atol=1e-3)  # the decoder ignores it
    with pytest.raises(LaminaError, match="ignores the latents"):
        read_by_decoder(torch.zeros(4, 6))


def test_more_numbers_than_directions_are_zero(painted):
    lam, src, dst, latents, _ = painted
    y = decoder_directions(lam, src, dst, latents, latents, Rng(0)).project(latents.flatten(1), 8)
    assert y.shape == (400, 8) and not y[:, 5:].any() and y[:, :5].abs().mean(0).min() > 0.5


def test_slots_that_are_not_the_latent_action_do_not_count(painted):
    lam, src, dst, latents, _ = painted
    lam.config.latent_action = slice(1, 3)
    lam.decoder.mix = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]])  # one number of slot 0, one of slot 1
    dst = lam.decoder(src, latents)
    found = decoder_directions(lam, src, dst, latents, latents[:, 1:], Rng(0))
    assert found.effect[0] > 0.999 and found.matrix.shape[0] == 4
    y, used = found.project(latents[:, 1:].flatten(1), 1)[:, 0], latents[:, 1, 1]
    assert abs(torch.corrcoef(torch.stack([y, used]))[0, 1]) > 0.999
    lam.config.latent_action = slice(2, 3)
    with pytest.raises(LaminaError, match="ignores the latents"):
        decoder_directions(lam, src, dst, latents, latents[:, 2:], Rng(0))
