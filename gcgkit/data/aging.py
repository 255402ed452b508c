"""Old film from modern clips: low contrast, flicker, gate weave, grain, scratches and dust, to measure what they do."""

from dataclasses import dataclass

import cv2
import numpy as np

from ..color import to_gray
from ..utils.checks import check_frames

_GRAIN_SIZE = 0.7  # pixels: standard deviation of the blur that makes noise to grain
_SCRATCHED = 12  # frames in which a scratch stays
_MIDDLE = 110  # gray level that low contrast leaves as it is


@dataclass(frozen=True)
class Wear:
    """Amounts of wear; 0, and a contrast of 1, switch a defect off.

    contrast: factor of the distance to a middle gray. flicker: standard deviation of a frame's log exposure. weave: of
    a frame's place, in pixels. grain: of the noise, in gray levels. scratches: vertical lines at a time. dust: mean
    number of spots in a frame.
    """

    contrast: float = 0.6
    flicker: float = 0.08
    weave: float = 0.7
    grain: float = 8.0
    scratches: int = 2
    dust: float = 4.0


def age(frames: np.ndarray, wear: Wear | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a clip ``(T, H, W, 3)`` uint8 RGB as an old film, and its colours where that film shows them.

    The film is gray, ``(T, H, W)`` uint8. The colours, ``(T, H, W, 3)`` uint8, are the clip's, moved by the same gate
    weave. Frame t depends on the seed, t and frame t alone. Raises ValueError for anything but an RGB clip.
    """
    wear, film, moved = wear or Wear(), [], []
    for t, frame in enumerate(check_frames(frames, color=True)):
        rng = np.random.default_rng((seed, t))
        exposure, shift = np.exp(wear.flicker * rng.standard_normal()), wear.weave * rng.standard_normal(2)
        frame = _shifted(frame, shift) if wear.weave else frame
        gray = _MIDDLE + wear.contrast * (to_gray(frame).astype(np.float32) - _MIDDLE)  # (H, W)
        noise = cv2.GaussianBlur(rng.standard_normal(gray.shape).astype(np.float32), (0, 0), _GRAIN_SIZE)
        gray = gray * exposure + noise * (wear.grain / noise.std())
        _scratch(gray, wear.scratches, seed, t)
        _spot(gray, rng.poisson(wear.dust), rng)
        film.append(np.clip(np.rint(gray), 0, 255).astype(np.uint8))
        moved.append(frame)
    return np.stack(film), np.stack(moved)


def _shifted(frame: np.ndarray, shift: np.ndarray) -> np.ndarray:
    matrix = np.float32([[1, 0, shift[0]], [0, 1, shift[1]]])
    return cv2.warpAffine(frame, matrix, frame.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _scratch(gray: np.ndarray, count: int, seed: int, t: int) -> None:
    """Draw vertical scratches into ``(H, W)``; each stays for some frames and trembles."""
    for i in range(count):
        start, rest = divmod(t + i * _SCRATCHED // max(1, count), _SCRATCHED)
        rng = np.random.default_rng((seed, 1, i, start))
        place, level = rng.uniform(0, gray.shape[1] - 1), rng.choice([30.0, 225.0])
        column = int(np.clip(round(place + np.sin(rest)), 0, gray.shape[1] - 1))
        gray[:, column] += 0.7 * (level - gray[:, column])


def _spot(gray: np.ndarray, count: int, rng: np.random.Generator) -> None:
    """Draw spots of dust, black or white, into ``(H, W)``."""
    for _ in range(count):
        centre = int(rng.integers(gray.shape[1])), int(rng.integers(gray.shape[0]))
        axes = tuple(int(axis) for axis in rng.integers(1, max(2, gray.shape[0] // 64) + 1, 2))
        cv2.ellipse(gray, centre, axes, rng.uniform(0, 180), 0, 360, float(rng.choice([15.0, 240.0])), cv2.FILLED)
