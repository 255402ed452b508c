"""Figure 2: the framework, drawn from its parts; the small pictures are a clip's own, made by the profile."""

from __future__ import annotations

import numpy as np
import studio

from gcgkit import color, keyframes, srg
from gcgkit.lessons import notebook as lesson
from gcgkit.lessons import plots

TRAINED, FROZEN, PLAIN, GROUP = "#F9DFA8", "#CFE3F5", "#FFFFFF", "#F1F1F1"
WIDE, HIGH = 120.0, 74.0  # of the drawing, in units of its own
SMALL = 7.0  # points
TARGET, REFERENCES = 4, (0, 2, 5, 7)  # the frame that is coloured, and the tiles of its reference grid


def draw(maker: studio.Studio) -> plots.Picture:
    """Draw training above and the two stages of colouring below."""
    shot = "rabbit"
    truth, gray = maker.truth(shot), maker.gray(shot)
    target, tiles = min(TARGET, len(truth) - 1), [min(i, len(truth) - 1) for i in REFERENCES]
    hint = maker.cached({"shot": str(maker.shots[shot]), "hint": [target, *tiles]},
                            lambda: _hint(maker, truth, gray, target, tiles))  # fmt: skip
    ours = maker.from_first(shot)
    caption = maker.caption(
        "Figure 2. The framework. Above, training: GCG makes a ColorHint of a gray frame and its reference, which "
        "steers the frozen UNet through a trained copy. Below, colouring in two stages: keyframes together, then every "
        "frame with a sliding grid of keyframes and earlier frames.", shot
    )  # fmt: skip
    picture = plots.Picture(7.2, caption, width=12.0)
    axes = picture.subplots()
    axes.set(xlim=(0, WIDE), ylim=(0, HIGH))
    axes.axis("off")
    in_rgb = np.stack([plots.as_rgb(frame) for frame in gray])
    _training(axes, gray[target], _grid(truth, tiles), _grid(in_rgb, tiles), hint)
    _colouring(axes, gray, ours)
    _legend(axes)
    return picture


def _hint(maker: studio.Studio, truth, gray, target: int, tiles: list[int]) -> np.ndarray:
    """Return the ColorHint's colours on the gray frame (Eq. 5), RGB ``(H, W, 3)``."""
    import torch

    pipe = maker.pipe()
    g = lesson.latents(pipe.vae, gray[target])
    latents = [torch.cat([lesson.latents(pipe.vae, clip[i]) for i in tiles]) for clip in (gray, truth)]
    pair = [srg.make_grid(each)[None] for each in latents]
    seen = [lesson.semantics(pipe, gray[i]) for i in (target, *tiles)]
    of_grid = None if seen[0] is None else srg.make_grid(torch.cat(seen[1:]))[None]
    with torch.no_grad():
        mixed = pipe.control.hint(g, *pair, seen[0], of_grid).hint
    return color.merge_luminance(gray[target], lesson.image(pipe.vae, mixed))


def _grid(clip: np.ndarray, tiles: list[int]) -> np.ndarray:
    """Join four frames into a picture of two by two."""
    return srg.make_grid(clip[tiles].transpose(0, 3, 1, 2)).transpose(1, 2, 0)


def _training(axes, gray, grid, gray_grid, hint) -> None:
    axes.text(0, 72.5, "(a) Training", fontsize=12, weight="bold", va="center")
    _picture(axes, gray, 0, 59, 14, r"gray frame $I_i$")
    _picture(axes, gray_grid, 0, 49, 9, "")
    _picture(axes, grid, 4, 44, 10, "reference: grid, single, or mask", below=True)
    _box(axes, 19, 44, 6, 23, "VAE\nencoder", FROZEN)
    _arrow(axes, (14, 63), (19, 63)), _arrow(axes, (14.3, 48.5), (19, 48.5))
    _box(axes, 30, 40.5, 33, 29.5, "", GROUP, edge="#888888")
    axes.text(46.5, 68.4, "Gated Color Guidance (GCG)", fontsize=9, weight="bold", ha="center", va="center")
    _box(axes, 33, 57, 15, 9, "CGA (Eq. 1, 2)\nQ: $g_i$   K: $g^{ref}$   V: $z^{ref}$", TRAINED)
    _box(axes, 33, 43, 15, 9, "CDGA (Eq. 3, 4)\nQ: $g_i$   K, V: $g^{ref}$\ngate in (0, 1)", TRAINED)
    _box(axes, 52.5, 49.5, 9, 9, "mix\n(Eq. 5)", PLAIN)
    for start, end, name in (((25, 63), (33, 63), "$g_i$"), ((25, 59), (33, 59), ""), ((25, 48), (33, 48), "")):
        _arrow(axes, start, end, name)
    axes.text(27.5, 59.9, "$g^{ref}, z^{ref}$", fontsize=SMALL, ha="center")
    axes.text(27.5, 48.9, "$g_i, g^{ref}$", fontsize=SMALL, ha="center")
    _arrow(axes, (48, 61.5), (55, 58.5)), _arrow(axes, (48, 47.5), (55, 49.5))
    _arrow(axes, (61.5, 54), (66, 54))
    _picture(axes, hint, 66, 50, 14, "ColorHint")
    _box(axes, 85, 49, 14, 10, "UNet copy\n(encoder, middle)", TRAINED)
    _arrow(axes, (80, 54), (85, 54), "concat $g_i$")
    _box(axes, 85, 62.5, 14, 7, "frozen UNet", FROZEN)
    _arrow(axes, (92, 59), (92, 62.5))
    axes.text(92.6, 60.7, "zero convolutions", fontsize=SMALL, va="center")
    _box(axes, 66, 62.5, 14, 7, "noisy latents $z_t$\nprompt (CLIP text)", PLAIN)
    _arrow(axes, (80, 66), (85, 66))
    _box(axes, 66, 41, 14, 5, "CLIP image tokens\nof $I^{ref}$", FROZEN)
    _arrow(axes, (80, 43.5), (91, 49), curve=0.2)
    _box(axes, 104, 62.5, 15, 7, "$\\|\\epsilon - \\epsilon_\\theta\\|^2$  (Eq. 11)", PLAIN)
    _arrow(axes, (99, 66), (104, 66))


