"""Colour: gray frames (section 4.2) and the recombination of lightness and colour in CIELAB (section 3.4.2).

CIELAB is computed from sRGB with the white point D65, through linear light. OpenCV's direct float conversion
interpolates in a coarse table: L* is wrong by up to 0.18, and a round trip loses 1.2 of 255 levels. Through linear
light the errors are 0.004 and 0.1, at the same speed.
"""

import cv2
import numpy as np

from .utils.checks import check_choice, check_frame, check_frames

GAMUT_MODES = ("clip", "chroma")
_BISECTION_STEPS = 12  # 1/4096 of the chroma: below what 8 bits can show


def to_gray(frames) -> np.ndarray:
    """Gray version of RGB frames: ``(T, H, W, 3)`` to ``(T, H, W)``, one frame ``(H, W, 3)`` to ``(H, W)``; uint8.

    Luma as `cv2.cvtColor` computes it (section 4.2). Gray frames ``(T, H, W)`` or ``(H, W)`` are returned as they are.
    Raises ValueError for anything that is not a uint8 frame or clip.
    """
    if isinstance(frames, np.ndarray) and (frames.ndim == 2 or (frames.ndim == 3 and frames.shape[-1] == 3)):
        frame = check_frame(frames)
        return frame if frame.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    array = check_frames(frames)
    return array if array.ndim == 3 else np.stack([to_gray(frame) for frame in array])


def merge_luminance(gray, color, *, gamut: str = "clip") -> np.ndarray:
    """RGB clip with the L* of `gray` and the AB of `color` (section 3.4.2).

    gray ``(T, H, W)``, color ``(T, h, w, 3)`` of any size, both uint8 sRGB; returns ``(T, H, W, 3)`` uint8. One frame
    ``(H, W)`` with ``(h, w, 3)`` gives ``(H, W, 3)``. AB is resized to gray's size, by area when it shrinks and
    linearly when it grows. L* equals gray's within rounding wherever the pair (L*, AB) is a colour of sRGB. Elsewhere
    gamut="clip" clips red, green and blue as usual, which shifts L*; gamut="chroma" scales AB towards gray until the
    colour fits, which keeps L* and the hue.
    Raises ValueError for wrong shapes or types, different numbers of frames, or an unknown gamut mode.
    """
    check_choice("gamut", gamut, GAMUT_MODES)
    if isinstance(gray, np.ndarray) and gray.ndim == 2:
        gray_frame, color_frame = check_frame(gray, "gray", color=False), check_frame(color, "color", color=True)
        return _merge_frame(gray_frame, color_frame, gamut)
    gray, color = check_frames(gray, "gray", color=False), check_frames(color, "color", color=True)
    if len(gray) != len(color):
        raise ValueError(f"gray has {len(gray)} frames and color {len(color)}; they must be as many.")
    merged = np.empty((*gray.shape, 3), np.uint8)
    for index in range(len(gray)):
        merged[index] = _merge_frame(gray[index], color[index], gamut)
    return merged


def rgb_to_lab(rgb) -> np.ndarray:
    """CIELAB ``(..., 3)`` float32, L* 0..100, of sRGB ``(..., 3)``, uint8 0..255 or float 0..1."""
    rgb = np.asarray(rgb)
    if rgb.ndim < 1 or rgb.shape[-1] != 3:
        raise ValueError(f"rgb must have three channels in its last axis, not shape {rgb.shape}.")
    row = np.ascontiguousarray(rgb).reshape(1, -1, 3)
    if rgb.dtype == np.uint8:
        linear = cv2.LUT(row, _LINEAR_OF_BYTE)
    elif np.issubdtype(rgb.dtype, np.floating):
        linear = _linear(row).astype(np.float32)
    else:
        raise ValueError(f"rgb must be uint8 (0..255) or float (0..1), not {rgb.dtype}.")
    return cv2.cvtColor(linear, cv2.COLOR_LRGB2LAB).reshape(rgb.shape)


