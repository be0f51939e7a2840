"""lamina/feature-control: the experiment at smoke scale, and its rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lamina.models import efficientnet
from lamina_research.claims import feature_control as control
from lamina_research.reproduce import find_claim, reproduce

torch.set_num_threads(1)

PLACES = ("Doom, seen tasks", "Doom, unseen tasks")


@pytest.mark.skipif(not efficientnet.is_installed(), reason="the package with the weights is not installed")
def test_the_claim_runs_whole_at_smoke_scale(workdir: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    path = reproduce("lamina/feature-control", "smoke", out, workdir=workdir, progress=lambda line: None)
    record = json.loads(path.read_text())
    assert record["holds"] is None and out.with_suffix(".svg").exists()
    assert set(record["metrics"]) == {*control.LAMS, control.FEATURES, control.PIXELS}
    for row in record["metrics"].values():
        assert set(row) == {"grid, seen tasks", "grid, unseen tasks"}
        assert all(0.1 < metric["values"][0] < 100 for metric in row.values())


def metrics(ours: list[float], features: list[float]) -> dict[str, dict[str, list[float]]]:
    """Three seeds in two places; LAMs on pixels at 0.8."""
    pixels = {name: {place: [0.8, 0.8, 0.8] for place in PLACES} for name in (*control.ON_PIXELS, control.PIXELS)}
    return {
        control.OURS: dict.fromkeys(PLACES, ours),
        control.FEATURES: {PLACES[0]: features, PLACES[1]: [0.9, 0.91, 0.9]},
        **pixels,
    }


def test_the_latent_must_be_better_everywhere() -> None:
    # Differences -0.1, -0.11, -0.12: mean -0.11, half width 4.303 * 0.01 / sqrt(3) = 0.025.
    outcome = control.decided(metrics([0.5, 0.51, 0.5], [0.6, 0.62, 0.62]))
    assert outcome.holds and "Doom, seen tasks -0.110" in outcome.explanation
    assert "Not significantly lower: nowhere" in outcome.explanation
    assert "beats both LAMs on pixels: Doom, seen tasks, Doom, unseen tasks" in outcome.explanation
    # Differences -0.1, 0.1, -0.1 decide nothing, and the other place alone is not enough.
    outcome = control.decided(metrics([0.5, 0.5, 0.5], [0.6, 0.4, 0.6]))
    assert not outcome.holds and "Not significantly lower: Doom, seen tasks." in outcome.explanation


def test_tasks_are_seen_or_unseen() -> None:
    names = {"push", "open", "close", "reach", "lift"}
    assert control.divided(names, apart=False) == (("lift", "open", "push"), ("close", "reach"))
    assert control.divided(names, apart=True) == ((), ())


def test_the_lams_differ_in_what_the_claim_says() -> None:
    ours, same, _ = control.LAMS.values()
    assert {name for name in ours if same.get(name) != ours[name]} == {"space", "patch"}
    for scale, domains in control.SETUPS.items():
        assert scale == "smoke" or set(domains) == {"Doom", "MetaWorld", "cheetah"}
        assert len({(setup.train, setup.labels, tuple(setup.options.items())) for setup in domains.values()}) == 1
    assert set(control.SETUPS) == set(find_claim("lamina/feature-control").scales)
