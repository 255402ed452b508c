"""Contact sheets: many small pictures in rows with a line of text, to see them all at once."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from ..utils.files import write_error
from ..video.images import read_image

WIDTH, COLUMNS, MARGIN = 200, 6, 8  # a picture's pixels, pictures in a row, pixels between them
_LINE, _LONGEST = 22, 4000  # height of a line of text, and largest height of a sheet
_INK, _PAPER = (30, 30, 30), 245


def write_sheets(rows: Iterable[tuple[str, dict[int, Path]]], folder: Path, name: str = "preview") -> list[Path]:
    """Write ``<name>-01.jpg ...`` of (text, {number: picture file}) into a folder, and return their paths.

    Older sheets of that name are removed. Raises ValueError for a file that is no picture.
    """
    pages: list[list[np.ndarray]] = [[]]
    for text, files in rows:
        for strip in _strips(text, files):
            if pages[-1] and sum(len(s) for s in pages[-1]) + len(strip) > _LONGEST:
                pages.append([])
            pages[-1].append(strip)
    for old in folder.glob(f"{name}-[0-9]*.jpg"):
        old.unlink()
    written = []
    for number, page in enumerate((p for p in pages if p), 1):
        path = folder / f"{name}-{number:02d}.jpg"
        try:
            path.write_bytes(cv2.imencode(".jpg", cv2.cvtColor(np.concatenate(page), cv2.COLOR_RGB2BGR))[1].tobytes())
        except OSError as error:
            raise write_error(error, path) from None
        written.append(path)
    return written


def _strips(text: str, files: dict[int, Path]) -> list[np.ndarray]:
    """Draw one shot as strips ``(h, w, 3)``: its text, then rows of numbered pictures."""
    strips, items = [_text_line(text)], list(files.items())
    for start in range(0, len(items), COLUMNS):
        part = [(number, _small(read_image(path))) for number, path in items[start : start + COLUMNS]]
        height = max(len(picture) for _, picture in part) + _LINE + MARGIN
        strip = np.full((height, _sheet_width(), 3), _PAPER, np.uint8)
        for column, (number, picture) in enumerate(part):
            left = MARGIN + column * (WIDTH + MARGIN)
            strip[: len(picture), left : left + WIDTH] = picture
            _write(strip, str(number), left, len(picture) + _LINE - 6)
        strips.append(strip)
    return strips


def _small(picture: np.ndarray) -> np.ndarray:
    height = max(1, round(picture.shape[0] * WIDTH / picture.shape[1]))
    shrinks = picture.shape[1] > WIDTH
    return cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _text_line(text: str) -> np.ndarray:
    line = np.full((_LINE + MARGIN, _sheet_width(), 3), _PAPER, np.uint8)
    _write(line, text.encode("ascii", "replace").decode(), MARGIN, _LINE)  # OpenCV draws only ASCII letters
    return line


def _write(image: np.ndarray, text: str, left: int, bottom: int) -> None:
    cv2.putText(image, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)


def _sheet_width() -> int:
    return MARGIN + COLUMNS * (WIDTH + MARGIN)
