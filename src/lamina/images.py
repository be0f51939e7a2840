"""Resizing and conversion of images.

Data readers, simulators, policies and the model's API share :func:`resize`, so equal pixels always have equal latent actions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def resize(pictures: UInt8[Tensor, "n c h w"], size: tuple[int, int]) -> UInt8[Tensor, "n c h2 w2"]:
    """Images resized to ``size`` = (height, width) by antialiased bilinear interpolation, as in torchvision and PIL.

    The aspect ratio is not kept. The computation is always on the CPU, where integer arithmetic gives the same pixels on every machine and
    for every batch size; the result is on the tensor's device.
    """
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    scaled = F.interpolate(pictures.cpu(), tuple(size), mode="bilinear", antialias=True)
    return scaled.to(pictures.device)


def resize_frames(frames: UInt8[np.ndarray, "n h w 3"], size: tuple[int, int] | None) -> UInt8[np.ndarray, "n h2 w2 3"]:
    """As :func:`resize`, for frames in an array; ``size`` None returns them unchanged."""
    if size is None or frames.shape[1:3] == tuple(size):
        return frames
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    return resize(pictures, size).permute(0, 2, 3, 1).contiguous().numpy()


def to_float(frames: UInt8[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
    """uint8 pixels in [0, 255] as float32 in [-1, 1], the input range of every model."""
    return frames.float().div_(127.5).sub_(1.0)


def to_uint8(images: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """Model output in [-1, 1] as uint8 pixels in [0, 255], clipped and rounded."""
    return images.float().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
