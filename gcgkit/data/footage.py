"""Photographs and clips for training, as arrays at the paper's size: 448x256, RGB, uint8 (§4.2).

A data folder holds any of ``photos/**/*.jpg``, ``DAVIS/JPEGImages/480p/<clip>/*.jpg`` and ``clips/*.mp4``. Six named
clips and one photograph in twenty are for measuring only; the training functions leave them out.
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

SIZE = (256, 448)  # height, width
MEASURING_CLIPS = ("blackswan", "cows", "dog", "drift-straight", "horsejump-high", "soapbox")
HELD_OUT_PHOTO = 20  # every twentieth photograph, sorted by name, is for measuring


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as RGB uint8 ``(H, W, 3)``; raise ValueError, naming the file, if it cannot be read."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} cannot be read as an image: check the file, or remove it from the folder")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def stretch(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Stretch ``(H, W, 3)`` to ``size`` (height, width), by area when it gets smaller; None changes nothing."""
    if size is None or image.shape[:2] == tuple(size):
        return image
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def cover(image: np.ndarray, size: tuple[int, int] = SIZE, at: float = 0.5) -> np.ndarray:
    """Scale ``(H, W, 3)`` to cover ``size`` and crop to ``size``; ``at``: crop position, 0 top left, 1 bottom right."""
    height, width = size
    scale = max(height / image.shape[0], width / image.shape[1])
    rows, columns = max(height, round(image.shape[0] * scale)), max(width, round(image.shape[1] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(image, (columns, rows), interpolation=way)
    top, left = round((rows - height) * at), round((columns - width) * at)
    return image[top : top + height, left : left + width]


def photo_paths(root: str | Path, held_out: bool = False) -> list[Path]:
    """Return the paths of the photographs for training, or of the held-out ones."""
    paths = sorted(Path(root).glob("photos/**/*.jpg"))
    return [p for i, p in enumerate(paths) if (i % HELD_OUT_PHOTO == 0) == held_out]


def davis_clip(folder: str | Path, limit: int | None = None) -> np.ndarray:
    """Read the frames of one DAVIS clip, scaled to 448x256 as in the paper: ``(T, 256, 448, 3)``."""
    paths = sorted(Path(folder).glob("*.jpg"))[:limit]
    if not paths:
        raise ValueError(f"{folder} holds no frames (*.jpg): unpack the clip there, or remove the folder")
    return np.stack([stretch(read_image(path), SIZE) for path in paths])


def video_clip(path: str | Path, limit: int = 100) -> np.ndarray:
    """Read at most ``limit`` evenly spread frames of a video file, cropped to 448x256: ``(T, 256, 448, 3)``."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        more, frame = capture.read()
        if not more:
            break
        frames.append(cover(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)))
    if not frames:
        raise ValueError(f"{path} cannot be read as a video: check the file, or remove it from the folder")
    keep = np.linspace(0, len(frames) - 1, min(limit, len(frames))).round().astype(int)
    return np.stack([frames[i] for i in keep])


def training_clips(root: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and frames ``(T, 256, 448, 3)`` of every training clip, without the six measuring clips."""
    root = Path(root)
    for folder in sorted(root.glob("DAVIS/JPEGImages/480p/*")):
        if folder.is_dir() and folder.name not in MEASURING_CLIPS:
            yield folder.name, davis_clip(folder)
    for path in sorted(root.glob("clips/*.mp4")):
        if path.stem not in MEASURING_CLIPS:
            yield path.stem, video_clip(path)


def measuring_clips(root: str | Path, limit: int = 40) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and first ``limit`` frames of each of the six measuring clips in the folder.

    Raises ValueError for a folder with none of them.
    """
    folders = [Path(root) / "DAVIS/JPEGImages/480p" / name for name in MEASURING_CLIPS]
    found = [folder for folder in folders if folder.is_dir()]
    if not found:
        raise ValueError(f"{root} holds none of the measuring clips: put DAVIS/JPEGImages/480p with them there.")
    for folder in found:
        yield folder.name, davis_clip(folder, limit)
