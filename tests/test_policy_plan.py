"""The plan of a flow policy: parameters, FLOPs and memory, against published numbers, formulas, and policies that run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import test_policy_backbone
import test_policy_flow
import tiny_backbones
from lamina.cli import main
from lamina.data.memory import InMemoryDataset
from lamina.policies.flow import plan as planning
from lamina.policies.flow.config import FlowConfig
from lamina.policies.flow.model import FlowModel
from lamina.policies.flow.plan import INSTRUCTION, Cost, Part, Plan, measured, plan, told_plan
from lamina.policies.flow.training import plan_flow_policy
from lamina.training.settings import TrainConfig
from test_policy_backbone import context_of, model_of, shapes_of

saved = test_policy_backbone.saved

PALIGEMMA = "google/paligemma-3b-pt-224"


@pytest.fixture(scope="module")
def paper() -> Plan:
    """ALAM's policy: two cameras, 16 actions, all of PaliGemma trained (App. A.2, Tab. 8)."""
    pytest.importorskip("transformers")
    return plan(FlowConfig(backbone=PALIGEMMA, tune="whole", size="paper", chunk=16), shapes_of(latent=32))


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """A counter for the CPU, of whose fused attention it counts nothing."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def test_the_size_of_the_papers(paper: Plan) -> None:
    """PaliGemma: 2.92 billion (the hub's page), of which SigLIP-So400m 412 million without its head, Gemma 2.51 billion (Gemma, Tab. 2:
    1,982 million and the embedding of 257,216 words). The action expert of pi0: 300 million; together 3.2 billion."""
    found = {part.name: part.parameters for part in paper.parts}
    assert found["vision"] == pytest.approx(412e6, rel=0.01)
    assert found["language"] == pytest.approx(1_981_884_416 + 257_216 * 2048, rel=0.001)
    assert sum(found[name] for name in ("vision", "connector", "language")) == pytest.approx(2.92e9, rel=0.01)
    assert found["action expert"] + found["context projection"] == pytest.approx(300e6, rel=0.02)
    assert paper.parameters == paper.trained == pytest.approx(3.22e9, rel=0.01)


def test_flops_of_the_papers_size_by_formula(paper: Plan) -> None:
    """Two for every weight and token, and the scores and sums of attention; twice that backward."""
    found = {part.name: part.cost for part in paper.parts}
    views, patches = 2, 256
    vision = 27 * (4 * 1152**2 + 2 * 1152 * 4304) + 3 * 14**2 * 1152
    vision = 2 * views * patches * vision + views * 27 * 4 * patches**2 * 1152
    assert found["vision"].forward == pytest.approx(vision, rel=0.001)
    assert found["connector"].forward == 2 * views * patches * 1152 * 2048
    n = views * patches + INSTRUCTION
    language = 18 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 16384)
    language = 2 * n * language + 18 * 4 * n**2 * 2048
    assert found["language"].forward == pytest.approx(language, rel=0.001)
    assert found["language"].backward == pytest.approx(2 * language, rel=0.001)
    assert found["context projection"].forward == 2 * (n + 1) * 13 * 2048 * 2048
    steps = paper.flow_steps
    assert paper.decision == pytest.approx(paper.cost.forward + (steps - 1) * found["action expert"].forward)


@pytest.mark.parametrize("kind", test_policy_backbone.KINDS)
@pytest.mark.parametrize("tune", test_policy_backbone.TUNES)
def test_what_a_real_policy_computes(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, kind: str, tune: str
) -> None:
    """Tiny models with weights, run on pictures and words, forward and backward."""
    folder, context = saved(kind), context_of()
    model = model_of(folder, tune=tune).train()
    images = 4 * (tiny_backbones.IMAGE // 14) ** 2 // (1 if kind == "paligemma" else 4)
    monkeypatch.setattr(planning, "INSTRUCTION", model.encoder.length - images)
    found = plan(model.config, model.shapes)
    assert found.parameters == sum(value.numel() for value in model.parameters())
    assert found.trained == sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert found.tokens == model.encoder.length + 1
    with counted() as forward:
        memory = model.observe(context)
        mask = model.network.mask(memory)
        z, u = model.network(memory, torch.zeros(2), torch.zeros(2, 2, 2, 5), torch.zeros(2, 2, 3), mask)
    with counted() as backward:
        (z.sum() + u.sum()).backward()
    assert forward.get_total_flops() == pytest.approx(2 * found.cost.forward, rel=0.02)
    assert backward.get_total_flops() == pytest.approx(2 * found.cost.backward, rel=0.03)


@pytest.mark.parametrize("options", [{}, {"generation": "two_stage"}, {"form": "villa_x"}, {"latents": "none"}])
def test_the_small_encoder_and_every_form(options: dict[str, str]) -> None:
    config = FlowConfig(**{"size": "debug", "chunk": 2, "latent_steps": 2, **options})  # type: ignore[arg-type]
    given = shapes_of(image=(3, 32, 32), latent=0 if options.get("latents") == "none" else 5)
    found, model = plan(config, given), FlowModel(config, given)
    assert [part.name for part in found.parts] == ["encoder", "context projection", "action expert"]
    assert found.parameters == found.trained == sum(value.numel() for value in model.parameters())
    draws = torch.Generator().manual_seed(0)
    z = torch.randn(1, 2, 2, 5, generator=draws) if model.network.views else None
    context = test_policy_backbone.Context(
        torch.zeros(1, 2, 1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 1, 4), ("",)
    )
    with counted() as counter:
        model.sample(context, z, torch.randn(1, 2, 3, generator=draws))
    assert counter.get_total_flops() == pytest.approx(found.decision, rel=0.001)


def test_a_layers_cost_by_hand() -> None:
    """Four numbers to three, for five rows: 2*5*4*3 forward, as much for the weight's gradient; the input is kept."""
    with torch.device("meta"):
        layer, x = nn.Linear(4, 3), torch.zeros(5, 4)
        assert measured(lambda: layer(x))[0] == Cost(120, 120, 2 * 20)
        inner = measured(lambda: layer(x.requires_grad_()))[0]
        assert inner == Cost(120, 240, 2 * 20)
        frozen = nn.Linear(4, 3).requires_grad_(False)
        assert measured(lambda: frozen(torch.zeros(5, 4)))[0] == Cost(120, 0, 0)


