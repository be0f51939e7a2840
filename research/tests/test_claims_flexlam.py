"""Claims of FlexLAM: the draw of labels, decision rules, and every experiment at smoke scale on the real suite."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from lamina import methods
from lamina.evaluation.probes import translation
from lamina.models.lam import LAM
from lamina.policies.token_model import TokenModel
from lamina.training.settings import TrainConfig
from lamina_research.claims import flexlam as paper
from lamina_research.claims.flexlam import alignment
from lamina_research.claims.flexlam import study as study_module
from lamina_research.claims.flexlam.study import (
    SETUPS,
    FlexLAMStudy,
    Labels,
    draw_labels,
    fixed_k_spec,
    flexlam_spec,
    mean_loss,
)
from lamina_research.experiment import Experiment
from lamina_research.figures import BarPlot, save
from lamina_research.record import read_record
from lamina_research.reproduce import CLAIMS, reproduce
from lamina_research.seeds import below
from lamina_research.study import ModelSpec

TASKS = ["shoot"] * 500 + ["walk"] * 40 + ["dodge"] * 60


def test_labels_are_drawn_evenly_over_tasks_however_many_transitions_each_has() -> None:
    rows = draw_labels(TASKS, Labels(60), seed=0)
    assert Counter(TASKS[i] for i in rows) == {"shoot": 20, "walk": 20, "dodge": 20}
    rows = draw_labels(TASKS, Labels(300), seed=0)  # one task has 40: the rest comes from the others
    assert Counter(TASKS[i] for i in rows) == {"shoot": 200, "walk": 40, "dodge": 60}


def test_few_labels_are_a_part_of_many_and_each_draw_is_another() -> None:
    few, many = (set(draw_labels(TASKS, Labels(n, draw=1), seed=2).tolist()) for n in (30, 90))
    other = set(draw_labels(TASKS, Labels(30, draw=2), seed=2).tolist())
    assert few < many and len(few) == 30 and len(few & other) < 20


def test_labels_of_one_task_come_from_it_alone() -> None:
    rows = draw_labels(TASKS, Labels(25, tasks=("walk",)), seed=0)
    assert {TASKS[i] for i in rows} == {"walk"} and len(rows.unique()) == 25


def test_a_difference_counts_only_beyond_its_interval() -> None:
    assert below([1.0, 1.1, 1.2], [1.2, 1.3, 1.41])  # differences about -0.2, all alike
    assert not below([1.0, 1.1, 1.2], [1.4, 1.1, 1.1])
    assert not below([1.0], [2.0])  # one seed decides nothing


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_flexlam_and_fixed_k_differ_only_in_the_bottleneck(scale: str) -> None:
    """Same encoder, decoder, FSQ family and training; at the largest budget the same number of parameters but the null latent."""
    setup = SETUPS[scale]
    full = setup.budgets[-1]
    with torch.device("meta"):
        lams = {}
        for model in (flexlam_spec(0), *(fixed_k_spec(k, 0) for k in setup.budgets)):
            config = model.method.Config(**{**setup.options, **dict(model.options)})
            lams[model.name, config.slots] = LAM(model.method.build(config))
        ours, theirs = lams["flexlam", full], lams["fixed_k", full]
        TokenModel(setup.tokens, ours.config.image, full, ours.bottleneck.codebook_size)  # type: ignore[arg-type]
    assert ours.config.encoder == theirs.config.encoder and ours.config.decoder == theirs.config.decoder
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    assert (ours.config.prefix, theirs.config.prefix) == ("uniform", "full")
    assert all(lam.config.bottleneck == ours.config.bottleneck for lam in lams.values())
    assert setup.options["slots"] == full


def test_the_mean_over_tasks_does_not_depend_on_how_many_transitions_each_has(tmp_path: Path) -> None:
    losses = {"a": 1.0, "b": 3.0}
    assert mean_loss(losses) == 2.0 and mean_loss(losses, without=("a",)) == 3.0


def test_bars_with_gaps_are_drawn_the_same_every_time(tmp_path: Path) -> None:
    bars = {"frozen": [[0.9, 1.1], [2.0]], "joint": [[float("nan")]] * 2}
    plot = BarPlot("t", "loss", ["IDM", "FlexLAM"], bars, {"random": [0.5]})
    assert save([plot], tmp_path / "a.svg").read_bytes() == save([plot], tmp_path / "b.svg").read_bytes()


@pytest.fixture(scope="module")
def workdir(workdir: Path) -> Path:
    pytest.importorskip("vizdoom")
    return workdir


@pytest.mark.sim
def test_joint_alignment_compares_all_models_on_one_draw_of_labels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All have the same loss, and the first draw is the easiest: means over other draws would let inverse dynamics lead."""
    easy = {0: 1.0, 1: 1.06, 2: 1.05}

    def losses(study: FlexLAMStudy, model: ModelSpec, labels: Labels) -> dict[int, dict[str, float]]:
        better = 0.01 + 0.001 * (model.name == "flexlam") if labels.joint else 0.0
        return {k: {"task": easy[labels.draw] + 0.002 * model.seed - better} for k in (1, 4, 16)}

    def controls(study: FlexLAMStudy, model: ModelSpec, labels: Labels) -> dict[str, float]:
        return {"inverse dynamics model": easy[labels.draw] + 0.002 * model.seed + 0.0005 * (model.seed - 1)}

    monkeypatch.setattr(FlexLAMStudy, "translator_losses", losses)
    monkeypatch.setattr(FlexLAMStudy, "controls", controls)
    outcome = alignment.joint_alignment(Experiment("cpu", (0, 1, 2), tmp_path))
    for name in ("FlexLAM@16", "Fixed-K16"):
        assert outcome.metrics[name]["frozen"] == pytest.approx([1.0, 1.002, 1.004])
    assert not outcome.holds and "Inverse dynamics leads the frozen LAMs: no" in outcome.explanation


