"""Classical baselines that run anywhere: colours carried along optical flow, and a global colour transfer.

Both keep the input's L* and take only AB from the reference (section 3.4.2), as the pipeline does, so you can compare
their output with the pipeline's.
"""

import cv2
import numpy as np

from .color import join_lab, lightness_of_gray, resize, rgb_to_lab
from .utils.checks import check_frame, check_frames
from .utils.optical_flow import optical_flow, warp

_DEVIATION_STEP = 0.25  # L* units; fineness of the look-up table of `global_transfer`
_LARGEST_DEVIATION = 50.0  # no window of values in 0..100 deviates more


def propagate_by_flow(gray, reference) -> np.ndarray:
    """Carry the colours of the first frame through the clip, frame by frame, along DIS optical flow.

    gray ``(T, H, W)`` uint8; reference: the first frame in colour ``(h, w, 3)`` uint8 RGB, of any size. Returns
    ``(T, H, W, 3)`` uint8 RGB. AB is kept as float between frames, so that rounding does not add up.
    Raises ValueError for wrong shapes or types.
    """
    gray = check_frames(gray, "gray", color=False)
    reference = check_frame(reference, "reference", color=True)
    ab = resize(rgb_to_lab(reference)[..., 1:], *gray.shape[1:])  # (H, W, 2)
    frames = np.empty((*gray.shape, 3), np.uint8)
    for index, frame in enumerate(gray):
        if index > 0:
            ab = warp(ab, optical_flow(frame, gray[index - 1]))
        frames[index] = join_lab(lightness_of_gray(frame), ab)
    return frames


def global_transfer(gray, reference, *, samples: int = 256, window: int = 5, seed: int = 0) -> np.ndarray:
    """Give each pixel the colour of a reference pixel of similar luminance and texture (Welsh et al. 2002).

    gray ``(T, H, W)``, reference RGB ``(h, w, 3)`` of any size and content, both uint8. Returns ``(T, H, W, 3)`` uint8
    RGB. The reference's L* is shifted and scaled to the clip's mean and deviation. The palette holds about
    `samples` of its pixels: `seed` draws one from each cell of a square grid. A pixel takes the AB of the sample
    nearest in L* and in the deviation of L* within a `window` x `window` square, with equal weights. One look-up table
    serves the clip, so equal surroundings get equal colours in every frame.
    Raises ValueError for wrong shapes or types, samples below 1, or a window that is not odd.
    """
    gray = check_frames(gray, "gray", color=False)
    lab = rgb_to_lab(check_frame(reference, "reference", color=True))
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}.")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 1, not {window}.")
    levels = lightness_of_gray(np.arange(256, dtype=np.uint8))  # (256,)
    lightness = _match_statistics(lab[..., 0], gray, levels)
    rows, columns = _jittered(lab.shape[:2], samples, seed)
    palette = lab[rows, columns, 1:]  # (S, 2)
    features = np.stack([lightness, _deviation(lightness, window)], axis=-1)[rows, columns]  # (S, 2)
    nearest = _nearest_sample(levels, features)  # (256, bins)
    frames = np.empty((*gray.shape, 3), np.uint8)
    for index, frame in enumerate(gray):
        frame_lightness = lightness_of_gray(frame)
        bins = np.rint(_deviation(frame_lightness, window) / _DEVIATION_STEP).astype(np.intp)
        frames[index] = join_lab(frame_lightness, palette[nearest[frame, bins]])
    return frames


def _match_statistics(lightness: np.ndarray, gray: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The reference's L* ``(h, w)``, shifted and scaled to the mean and the deviation of the clip's L*."""
    counts = sum(np.bincount(frame.reshape(-1), minlength=256) for frame in gray)  # (256,)
    share = counts / counts.sum()
    mean = float(share @ levels)
    deviation = float(np.sqrt(share @ (levels - mean) ** 2))
    own = float(lightness.std())
    scale = deviation / own if own > 1e-6 else 1.0
    return ((lightness - lightness.mean()) * scale + mean).astype(np.float32)


def _deviation(lightness: np.ndarray, window: int) -> np.ndarray:
    """Standard deviation of L* in the window around each pixel, ``(H, W)``."""
    values = lightness.astype(np.float64)
    mean = cv2.blur(values, (window, window))
    variance = cv2.blur(values * values, (window, window)) - mean**2
    return np.clip(np.sqrt(np.maximum(variance, 0)), 0, _LARGEST_DEVIATION)


def _jittered(shape: tuple[int, int], samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of one random pixel in each cell of a square grid over an image of `shape`."""
    rng = np.random.default_rng(seed)
    side = max(1, round(samples**0.5))
    cell_rows, cell_columns = np.divmod(np.arange(side * side), side)
    rows = ((cell_rows + rng.random(side * side)) * shape[0] / side).astype(np.intp)
    columns = ((cell_columns + rng.random(side * side)) * shape[1] / side).astype(np.intp)
    return np.minimum(rows, shape[0] - 1), np.minimum(columns, shape[1] - 1)


def _nearest_sample(levels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Index of the nearest of S samples ``(S, 2)`` for each gray level and each step of deviation: ``(256, bins)``."""
    deviations = np.arange(round(_LARGEST_DEVIATION / _DEVIATION_STEP) + 1) * _DEVIATION_STEP
    texture_cost = np.abs(deviations[:, None] - features[None, :, 1])  # (bins, S)
    table = np.empty((len(levels), len(deviations)), np.intp)
    for level, lightness in enumerate(levels):
        table[level] = np.argmin(np.abs(lightness - features[:, 0]) + texture_cost, axis=1)
    return table
