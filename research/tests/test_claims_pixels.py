"""Claims on rendered frames: experiments at smoke scale, and the differences between variants."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from lamina.methods import lapo
from lamina.models.lam import LAM
from lamina_research.claims.exo.cheetah import REMEDIES, SETUPS, VARIANTS, CheetahStudy
from lamina_research.experiment import Experiment
from lamina_research.reproduce import find_claim, reproduce
from lamina_research.study import STOPPED

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def workdir(workdir: Path) -> Path:
    pytest.importorskip("dm_control")
    return workdir


@pytest.mark.sim
@pytest.mark.parametrize("claim", ["exo/swap", "exo/cheetah"])
def test_a_claim_on_pictures_runs_whole_at_smoke_scale(claim: str, workdir: Path) -> None:
    out = workdir / f"{claim.partition('/')[2]}.json"
    record = json.loads(reproduce(claim, "smoke", out, workdir=workdir, progress=lambda line: None).read_text())
    assert record["holds"] is None
    values = [v for method in record["metrics"].values() for metric in method.values() for v in metric["values"]]
    assert values and all(v is not None for v in values), record["metrics"]
    assert out.with_suffix(".png" if claim == "exo/swap" else ".svg").exists()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "vanilla"])
def test_the_variants_differ_in_their_remedy_alone(variant: str) -> None:
    def shapes(name: str) -> dict[str, torch.Size]:
        config = lapo.Config(**{**SETUPS["smoke"].options, **VARIANTS[name], "target_width": 6})
        return {
            n: p.shape for n, p in LAM(lapo.build(config)).named_parameters() if not n.startswith(("target.", "space."))
        }

    plain, other = shapes("vanilla"), shapes(variant)
    assert other.keys() == plain.keys()
    reads = {n for n in plain if plain[n] != other[n]}  # layers that read or write channels of features
    assert bool(reads) is ("space" in VARIANTS[variant]) and len(reads) < 8


def test_every_remedy_is_a_variant_and_every_scale_has_a_setup() -> None:
    assert set(REMEDIES) < set(VARIANTS) and all(c in find_claim("exo/cheetah").scales for c in SETUPS)


def test_a_lam_that_came_to_nothing_has_no_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = CheetahStudy(Experiment("smoke", (0,), tmp_path))
    (tmp_path / STOPPED).write_text("collapse\n")
    monkeypatch.setattr(study, "run", lambda model: tmp_path)
    assert all(math.isnan(value) for value in study.scores("vanilla", 0).values())


def test_the_action_target_sees_the_labels_that_every_translator_sees() -> None:
    study = CheetahStudy(Experiment("smoke", (0,), Path("nowhere")))
    shares = [dict(study.variant(v, 0).options).get("target_share") for v in VARIANTS]
    assert [s for s in shares if s is not None] == [study.setup.labels]
