"""Flicker of old film: a gain for each frame that evens out its brightness within a shot.

A frame's brightness is followed from frame to frame by the median change of its pixels, which local motion does not
move. Its target is a line through the brightness of the frames around it. A film without flicker gets gains of 1, and
so do fast motion, a single flash, a fade and a light that is switched on.
"""

from collections.abc import Iterable

import cv2
import numpy as np

RADIUS = 8  # frames before and after, within the shot, whose brightness a frame is matched to
LIMIT = 0.25  # largest correction: a gain of exp(-0.25) = 0.78 to exp(0.25) = 1.28
_STEADY = 0.01  # median second difference of log brightness below which nothing flickers: 1 gray level in the middle
_MOVING = 0.12  # the same, as a share of the spread of the pixels' changes, which motion makes and flicker does not
_FADING = 0.5  # the same, as a share of the changes: those of a fade differ less
_WIDTH = 64  # pixels of the frames that are compared
_SHOWN = 16, 240  # gray levels that tell of brightness: not black, not burnt out


def changes(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Return changes of log brightness from the frame before, ``(T, 2)`` float64, of gray frames ``(H, W)`` uint8.

    They are the median over the pixels and the distance of their quartiles, 0 for the first frame, and for the change
    to or from a frame that is nearly black or white.
    """
    found, before = [], None
    for frame in frames:
        size = (_WIDTH, max(1, round(frame.shape[0] * _WIDTH / frame.shape[1])))
        small = cv2.GaussianBlur(cv2.resize(frame.astype(np.float32), size, interpolation=cv2.INTER_AREA), (0, 0), 1)
        shown = (small > _SHOWN[0]) & (small < _SHOWN[1])  # (h, w)
        both = shown if before is None else shown & before[1]
        enough = before is not None and both.mean() > 0.1
        change = np.log(small[both] / before[0][both]) if enough else 0.0
        low, middle, high = np.quantile(change, (0.25, 0.5, 0.75))
        found.append((middle, high - low))
        before = small, shown
    return np.array(found, np.float64)


def gain(changes: np.ndarray, index: int) -> float:
    """Return the factor for the gray levels of frame `index` of a shot with these `changes` ``(T, 2)``.

    Only the changes within 2 `RADIUS` + 1 frames matter, so a part of the shot gives what the whole gives.
    """
    first = min(max(0, index - RADIUS), max(0, len(changes) - 2 * RADIUS - 1))
    window = changes[first : first + 2 * RADIUS + 1]
    level = np.concatenate([[0.0], np.cumsum(window[1:, 0])])
    if len(level) < 5:
        return 1.0
    step, spread = np.median(np.abs(window[1:]), axis=0)
    most = max(_STEADY, _MOVING * spread, _FADING * step)  # of what a film without flicker has
    share = np.clip(np.median(np.abs(np.diff(level, 2))) / most - 1, 0, 1)
    if share == 0:
        return 1.0
    at, place = index - first, np.arange(len(level))
    alike = np.abs(level - level[at]) <= 2 * LIMIT  # another light is not flicker
    if np.count_nonzero(alike) < 3:
        return 1.0
    target = np.polyval(np.polyfit(place[alike] - at, level[alike], 1), 0)
    return float(np.exp(share * np.clip(target - level[at], -LIMIT, LIMIT)))


def brighten(gray: np.ndarray, factor: float) -> np.ndarray:
    """Return a gray frame ``(H, W)`` uint8 with its levels multiplied, rounded and clipped to 255."""
    return cv2.LUT(gray, np.clip(np.rint(np.arange(256) * factor), 0, 255).astype(np.uint8))


def remove(gray: np.ndarray) -> np.ndarray:
    """Return the gray frames ``(T, H, W)`` uint8 of one shot without flicker."""
    found = changes(gray)
    return np.stack([brighten(frame, gain(found, i)) for i, frame in enumerate(gray)])
