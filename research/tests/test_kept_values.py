"""A claim whose measured values are kept is decided again, elsewhere, without any model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from lamina.envs.registry import make
from lamina.errors import LaminaError
from lamina.policies.flow.config import FlowConfig
from lamina.training.settings import TrainConfig
from lamina_research.cache import key_text
from lamina_research.claims import adaptive, policy_study, structured_prefix
from lamina_research.claims.flexlam import study as flexlam
from lamina_research.experiment import Experiment
from lamina_research.record import read_record
from lamina_research.reproduce import reproduce
from lamina_research.study import Study

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")]
torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
CLAIMS = {
    "flexlam/matched-budget": "my_way_home",
    "flexlam/joint-alignment": "my_way_home",
    "flexlam/reconstruction": "my_way_home",
    "lamina/adaptive-k": "my_way_home",
    "alam/horizon": "metaworld/reach-v3",
    "alam/policy": "metaworld/reach-v3",
    "lamina/structured-prefix": "metaworld/reach-v3",
    "lamina/robust-prefix": "grid",
    "lamina/feature-control": "grid",
}


@pytest.mark.parametrize(("claim", "world"), list(CLAIMS.items()))
def test_kept_values_need_no_model(
    claim: str, world: str, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        make(world, (16, 16)).close()
    except LaminaError as error:
        pytest.skip(str(error))

    def record(name: str, work: Path) -> dict[str, Any]:
        out = tmp_path / f"{name}.json"
        return read_record(reproduce(claim, "smoke", out, None, work, lambda line: None, tmp_path / "values"))

    def untrained(self: Study[Any], model: Any, *rest: Any) -> Path:
        raise AssertionError(f"{model.title} is not needed")

    first = record("first", workdir)
    monkeypatch.setattr(Study, "trained", untrained)
    again = record("again", tmp_path / "elsewhere")
    assert again["metrics"] == first["metrics"] and again["explanation"] == first["explanation"]
    assert sum(again["values_of"].values()) == len(list((tmp_path / "values").iterdir()))


def test_a_value_of_other_settings_is_another_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each changed setting changes what is measured; what is kept without it in the key is found as before."""
    keys: list[dict[str, Any]] = []
    value = {"above_random": 0.0, "normalized": 0.0, "tasks": {"world": ["easy", [1.0]]}}

    def noted(self: Experiment, key: dict[str, Any], *rest: Any, **more: Any) -> dict[str, Any]:
        keys.append(json.loads(key_text(key)))
        return value

    monkeypatch.setattr(Experiment, "cached_value", noted)
    experiment = Experiment("cpu", (0,), tmp_path)

    def changed(study: type[Study[Any]], measure: Callable[[Any], Any], **settings: Any) -> bool:
        for setup in (study.setups["cpu"], replace(study.setups["cpu"], **settings)):
            measure(study(experiment, setup))
        return keys[-2] != keys[-1]

    model = structured_prefix.models(0)[0]
    assert changed(structured_prefix.PrefixStudy, lambda study: study.scores(model), stride=0.3)
    labels = flexlam.Labels(8)
    tokens = flexlam.flexlam_spec(0)
    assert changed(flexlam.FlexLAMStudy, lambda study: study.returns(tokens, labels, 1), parallel=3)
    policy = policy_study.PolicySpec("policy", 0)
    assert changed(policy_study.PolicyStudy, lambda study: study.success(policy, model), parallel=3)
    assert "parallel" not in keys[-2]  # as in the values that are kept
    adaptive.AdaptiveStudy(experiment).rule_scores(0, 0, "action")
    monkeypatch.setattr(adaptive, "EQUAL", 0.02)
    adaptive.AdaptiveStudy(experiment).rule_scores(0, 0, "action")
    assert keys[-2] != keys[-1]


def test_the_values_of_this_repository_are_found_by_todays_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key names every option: one that an option was added to since is never asked for again, and has to be mended with it."""
    known = {frozenset(f.name for f in fields(kind)) for kind in (TrainConfig, FlowConfig)}

    def options(value: Any) -> Iterator[frozenset[str]]:
        if isinstance(value, dict):
            if {"warmup", "lr"} <= value.keys() or {"chunk", "replan"} <= value.keys():
                yield frozenset(value)
            value = list(value.values())
        for part in value if isinstance(value, list) else ():
            yield from options(part)

    kept = sorted((ROOT / "results/values").glob("*.json"))
    keys = {path.stem: json.loads(path.read_text())["key"] for path in kept}
    assert keys and all(sha256(key_text(key).encode()).hexdigest()[:16] == name for name, key in keys.items())
    assert all(set(options(key)) <= known for key in keys.values())

    def unneeded(self: Study[Any], *rest: Any) -> Path:
        raise AssertionError("nothing has to be made")

    monkeypatch.setattr(Study, "trained", unneeded)
    monkeypatch.setattr(Study, "dataset", unneeded)
    out = tmp_path / "record.json"
    found = reproduce("alam/policy", "cpu", out, (0,), tmp_path, lambda line: None, ROOT / "results/values")
    assert read_record(found)["metrics"]["actions alone"]["success"]["mean"] == pytest.approx(62.7, abs=0.1)
