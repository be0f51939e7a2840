"""The leaderboard at scale smoke: a row for each method, every reference, and one value for each seed."""

from __future__ import annotations

import math
from pathlib import Path

from lamina_research.claims.leaderboard import NEEDED, REFERENCES, SETUPS, leaderboard
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


def test_the_scales_that_decide_compare_all_methods_with_three_seeds() -> None:
    for scale in ("cpu", "gpu"):
        setup = SETUPS[scale]
        assert setup.compare.methods == () and setup.compare.seeds == 3 and set(setup.sets) == {"doom", "metaworld"}
