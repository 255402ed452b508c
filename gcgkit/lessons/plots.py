"""Pictures that several notebooks draw: frames, maps, curves, bars, a roofline, distances and reference timelines.

Each function returns a `Picture`, which a notebook shows with its caption. Colours are Okabe and Ito's and maps are
cividis, which colour-blind readers can tell apart; lines differ in their marks too. Letters are large enough to be
read at half size.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..training.log import read_log
from .picture import FONT_SIZE, WIDTH, Picture, captioned  # noqa: F401 (captioned is for notebooks)

# Okabe and Ito (2008), without their yellow, which is faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours, so that the eighth series differs, too
DASHES = ("-", "--", "-.", ":")
CMAP = "cividis"
ORANGE = (255, 170, 0)  # RGB of attention on a gray picture


def frames(
    clips: Mapping[str, Sequence], picks: Sequence[int] | None = None, *, caption: str = "", numbers=None,
    first: int = 0,
) -> Picture:  # fmt: skip
    """Draw some frames of each clip, clips one below the other: ``{label: (T, H, W) or (T, H, W, 3)}``, uint8.

    picks: positions of the frames that are shown, four evenly spread ones by default. numbers: what the columns are
    called, words or frame numbers, the positions by default. first: number of the clips' first frame in their film,
    which is then added to the positions. A frame that is None leaves its place empty.
    """
    if not clips:
        raise ValueError("clips is empty: give at least one {label: frames}.")
    count = len(next(iter(clips.values())))
    if picks is None:
        picks = np.unique(np.linspace(0, count - 1, min(4, count)).round().astype(int))
    numbers = [first + pick for pick in picks] if numbers is None else numbers
    height, width = np.shape(next(iter(clips.values()))[0])[:2]
    tile = WIDTH / (len(picks) + 0.25)
    with _style():
        picture = Picture(len(clips) * (tile * height / width + 0.12) + 0.35, caption)
        grid = picture.subplots(len(clips), len(picks), squeeze=False)
        texts = ["\n".join(textwrap.fill(part, 17) for part in label.split("\n")) for label in clips]
        longest = max(len(part) for text in texts for part in text.split("\n"))
        # A letter is about 0.6 times as wide as high; a label must not be longer than its picture is high.
        size = min(FONT_SIZE - 1, 72 * tile * height / width / (0.6 * max(1, longest)))
        for row, (line, text, clip) in enumerate(zip(grid, texts, clips.values(), strict=True)):
            for axes, pick, number in zip(line, picks, numbers, strict=True):
                if clip[pick] is None:
                    axes.set(xticks=[], yticks=[])
                    axes.spines[:].set_visible(False)
                else:
                    _show(axes, clip[pick])
                if row == 0:
                    axes.set_title(number if isinstance(number, str) else f"frame {number}")
            line[0].set_ylabel(text, fontsize=size)
    return picture


def gallery(images: Mapping[str, np.ndarray], *, columns: int = 3, caption: str = "") -> Picture:
    """Draw labelled pictures side by side: ``{label: (H, W) or (H, W, 3)}``, uint8."""
    height, width = np.shape(next(iter(images.values())))[:2]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    titles = max(len(textwrap.wrap(label, 84 // columns)) for label in images)
    with _style():
        picture = Picture(rows * (WIDTH / columns * height / width + 0.27 * titles) + 0.15, caption)
        for axes, (label, image) in zip(_cells(picture, rows, columns, len(images)), images.items(), strict=True):
            _show(axes, image)
            axes.set_title(textwrap.fill(label, 84 // columns))
    return picture


def maps(
    values: Mapping[str, np.ndarray],
    *,
    unit: str,
    limits: tuple[float, float] | None = None,
    columns: int = 2,
    caption: str = "",
    cmap: str | Mapping[str, str] = CMAP,
) -> Picture:
    """Draw maps ``{label: (h, w)}`` with one colour bar labelled ``unit``; limits: from the values by default.

    cmap: matplotlib's name of a colour map; ``{label: name}`` gives each map its own, and a bar below it.
    """
    arrays = {label: _array(value) for label, value in values.items()}
    low, high = limits or (min(a.min() for a in arrays.values()), max(a.max() for a in arrays.values()))
    height, width = next(iter(arrays.values())).shape
    columns = min(columns, len(arrays))
    rows = math.ceil(len(arrays) / columns)
    with _style():
        below = 0.5 * rows if isinstance(cmap, Mapping) else 0  # inches for bars
        picture = Picture(max(2.2, rows * ((WIDTH - 1) / columns * height / width + 0.4)) + below, caption)
        cells = _cells(picture, rows, columns, len(arrays))
        for axes, (label, array) in zip(cells, arrays.items(), strict=True):
            own = cmap[label] if isinstance(cmap, Mapping) else None
            drawn = axes.imshow(array, vmin=low, vmax=high, cmap=own or cmap)
            axes.set_title(textwrap.fill(label, 78 // columns))
            axes.set_xticks([]), axes.set_yticks([])
            if own:
                picture.colorbar(drawn, ax=axes, label=unit, location="bottom", shrink=0.9, aspect=25)
        if not isinstance(cmap, Mapping):
            picture.colorbar(drawn, ax=cells, label=unit, shrink=0.9, aspect=25)
    return picture


def attention(
    frame: np.ndarray, reference: np.ndarray, weights: np.ndarray, box: tuple[float, float, float, float], *,
    caption: str = "",
) -> Picture:  # fmt: skip
    """Draw a patch of a gray frame and its attention to the reference, in two panels.

    frame ``(H, W)`` or ``(H, W, 3)``, reference likewise; weights ``(h', w')`` over the reference, drawn as `lit` has
    them; box: left, top, width, height of the patch, in pixels.
    """
    from matplotlib.patches import Rectangle

    weights = _array(weights)
    with _style():
        picture = Picture(WIDTH / 2 * frame.shape[0] / frame.shape[1] + 0.4, caption)
        left, right = picture.subplots(1, 2)
        _show(left, frame)
        left.add_patch(Rectangle(box[:2], box[2], box[3], fill=False, edgecolor="white", linewidth=4))
        left.add_patch(Rectangle(box[:2], box[2], box[3], fill=False, edgecolor=COLORS[1], linewidth=2))
        left.set_title("the patch that asks")
        _show(right, lit(reference, weights))
        right.set_title(f"where it looks (largest weight {weights.max():.3f})")
    return picture


def lit(reference: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return a picture in dim gray, in orange where weights are large: uint8 ``(H, W, 3)``.

    reference ``(H, W)`` or ``(H, W, 3)``; weights ``(h, w)``, none negative. The largest weight is pure orange; the
    others have the root of their share, so that weak ones show too.
    """
    weights = _array(weights)
    light = (weights / max(float(weights.max()), 1e-12)) ** 0.5  # (h, w)
    rows, columns = (np.arange(n) * m // n for n, m in zip(reference.shape[:2], light.shape, strict=True))
    light = light[rows][:, columns, None]  # (H, W, 1)
    dim = 0.6 * as_rgb(reference).mean(-1, keepdims=True)
    return ((1 - light) * dim + light * np.array(ORANGE)).astype(np.uint8)


def gates(cases: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], *, caption: str = "") -> Picture:
    """Draw references, gates (Eq. 4) and ColorHints (Eq. 5), a row each.

    cases: ``{label: (reference (H, W, 3), gate (h, w) in 0..1, hint (H, W, 3))}``; pictures uint8.
    """
    height, width = np.shape(next(iter(cases.values()))[0])[:2]
    with _style():
        picture = Picture(len(cases) * (WIDTH / 3.6 * height / width + 0.12) + 0.5, caption)
        grid = picture.subplots(len(cases), 3, squeeze=False)
        for row, (label, (reference, gate, hint)) in zip(grid, cases.items(), strict=True):
            gate = _array(gate)
            _show(row[0], reference)
            row[0].set_ylabel(textwrap.fill(label, 14), fontsize=FONT_SIZE - 1)
            drawn = row[1].imshow(gate, vmin=0, vmax=1, cmap=CMAP)
            row[1].set_xticks([]), row[1].set_yticks([])
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 2}
            row[1].text(0.98, 0.05, f"mean {gate.mean():.2f}", transform=row[1].transAxes, ha="right", bbox=box)
            _show(row[2], hint)
        for axes, title in zip(grid[0], ("reference", "gate", "ColorHint"), strict=True):
            axes.set_title(title)
        picture.colorbar(drawn, ax=grid, label="gate (0 closed, 1 open)", shrink=0.9, aspect=25)
    return picture


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    caption: str = "",
    height: float = 3.6,
    xscale: str = "linear",
    yscale: str = "linear",
    marks: bool = True,
    from_zero: bool = False,
) -> Picture:
    """Draw curves ``{label: (x, y)}`` that differ in colour, mark and dash; labels carry units.

    from_zero: y begins at 0, so that heights can be compared, and not only differences.
    """
    columns = 3 if max(map(len, series), default=0) <= 24 else 2
    keys = math.ceil(len(series) / columns) if len(series) > 1 else 0  # lines of the legend, which lies above
    with _style():
        picture = Picture(height + 0.24 * keys, caption)
        axes = picture.subplots()
        for i, (label, (x, y)) in enumerate(series.items()):
            axes.plot(
                x, y, label=label, color=COLORS[i % len(COLORS)], linestyle=DASHES[i % len(DASHES)],
                marker=MARKS[i % len(MARKS)] if marks else None, linewidth=2, markersize=6,
            )  # fmt: skip
        axes.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
        if from_zero:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # with room for marks
        if xscale == "linear" and all(float(value).is_integer() for x, _ in series.values() for value in x):
            axes.xaxis.get_major_locator().set_params(integer=True)
        places = sorted({float(value) for x, _ in series.values() for value in x})
        if xscale == "log" and len(places) <= 12:  # measured at a few places: those are the ticks
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        if keys:
            place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": columns, "frameon": False}
            axes.legend(fontsize=FONT_SIZE - 2, **place)
    return picture


