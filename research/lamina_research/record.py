"""The JSON record of one claim at one scale."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lamina.errors import LaminaError
from lamina.files import write_text
from lamina.version import __version__
from lamina_research.cache import PACKAGES
from lamina_research.experiment import SCALES, Claim, Experiment, Outcome
from lamina_research.seeds import interval


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {platform.machine()}, {os.cpu_count()} cores"


def code_version() -> str:
    """The commit of the source checkout that this package runs from, and whether it was changed since; without a
    checkout, the version of the package."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGES[0]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        checkout = Path(git("rev-parse", "--show-toplevel"))
        if checkout / "src" / "lamina" != PACKAGES[0].resolve():  # installed inside another project's repository
            return f"lamina {__version__}"
        commit = git("rev-parse", "--short=12", "HEAD")
        return f"{commit} with changes" if git("status", "--porcelain", "--", *map(str, PACKAGES)) else commit
    except (OSError, subprocess.CalledProcessError):
        return f"lamina {__version__}"


def make_record(claim: Claim, experiment: Experiment, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """The record of ``outcome``; JSON has no NaN, so a value that is not finite is null.

    What is found to be wrong with a record afterwards is written into it by hand: ``outdated``, why its numbers are to be made again, and
    ``withdrawn``, rows that were taken out of it, each with the reason.

    ``wall_seconds`` counts runs that came from the cache with the time they took when they were built. ``holds`` is
    null where the scale, or the number of seeds, decides nothing. Raises ValueError unless every metric has one value
    per seed.
    """
    metrics: dict[str, dict[str, Any]] = {}
    for method, values_of in outcome.metrics.items():
        metrics[method] = {}
        for name, values in values_of.items():
            if len(values) != len(experiment.seeds):
                raise ValueError(f"{claim.id}: {method}, {name}: {len(values)} values, {len(experiment.seeds)} seeds")
            over = interval(values)
            metrics[method][name] = {
                "values": [_finite(v) for v in values],
                "mean": _finite(over.mean),
                "low": over.low,
                "high": over.high,
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
        "lamina": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_record(path: Path, record: dict[str, Any]) -> Path:
    """Writes the record whole or not at all. Raises LaminaError when the file can't be written."""
    return write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A record that was written before. Raises LaminaError, naming the file, when it is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LaminaError(f"{path}: not a readable record ({error}); run the claim again") from error
    if not isinstance(record, dict) or not {"claim", "scale", "seeds", "metrics", "holds"} <= record.keys():
        raise LaminaError(f"{path}: not the record of a claim; run the claim again")
    return record
