"""A compared system's run on a folder of frames, and the way back of its frames, as ``systems.json`` says (`setup`).

Under "run" a system has its ``script``, in a ``folder`` of its repository, and the lists ``launcher`` and ``arguments``
of options, with ``cpu`` or ``gpu`` behind them. ``input`` is the place of the frames in a working folder, as PNG or as
a video; without it they are read where they are. ``references`` are the folders for the exemplar, one frame for each
time that a folder is named; ``output`` is where the frames come out. A system with a ``shape`` wants frames of these
proportions: edges are repeated, and cut off again. ``make`` names folders that its repository lacks.

The replaced lines of DeepRemaster would delete its PNG frames and make H.264 of them. BiSTNet's segmentation refuses a
file without weights: where they are absent, none is named to it.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ... import video
from ...data.footage import stretch
from ...video.images import write_frames

RUNNERS = Path(__file__).parent / "runners"


@dataclass(frozen=True)
class Job:
    """A run of a system's script: launcher options, script, arguments, folder; and where its frames come out.

    size: (height, width) of the frames. padded: their size with the edges that the system wants.
    """

    folder: Path
    launcher: list[str]
    script: str
    arguments: list[str]
    output: Path
    size: tuple[int, int]
    padded: tuple[int, int]

    def collect(self) -> Iterator[np.ndarray]:
        """Yield the PNG frames that came out, in order of their names; ValueError if there are none."""
        paths = sorted(self.output.glob("*.png"))
        if not paths:
            raise ValueError(f"{self.output} holds no frames.")
        for path in paths:
            for frame in video.iterate(path):
                yield frame if self.padded == self.size else _cut(stretch(frame, self.padded), self.size)


def make_job(about: dict, repository: Path, frames: Path, exemplar: np.ndarray | None, work: Path, cpu: bool) -> Job:
    """Lay a system's input into the folder ``work``, and return the job. about: "run" in ``systems.json``."""
    height, width = size = next(video.iterate(frames)).shape[:2]
    wide, high = about.get("shape", (width, height))
    scale = max(-(-width // wide), -(-height // high))
    padded = (scale * high, scale * wide)
    for name in about.get("make", ()):
        (repository / name).mkdir(exist_ok=True)
    place, source = work / about.get("input", ""), video.iterate(frames)
    if place.suffix:
        video.write(place, source, video.IMAGE_FPS, lossless=True)
    elif place != work:
        write_frames((_pad(frame, padded) for frame in source), place)
    for name, count in Counter(about.get("references", ())).items():
        write_frames([_pad(exemplar, padded)] * count, work / name)
    places = {name: str(work / name) for name in ("in", "out", "reference")}
    places |= {"frames": str(frames), "video": str(place), "runners": str(RUNNERS)}
    places |= {"tmp": f"{work / 'tmp'}{os.sep}", "sep": os.sep}
    filled = lambda texts: [text.format_map(places) for text in texts]  # noqa: E731
    arguments = filled([*about.get("arguments", ()), *about.get("cpu" if cpu else "gpu", ())])
    (script,), folder = filled([about["script"]]), repository / about.get("folder", "")
    return Job(folder, filled(about["launcher"]), script, arguments, work / about["output"], size, padded)


def _pad(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Repeat the edges of a frame, equally on both sides, up to `size` (height, width)."""
    down, right = size[0] - frame.shape[0], size[1] - frame.shape[1]
    sides = (down // 2, down - down // 2, right // 2, right - right // 2)
    return cv2.copyMakeBorder(frame, *sides, cv2.BORDER_REPLICATE)


def _cut(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Undo `_pad`."""
    top, left = (frame.shape[0] - size[0]) // 2, (frame.shape[1] - size[1]) // 2
    return frame[top : top + size[0], left : left + size[1]]
