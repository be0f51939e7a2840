"""What `lamina train METHOD --plan` says, against formulas, numbers worked out by hand, and models that run."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lamina import methods
from lamina.cli import main
from lamina.errors import LaminaError
from lamina.methods import flexlam_real
from lamina.models import layers
from lamina.models.lam import LAM
from lamina.rng import Rng
from lamina.training import plan as planning
from lamina.training.costs import Cost, Part, Plan, days, measured, parse_gpus
from lamina.training.plan import plan, told_plan, training_bytes
from lamina.training.settings import TrainConfig

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def paper() -> Plan:
    return plan(flexlam_real.build(flexlam_real.Config()))


def test_flops_of_the_papers_size_by_formula(paper):
    """Two for every weight and token, and the scores and sums of attention; twice that backward."""
    found = {part.name: part for part in paper.parts}
    patches, slots, width = 14 * 19, 80, 1024
    n = patches + slots
    encoder = 2 * n * 24 * 12 * width**2 + 24 * 4 * n**2 * width + 2 * patches * 3 * 2 * 16**2 * width
    # Each frame's half of the projection is computed for both roles.
    encoder += 2 * patches * 3 * 2 * 16**2 * width
    assert found["encoder"].cost.forward == pytest.approx(encoder, rel=0.001)
    assert found["encoder"].cost.backward == pytest.approx(2 * encoder, rel=0.01)
    assert found["autoencoder"].trained == 0 and found["autoencoder"].cost.backward == 0
    assert paper.parameters == pytest.approx(304e6 + 2.244e9 + 83.8e6, rel=0.005)
    # Computing every layer again costs its forward pass.
    decoder = found["decoder"].cost
    assert 0.97 * decoder.forward < decoder.again < decoder.forward
    assert decoder.kept_then + decoder.kept_by_unit < decoder.kept / 5


@pytest.mark.parametrize("recompute", [False, True])
def test_what_a_real_model_computes(recompute):
    """A small LAM with weights, run on one pair, forward and backward, its units computed again or not."""
    module = methods.load("flexlam_real")
    config = module.build(module.Config(size="debug", image=(16, 24), slots=3))
    found = plan(config)
    lam = LAM(config)
    for unit in layers.repeated(lam) if recompute else ():
        layers.recompute(unit)
    frames = torch.rand(2, 3, 16, 24)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            z = lam.pair(*lam.embed(frames).halves()).post
            loss = lam.decoder.loss(frames[:1], z, frames[1:], Rng(0))
        with FlopCounterMode(display=False) as backward:
            loss.sum().backward()
    assert found.parameters == sum(value.numel() for value in lam.parameters())
    assert found.trained == sum(value.numel() for value in lam.parameters() if value.requires_grad)
    assert forward.get_total_flops() == found.cost.forward
    expected = found.cost.backward + found.cost.again * recompute
    # torch stops computing a unit again when all that it kept is there: the last product of each is spared.
    assert expected * (0.95 if recompute else 0.98) < backward.get_total_flops() <= expected * 1.02


def test_units_by_hand():
    """Two layers of four numbers for five rows: 160 FLOPs each; a unit's input is 20 numbers, and so is what it keeps."""
    with torch.device("meta"):
        units, x = [nn.Linear(4, 4), nn.Linear(4, 4)], torch.zeros(5, 4)
        cost, _ = measured(lambda: units[1](units[0](x).sin()), units)
    # The sine keeps its input, 20 numbers, outside of both.
    assert cost == Cost(320, 480, 2 * 60, 320, 2 * (20 + 40), 2 * 20)


def test_bytes_by_hand():
    found = Plan((Part("a", 100, 100, Cost(1, 2, 60.0, 1, 10.0, 5.0)), Part("b", 20, 0, Cost())))
    assert training_bytes(found, TrainConfig(), 4, 3, 8) == {
        "weights": 480, "gradients": 400, "moments": 800, "average": 480, "bfloat16 copies": 0, "activations": 180
    }  # fmt: skip
    sharded = TrainConfig(parallel="fsdp2", recompute=True, ema_offload=True, precision="bf16")
    assert training_bytes(found, sharded, 4, 3, 8) == {
        "weights": 120, "gradients": 100, "moments": 200, "average": 0, "gathered": 80, "activations": 45
    }  # fmt: skip
    assert days(0.4 * 989e12 * 86_400 * 8, "H100", 8) == pytest.approx(1)


def test_the_text_says_days_and_what_fits(paper, monkeypatch):
    monkeypatch.setattr(planning, "plan", lambda config: paper)
    config = flexlam_real.build(flexlam_real.Config())
    papers = TrainConfig(**flexlam_real.TRAINING)
    text = told_plan(config, papers, "8xH100")
    step = 1024 * (paper.cost.forward + paper.cost.backward)
    assert f"a training step of 1,024 pairs: {step / 1e12:,.1f} TFLOP" in text and "does not fit" not in text
    assert (
        f"200,000 steps on 8 H100 at 40% of the peak (989 TFLOP/s, dense bfloat16): {days(step * 2e5, 'H100', 8):,.2f} days"
        in text
    )
    tight = told_plan(config, TrainConfig(batch=1024, precision="bf16"), "8xH100")
    assert "that does not fit; this does: --parallel fsdp2 --accumulate 4" in tight
    with pytest.raises(LaminaError, match="--batch 1024 does not divide among 3 GPUs"):
        told_plan(config, papers, "3xH100")


@pytest.mark.parametrize("text", ["H100", "0xH100", "8xTPU", "8 H100", "x"])
def test_gpus_are_a_number_and_a_kind(text):
    assert parse_gpus("16xA100") == (16, "A100")
    with pytest.raises(LaminaError, match=r"as in 8xH100 \(kinds: H20, A100, H100\)"):
        parse_gpus(text)


def test_the_command_needs_no_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "flexlam", "--plan", "2xA100", "--size", "debug", "--image", "16", "16", "--steps", "100"]
    assert main(command) == 0
    assert "100 steps on 2 A100" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert main([*command[:3], "many"]) == 2
