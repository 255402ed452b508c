"""One diagram of the whole model with the shapes of its tensors, drawn whole or with some parts highlighted (Fig. 2).

From the gray frame and its reference through the autoencoder, the two attentions (Eq. 1 to 4) and the ColorHint (Eq. 5)
to the UNet copy, the UNet, the denoising loop and the final colours.
"""

from collections.abc import Sequence
from typing import NamedTuple

from .. import encoders
from .plots import Picture

TRAINED, FROZEN, PLAIN = "#F9DFA8", "#CFE3F5", "#FFFFFF"  # they differ in lightness, too
INK, ACCENT = "#222222", "#D55E00"
PALE = 0.3  # opacity of what is not highlighted
LETTERS = 10.0  # points; a notebook shows the picture at its true width of 8 inches
WIDE, HIGH = 80.0, 89.0  # of the drawing, in tenths of an inch
LEGEND = (("trained", TRAINED), ("frozen in the paper", FROZEN), ("no weights", PLAIN))


class Box(NamedTuple):
    """A box of the drawing: left, bottom, width, height, its text and its colour."""

    x: float
    y: float
    width: float
    height: float
    text: str
    face: str = PLAIN


_COPIED = "encoder, middle block"
# Name of each part and its boxes. {…} are sizes, see ``sizes``.
BOXES: dict[str, tuple[Box, ...]] = {
    "gray": (Box(0, 81, 18, 7, "gray frame $I_i$\n{frame_gray}"),),
    "reference": (Box(21, 81, 25, 7, "reference, colour and gray\n{frame_ref}"),),
    "vae_encoder": (Box(0, 70.5, 33, 5, "VAE encoder", FROZEN),),
    "vae_decoder": (Box(25, 1.5, 22, 5, "VAE decoder", FROZEN),),
    "image_encoder": (Box(35, 70.5, 18, 5, "image encoder", FROZEN),),
    "text": (Box(60, 81, 20, 7, "prompt (words)"), Box(60, 70.5, 20, 5, "text encoder", FROZEN)),
    "cga": (Box(0, 54, 21, 10, "CGA (Eq. 1, 2)\nQ: $g$   K: $g_{ref}$   V: $z_{ref}$\nfetches colour", TRAINED),),
    "cdga": (Box(24, 54, 21, 10, "CDGA (Eq. 3, 4)\nQ: $g$   K, V: $g_{ref}$\na gate in (0, 1)", TRAINED),),
    "hint": (Box(3, 41.5, 39, 7, "ColorHint (Eq. 5)\n" + r"$g\cdot(1-$gate$) + $colour$\cdot$gate"),),
    "copy": (
        Box(3, 31.5, 27, 4.5, "concat with $g${semantics}"),
        Box(3, 17, 35, 9.5, f"UNet copy: {_COPIED}\ncross-attention reads image tokens", TRAINED),
    ),
    "unet": (
        Box(50.5, 25, 29.5, 9, f"UNet: {_COPIED}\nself-attention (Eq. 7, 8)\ncross-attention reads text", FROZEN),
        Box(50.5, 14, 29.5, 6.5, "UNet: decoder\nattention as above", FROZEN),
    ),
    "sampler": (
        Box(50.5, 41.5, 19.5, 7, "noisy latents $z_t$\n{latents}"),
        Box(56, 1.5, 24, 7, "scheduler (DDIM)\n$z_t$ becomes $z_{t-1}$"),
    ),
    "merge": (Box(0, 1.5, 20, 7, "LAB merge: $L^*$ of the\ngray frame, AB of the\ndecoded picture"),),
}  # fmt: skip
# From, to, label, place of the label beside the arrow's middle, part.
ARROWS: tuple[tuple, ...] = (
    ((9, 81), (9, 75.5), "", (0, 0), "gray"),
    ((27, 81), (27, 75.5), "", (0, 0), "reference"),
    ((42, 81), (42, 75.5), "colour", (4.2, 0), "image_encoder"),
    ((70, 81), (70, 75.5), "", (0, 0), "text"),
    ((7, 70.5), (7, 64), "$g$ {latents}\n$g_{ref}$, $z_{ref}$ {latents_ref}", (10, 0), "cga"),
    ((31, 70.5), (31, 64), "$g$, $g_{ref}$", (4.5, 0), "cdga"),
    ((11, 54), (11, 48.5), "colour {latents}", (9, 0), "cga"),
    ((32, 54), (32, 48.5), "gate {latents}", (8, 0), "cdga"),
    ((16, 41.5), (16, 36), "{latents}", (6.5, 0), "hint"),
    ((16, 31.5), (16, 26.5), "{condition}, zero convolution", (12.5, 0), "copy"),
    ((38, 18.3), (50.5, 18.3), "residuals through\nzero convolutions", (-4.7, -4.2), "copy"),
    ((60, 41.5), (60, 34), "", (0, 0), "sampler"),
    ((65, 25), (65, 20.5), "skip connections", (7.5, 0), "unet"),
    ((65, 14), (65, 8.5), "prediction", (5.2, 0), "unet"),
    ((56, 4), (47, 4), "$z_0$", (0, 1.5), "sampler"),
    ((25, 4), (20, 4), "", (0, 0), "merge"),
)
# Ways with corners: points, label, its place, part.
WAYS: tuple[tuple, ...] = (
    (((46, 70.5), (46, 24.5), (38, 24.5)), "image tokens\n{image_tokens}", (52, 60), "image_encoder"),
    (((78.7, 70.5), (78.7, 36), (78.7, 34)), "text tokens\n{text_tokens}", (72.7, 60), "text"),
    (((50.5, 43.5), (48.2, 43.5), (48.2, 21.5), (38, 21.5)), "", (0, 0), "copy"),
    (((1.3, 70.5), (1.3, 68), (-1, 68), (-1, 33.7), (3, 33.7)), "", (0, 0), "copy"),
    (((80, 5), (82, 5), (82, 45), (70, 45)), "repeat for\n$t = T, \\ldots, 1$", (74.4, 47.9), "sampler"),
    (((0, 84), (-2.4, 84), (-2.4, 5), (0, 5)), "", (0, 0), "merge"),
)
PARTS = tuple(BOXES)


