"""A clip as a folder of PNG frames ``00000.png, 00001.png, ...``: the common form of methods and compared systems.

Numbers begin at 0 and have no gaps. A folder gets its name only when it is complete. The file `RANDOM_WEIGHTS` marks
frames that only show that a system runs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from ..utils.files import write_error

RANDOM_WEIGHTS = "RANDOM_WEIGHTS.txt"  # lies beside frames that a system made without its weights
FRAME_NAME = re.compile(r"(\d{5,})\.png")


def write_frames(frames: Iterable[np.ndarray], folder: Path) -> Path:
    """Write RGB frames as ``00000.png ...`` and return the folder, which gets its name only when it is complete."""
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        for number, frame in enumerate(frames):
            path = aside / f"{number:05d}.png"
            data = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2BGR))[1]
            try:
                path.write_bytes(data.tobytes())
            except OSError as error:
                raise write_error(error, path) from None
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def check_names(folder: Path) -> int:
    """Return the number of frames ``00000.png ...`` in a folder; raise ValueError, naming it, if one is missing."""
    numbers = sorted(int(found[1]) for path in folder.iterdir() if (found := FRAME_NAME.fullmatch(path.name)))
    if not numbers:
        raise ValueError(f"{folder} holds no frames 00000.png, 00001.png, ...: name them so.")
    if numbers != list(range(len(numbers))):
        lost = next(i for i, number in enumerate(numbers) if i != number)
        raise ValueError(f"{folder} lacks the frame {lost:05d}.png: frames are numbered from 0 without gaps.")
    return len(numbers)
