"""Muon: what it moves, how far, and that a run with it resumes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lamina.errors import LaminaError
from lamina.models.layers import ConvBlock, TransformerBlock
from lamina.training.muon import Muon, matrices, orthogonalised
from lamina.training.settings import TrainConfig
from test_train import same, toy

torch.set_num_threads(1)
pytestmark = pytest.mark.typed


def test_singular_values_become_about_one():
    x = torch.randn(3, 16, 144, generator=torch.Generator().manual_seed(0))
    x[0] *= 1e-4
    x[1, 8:] *= 0.05
    values = torch.linalg.svdvals(orthogonalised(x))
    assert values.min() > 0.6 and values.max() < 1.3
    assert orthogonalised(torch.zeros(1, 4, 8)).count_nonzero() == 0


def test_maps_of_features_are_moved_and_nothing_else():
    module = nn.Sequential(ConvBlock(8), TransformerBlock(16, 2), nn.Embedding(4, 8))
    module.register_parameter("position", nn.Parameter(torch.zeros(4, 8)))
    moved = {id(p) for p in matrices(module)}
    names = {name for name, p in module.named_parameters() if id(p) in moved}
    assert "0.conv1.weight" in names and "1.mlp.0.weight" in names
    assert names == {name for name, p in module.named_parameters() if p.ndim > 1} - {"2.weight", "position"}
    module[0].conv1.requires_grad_(False)
    assert len(matrices(module)) == len(names) - 1


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8), (8, 4, 3, 3)])
def test_a_step_has_the_length_of_adamws(shape):
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [weight], "orthogonal": True}], lr=1e-2, weight_decay=0.0).step()
    assert 0.5 < weight.square().mean().sqrt() / (0.2 * 1e-2) < 1.5
    assert (weight * weight.grad).sum() < 0


def test_what_it_does_not_move_is_adamws():
    def trained(optimizer, **group):
        torch.manual_seed(0)
        bias = nn.Parameter(torch.randn(5))
        steps = optimizer([{"params": [bias], **group}], lr=1e-2)
        for n in range(3):
            bias.grad = torch.full((5,), float(n))
            steps.step()
        return bias.detach()

    assert torch.equal(trained(Muon, orthogonal=False), trained(torch.optim.AdamW))


def test_weak_directions_are_learned_with_the_strong_ones():
    # Eight inputs of which each is half as long as the one before.
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0)) * 2.0 ** -torch.arange(8)
    target = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    mixing = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]

    def distance(optimizer, **group):
        layer = nn.Linear(8, 8, bias=False)
        nn.init.zeros_(layer.weight)
        steps = optimizer([{"params": [layer.weight], **group}], lr=0.1, weight_decay=0.0)
        for _ in range(200):
            steps.zero_grad()
            (layer(x @ mixing) - x @ target).square().mean().backward()
            steps.step()
        return float((layer.weight.detach() - (mixing.T @ target).T).square().mean())

    assert distance(Muon, orthogonal=True) < 0.3 * distance(torch.optim.AdamW)


def test_a_run_resumes_bit_for_bit(tmp_path):
    whole = toy(tmp_path / "whole", optimizer="muon")
    toy(tmp_path / "halves", optimizer="muon", steps=12, checkpoint_every=4)
    for later in (tmp_path / "halves" / "checkpoints").glob("step-0000001*"):
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    assert same(toy(tmp_path / "halves", optimizer="muon", resume=True), whole)
    assert not same(toy(tmp_path / "adamw"), whole)


def test_it_is_refused_where_matrices_are_split():
    with pytest.raises(LaminaError, match="muon needs whole weight matrices"):
        TrainConfig(optimizer="muon", parallel="fsdp2")
