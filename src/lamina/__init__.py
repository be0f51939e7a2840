"""Lamina: latent action models, trained on video without action labels and aligned with real actions from few labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamina.version import __version__

if TYPE_CHECKING:
    from lamina.models.hub import LatentActionModel
    from lamina.types import Latent

__all__ = ["Latent", "LatentActionModel", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `lamina --help` needs no torch.
    if name == "LatentActionModel":
        from lamina.models.hub import LatentActionModel

        return LatentActionModel
    if name == "Latent":
        from lamina.types import Latent

        return Latent
    raise AttributeError(f"module 'lamina' has no attribute {name!r}")
