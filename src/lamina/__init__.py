"""Lamina: latent action models, learned from video without action labels and tied to real actions with few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamina.version import __version__

if TYPE_CHECKING:
    from lamina.models.hub import LatentActionModel
    from lamina.types import Latent

__all__ = ["Latent", "LatentActionModel", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, so that `lamina --help` does not wait for torch.
    if name == "LatentActionModel":
        from lamina.models.hub import LatentActionModel

        return LatentActionModel
    if name == "Latent":
        from lamina.types import Latent

        return Latent
    raise AttributeError(f"module 'lamina' has no attribute {name!r}")
