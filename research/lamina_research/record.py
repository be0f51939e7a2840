"""The JSON record of one claim at one scale."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lamina.errors import LaminaError
from lamina.files import read_json, to_json, write_text
from lamina.version import __version__
from lamina_research.cache import code_version
from lamina_research.experiment import SCALES, Claim, Experiment, Outcome
from lamina_research.seeds import interval


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}, {os.cpu_count()} cores"


def make_record(claim: Claim, experiment: Experiment, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """The record of an outcome.

    ``holds`` is None if the scale or the number of seeds decides nothing. ``wall_seconds`` includes the time in which runs from the cache
    were built. ``values_of``: how many values were measured before, by the version of the code. Errors that are found later are added to
    the file by hand: ``outdated``, the reason why the claim must be run again, and ``withdrawn``, the rows that were removed, each with the
    reason. Raises ValueError unless every metric has one value per seed.
    """

    def summary(method: str, name: str, values: Sequence[float]) -> dict[str, Any]:
        if len(values) != len(experiment.seeds):
            raise ValueError(f"{claim.id}: {method}, {name}: {len(values)} values, {len(experiment.seeds)} seeds")
        return {"values": values, **interval(values).to_dict()}

    metrics = {
        method: {name: summary(method, name, values) for name, values in row.items()}
        for method, row in outcome.metrics.items()
    }
    enough = SCALES[experiment.scale].enough
    explanation = outcome.explanation
    if enough is None:
        explanation += f" The scale {experiment.scale} decides nothing."
    elif len(experiment.seeds) < enough:
        explanation += f" Fewer than {enough} seeds decide nothing."
    return {
        "claim": claim.id,
        "scale": experiment.scale,
        "seeds": list(experiment.seeds),
        "statement": claim.statement,
        "paper": claim.paper,
        "decides": claim.decides,
        "metrics": metrics,
        "holds": outcome.holds if enough is not None and len(experiment.seeds) >= enough else None,
        "explanation": explanation,
        "wall_seconds": round(seconds + experiment.reused_seconds, 1),
        "device": _device(),
        "code_version": code_version(),
        **({"values_of": experiment.kept_versions} if experiment.kept_versions else {}),
        "lamina": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def verdict(record: Mapping[str, Any]) -> str:
    """Whether the claim held, in words."""
    return "decides nothing" if record["holds"] is None else "held" if record["holds"] else "did not hold"


def write_record(path: Path, record: dict[str, Any]) -> Path:
    """Writes the record whole or not at all. Raises LaminaError when the file can't be written."""
    return write_text(path, to_json(record, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A record that was written before. Raises LaminaError, naming the file, when it is not one."""
    record = read_json(path, "run the claim again")
    if not {"claim", "scale", "seeds", "metrics", "holds"} <= record.keys():
        raise LaminaError(f"{path}: not the record of a claim; run the claim again")
    return record
