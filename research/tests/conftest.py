"""Whatever LAM a claim asks for at scale smoke, it must be one at every other scale too, where no test trains it."""

from __future__ import annotations

from typing import Any

import pytest

from lamina_research.study import ModelSpec, Study


@pytest.fixture(autouse=True)
def models_of_every_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Study.trained

    def checked(self: Study[Any], model: ModelSpec, *rest: Any) -> Any:
        for setup in self.setups.values():
            model.method.build(model.method.Config(**type(self)(self.experiment, setup).options(model)))
        return trained(self, model, *rest)

    monkeypatch.setattr(Study, "trained", checked)
