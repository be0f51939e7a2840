"""Optical flow by a classical estimator, without labels and without a trained network."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from lamina.errors import LaminaError

CELLS = 8  # the flow is averaged over this many cells along each side
FLOW_WIDTH = 2 * CELLS**2


def optical_flow(first: UInt8[Tensor, "b c h w"], second: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b y"]:
    """Displacement from the first to the second frame, mean over 8x8 cells, x then y, in units of a sixteenth of the picture's side.

    Farneback's polynomial expansion (2003), OpenCV's implementation. Raises LaminaError where OpenCV is not installed.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise LaminaError("optical flow needs OpenCV: pip install 'lamina[flow]'") from error
    grey = [x.float().mean(1).round().to(torch.uint8).cpu().numpy() for x in (first, second)]
    height, width = grey[0].shape[1:]
    flows = np.stack(
        [
            cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 9, 3, 5, 1.1, 0)  # type: ignore[call-overload]
            for a, b in zip(*grey, strict=True)
        ]
    )
    scaled = torch.from_numpy(flows).permute(0, 3, 1, 2) * torch.tensor([16 / width, 16 / height])[:, None, None]
    return F.adaptive_avg_pool2d(scaled, CELLS).flatten(1).to(first.device)
