"""Claims on structured latents: fair rivals, what is void, runs that are stopped, and every experiment whole at smoke scale."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lamina.claims import CLAIMS, ac_lam, reproduce, structure
from lamina.claims.experiment import Experiment
from lamina.claims.lab import Recipe
from lamina.claims.record import read_record
from lamina.claims.structure import SETUPS, StructureLab, ac_lam_model, alam_model, rivals
from lamina.errors import LaminaError
from lamina.worlds import make

RUNNABLE = [claim.id for claim in CLAIMS.values() if claim.run and claim.id.startswith(("alam/", "ac_lam/"))]


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_rivals_share_the_backbone_and_differ_in_code_and_objective(scale: str) -> None:
    options = SETUPS[scale].options
    models = (alam_model(0), alam_model(0, False), ac_lam_model(0), *rivals(0), *structure.beyond_the_paper(0))
    configs = [m.method.build(m.method.Config(**{**options, **dict(m.options)})) for m in models]
    assert len({c.encoder for c in configs}) == len({c.decoder for c in configs}) == 1
    slots = {m.label: c.slots for m, c in zip(models, configs, strict=True)}
    assert slots["ALAM"] == slots["without the losses"] == slots["ALAM, before VQ"]
    assert len({n for label, n in slots.items() if not label.startswith(("ALAM", "without"))}) == 1
    assert all(c.whiten != "none" for c in configs)
    assert len({m.label for m in models}) == len(models)
    ours, plain = (m.method.Config(**{**options, **dict(m.options)}) for m in models[:2])
    assert (ours.composition, ours.reversal) != (0, 0) == (plain.composition, plain.reversal)
    assert replace(ours, composition=0.0, reversal=0.0) == plain


def test_a_column_of_table_1_knows_its_direction() -> None:
    low, high = [0.1, 0.11, 0.12], [0.5, 0.52, 0.51]
    assert ac_lam.better("composition", low, high) and not ac_lam.better("composition", high, low)
    assert ac_lam.better("displacement", high, low) and not ac_lam.better("displacement", low, high)
    assert not ac_lam.better("inverse", low[:1], high[:1])  # one seed decides nothing
    assert not ac_lam.better("displacement", high, [math.nan] * 3)


def test_what_is_void_is_named_with_its_reason() -> None:
    records = {"a": [{"void": None}, {"void": "the latent is ignored"}], "b": [{"void": None}]}
    found = structure.voids(records)
    assert found == {"a": "1 of 2 seeds: the latent is ignored"} and "Void: a" in structure.void_text(found)
    assert structure.void_text({}) == ""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One work folder for all: they share what they train."""
    pytest.importorskip("xgboost")
    try:
        make("metaworld/reach-v3", (16, 16)).close()
    except LaminaError as error:
        pytest.skip(str(error))
    return tmp_path_factory.mktemp("claims")


@pytest.mark.sim
@pytest.mark.parametrize("claim", RUNNABLE)
def test_every_claim_runs_at_smoke_scale(claim: str, workdir: Path) -> None:
    out = workdir / "records" / f"{claim.replace('/', '-')}.json"
    record = read_record(reproduce(claim, "smoke", out, workdir=workdir, progress=lambda line: None))
    assert record["holds"] is None and "decides nothing" in record["explanation"]
    assert record["metrics"] and all(m["values"] for method in record["metrics"].values() for m in method.values())
    assert out.with_suffix(".svg").exists() or out.with_suffix(".png").exists()
    if claim == "alam/algebra":  # six steps of training: nothing is learned, and the record says so
        assert "Void" in record["explanation"]


@pytest.mark.sim
def test_a_run_that_explodes_is_a_result_and_not_an_error(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.pretrain.EXPLODED", 1e-6)
    lab = StructureLab(Experiment("smoke", (5,), workdir, lambda line: None))
    model = ac_lam_model(5, "idm-stop-sum")
    assert lab.stopped(model) == "explosion"
    monkeypatch.undo()
    assert lab.stopped(model) == "explosion"  # found again, not trained again
    assert lab.stopped(ac_lam_model(0)) is None


def test_data_is_named_by_its_recipe(tmp_path: Path) -> None:
    lab = StructureLab(Experiment("smoke", (0,), tmp_path, lambda line: None))
    other = StructureLab(lab.experiment, replace(lab.setup, data=Recipe("grid", 10)))
    assert lab.key(ac_lam_model(0)) != other.key(ac_lam_model(0))
    assert lab.key(ac_lam_model(0)) != lab.key(ac_lam_model(0), True)
