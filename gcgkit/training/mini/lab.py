"""CIELAB of tensors, differentiable, for the autoencoder's losses."""

from __future__ import annotations

import torch

# In the rounding that the bundled autoencoder was trained with.
_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_TENSOR_WHITE = (0.950456, 1.0, 1.088754)  # D65


def tensor_rgb_to_lab(x: torch.Tensor) -> torch.Tensor:
    """LAB of sRGB frames: ``(B, 3, H, W)`` in [0, 1] -> ``(B, 3, H, W)``, L in 0..100, D65 white.

    Differentiable, for losses; arrays go through ``color.rgb_to_lab``.
    """
    x = x.float().clamp(1e-4, 1)
    linear = torch.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = torch.einsum("ij,bjhw->bihw", x.new_tensor(_TO_XYZ), linear) / x.new_tensor(_TENSOR_WHITE).view(1, 3, 1, 1)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    fx, fy, fz = f.unbind(1)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], 1)


def tensor_lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """sRGB of LAB frames: ``(B, 3, H, W)`` -> ``(B, 3, H, W)``, not clipped to [0, 1]."""
    fy = (lab[:, :1] + 16) / 116
    f = torch.cat([fy + lab[:, 1:2] / 500, fy, fy - lab[:, 2:] / 200], 1)
    xyz = torch.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787) * f.new_tensor(_TENSOR_WHITE).view(1, 3, 1, 1)
    linear = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(f.new_tensor(_TO_XYZ)), xyz)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * linear)