def bars(values: Mapping[str, float], *, ylabel: str, caption: str = "", form: str = "{:.2f}") -> Picture:
    """Draw horizontal bars ``{label: value}`` with the value at the end of each."""
    names = list(values)
    with _style():
        picture = Picture(0.45 * len(names) + 0.8, caption)
        axes = picture.subplots()
        drawn = axes.barh(names, [values[name] for name in names], color=COLORS[0])
        axes.bar_label(drawn, [form.format(values[name]) for name in names], padding=4)
        axes.invert_yaxis()
        axes.margins(x=0.15 if min(values.values(), default=0) >= 0 else 0.25)  # room for the numbers at the ends
        axes.set_xlabel(ylabel)
        axes.spines[["top", "right"]].set_visible(False)
    return picture


def roofline(points: Mapping[str, tuple[float, float]], peak: float, bandwidth: float, *, caption: str = "") -> Picture:
    """Draw speed against operations per byte, below the roof of peak and memory (Williams et al., 2009).

    points: ``{label: (operations per byte, operations per second)}``. peak: operations per second. bandwidth: bytes per
    second. Where the slanted part of the roof is above a point, memory holds it back; elsewhere the peak does.
    """
    with _style():
        picture = Picture(4.6, caption)
        axes = picture.subplots()
        ridge = peak / bandwidth
        ends = [min([ridge, *(x for x, _ in points.values())]) / 2, max([ridge, *(x for x, _ in points.values())]) * 2]
        axes.plot([ends[0], ridge, ends[1]], [bandwidth * ends[0], peak, peak], color=COLORS[-1], label="roof")
        for i, (label, (x, y)) in enumerate(points.items()):
            axes.scatter(x, y, label=label, color=COLORS[i % len(COLORS)], marker=MARKS[i % len(MARKS)], s=70, zorder=3)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="operations per byte", ylabel="operations per second")
        axes.grid(alpha=0.3)
        picture.figure.legend(loc="outside right upper", fontsize=FONT_SIZE - 2)
    return picture