def test_bytes_and_days_by_hand() -> None:
    found = Plan((Part("a", 10, 10, Cost(1e12, 2e12, 6e9)), Part("b", 90, 0, Cost(4e12, 0, 0), 4e12)), 7, 3)
    assert found.training_bytes(2, True) == {
        "weights": 220, "gradients": 40, "moments": 80, "average": 220, "activations": 12e9
    }  # fmt: skip
    assert found.training_bytes(2, False)["average"] == 0
    assert found.decision == 1e12 + 3 * 4e12
    text = told_plan(found, TrainConfig(steps=1000, batch=16))
    # 16 observations of 7 TFLOP, 1000 times, at 0.4 of 148 TFLOP/s
    assert "a training step of 16 observations: 112.0 TFLOP; 1,000 steps: 0.11 EFLOP" in text
    assert f"1 GPU {112e15 / (0.4 * 148e12) / 86_400:>8,.2f}" in text
    assert (
        "with 2 observations at a time, GB: weights 0.0, gradients 0.0, moments 0.0, average 0.0, activations 12.0"
        in text
    )


def test_the_command_prints_it_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    run = test_policy_flow.write_run(tmp_path / "run")
    data = InMemoryDataset(test_policy_flow.episodes(12), fps=test_policy_flow.FPS)
    config = FlowConfig(backbone=PALIGEMMA, tune="frozen", size="debug", chunk=4)
    text = plan_flow_policy(run, [data], config, TrainConfig(steps=10, batch=8))
    assert "vision" in text and "2,508.7" in text
    assert not (run / "policy").exists()
    assert main(["policy", str(run), "--data", "nowhere", "--plan"]) == 2
    assert "--plan: there is none for policies of kind tokens" in capsys.readouterr().err
