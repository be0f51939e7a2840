"""Claims of Why Latent Actions Fail: the rules that decide, every experiment whole at smoke scale, and `lamina exogenous`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lamina.claims import exo as paper
from lamina.claims import reproduce
from lamina.claims.exo import lab, linear, what_if
from lamina.claims.exo.what_if import Question
from lamina.claims.experiment import Claim
from lamina.claims.figures import LinePlot, Panels, draw
from lamina.claims.intervals import Interval
from lamina.cli import main

torch.set_num_threads(1)

LINEAR = [claim for claim in paper.CLAIMS if claim.run is not None and claim.run.__module__ == linear.__name__]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("claim", LINEAR, ids=lambda claim: claim.id)
def test_a_linear_claim_runs_whole_at_smoke_scale(claim: Claim, workdir: Path, tmp_path: Path) -> None:
    path = reproduce(claim.id, "smoke", tmp_path / "record.json", (0, 1), workdir, lambda line: None)
    record = json.loads(path.read_text())
    assert record["holds"] is None and (tmp_path / "record.svg").exists()
    values = [v for method in record["metrics"].values() for metric in method.values() for v in metric["values"]]
    missing = [m for method in record["metrics"].values() for m, v in method.items() if None in v["values"]]
    assert values and all(m == "rank correlation with p" for m in missing)  # smoke has one p there
    # Left as it is, the data of exo/cca violates the assumption of its closed form; elsewhere that is the least loss, up to sampling.
    methods = [m for name, m in record["metrics"].items() if name not in ("as it is", "best xi'-independent")]
    above = [v for method in methods for m, x in method.items() if "above closed form" in m for v in x["values"]]
    assert all(abs(v) < 0.01 for v in above)


def test_the_papers_sizes_are_those_of_cpu() -> None:
    world = lab.SETUPS["cpu"].world
    assert (world.state, world.observation, world.trajectories) == (8, 128, 8_000)
    assert all(claim.default_seeds("cpu") == (0, 1, 2, 3) and claim.default_seeds("smoke") == (0,) for claim in LINEAR)


def test_a_curve_rises_by_its_ranks_beyond_the_interval() -> None:
    x = [0.0, 1.0, 2.0]
    each, up = linear.rises(x, torch.tensor([[1.0, 2, 9], [0.0, 5, 6], [2.0, 3, 4]]))
    assert each == [1.0, 1.0, 1.0] and up
    each, up = linear.rises(x, torch.tensor([[1.0, 2, 9], [3.0, 2, 1], [2.0, 2, 2]]))
    assert each == [1.0, -1.0, 0.0] and not up


def test_lower_means_at_every_point_beyond_the_interval() -> None:
    low, high = torch.zeros(3, 1, 2), torch.tensor([[[1.0, 1.0]], [[1.1, 1.2]], [[0.9, 1.1]]])
    assert lab.below(low, high)
    high[0, 0, 1] = -1.0  # one seed at one point: its interval now includes 0
    assert not lab.below(low, high)


def test_panels_are_drawn_side_by_side() -> None:
    one = LinePlot("t", "x", "y", [0, 1], {"a": [Interval(1.0, 0.5, 1.5), Interval(2.0, None, None)]})
    assert [axes.get_title() for axes in draw(Panels((one, one))).axes] == ["t", "t"]


# ------------------------------------------------------------------------------------------------- lamina exogenous

SMALL = ["--states", "3", "--state", "2", "--observation", "9", "--latent", "2", "--draws", "2"]


def test_the_answer_names_every_objective_and_follows_the_question(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for p in ("0", "0.5"):
        assert main(["exogenous", "--p-switch", p, *SMALL]) == 0
        said.append(capsys.readouterr().out)
    rows = [{line.split("  ")[0]: line.split() for line in text.splitlines()} for text in said]
    assert {"reconstruction", "cross-exogenous", "action prediction", "q prediction"} <= rows[0].keys()
    still, moving = (float(row["reconstruction"][4]) for row in rows)  # share of z that xi' makes
    assert abs(still) < 1e-9 and moving > 0.05
    assert "% more" in said[1]


def test_a_weight_of_nothing_changes_little_and_a_large_one_much() -> None:
    error = {}
    for weight in (1e-6, 100.0):
        question = Question(0.4, 1.0, 3, 2, 9, 2, weight=weight, draws=1)
        grid = question.grid()
        models = what_if._solved(question, grid)
        error[weight] = {n: float(grid.measure(m, grid.exact, grid.exact)["nmse"]) for n, m in models.items()}
    few, many = error.values()
    assert few["action prediction"] == pytest.approx(few["reconstruction"], rel=1e-3)
    assert many["action prediction"] < 0.1 * many["reconstruction"]


@pytest.mark.parametrize("name", ["leakage", "sensitivity", "remedies", "cca"])
def test_every_figure_is_drawn_from_closed_forms(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["exogenous", "--figure", name, *SMALL]) == 0
    assert (tmp_path / f"{name}.svg").read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--p-switch", "1.5"], "0 to 1"),
        (["--p-switch", "nan"], "0 to 1"),
        (["--alpha", "0"], "above 0"),
        (["--alpha", "inf"], "finite"),
        (["--alpha", "1e-9"], "rank-deficient"),
        (["--alpha", "1e200"], "not finite"),
        (["--latent", "9"], "d_z = 9"),
        (["--latent", "0"], "d_z = 0"),
        (["--states", "1"], "at least 2"),
        (["--state", "9"], "below d_o"),
        (["--weight", "-1"], "--weight"),
        (["--draws", "0"], "--draws"),
        (["--out", "x.svg"], "--figure"),
        (["--figure", "cca", "--out", "x.png"], ".svg"),
    ],
)
def test_bad_questions_are_answered_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exogenous", *SMALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
