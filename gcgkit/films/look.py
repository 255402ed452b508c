"""Look at a few frames of a film before it is coloured: has it black bars, has it colour?"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ..color import to_gray
from ..video import film

SAMPLES = 24  # frames, evenly spread
_DARK = 24  # gray level up to which a bar's pixels may reach, with grain and coding noise
_GRAIN = 8  # gray levels between the darkest and the brightest pixels of a bar in one frame
_EDGE = 12.0  # difference in gray level between a bar's last line and the picture's first
_SPECKS = 0.02  # share of a bar's line that may be brighter
_FEW = 4  # a picture of less than this part of the lines needs sharp edges
_FEWEST = 8  # and of less than this part is a dark film
_TINT = 3.0  # mean difference of red, green and blue, in gray levels, above which a film has colour
_SEVERAL = 6.0  # root mean square distance from the shades of one colour, in gray levels, above which there are several


@dataclass(frozen=True)
class Box:
    """The picture within the frame: rows top..bottom-1 and columns left..right-1."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def area(self) -> tuple[slice, slice]:
        """The picture's rows and columns as an index."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def cut(self, frame: np.ndarray) -> np.ndarray:
        """Return the picture of a frame ``(H, W)`` or ``(H, W, 3)``."""
        return np.ascontiguousarray(frame[self.area])

    def frame(self, gray: np.ndarray, picture: np.ndarray) -> np.ndarray:
        """Return the whole frame ``(H, W, 3)``: a coloured picture ``(h, w, 3)``, and around it `gray` ``(H, W)``.

        A bar of this frame alone stays gray too, if it is black and has a sharp edge.
        """
        whole = np.repeat(gray[..., None], 3, axis=-1)
        colored, own = whole.copy(), _lit(gray, min(_DARK, int(gray.min()) + _GRAIN), _EDGE).area
        colored[self.area] = picture
        whole[own] = colored[own]
        return whole


def samples(source, first: int, last: int, most: int = SAMPLES) -> Iterator[np.ndarray]:
    """Yield frames first..last of a film; if they are very many, at most `most` of them, evenly spread."""
    if last - first < 8 * most:
        yield from film.frames(source, first, last + 1)
        return
    for number in np.linspace(first, last, most).astype(int):
        yield next(film.frames(source, int(number), int(number) + 1))


def has_color(frames: Iterable[np.ndarray]) -> bool:
    """Return True for frames ``(H, W, 3)`` with colour, which also sepia is."""
    return float(np.mean([np.ptp(frame.astype(np.int16), axis=-1).mean() for frame in frames])) > _TINT


def fit_tint(frames: Iterable[np.ndarray]) -> np.ndarray | None:
    """Return the tint of frames ``(H, W, 3)`` that are one colour in all its shades: ``(3,)``, the largest channel 1.

    It is the first principal axis of the pixels. None for gray frames and for frames of several colours.
    """
    pixels = (frame[::4, ::4].reshape(-1, 3).astype(np.float64) for frame in frames)
    moments = np.mean([part.T @ part / len(part) for part in pixels], axis=0)  # (3, 3)
    powers, axes = np.linalg.eigh(moments)
    tint = np.abs(axes[:, -1]) / np.abs(axes[:, -1]).max()
    several = powers[:2].sum() >= min(_SEVERAL**2, 0.02 * powers[-1])  # relative in the dark
    return None if several or np.ptp(tint) < 0.03 else tint


def shade(frame: np.ndarray, tint: np.ndarray | None) -> np.ndarray:
    """Return the gray frame ``(H, W)`` whose shades of the tint make up ``(H, W, 3)``; for None its luma."""
    if tint is None:
        return to_gray(frame)
    return np.clip(np.rint(frame @ (tint / (tint @ tint))), 0, 255).astype(np.uint8)


def find_box(frames: Iterable[np.ndarray]) -> Box:
    """Return the picture within the black bars that all frames ``(H, W, 3)`` have; the whole frame without bars."""
    return _lit(reduce(np.maximum, map(to_gray, frames)), _DARK)


def _lit(gray: np.ndarray, dark: int, edge: float = 0) -> Box:
    """Return the part of a gray frame ``(H, W)`` that is not bars of gray levels up to `dark`.

    edge: gray levels by which the mean of the picture's first line is brighter than that of the bar's last.
    """
    bright, edges = gray > dark, []
    for axis in (1, 0):  # rows, then columns
        lit, level, size = np.flatnonzero(bright.mean(axis) > _SPECKS), gray.mean(axis), gray.shape[1 - axis]
        if lit.size < size / _FEWEST:
            return Box(0, gray.shape[0], 0, gray.shape[1])  # a dark film
        first, last = lit[0], lit[-1]
        needed = edge if lit.size >= size / _FEW else _EDGE
        if first > 0 and level[first] - level[first - 1] < needed:
            first = 0
        if last < size - 1 and level[last] - level[last + 1] < needed:
            last = size - 1
        edges += [int(first), int(last) + 1]
    return Box(*edges)
