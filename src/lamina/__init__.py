"""Lamina: latent action models, trained on video without action labels and aligned with real actions by few labels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lamina.version import __version__

if TYPE_CHECKING:
    from lamina.api import Alignment, Run, adaptive_k, align, doctor, evaluate, label, resize, train, train_policy
    from lamina.comparison.run import compare
    from lamina.comparison.table import Comparison
    from lamina.data.dataset import Dataset
    from lamina.data.memory import InMemoryDataset
    from lamina.data.sampling import open_source as open_dataset
    from lamina.errors import LaminaError, LaminaWarning
    from lamina.inference.dataset import LatentDataset
    from lamina.inference.subject import Subject
    from lamina.inference.table import LatentTable
    from lamina.models.adaptive import AdaptiveK
    from lamina.models.encoders import register_encoder
    from lamina.models.hub import LatentActionModel
    from lamina.policies.base import Observations, Policy
    from lamina.types import Latent

#: Where the public names are. They are imported when they are first used, so that ``import lamina`` does not wait for PyTorch.
_HOMES = {
    "Alignment": "api", "Run": "api", "align": "api", "doctor": "api", "evaluate": "api", "label": "api", "resize": "api", "train": "api",
    "train_policy": "api", "adaptive_k": "api", "AdaptiveK": "models.adaptive",
    "LatentDataset": "inference.dataset", "Dataset": "data.dataset", "InMemoryDataset": "data.memory",
    "open_dataset": "data.sampling:open_source", "LaminaError": "errors", "LaminaWarning": "errors", "Subject": "inference.subject",
    "LatentTable": "inference.table", "register_encoder": "models.encoders", "LatentActionModel": "models.hub",
    "compare": "comparison.run", "Comparison": "comparison.table",
    "Observations": "policies.base", "Policy": "policies.base", "Latent": "types",
}  # fmt: skip

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lamina' has no attribute {name!r}")
    module, _, original = _HOMES[name].partition(":")
    value = getattr(import_module(f"lamina.{module}"), original or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
