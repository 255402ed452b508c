"""Plain PyTorch replacements for CUDA extensions and discontinued packages that the compared systems use.

Written from the operations' definitions; slower than the originals, and right on any device. Each function says which
module of which system asks for it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def correlation(
    first: torch.Tensor,
    second: torch.Tensor,
    padding: int,
    kernel: int,
    reach: int,
    step: int,
    spacing: int,
) -> torch.Tensor:
    """FlowNet's correlation layer: mean products of patches of two feature maps ``(B, C, H, W)``.

    For displacements of up to `reach` in steps of `spacing`, rows of displacements first: ``(B, D*D, h, w)`` with D =
    2 (reach // spacing) + 1. Zeros lie `padding` wide around both maps; centres are `step` apart.
    """
    half = (kernel - 1) // 2
    border = half + reach
    a, b = (functional.pad(x, (padding,) * 4) for x in (first, second))
    height, width = a.shape[-2:]
    rows, columns = (-(-(size - 2 * border) // step) for size in (height, width))
    radius = reach // spacing
    # The sum over a patch of products is the mean of the products over the patch, times its area: both divide out.
    planes = []
    for down in range(-radius, radius + 1):
        for right in range(-radius, radius + 1):
            moved = torch.roll(b, (-down * spacing, -right * spacing), dims=(2, 3))
            product = (a * moved).mean(dim=1, keepdim=True)  # (B, 1, H', W'); what rolls over lies outside the border
            if kernel > 1:
                product = functional.avg_pool2d(product, kernel, stride=1, padding=half)
            inner = product[:, :, reach : reach + rows * step : step, reach : reach + columns * step : step]
            planes.append(inner)
    return torch.cat(planes, dim=1)


def resample(image: torch.Tensor, flow: torch.Tensor, bilinear: bool = True) -> torch.Tensor:
    """FlowNet2's Resample2d with a kernel of 1: image ``(B, C, H, W)`` at p + flow(p), flow ``(B, 2, h, w)`` in pixels.

    Corners outside are moved to the edge one by one, weights stay those of the place itself.
    """
    batch, channels, height, width = image.shape
    rows, columns = flow.shape[-2:]
    x = torch.arange(columns, device=flow.device, dtype=flow.dtype) + flow[:, 0]  # (B, h, w)
    y = torch.arange(rows, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    flat = image.reshape(batch, channels, -1)

    def at(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        # The kernel clips to the flow's size, which is the image's wherever it is used.
        index = row.clamp(0, min(rows, height) - 1) * width + column.clamp(0, min(columns, width) - 1)
        index = index.reshape(batch, 1, -1).expand(-1, channels, -1)
        return flat.gather(2, index).reshape(batch, channels, rows, columns)

    if not bilinear:
        return at((y + 0.5).floor().long(), (x + 0.5).floor().long())
    left, top = x.floor(), y.floor()
    a, b = (x - left)[:, None], (y - top)[:, None]  # (B, 1, h, w)
    left, top = left.long(), top.long()
    upper = (1 - a) * at(top, left) + a * at(top, left + 1)
    lower = (1 - a) * at(top + 1, left) + a * at(top + 1, left + 1)
    return (1 - b) * upper + b * lower


def flow_warp(x: torch.Tensor, flow: torch.Tensor, interpolation="bilinear", padding_mode="zeros", align_corners=True):
    """mmedit's flow_warp: x ``(B, C, H, W)`` at p + flow(p), flow ``(B, H, W, 2)`` in pixels."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype)[:, None]
    columns = torch.arange(width, device=x.device, dtype=x.dtype)
    right = 2 * (columns + flow[..., 0]) / max(width - 1, 1) - 1  # (B, H, W)
    down = 2 * (rows + flow[..., 1]) / max(height - 1, 1) - 1
    grid = torch.stack([right, down], dim=-1)
    return functional.grid_sample(x, grid, mode=interpolation, padding_mode=padding_mode, align_corners=align_corners)


class ResidualBlockNoBN(nn.Module):
    """mmedit's block of two 3x3 convolutions, ReLU between, added to its input; names as in its checkpoints."""

    def __init__(self, mid_channels: int = 64, res_scale: float = 1.0):
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(mid_channels, mid_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(mid_channels, mid_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.res_scale * self.conv2(functional.relu(self.conv1(x)))


class PixelShufflePack(nn.Module):
    """mmedit's upsampling by a convolution and a pixel shuffle."""

    def __init__(self, in_channels: int, out_channels: int, scale_factor: int, upsample_kernel: int):
        super().__init__()
        self.scale_factor = scale_factor
        self.upsample_conv = nn.Conv2d(
            in_channels, out_channels * scale_factor**2, upsample_kernel, padding=(upsample_kernel - 1) // 2
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pixel_shuffle(self.upsample_conv(x), self.scale_factor)


def make_layer(block, num_blocks: int, **options) -> nn.Sequential:
    """mmedit's row of equal blocks."""
    return nn.Sequential(*(block(**options) for _ in range(num_blocks)))


class ConvModule(nn.Module):
    """mmcv's convolution with an optional ReLU, as SPyNet asks for it."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, norm_cfg=None, act_cfg=None, **_):
        super().__init__()
        if norm_cfg is not None:
            raise ValueError("this ConvModule knows no normalisation.")
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding)
        self.acts = act_cfg is not None and act_cfg.get("type") == "ReLU"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return functional.relu(x) if self.acts else x
