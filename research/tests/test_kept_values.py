"""A claim whose measured values are kept is decided again, elsewhere, without any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lamina.envs.registry import make
from lamina.errors import LaminaError
from lamina_research.record import read_record
from lamina_research.reproduce import reproduce
from lamina_research.study import Study

pytestmark = [pytest.mark.sim, pytest.mark.filterwarnings("ignore::lamina.errors.LaminaWarning")]
torch.set_num_threads(1)

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