@pytest.mark.parametrize(("ours", "holds"), [(90.0, True), (-50.0, False)])
def test_a_narrow_source_is_decided_by_the_return_too(
    ours: float, holds: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def losses(study: FlexLAMStudy, labels: Labels, seed: int, without: Sequence[str] = ()) -> dict[str, float]:
        rise = {"FlexLAM@16": 0.1, "Fixed-K16": 0.3} if labels.tasks else {}
        loss = {"FlexLAM@16": 1.0 + 0.001 * seed, "Fixed-K16": 1.2}
        return {name: value + rise.get(name, 0.0) for name, value in loss.items()}

    def returns(study: FlexLAMStudy, model: ModelSpec, labels: Labels, k: int) -> dict[str, float]:
        return {"above_random": (ours if model.name == "flexlam" else 80.0) + model.seed}

    monkeypatch.setattr(FlexLAMStudy, "narrow_task", lambda study: "corridor")
    monkeypatch.setattr(FlexLAMStudy, "budget_losses", losses)
    monkeypatch.setattr(FlexLAMStudy, "returns", returns)
    assert alignment.narrow_source(Experiment("cpu", (0, 1, 2), tmp_path)).holds == holds


def test_the_kept_narrow_source_record_is_decided_by_the_rule_that_it_states() -> None:
    kept = read_record(Path(__file__).parents[2] / "results" / "flexlam" / "narrow-source-cpu.json")
    ours, theirs = (
        {metric: found["values"] for metric, found in kept["metrics"][name].items()}
        for name in ("FlexLAM@16", "Fixed-K16")
    )
    assert alignment.steadier(ours, theirs) == kept["holds"]
    assert kept["decides"] == CLAIMS["flexlam/narrow-source"].decides


def test_a_short_prefix_is_compared_with_shuffled_latents_of_its_width_and_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[int, int]] = []

    def losses(study: FlexLAMStudy, model: ModelSpec, labels: Labels) -> dict[int, dict[str, float]]:
        return {k: {"task": 1.5 - 0.01 * k + 0.001 * model.seed * (k % 3)} for k in range(1, 17)}

    def scored(translator: Any, prefix: Any, test: Any, prefixes: tuple[int, ...], name: str, role: str) -> list[Any]:
        (k,) = prefixes
        return [SimpleNamespace(loss=1.4 if k == 1 else 9.0)]

    def fitted(prefix: Any, items: Any, actions: Any, config: Any, training: TrainConfig) -> None:
        asked.append((items, training.seed))

    monkeypatch.setattr(FlexLAMStudy, "translator_losses", losses)
    monkeypatch.setattr(FlexLAMStudy, "controls", lambda study, model, labels: {"shuffled latents": 9.0})
    for name in ("run", "load", "labelled", "latents", "label_data"):
        monkeypatch.setattr(FlexLAMStudy, name, lambda *args: Mock())
    monkeypatch.setattr(FlexLAMStudy, "loss_by_task", lambda study, loss, test: {"task": loss + 0.001 * test})
    monkeypatch.setattr(study_module, "actions_of", lambda data: Mock())
    monkeypatch.setattr(translation, "shuffled", lambda items, generator: generator.initial_seed())
    monkeypatch.setattr(translation, "fit_translator", fitted)
    monkeypatch.setattr(translation, "score_translator", scored)
    outcome = alignment.prefix_scaling(Experiment("cpu", (0, 1, 2), tmp_path))
    assert outcome.metrics["shuffled latents, k = 1"]["loss"] == pytest.approx([1.401] * 3)  # the mean of three draws
    assert asked == [(draw, draw) for _ in range(3) for draw in range(3)]
    assert not outcome.holds  # its own loss at k = 1 is 1.49: above the control of k = 1, far below that of k = 16


@pytest.mark.parametrize("claim", [claim.id for claim in paper.CLAIMS])
def test_every_claim_runs_at_smoke_scale(claim: str, workdir: Path) -> None:
    out = workdir / "records" / f"{claim.partition('/')[2]}.json"
    record = read_record(reproduce(claim, "smoke", out, workdir=workdir, progress=lambda line: None))
    assert record["holds"] is None and "decides nothing" in record["explanation"]
    values = [v for method in record["metrics"].values() for metric in method.values() for v in metric["values"]]
    assert values and all(v is not None for v in values), record["metrics"]
    assert out.with_suffix(".svg").exists() or out.with_suffix(".png").exists()


@pytest.mark.sim
def test_a_second_claim_trains_nothing_twice_and_held_out_frames_stay_held_out(workdir: Path) -> None:
    said: list[str] = []
    study = FlexLAMStudy(Experiment("smoke", (0,), workdir, said.append))
    first = FlexLAMStudy(Experiment("smoke", (0,), workdir, lambda line: None)).run(flexlam_spec(0))
    second = study.run(flexlam_spec(0))
    assert first == second and any("from the cache" in line for line in said)
    assert json.loads((first / "config.json").read_text())["method"] == "flexlam"
    train, test = (study.latents(flexlam_spec(0), split) for split in ("train", "test"))
    assert not set(train.episode.tolist()) & set(test.episode.tolist())
    assert len(set(study.task_of(test))) == 9 and methods.names()
    other = replace(study.setup, data=replace(study.setup.data, seed=8))
    assert FlexLAMStudy(study.experiment, other).key(flexlam_spec(0)) != study.key(flexlam_spec(0))
