"""For every test of a claim. Whatever LAM it asks for at scale smoke must be one at every other scale too, where no test trains it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lamina_research import experiment as experiments
from lamina_research.cache import code_of
from lamina_research.experiment import Experiment
from lamina_research.study import ModelSpec, Study


@pytest.fixture(autouse=True)
def code_of_what_is_needed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run or value depends on all code that the runs depend on which it asks for: otherwise it would outlive their change."""
    outer: list[set[str]] = []
    cached, cached_value = experiments.cached, Experiment.cached_value

    def checked(folder: Path, key: Any, code: Any, build: Any, *rest: Any, **options: Any) -> Path:
        modules = set(code_of(code))
        for needing in outer:
            assert modules <= needing, f"{key}: code that what needs it does not count: {sorted(modules - needing)}"

        def nested(path: Path) -> None:
            outer.append(modules)
            try:
                build(path)
            finally:
                outer.pop()

        return cached(folder, key, code, nested, *rest, **options)

    def checked_value(self: Experiment, key: Any, code: Any, compute: Any, needs: Any = lambda: None) -> Any:
        def asked() -> Any:
            outer.append(set(code_of(m if isinstance(m, str) else m.__name__ for m in code)))
            try:
                return needs()
            finally:
                outer.pop()

        return cached_value(self, key, code, compute, asked)

    monkeypatch.setattr(experiments, "cached", checked)
    monkeypatch.setattr(Experiment, "cached_value", checked_value)


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
