"""The leaderboard at scale smoke: a row for each method, every reference, and one value for each seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lamina.comparison.table import CompareRow, Comparison
from lamina.errors import LaminaError
from lamina_research.claims.leaderboard import NEEDED, REFERENCES, SETUPS, LeaderboardStudy, leaderboard
from lamina_research.experiment import Experiment


def test_every_method_has_every_figure_and_nothing_is_trained_twice(tmp_path: Path) -> None:
    outcome = leaderboard(Experiment("smoke", (0,), tmp_path, progress=lambda text: None))
    assert outcome.holds and outcome.explanation.endswith("every figure is there")
    for method in SETUPS["smoke"].compare.methods:
        assert all(math.isfinite(outcome.metrics[method][f"{key}, grid"][0]) for key in NEEDED)
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


def test_the_scales_that_decide_compare_all_methods_with_three_seeds() -> None:
    for scale in ("cpu", "gpu"):
        setup = SETUPS[scale]
        assert setup.compare.methods == () and setup.compare.seeds == 3 and set(setup.sets) == {"doom", "metaworld"}
