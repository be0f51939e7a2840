"""Encoders by name, and how to add one's own.

>>> lamina.register_encoder("mine", Mine)        # then: --encoder mine, or LAMConfig(encoder=Mine.Config(...))

An installed package registers encoders by the entry point group ``lamina.encoders``. A saved model names its encoder; where that name
is not registered, loading the model raises LaminaError.
"""

from __future__ import annotations

from torch import nn

from lamina.errors import LaminaError
from lamina.models.encoders.base import Encoder
from lamina.models.encoders.conv import ConvEncoder
from lamina.models.encoders.transformer import TransformerEncoder
from lamina.models.encoders.videomae import VideoMAEEncoder
from lamina.models.registry import Registry

ENCODERS: Registry[Encoder] = Registry(
    "encoder",
    {"transformer": TransformerEncoder, "conv": ConvEncoder, "videomae": VideoMAEEncoder},
    group="lamina.encoders",
)


def register_encoder(name: str, encoder: type[Encoder]) -> None:
    """Make an encoder class (:class:`lamina.models.encoders.base.Encoder`) available under ``name``.

    Raises LaminaError for a name that is taken, a class that is no torch module, lacks ``embed`` or ``compare``, or whose ``Config`` is no
    frozen dataclass.
    """
    missing = [method for method in ("embed", "compare") if not callable(getattr(encoder, method, None))]
    if not issubclass(encoder, nn.Module) or missing:
        what = f"has no {' and no '.join(missing)}" if missing else "is no torch.nn.Module"
        raise LaminaError(f"encoder '{name}': {encoder.__qualname__} {what}")
    ENCODERS.register(name, encoder)