def sizes(pipe=None) -> dict[str, str]:
    """Return the shapes in the drawing, without the batch: letters, or the true sizes of a pipeline.

    Keys: ``frame_gray``, ``frame_ref``, ``latents``, ``latents_ref``, ``condition`` (what the copy is given beside
    z_t), ``image_tokens``, ``text_tokens``; ``semantics`` names what a copy reads beyond the paper. The reference is
    one frame as large as the gray one.
    """
    if pipe is None:
        return {
            "frame_gray": "(H, W)", "frame_ref": "(H', W', 3), (H', W')", "latents": "(C, h, w)",
            "latents_ref": "(C, h', w')", "condition": "(2C, h, w)", "image_tokens": "(N, D)", "text_tokens": "(M, D)",
            "semantics": "",
        }  # fmt: skip
    height, width = pipe.config.height, pipe.config.width
    canvas = encoders.fit_canvas((height, width), (height, width), encoders.canvas_multiple(pipe.vae, pipe.unet))
    h, w = encoders.latent_size(pipe.vae, canvas.outer)
    vision, channels = pipe.image_encoder.config, pipe.unet.config.in_channels
    latents = f"({channels}, {h}, {w})"
    return {
        "frame_gray": f"({height}, {width})", "frame_ref": f"({height}, {width}, 3), ({height}, {width})",
        "latents": latents, "latents_ref": latents,
        "condition": f"({pipe.control.unet_copy.config.conditioning_channels}, {h}, {w})",
        "image_tokens": f"({(vision.image_size // vision.patch_size) ** 2}, {vision.projection_dim})",
        "text_tokens": f"({pipe.tokenizer.model_max_length}, {pipe.text_encoder.config.hidden_size})",
        "semantics": ", semantics" if pipe.control.pyramid is not None else "",
    }  # fmt: skip


