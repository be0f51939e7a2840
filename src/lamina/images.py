"""The one way in which a picture gets another size: reading data, simulators, policies and the model's own API all call it.

So the same pixels have the same latent action wherever they come from.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def resize(pictures: UInt8[Tensor, "n c h w"], size: tuple[int, int]) -> UInt8[Tensor, "n c h2 w2"]:
    """Pictures scaled to ``size`` = (height, width) by antialiased bilinear interpolation, as torchvision and PIL do it.

    The aspect ratio is not kept. Computed on the CPU whatever the tensor's device: the integer arithmetic there gives the same pixels on
    every machine, for one picture or many.
    """
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    scaled = F.interpolate(pictures.cpu(), tuple(size), mode="bilinear", antialias=True)
    return scaled.to(pictures.device)


def resize_frames(frames: UInt8[np.ndarray, "n h w 3"], size: tuple[int, int] | None) -> UInt8[np.ndarray, "n h2 w2 3"]:
    """The same for frames in an array; ``size`` None leaves them as they are."""
    if size is None or frames.shape[1:3] == tuple(size):
        return frames
    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
    return resize(pictures, size).permute(0, 2, 3, 1).contiguous().numpy()


def to_float(frames: UInt8[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
    """Pixels of [0, 255] as float of [-1, 1], which is what every model here reads."""
    return frames.float().div_(127.5).sub_(1.0)


def to_uint8(images: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
    """Model output of [-1, 1] as pixels of [0, 255], clipped and rounded."""
    return images.float().clamp(-1, 1).add(1.0).mul(127.5).round().to(torch.uint8)
