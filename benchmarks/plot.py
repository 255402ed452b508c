"""Draw the measured times: seconds against frames, and the first stage against its number of keyframes."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

# Okabe and Ito's blue and vermilion, which colour-blind readers can distinguish; markers differ too.
STYLES = {"ours": ("#0072B2", "o"), "other": ("#D55E00", "s")}


def draw(found: dict, machine: str, path: Path) -> None:
    """Write a PNG from the figures of the parts ``length`` and ``keyframes`` in ``colorize.py``'s file.

    found: ``{"length": {case: {frames: [seconds]}}, "keyframes": {case: {m: {"seconds": [...], ...}}}}``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for case, times in found["length"].items():
        _line(left, case, {int(n): seconds for n, seconds in times.items()})
    left.set(xlabel="frames of the clip", ylabel="seconds", title="A whole clip")
    for case, times in found["keyframes"].items():
        _line(right, case, {int(m): figures["seconds"] for m, figures in times.items()})
    right.set(xlabel="keyframes m, coloured jointly", ylabel="seconds", title="The first stage")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(machine, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".png", dir=path.parent)
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
        plt.close(figure)


def _line(axes, case: str, seconds: dict[int, list[float]]) -> None:
    """Draw medians with the range as a bar."""
    color, marker = STYLES["ours" if case == "ours" else "other"]
    middle = [statistics.median(times) for times in seconds.values()]
    below = [m - min(times) for m, times in zip(middle, seconds.values(), strict=True)]
    above = [max(times) - m for m, times in zip(middle, seconds.values(), strict=True)]
    axes.errorbar(list(seconds), middle, yerr=[below, above], color=color, marker=marker, capsize=3, label=case)
