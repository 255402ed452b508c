"""Deliberately wrong colourings, to see which metric notices (§4.3).

Each takes the true clip, RGB uint8 ``(T, H, W, 3)``, and returns one of the same shape; those that change only colour
keep the true lightness L*, as a colourizer does. `FAKES` lists them by description.
"""

from collections.abc import Callable

import cv2
import numpy as np

from ..color import join_lab, rgb_to_lab, to_gray
from ..utils.checks import check_frames

__all__ = [
    "FAKES", "blurred", "confetti", "flicker", "frozen", "gray", "mirrored", "reverse", "shift", "tint", "upside_down",
]  # fmt: skip


def gray(truth) -> np.ndarray:
    """Return the gray input as an RGB clip, without any colour."""
    return np.repeat(to_gray(_checked(truth))[..., None], 3, axis=-1)


def shift(truth, pixels: int = 1) -> np.ndarray:
    """Move the true clip to the right by some pixels and repeat its left edge."""
    truth = _checked(truth)
    return np.concatenate([np.repeat(truth[:, :, :1], pixels, axis=2), truth[:, :, : truth.shape[2] - pixels]], axis=2)


def tint(truth, a: float = 6.0, b: float = 14.0) -> np.ndarray:
    """Move the true colours by (a*, b*): a warm light, by default."""
    return _recolor(truth, lambda ab, _: ab + np.float32([a, b]))


def confetti(truth, block: int = 8, chroma: float = 45.0, seed: int = 0) -> np.ndarray:
    """Give each block of pixels in each frame a random strong hue, on the true lightness."""
    rng = np.random.default_rng(seed)

    def colors(ab: np.ndarray, _: int) -> np.ndarray:
        rows, columns = -(-ab.shape[0] // block), -(-ab.shape[1] // block)
        angle = rng.uniform(0, 2 * np.pi, (rows, columns))
        drawn = chroma * np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # (rows, columns, 2)
        drawn = drawn.repeat(block, axis=0).repeat(block, axis=1)
        return drawn[: ab.shape[0], : ab.shape[1]].astype(np.float32)

    return _recolor(truth, colors)


def flicker(truth, amount: float = 0.5) -> np.ndarray:
    """Keep the true hues and raise and lower the saturation in turns by a share ``amount``."""
    return _recolor(truth, lambda ab, i: ab * (1 + amount * (1 if i % 2 else -1)))


def frozen(truth) -> np.ndarray:
    """Put the first frame's colours on every frame; they stay in place when things move."""
    first = rgb_to_lab(_checked(truth)[0])[..., 1:]
    return _recolor(truth, lambda ab, i: first)


def mirrored(truth) -> np.ndarray:
    """Mirror each frame's own colours left to right, so that they are in wrong places."""
    return _recolor(truth, lambda ab, i: ab[:, ::-1])


def upside_down(truth) -> np.ndarray:
    """Turn every other frame upside down, colours and luminance."""
    fake = _checked(truth).copy()
    fake[1::2] = fake[1::2, ::-1]
    return fake


def reverse(truth) -> np.ndarray:
    """Reverse the order of the true frames: each is perfect, but hardly any is in its place."""
    return _checked(truth)[::-1].copy()


def blurred(truth, pixels: float = 24.0) -> np.ndarray:
    """Blur the true colours until they leak over every edge."""
    return _recolor(truth, lambda ab, i: cv2.GaussianBlur(ab, (0, 0), pixels))


FAKES: dict[str, Callable[..., np.ndarray]] = {
    "gray": gray,
    "moved by one pixel": shift,
    "warm tint": tint,
    "confetti": confetti,
    "flickering": flicker,
    "colours of frame 0, frozen": frozen,
    "colours mirrored": mirrored,
    "colours leak": blurred,
    "odd frames upside down": upside_down,
    "frames in reverse": reverse,
}


def _checked(truth) -> np.ndarray:
    return check_frames(truth, "truth", color=True)


def _recolor(truth, colors: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Replace each frame's AB by ``colors(ab, number)`` (H, W, 2) and keep the lightness."""
    result = []
    for number, frame in enumerate(_checked(truth)):
        lab = rgb_to_lab(frame)
        result.append(join_lab(lab[..., 0], np.ascontiguousarray(colors(lab[..., 1:], number), np.float32)))
    return np.stack(result)
