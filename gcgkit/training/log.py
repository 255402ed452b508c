"""The log of a training run: JSON lines, and TensorBoard if it is installed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..utils.files import write_text


class TrainingLog:
    """``log.jsonl`` in a run's folder, and ``tensorboard/`` beside it if that package is installed.

    What an earlier run wrote after ``step`` is dropped: it comes again.
    """

    def __init__(self, folder: str | Path, step: int = 0):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        _cut_log(self.folder / "log.jsonl", step)
        self._file = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Add one line, which has a ``step``. TensorBoard gets its numbers, those of dictionaries in it too."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self.board is not None:
            for name, value in _numbers(line):
                self.board.add_scalar(name, value, line["step"])

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Log an RGB picture ``(H, W, 3)`` to TensorBoard."""
        if self.board is not None:
            self.board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        if self.board is not None:
            self.board.close()


def _cut_log(path: Path, last: int) -> None:
    """Drop the lines after step ``last``, which a resumed run writes again, and an incomplete last line."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except ValueError:
            break
    write_text(path, "".join(kept))


def read_log(folder: str | Path) -> list[dict]:
    """Return the lines of a run's ``log.jsonl`` as dictionaries, in order of steps."""
    with (Path(folder) / "log.jsonl").open() as log:
        return [json.loads(line) for line in log]


def _numbers(values: dict[str, Any], above: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{above}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            found.append((above + name, float(value)))
    return found


class Sums(dict[str, tuple[Any, float]]):
    """Sums and counts of named values since the last log line. They are saved, so a resumed run logs the same means."""

    def add(self, name: str, values: torch.Tensor) -> None:
        """Add values of any shape, without waiting for the device."""
        total, count = self.get(name, (0.0, 0.0))
        self[name] = total + values.detach().double().sum(), count + values.numel()

    def numbers(self) -> dict[str, list[float]]:
        """Return sums and counts as plain numbers."""
        return {name: [float(total), count] for name, (total, count) in self.items()}


def means(numbers: dict[str, list[float]]) -> dict[str, float]:
    """Return rounded means of sums and counts, without those that are not finite, which JSON cannot hold."""
    found = {name: total / count for name, (total, count) in numbers.items() if count}
    return {name: float(f"{mean:.7g}") for name, mean in found.items() if math.isfinite(mean)}
