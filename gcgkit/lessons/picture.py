"""A picture with its caption, as notebooks show and store it: drawings as PNG, photographs as JPEG."""

import base64
import io
import textwrap

WIDTH = 8.0  # inches of every picture: a notebook's column
FONT_SIZE = 13
LARGEST = 900_000  # bytes of a PNG
LIGHT = 80_000  # bytes up to which a notebook keeps the PNG; larger pictures are photographs, which suit JPEG
_JPEG = {"quality": 80, "subsampling": 0, "optimize": True}  # colours at full resolution, because they matter here
_DPI = (120, 100, 84, 70, 58, 48)
_LETTERS_PER_LINE = 92


class Picture:
    """A matplotlib figure outside pyplot's state that a notebook shows with its caption as text.

    All other attributes, such as ``subplots`` and ``axes``, are the figure's own.

    Args:
        height: inches, without the caption, for which room is added.
        caption: a self-contained description, printed below the picture.
    """

    def __init__(self, height: float = 4.0, caption: str = "", width: float = WIDTH):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self.figure)
        self._add_caption(caption)

    def _add_caption(self, caption: str) -> None:
        """Write the caption below the figure and enlarge the figure by its lines."""
        self.caption = " ".join(caption.split())
        width, height = self.figure.get_size_inches()
        if lines := _wrapped(self.caption, width):
            self.figure.set_size_inches(width, height + 0.24 * len(lines))
            self.figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=FONT_SIZE - 1)

    def __getattr__(self, name: str):
        if name == "figure":  # not made yet
            raise AttributeError(name)
        return getattr(self.figure, name)

    def png(self) -> bytes:
        """Return the picture as PNG of at most `LARGEST` bytes, drawn smaller if it is too detailed."""
        for dpi in _DPI:
            buffer = io.BytesIO()
            self.figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
            if buffer.tell() <= LARGEST:
                break
        return buffer.getvalue()

    def stored(self) -> tuple[str, bytes]:
        """Return media type and bytes for a notebook's output: PNG up to `LIGHT` bytes, JPEG beyond."""
        png = self.png()
        if len(png) <= LIGHT:
            return "image/png", png
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="jpeg", dpi=_DPI[0], facecolor="white", pil_kwargs=_JPEG)
        return "image/jpeg", buffer.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None):
        kind, data = self.stored()
        text = self.caption or "a picture"
        return {kind: base64.b64encode(data).decode(), "text/plain": text}, {kind: {"alt": text}}


def captioned(figure, caption: str) -> Picture:
    """Add a caption below a matplotlib figure from elsewhere, such as ``dataset.show_batch``."""
    picture = Picture.__new__(Picture)
    picture.figure = figure
    figure.set_layout_engine("constrained")
    picture._add_caption(caption)
    return picture


def _wrapped(caption: str, width: float) -> list[str]:
    """Break a caption into lines that fit into a figure of ``width`` inches."""
    from matplotlib.textpath import TextPath

    for letters in range(int(_LETTERS_PER_LINE * width / WIDTH), 0, -1):  # fewer where letters are wide
        lines = textwrap.wrap(caption, letters)
        extents = [TextPath((0, 0), line, size=FONT_SIZE - 1).get_extents() for line in lines]
        if all(extent.width <= 0.97 * 72 * width for extent in extents):
            break
    return lines