def draw_model(highlight: Sequence[str] = (), pipe=None, caption: str = "") -> Picture:
    """Draw the model; the parts in ``highlight`` stand out and the others are pale.

    highlight: names of ``PARTS``; empty for the whole model. pipe: a pipeline whose true sizes replace the letters.
    Raises ValueError for a name that is no part.
    """
    if unknown := sorted(set(highlight) - set(PARTS)):
        raise ValueError(f"highlight has {unknown[0]!r}, which is no part of the model: {', '.join(PARTS)}.")
    text = sizes(pipe)
    picture = Picture(HIGH / 10, caption or _caption(highlight, pipe))
    axes = picture.subplots()
    axes.set(xlim=(-3, WIDE + 2.6), ylim=(-3.2, HIGH))
    axes.axis("off")
    for start, end, words, offset, part in ARROWS:
        middle = ((start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1])
        _way(axes, (start, end), _fill(words, text), middle, *_look(part, highlight))
    for points, words, place, part in WAYS:
        _way(axes, points, _fill(words, text), place, *_look(part, highlight))
    for part, boxes in BOXES.items():
        for box in boxes:
            _box(axes, box, _fill(box.text, text), *_look(part, highlight))
    for i, (words, face) in enumerate(LEGEND):
        _box(axes, Box(8 + 24 * i, -2.8, 3, 2, "", face), "", 1.0, INK, 1.0)
        axes.text(12 + 24 * i, -1.8, words, fontsize=LETTERS, va="center")
    return picture


def _fill(words: str, text: dict[str, str]) -> str:
    """Put sizes in; braces of formulas stay."""
    for name, size in text.items():
        words = words.replace("{" + name + "}", size)
    return words


def _caption(highlight: Sequence[str], pipe) -> str:
    shapes = "Shapes are those of this profile" if pipe else "C, h, w are a latent's channels, height and width"
    shown = " The parts of this notebook stand out." if highlight else ""
    more = ""
    if pipe and pipe.control.pyramid is not None:
        more = (
            f" Semantics: {pipe.control.config.semantic_width} channels that a semantic encoder makes of the gray "
            "frames. CGA and CDGA read them too. The paper has no such part."
        )
    return f"The model, from the gray frame (top left) to its colours (bottom left).{shown} {shapes}.{more}"


def _look(part: str, highlight: Sequence[str]) -> tuple[float, str, float]:
    """Opacity, colour of lines and their width."""
    if not highlight:
        return 1.0, INK, 1.2
    return (1.0, ACCENT, 2.4) if part in highlight else (PALE, INK, 1.0)


def _box(axes, box: Box, text: str, alpha: float, edge: str, width: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = {"boxstyle": "round,pad=0,rounding_size=0.7", "facecolor": box.face, "edgecolor": edge, "linewidth": width}
    axes.add_patch(FancyBboxPatch(box[:2], box.width, box.height, **style, alpha=alpha, zorder=3))
    place = box.x + box.width / 2, box.y + box.height / 2
    axes.text(*place, text, fontsize=LETTERS, ha="center", va="center", linespacing=1.25, alpha=alpha, zorder=4)


def _way(axes, points, text: str, place: tuple[float, float], alpha: float, color: str, width: float) -> None:
    """Draw a line through points with an arrow's head at its end, and its label."""
    axes.plot(*zip(*points[:-1], strict=True), color=color, linewidth=width, alpha=alpha, zorder=2)
    style = {"arrowstyle": "-|>", "linewidth": width, "color": color, "shrinkA": 0, "shrinkB": 0, "alpha": alpha}
    axes.annotate("", points[-1], points[-2], arrowprops=style, zorder=2)
    if text:
        axes.text(*place, text, fontsize=LETTERS - 0.5, ha="center", va="center", alpha=alpha, color=INK, zorder=5)
