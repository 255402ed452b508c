"""Recognition of things in the gray frame, by a pretrained network, for the UNet copy (not in the paper).

Stable Diffusion knows from billions of pictures that grass is green; the mini profile's UNet has seen some thousand.
It borrows that knowledge from ``SemanticEncoder``, the trunk of EfficientNet-Lite0, trained on ImageNet. Its features
at three scales become one map, by ``FeaturePyramid``, which goes into the UNet copy beside concat(ColorHint, g) and
into the stem of the guidance, so that queries and keys match by meaning as well as by texture.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

# Per stage: expansion, kernel, stride of the first block, output channels, blocks (Tan and Le 2019, the Lite variant).
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
TAPS = (4, 10, 15)  # blocks whose outputs are the features: the last ones at strides 8, 16 and 32
CHANNELS = (40, 112, 320)  # of these outputs


class _Conv(nn.Conv2d):
    """Convolution padded as TensorFlow's "same": the odd pixel of the padding goes to the right and the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernel_size[0] == 1:
            return super().forward(x)
        step, kernel = self.stride[0], self.kernel_size[0]
        rows, columns = (max(0, (-(-size // step) - 1) * step + kernel - size) for size in x.shape[-2:])
        if rows % 2 == columns % 2 == 0:  # even padding needs no copy
            return F.conv2d(x, self.weight, self.bias, step, (rows // 2, columns // 2), groups=self.groups)
        return super().forward(F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)))


class _Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection; added to its input if sizes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = _Conv(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = _Conv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _Conv(hidden, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.adds else y


class SemanticEncoder(ModelMixin, ConfigMixin):
    """EfficientNet-Lite0 without its classifier, its batch normalisation folded into the convolutions.

    ``forward`` takes gray frames ``(B, 1, H, W)`` in [-1, 1], scales them to a short side of ``side`` pixels, and
    returns features of 40, 112 and 320 channels at an eighth, a sixteenth and a thirty-second of that size, rounded up.

    Args:
        channels: of the features; for readers of the configuration.
        side: pixels of the short side that the network sees, near those of its training.
    """

    @register_to_config
    def __init__(self, channels: tuple[int, ...] = CHANNELS, side: int = 192):
        super().__init__()
        self.stem = _Conv(3, 32, 3, stride=2)
        blocks, width = [], 32
        for expansion, kernel, stride, outputs, count in STAGES:
            for index in range(count):
                blocks.append(_Block(width, outputs, expansion, kernel, stride if index == 0 else 1))
                width = outputs
        self.blocks = nn.ModuleList(blocks)

    def forward(self, gray: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scale = self.config.side / min(gray.shape[-2:])
        if scale != 1:
            size = [max(1, round(length * scale)) for length in gray.shape[-2:]]
            gray = F.interpolate(gray, size=size, mode="bilinear", antialias=True)
        x = ((gray + 1) * 127.5 - 127) / 128  # the scale of the ImageNet weights, from 0..255
        x = F.relu6(self.stem(x.expand(-1, 3, -1, -1)))  # (B, 32, H/2, W/2)
        features = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in TAPS:
                features.append(x)
        return tuple(features)


class FeaturePyramid(nn.Module):
    """Join features of several scales, coarse to fine: -> ``(B, width, h, w)`` at the size of the finest.

    Its first two channels are trained to be a guess of the chroma latents, their mean over all colours that the frame
    may have had. channels: of the features, finest first. width, hidden: channels of the result, and between. dropout:
    share of channels that training drops, against learning photographs by heart.
    """

    def __init__(self, channels: tuple[int, ...], width: int, hidden: int = 128, dropout: float = 0.1):
        super().__init__()
        self.take = nn.ModuleList(nn.Conv2d(c, hidden, 1) for c in channels)
        self.join = nn.ModuleList(_Refine(hidden, dropout) for _ in channels)
        self.norm = nn.GroupNorm(8, hidden)
        self.out = nn.Conv2d(hidden, width, 1)

    def forward(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        x = None
        for feature, take, join in reversed(list(zip(features, self.take, self.join, strict=True))):
            y = take(feature.to(take.weight.dtype))
            if x is not None:
                y = y + F.interpolate(x, size=y.shape[-2:], mode="bilinear", align_corners=False)
            x = join(y)
        return self.out(F.silu(self.norm(x)))


class _Refine(nn.Module):
    """Two 3x3 convolutions around a skip: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(self.dropout(F.silu(self.norm2(y))))
