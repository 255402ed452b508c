"""The log of a training run: JSON lines, TensorBoard where it is installed, and a plot of the loss from the lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..lessons import plots
from .fit import _cut_log, read_log


class TrainingLog:
    """``log.jsonl`` in a run's folder, and ``tensorboard/`` beside it where that package is there.

    What an earlier run wrote after ``step`` is dropped: it comes again.
    """

    def __init__(self, folder: str | Path, step: int = 0):
        self.folder = Path(folder)
        _cut_log(self.folder / "log.jsonl", step)
        self._file = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
        else:
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Add one line; it has a ``step``. Its numbers, and those one level down, go to TensorBoard too."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self.board is not None:
            for name, value in _numbers(line):
                self.board.add_scalar(name, value, line["step"])

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """An RGB picture ``(H, W, 3)`` for TensorBoard."""
        if self.board is not None:
            self.board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        if self.board is not None:
            self.board.close()


def _numbers(values: dict[str, Any], above: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{above}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            found.append((above + name, float(value)))
    return found


def plot_losses(log: str | Path | Mapping[str, str | Path], smooth: int = 5, names: tuple[str, ...] = ()):
    """Plot the loss of one run (its folder), or of several ``{label: folder}``, over training steps.

    Thin lines are the log's own values, thick ones their running mean over ``smooth`` lines. A single run also shows
    its loss by kind of reference; ``names`` picks other entries instead. Returns a matplotlib figure. Raises
    FileNotFoundError for a folder without a log, ValueError for a log without such entries.
    """
    from matplotlib import pyplot

    runs = dict(log) if isinstance(log, Mapping) else {"": log}
    with pyplot.rc_context({"font.size": plots.FONT_SIZE}):
        figure, axis = pyplot.subplots(figsize=(plots.WIDTH, 4))
    styles = ["-", "--", "-.", ":"]  # told apart without colours too
    drawn = 0
    for label, folder in runs.items():
        if not (Path(folder) / "log.jsonl").is_file():
            pyplot.close(figure)
            raise FileNotFoundError(f"{folder} holds no log.jsonl: give the folder that a training run wrote to.")
        lines = read_log(folder)
        kinds = ("loss_mask", "loss_single", "loss_grid", "loss_unrelated") if len(runs) == 1 else ()
        for name in names or ("loss", *kinds):
            points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]
            if not points:
                continue
            steps, values = np.array(points).T
            style, shade = styles[drawn % 4], plots.COLORS[drawn % len(plots.COLORS)]
            axis.plot(steps, values, color=shade, linewidth=0.6, alpha=0.4)
            title = " ".join(part for part in (label, name.replace("_", ", ")) if part)
            axis.plot(steps, running_mean(values, smooth), style, color=shade, linewidth=1.8, label=title)
            drawn += 1
    if not drawn:
        pyplot.close(figure)
        raise ValueError(f"the log has no entry named {', '.join(names or ('loss',))}.")
    axis.set_xlabel("training step", fontsize=plots.FONT_SIZE)
    axis.set_ylabel("loss (mean squared error)" if not names else ", ".join(names), fontsize=plots.FONT_SIZE)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=plots.FONT_SIZE - 2)
    figure.tight_layout()
    pyplot.close(figure)  # or a notebook would show it twice
    return figure


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of each value and the ``width`` - 1 before it, of fewer at the start: ``(N,)`` -> ``(N,)``."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - max(1, width))
    return (sums[ends] - sums[starts]) / (ends - starts)


class Sums:
    """Means of named values over the steps since the last log line, kept so that a resumed run has the same."""

    def __init__(self, sums: dict[str, list[float]] | None = None):
        self.sums: dict[str, list[Any]] = {name: list(pair) for name, pair in (sums or {}).items()}

    def add(self, name: str, total, count: float) -> None:
        """Add ``count`` values that sum up to ``total``, a number or a tensor, which is not waited for."""
        held = self.sums.setdefault(name, [0.0, 0.0])
        held[0], held[1] = held[0] + total, held[1] + count

    def numbers(self) -> dict[str, list[float]]:
        """Sums and counts as plain numbers."""
        return {name: [float(total), float(count)] for name, (total, count) in self.sums.items()}

    @staticmethod
    def means(numbers: dict[str, list[float]]) -> dict[str, float]:
        """Means, rounded to what is worth reading; None would not be JSON, so what is not finite stays out."""
        found = {name: total / count for name, (total, count) in numbers.items() if count}
        return {name: float(f"{mean:.7g}") for name, mean in found.items() if math.isfinite(mean)}