def distances(
    distance: np.ndarray, chosen: Mapping[str, Sequence[int]], *, label: str = "D", caption: str = ""
) -> Picture:
    """Draw dissimilarities of all pairs of frames ``(T, T)``, and below them the frames that each method chose.

    label: the name of D, for the colour bar.
    """
    distance = _array(distance)
    with _style():
        picture = Picture(4.6 + 0.35 * len(chosen), caption, width=0.75 * WIDTH)
        matrix, below = picture.subplots(2, 1, height_ratios=(4.2, 0.35 * len(chosen) + 0.2), sharex=True)
        drawn = matrix.imshow(distance, cmap=CMAP, aspect="auto", origin="upper")
        matrix.set_ylabel("frame")
        picture.colorbar(drawn, ax=matrix, label=label)
        for i, (_, numbers) in enumerate(chosen.items()):
            below.scatter(
                numbers, [i] * len(numbers), color=COLORS[i % len(COLORS)], marker=MARKS[i % len(MARKS)], s=60
            )
        below.set_yticks(range(len(chosen)), list(chosen))
        below.set_ylim(len(chosen) - 0.5, -0.5)
        below.set_xlabel("frame")
        below.grid(alpha=0.3, axis="x")
        for axis in (matrix.yaxis, below.xaxis):
            axis.get_major_locator().set_params(integer=True)
    return picture