def _colouring(axes, gray, ours) -> None:
    axes.plot([0, WIDE], [38.2, 38.2], color="#999999", linewidth=0.8, linestyle="--")
    axes.text(0, 36, "(b) Colouring", fontsize=12, weight="bold", va="center")
    last = len(gray) - 1
    keys = keyframes.select_keyframes(keyframes.pairwise_dissimilarity(gray), min(4, len(gray)))
    for place, i in enumerate((last, last // 2, 0)):
        _picture(axes, gray[i], 4 - 2 * place, 20 - 2.2 * place, 13, "" if place < 2 else "gray clip", below=True)
    _box(axes, 20, 17.5, 12, 8, "select $m$ keyframes\n(Eq. 6)", PLAIN)
    _arrow(axes, (17, 21.5), (20, 21.5))
    _box(axes, 35.5, 13, 20, 17, "", GROUP, edge="#888888")
    axes.text(45.5, 28.2, "Stage 1: keyframes jointly", fontsize=8.5, weight="bold", ha="center", va="center")
    _box(axes, 37, 20.5, 17, 5.5, "reference masked\n(or the exemplar)", PLAIN)
    _box(axes, 37, 14, 17, 5.5, "joint self-attention\n(Eq. 7, 8)", FROZEN)
    _arrow(axes, (32, 21.5), (35.5, 21.5))
    for place, i in enumerate(keys):
        _picture(axes, ours[i], 59 + 7.2 * (place % 2), 21.8 - 4.4 * (place // 2), 7, "")
    axes.text(66, 26.8, "coloured keyframes", fontsize=SMALL + 1, ha="center")
    _arrow(axes, (55.5, 21.5), (59, 21.5))
    _box(axes, 76.5, 13, 21, 17, "", GROUP, edge="#888888")
    axes.text(87, 28.2, "Stage 2: every other frame", fontsize=8.5, weight="bold", ha="center", va="center")
    _box(axes, 78, 20.5, 18, 5.5, "sliding reference grid\nchosen at each $t$ (Eq. 9, 10)", PLAIN)
    _box(axes, 78, 14, 18, 5.5, "GCG, copy, frozen UNet\nDDIM steps", TRAINED)
    _arrow(axes, (73.5, 21.5), (76.5, 21.5)), _arrow(axes, (87, 20.5), (87, 19.5))
    for place, i in enumerate((last, last // 2, 0)):
        title = "" if place < 2 else "coloured clip"
        _picture(axes, ours[i], 105.5 - 1.8 * place, 20 - 2.2 * place, 13, title, below=True)
    _arrow(axes, (97.5, 21.5), (102, 21.5))
    axes.text(99.7, 24.2, "AB of it,\n$L^*$ of\nthe input", fontsize=SMALL, ha="center", va="bottom")
    _arrow(axes, (108, 12.6), (92, 13), curve=-0.35)
    axes.text(100, 7.3, "earlier frames become references", fontsize=SMALL + 1, ha="center")
    _arrow(axes, (8, 12.6), (84, 13), curve=0.12)
    axes.text(45, 6.2, "each gray frame $I_i$", fontsize=SMALL + 1, ha="center")


def _legend(axes) -> None:
    for i, (face, text) in enumerate(((TRAINED, "trained"), (FROZEN, "frozen"), (PLAIN, "no weights"))):
        _box(axes, 2 + 17 * i, 0.6, 4, 2.6, "", face)
        axes.text(7 + 17 * i, 1.9, text, fontsize=8, va="center")


def _box(axes, x: float, y: float, width: float, height: float, text: str, face: str, edge: str = "black") -> None:
    from matplotlib.patches import FancyBboxPatch

    round_box = "round,pad=0,rounding_size=0.8"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=round_box, facecolor=face, edgecolor=edge, linewidth=1)
    )
    axes.text(x + width / 2, y + height / 2, text, fontsize=8, ha="center", va="center", linespacing=1.3)


def _arrow(axes, start: tuple[float, float], end: tuple[float, float], text: str = "", curve: float = 0.0) -> None:
    way = f"arc3,rad={curve}"
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "linewidth": 1.1, "connectionstyle": way,
                                              "color": "#333333", "shrinkA": 0, "shrinkB": 0})  # fmt: skip
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.9, text, fontsize=SMALL, ha="center")


def _picture(axes, image, x: float, y: float, width: float, title: str, below: bool = False) -> None:
    """Place an image of the given width, with its aspect kept and a thin frame."""
    order = 2 + len(axes.images)  # a later picture lies on the earlier ones
    image = plots.as_rgb(image)
    box = axes.get_position()
    shape = (box.width * axes.figure.get_figwidth() / WIDE) / (box.height * axes.figure.get_figheight() / HIGH)
    height = width * image.shape[0] / image.shape[1] * shape
    axes.imshow(image, extent=(x, x + width, y, y + height), aspect="auto", zorder=order)
    corners = [x, x + width, x + width, x, x], [y, y, y + height, y + height, y]
    axes.plot(*corners, color="black", linewidth=0.7, zorder=order)
    place = (y - 1.4, "center") if below else (y + height + 1.2, "center")
    axes.text(x + width / 2, place[0], title, fontsize=SMALL + 1, ha="center", va=place[1])
    axes.set(xlim=(0, WIDE), ylim=(0, HIGH))
