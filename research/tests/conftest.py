"""For every test of a claim. Whatever LAM it asks for at scale smoke must be one at every other scale too, where no test trains it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lamina_research.study import ModelSpec, Study


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One work folder for all claims, and for all processes of pytest -n: they share data and models."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return tmp_path_factory.mktemp("claims")
    shared = tmp_path_factory.getbasetemp().parent / "claims"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a length of its own, which no claim's scale sets."""
    monkeypatch.setattr("lamina.training.joint.START", 20)


@pytest.fixture(autouse=True)
def models_of_every_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Study.trained

    def checked(self: Study[Any], model: ModelSpec, *rest: Any) -> Any:
        for setup in self.setups.values():
            model.method.build(model.method.Config(**type(self)(self.experiment, setup).options(model)))
        return trained(self, model, *rest)

    monkeypatch.setattr(Study, "trained", checked)