def lab_to_rgb(lab) -> np.ndarray:
    """sRGB ``(..., 3)`` float32 in 0..1 of CIELAB ``(..., 3)``; colours outside the gamut are clipped per channel."""
    lab = np.asarray(lab, dtype=np.float32)
    if lab.ndim < 1 or lab.shape[-1] != 3:
        raise ValueError(f"lab must have three channels in its last axis, not shape {lab.shape}.")
    return cv2.cvtColor(np.ascontiguousarray(lab).reshape(1, -1, 3), cv2.COLOR_LAB2RGB).reshape(lab.shape)


def lightness_of_gray(gray) -> np.ndarray:
    """L* in 0..100, float32, of gray uint8 values, any shape; ValueError for another type."""
    if np.asarray(gray).dtype != np.uint8:
        raise ValueError(f"gray must be uint8 (0..255), not {np.asarray(gray).dtype}.")
    return cv2.LUT(np.ascontiguousarray(gray).reshape(1, -1), _LIGHTNESS_OF_BYTE).reshape(np.shape(gray))


def join_lab(lightness: np.ndarray, ab: np.ndarray, gamut: str = "clip") -> np.ndarray:
    """RGB uint8 ``(H, W, 3)`` of lightness ``(H, W)`` in 0..100 and ab ``(H, W, 2)``; gamut as in `merge_luminance`."""
    lab = np.dstack([lightness, ab]).astype(np.float32, copy=False)  # (H, W, 3)
    if gamut == "chroma":
        lab = fit_chroma(lab)
    return cv2.convertScaleAbs(lab_to_rgb(lab), alpha=255)  # rounds to nearest


def fit_chroma(lab: np.ndarray) -> np.ndarray:
    """Scale a* and b* of CIELAB ``(..., 3)`` towards zero, no more than needed, until the colour is in sRGB's gamut.

    L* and hue stay the same. The factor is found by bisection, only for colours outside the gamut.
    """
    lab = np.asarray(lab, dtype=np.float32)
    flat = lab.reshape(-1, 3).copy()  # (N, 3)
    outside = np.flatnonzero(~_in_gamut(flat))
    if outside.size == 0:
        return lab
    colors = flat[outside]
    low, high = np.zeros(len(colors), np.float32), np.ones(len(colors), np.float32)
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        fits = _in_gamut(colors * np.stack([np.ones_like(middle), middle, middle], axis=1))
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    flat[outside, 1:] *= low[:, None]
    return flat.reshape(lab.shape)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image ``(h, w)`` or ``(h, w, C)``: by area when both sides shrink, linearly otherwise."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _merge_frame(gray: np.ndarray, color: np.ndarray, gamut: str) -> np.ndarray:
    ab = resize(rgb_to_lab(color)[..., 1:], *gray.shape)
    return join_lab(lightness_of_gray(gray), ab, gamut)


def _linear(srgb: np.ndarray) -> np.ndarray:
    """Linear light of sRGB values in 0..1 (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0) + 0.055) / 1.055) ** 2.4)


def _in_gamut(lab: np.ndarray, slack: float = 1e-4) -> np.ndarray:
    """Return True for each CIELAB colour ``(N, 3)`` within sRGB; OpenCV clips, so this goes to linear light by hand."""
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + lab[:, 1] / 500, fy, fy - lab[:, 2] / 200], axis=1)
    delta = 6 / 29
    xyz = np.where(f > delta, f**3, 3 * delta**2 * (f - 4 / 29)) * _WHITE
    linear = xyz @ _RGB_OF_XYZ.T  # (N, 3)
    return ((linear >= -slack) & (linear <= 1 + slack)).all(axis=1)


_XYZ_OF_RGB = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = _XYZ_OF_RGB.sum(axis=1)
_RGB_OF_XYZ = np.linalg.inv(_XYZ_OF_RGB)
_LINEAR_OF_BYTE = _linear(np.arange(256) / 255).astype(np.float32)
LUMINANCE_OF_BYTE = _XYZ_OF_RGB[1][:, None] * _linear(np.arange(256) / 255)  # (3, 256), float64: Y, 1 for white
_LIGHTNESS_OF_BYTE = rgb_to_lab(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))[:, 0]