def timeline(
    runs: Sequence[tuple[int, Sequence[int], Sequence[int]]], frame: int, num_frames: int, *, caption: str = ""
) -> Picture:
    """Draw the references of one frame at each denoising step (Eq. 10).

    runs: ``ReferenceRun`` (steps, keyframes, past) as in ``GCGOutput.references[frame]``, first step first.
    """
    from matplotlib.patches import Patch, Rectangle

    with _style():
        picture = Picture(max(2.6, 0.24 * num_frames + 1.2), caption)
        axes = picture.subplots()
        start = 0
        for steps, keys, past in runs:
            for numbers, color, hatch in ((keys, COLORS[0], ""), (past, COLORS[4], "///")):
                for number in numbers:
                    axes.add_patch(
                        Rectangle((start, number - 0.4), steps, 0.8, facecolor=color, hatch=hatch, edgecolor="white")
                    )
            start += steps
        axes.axhline(frame, color=COLORS[1], linewidth=2, linestyle="--")
        axes.set(xlim=(0, max(start, 1)), ylim=(num_frames - 0.4, -0.6))
        axes.set(xlabel="denoising step done with references (noise falls to the right)", ylabel="frame that guides")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        keys = [
            Patch(facecolor=COLORS[0], label="keyframe"),
            Patch(facecolor=COLORS[4], hatch="///", edgecolor="white", label="earlier frame"),
            Patch(facecolor=COLORS[1], label=f"frame {frame}, being coloured"),
        ]
        picture.legend(handles=keys, loc="outside upper center", ncols=3, fontsize=FONT_SIZE - 2)
    return picture


def plot_losses(log: str | Path | Mapping[str, str | Path], smooth: int = 5, names: tuple[str, ...] = ()):
    """Plot the loss of one run (its folder), or of several ``{label: folder}``, over training steps.

    Thin lines are the log's own values, thick ones their running mean over ``smooth`` lines. A single run also shows
    its loss by kind of reference; ``names`` picks other entries instead. Returns a matplotlib figure. Raises
    FileNotFoundError for a folder without a log, ValueError for a log without such entries.
    """
    runs = dict(log) if isinstance(log, Mapping) else {"": log}
    kinds = ("loss_mask", "loss_single", "loss_grid", "loss_unrelated") if len(runs) == 1 else ()
    curves: dict[str, np.ndarray] = {}
    for label, folder in runs.items():
        if not (Path(folder) / "log.jsonl").is_file():
            raise FileNotFoundError(f"{folder} holds no log.jsonl: give the folder that a training run wrote to.")
        entries = read_log(folder)
        for name in names or ("loss", *kinds):
            points = [(entry["step"], entry[name]) for entry in entries if isinstance(entry.get(name), (int, float))]
            if points:
                curves[f"{label} {name.replace('_', ', ')}".strip()] = np.array(points).T
    if not curves:
        raise ValueError(f"the log has no entry named {', '.join(names or ('loss',))}.")
    means = {label: (steps, running_mean(values, smooth)) for label, (steps, values) in curves.items()}
    ylabel = ", ".join(names) or "loss (mean squared error)"
    picture = lines(means, xlabel="training step", ylabel=ylabel, height=4.0, marks=False)
    for i, (steps, values) in enumerate(curves.values()):
        picture.axes[0].plot(steps, values, color=COLORS[i % len(COLORS)], linewidth=0.6, alpha=0.4)
    return picture.figure


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of each value and the ``width`` - 1 before it, of fewer at the start: ``(N,)`` -> ``(N,)``."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - max(1, width))
    return (sums[ends] - sums[starts]) / (ends - starts)


def as_rgb(image) -> np.ndarray:
    """Return a frame ``(H, W)`` or ``(H, W, 3)`` as ``(H, W, 3)``."""
    image = _array(image)
    return np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image


def _style():
    from matplotlib import rc_context

    return rc_context({"font.size": FONT_SIZE, "axes.titlesize": FONT_SIZE, "hatch.linewidth": 1.5})


def _array(values) -> np.ndarray:
    """Convert an array, or a tensor on any device, to NumPy."""
    return values.detach().cpu().float().numpy() if hasattr(values, "detach") else np.asarray(values)


def _show(axes, image) -> None:
    axes.imshow(as_rgb(image))
    axes.set_xticks([]), axes.set_yticks([])


def _cells(picture: Picture, rows: int, columns: int, used: int) -> list:
    """Return the axes row by row and remove those beyond ``used``."""
    cells = picture.subplots(rows, columns, squeeze=False).reshape(-1).tolist()
    for axes in cells[used:]:
        axes.remove()
    return cells[:used]
