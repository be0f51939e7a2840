"""Claims of FlexLAM: the draw of labels, decision rules, and every experiment at smoke scale on the real suite."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lamina import methods
from lamina.models.lam import LAM
from lamina.policies.token_model import TokenModel
from lamina_research.claims import flexlam as paper
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
from lamina_research.reproduce import reproduce
from lamina_research.seeds import below

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
