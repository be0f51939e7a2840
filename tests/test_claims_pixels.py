"""Claims on rendered pictures: whole at smoke scale, and what the variants differ in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lamina.claims import find_claim, reproduce
from lamina.claims.exo.pixels import REMEDIES, SETUPS, VARIANTS, few_of
from lamina.lam import LAM
from lamina.methods import lapo

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One work folder for both: they share data and LAMs."""
    pytest.importorskip("dm_control")
    return tmp_path_factory.mktemp("pixels")


@pytest.mark.sim
@pytest.mark.parametrize("claim", ["exo/swap", "exo/cheetah"])
def test_a_claim_on_pictures_runs_whole_at_smoke_scale(claim: str, workdir: Path) -> None:
    out = workdir / f"{claim.partition('/')[2]}.json"
    record = json.loads(reproduce(claim, "smoke", out, workdir=workdir, progress=lambda line: None).read_text())
    assert record["holds"] is None
    values = [v for method in record["metrics"].values() for metric in method.values() for v in metric["values"]]
    assert values and all(v is not None for v in values), record["metrics"]
    assert out.with_suffix(".png" if claim == "exo/swap" else ".svg").exists()


def test_the_variants_differ_in_their_remedy_alone() -> None:
    plain, *others = (
        dict(
            LAM(
                lapo.build(lapo.Config(**{**SETUPS["smoke"].options, **VARIANTS[v], "target_width": 6}))
            ).named_parameters()
        )
        for v in ("vanilla", "cross-exogenous", "action target")
    )
    shapes = {name: p.shape for name, p in plain.items()}
    for other in others:
        assert {n: p.shape for n, p in other.items() if not n.startswith("target.")} == shapes
    assert set(REMEDIES) < set(VARIANTS) and all(c in find_claim("exo/cheetah").scales for c in SETUPS)


def test_few_labels_are_a_share_of_all_and_another_seed_has_others() -> None:
    rows = few_of(10_000, 0.01, seed=0)
    assert len(rows.unique()) == 100 and len(few_of(300, 0.01, 0)) == 16
    assert len(set(rows.tolist()) & set(few_of(10_000, 0.01, 1).tolist())) < 20
