"""The leaderboard at scale smoke: a row for each method, every reference, and one value for each seed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lamina import methods
from lamina.comparison.table import CompareRow, Comparison
from lamina.errors import LaminaError
from lamina_research.claims.leaderboard import REFERENCES, SETUPS, LeaderboardStudy, leaderboard, needed
from lamina_research.experiment import Experiment


def test_every_method_has_every_figure_and_nothing_is_trained_twice(tmp_path: Path) -> None:
    outcome = leaderboard(Experiment("smoke", (0,), tmp_path, progress=lambda text: None))
    assert outcome.holds and outcome.explanation.endswith("every figure is there")
    for method in SETUPS["smoke"].compare.methods:
        assert all(math.isfinite(outcome.metrics[method][f"{key}, grid"][0]) for key in needed(method))
    assert all(outcome.metrics[name] for name in REFERENCES)
    assert outcome.picture is not None and outcome.picture.exists()
    models = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    again = leaderboard(Experiment("smoke", (0,), tmp_path, progress=lambda text: None))
    assert again.metrics == outcome.metrics
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")} == models


def test_a_method_that_fails_by_a_fault_is_no_row_and_one_that_diverges_is(tmp_path: Path, monkeypatch) -> None:
    def ended(state: str) -> None:
        rows = (CompareRow("flexlam", "model", state=state, reason="seed 0: why"),)
        monkeypatch.setattr(LeaderboardStudy, "compared", lambda *_: Comparison(tmp_path, rows, (), {"picture": None}))

    ended("failed")
    with pytest.raises(LaminaError, match="flexlam on grid: seed 0: why"):
        leaderboard(Experiment("smoke", (0,), tmp_path, progress=lambda text: None))
    ended("diverged")
    outcome = leaderboard(Experiment("smoke", (0,), tmp_path, progress=lambda text: None))
    assert "failed: flexlam on grid (diverged)" in outcome.explanation


def test_every_row_and_every_figure_that_the_rule_names_is_looked_for(tmp_path: Path, monkeypatch) -> None:
    """It asks for every built-in method, every probe that a decoder allows, and every reference and control."""
    full = {
        method: CompareRow(method, "model", {key: (1.0,) for key in needed(method)}) for method in ("flexlam", "alam")
    }
    full |= {name: CompareRow(name, "control", {"loss": (1.0,)}) for name in REFERENCES}

    def missing(**changed: CompareRow | None) -> str:
        rows = tuple(row for row in (full | {n.replace("_", " "): r for n, r in changed.items()}).values() if row)
        monkeypatch.setattr(LeaderboardStudy, "compared", lambda *_: Comparison(tmp_path, rows, (), {"picture": None}))
        outcome = leaderboard(Experiment("smoke", (0,), tmp_path, progress=lambda text: None))
        assert outcome.holds == ("missing" not in outcome.explanation)
        return outcome.explanation.partition("missing: ")[2]

    assert missing() == ""
    assert missing(alam=None) == "alam on grid"
    assert missing(shuffled_latents=None) == "shuffled latents on grid"
    blind = CompareRow("flexlam", "model", {k: v for k, v in full["flexlam"].values.items() if k != "psnr"})
    assert missing(flexlam=blind) == "psnr of flexlam on grid"
    assert "psnr" not in needed("univla")  # which predicts features


def test_the_record_has_what_the_rule_names() -> None:
    record = json.loads((Path(__file__).parents[2] / "results/lamina/leaderboard-cpu.json").read_text())
    found = {(name, key.partition(",")[0]) for name, row in record["metrics"].items() for key in row}
    for method in methods.names():
        assert {(method, key) for key in needed(method)} <= found
    assert set(REFERENCES) <= record["metrics"].keys() and record["holds"]


def test_the_scales_that_decide_compare_all_methods_with_three_seeds() -> None:
    for scale in ("cpu", "gpu"):
        setup = SETUPS[scale]
        assert setup.compare.methods == () and setup.compare.seeds == 3 and set(setup.sets) == {"doom", "metaworld"}
