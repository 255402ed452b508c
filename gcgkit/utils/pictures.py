"""Frames in the forms that diffusers' users have, as uint8 arrays, and back."""

import numpy as np
import torch
from PIL import Image

OUTPUT_TYPES = (None, "np", "pt", "pil")


def as_array(frames):
    """Return pictures as uint8 NumPy arrays with the channels last; leave anything else as it is, for its check.

    Takes a PIL picture, a tensor ``(..., 3 or 1, H, W)`` or ``(..., H, W)`` of floats in 0..1 or of uint8, a list of
    these or a dictionary with these as values, and arrays with one channel ``(T, H, W, 1)``. Raises ValueError for a
    tensor of other values.
    """
    if isinstance(frames, dict):
        return {number: as_array(frame) for number, frame in frames.items()}
    if isinstance(frames, Image.Image):
        return np.asarray(frames if frames.mode == "L" else frames.convert("RGB"))
    if isinstance(frames, (list, tuple)):
        parts = [as_array(frame) for frame in frames]
        alike = all(isinstance(part, np.ndarray) for part in parts) and len({part.shape for part in parts}) == 1
        return np.stack(parts) if alike else parts
    if isinstance(frames, torch.Tensor):
        frames = frames.detach().cpu()
        if frames.is_floating_point():
            low, high = (float(v) for v in torch.aminmax(frames)) if frames.numel() else (0.0, 0.0)
            if not (low >= 0 and high <= 1):
                raise ValueError(f"A tensor of frames must be in 0..1, not in {low:g}..{high:g}: write (x + 1) / 2.")
            frames = (frames.float() * 255).round().to(torch.uint8)
        if frames.ndim > 2 and frames.shape[-3] in (1, 3) and frames.shape[-1] not in (1, 3):
            frames = frames.movedim(-3, -1)  # (..., C, H, W) -> (..., H, W, C)
        frames = frames.numpy()
    if isinstance(frames, np.ndarray) and frames.ndim in (3, 4) and frames.shape[-1] == 1:
        return frames[..., 0]
    return frames


def as_clip(frames):
    """Return a clip as `as_array` does; a single PIL picture is a clip of one frame."""
    return as_array([frames] if isinstance(frames, Image.Image) else frames)


def check_output_type(output_type: str | None) -> None:
    """Raise ValueError for a name that is none of `OUTPUT_TYPES`."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be None (uint8), 'np', 'pt' or 'pil', not {output_type!r}.")


def converted(frames: np.ndarray, output_type: str | None):
    """Return frames ``(T, H, W, 3)`` uint8 in a form of `OUTPUT_TYPES`, as diffusers' pipelines do.

    None: as they are. "np": floats in 0..1. "pt": a tensor ``(T, 3, H, W)`` in 0..1. "pil": a list of PIL pictures.
    """
    if output_type == "pil":
        return [Image.fromarray(frame) for frame in frames]
    if output_type is None:
        return frames
    scaled = frames.astype(np.float32) / 255
    return scaled if output_type == "np" else torch.from_numpy(scaled).permute(0, 3, 1, 2)
