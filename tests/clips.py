"""Clips for tests, from frames alone."""

from __future__ import annotations

import torch

from lamina.types import Clip


def clip_of(frames: torch.Tensor) -> Clip:
    """Frames, uint8 [b t c h w], as a clip whose other fields are zero."""
    zeros = torch.zeros(frames.shape[:2])
    return Clip(frames, zeros, zeros.long(), zeros[:, 0].long())
