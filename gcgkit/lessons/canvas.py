"""A canvas in a notebook: drag a brush over a keyframe, and use the painted frame as an exemplar (§4.4).

A stroke is a disc of one colour. It gives a frame its colour and leaves the frame's lightness alone, as a tinted
photograph has it. The canvas is an HTML element that writes its strokes as JSON into a text field of ipywidgets, where
they can be edited, too. Without a front end the painted frame stands there as a picture.
"""

import base64
import json
import re
import uuid
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np

from .. import color
from . import plots, widgets

MOST = 5000  # strokes on a board
_NAME = "gcgkit-strokes"


class Stroke(NamedTuple):
    """A disc of colour: its centre and radius in pixels of the frame, its colour as in "#3366ff"."""

    row: float
    column: float
    radius: float
    color: str


def check_strokes(strokes: Iterable) -> list[Stroke]:
    """Return (row, column, radius, colour) each as a `Stroke`; ValueError with one sentence for anything else."""
    checked = []
    for number, entry in enumerate(strokes):
        try:
            row, column, radius, shade = entry
            stroke = Stroke(float(row), float(column), float(radius), str(shade))
        except (TypeError, ValueError):
            raise ValueError(f"stroke {number} must be (row, column, radius, colour), not {entry!r}.") from None
        if not np.isfinite(stroke[:3]).all() or stroke.radius <= 0:
            raise ValueError(f"stroke {number} needs finite numbers and a radius above 0, not {entry!r}.")
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", stroke.color):
            raise ValueError(f"stroke {number} needs a colour such as '#3366ff', not {shade!r}.")
        checked.append(stroke)
    if len(checked) > MOST:
        raise ValueError(f"there are {len(checked)} strokes; a board holds at most {MOST}.")
    return checked


def line(start: tuple, end: tuple, radius: float, shade: str) -> list[Stroke]:
    """Return strokes from ``start`` to ``end``, (row, column) each, close enough to look like one line."""
    count = 1 + int(np.ceil(np.hypot(end[0] - start[0], end[1] - start[1]) / (radius / 2)))
    places = np.linspace(start, end, count).round(1).tolist()
    return [Stroke(row, column, radius, shade) for row, column in places]


def paint(frame: np.ndarray, strokes: Iterable) -> np.ndarray:
    """Return the frame with the strokes' a* and b* in place of its own: uint8 RGB ``(H, W, 3)``.

    frame: gray ``(H, W)`` or RGB ``(H, W, 3)``. A later stroke covers an earlier one. L* stays the frame's; where no
    colour of sRGB has this L*, the stroke's a* and b* shrink, and its hue stays.
    """
    lab = color.rgb_to_lab(plots.as_rgb(frame)).copy()  # (H, W, 3)
    rows, columns = np.ogrid[: lab.shape[0], : lab.shape[1]]
    touched = np.zeros(lab.shape[:2], bool)  # (H, W)
    for stroke in check_strokes(strokes):
        disc = (rows - stroke.row) ** 2 + (columns - stroke.column) ** 2 <= stroke.radius**2  # (H, W)
        shade = np.array([int(stroke.color[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
        lab[disc, 1:] = color.rgb_to_lab(shade)[1:]
        touched |= disc
    painted = color.join_lab(lab[..., 0], lab[..., 1:], gamut="chroma")
    return np.where(touched[..., None], painted, plots.as_rgb(frame))


class Board:
    """A frame to paint on in a notebook: ``strokes`` are those on it, ``painted`` is the painted frame.

    Args:
        frame: gray ``(H, W)`` or RGB ``(H, W, 3)``, uint8.
        strokes: (row, column, radius, colour) each, to begin with.
        shade: the brush's first colour.
        radius: the brush's first radius, pixels of the frame.
        caption: a self-contained description.
    """

    def __init__(
        self, frame: np.ndarray, strokes: Iterable = (), *, shade: str = "#3366ff", radius: int = 16, caption: str = ""
    ):
        check_strokes([(0, 0, radius, shade)])
        self.frame, self.strokes = frame, check_strokes(strokes)
        self.shade, self.radius, self.caption, self.field = shade, radius, caption, None
        self.name = f"{_NAME}-{uuid.uuid4().hex[:8]}"

    @property
    def painted(self) -> np.ndarray:
        """The frame with all strokes, uint8 RGB ``(H, W, 3)``."""
        return paint(self.frame, self.strokes)

    def still(self) -> plots.Picture:
        """Return the frame before and after the strokes, as a picture."""
        rows = {"before": plots.as_rgb(self.frame), "painted": self.painted}
        return plots.gallery(rows, columns=2, caption=self.caption)

    def text_field(self):
        """Return the ipywidgets text field that holds the strokes as JSON; a change of it changes the strokes."""
        import ipywidgets

        self.field = ipywidgets.Textarea(
            value=json.dumps(self.strokes), description="strokes", layout=ipywidgets.Layout(width="560px")
        )
        self.field.add_class(self.name)
        self.field.observe(self._read, "value")
        return self.field

    def _read(self, change) -> None:
        """Take the strokes over from the text field; half-typed ones wait."""
        try:
            self.strokes = check_strokes(json.loads(change["new"] or "[]"))
        except (ValueError, TypeError):
            return

    def page(self) -> str:
        """Return the canvas as HTML: picture, brush, and the script that fills the text field."""
        picture = cv2.imencode(".png", cv2.cvtColor(plots.as_rgb(self.frame), cv2.COLOR_RGB2BGR))[1].tobytes()
        values = {
            "name": self.name, "strokes": json.dumps(self.strokes), "shade": self.shade, "radius": self.radius,
            "height": self.frame.shape[0], "width": self.frame.shape[1],
            "picture": base64.b64encode(picture).decode(),
        }  # fmt: skip
        return re.sub(r"@(\w+)@", lambda found: str(values[found[1]]), _PAGE)

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        if widgets.front_end():
            display(HTML(self.page()))
            display(self.text_field())
        else:
            display(self.still())


# The blend "color" takes hue and saturation from the brush and brightness from the picture, as `paint` does.
_PAGE = """<div id="@name@">
<canvas width="@width@" height="@height@" style="width: 560px; max-width: 100%; cursor: crosshair; touch-action: none">
</canvas><br>
<label>colour <input type="color" value="@shade@"></label>
<label>brush <input type="range" min="2" max="60" value="@radius@"></label>
<button type="button">undo</button> <button type="button">clear</button></div>
<script>(() => {
  const board = document.getElementById('@name@'), canvas = board.querySelector('canvas');
  const [shade, size] = board.querySelectorAll('input'), [undo, clear] = board.querySelectorAll('button');
  const pen = canvas.getContext('2d'), picture = new Image();
  let strokes = @strokes@, begun = [], last = null;
  const disc = ([row, column, radius, color]) => {
    pen.globalCompositeOperation = 'color';
    pen.fillStyle = color;
    pen.beginPath(); pen.arc(column, row, radius, 0, 7); pen.fill();
  };
  const draw = () => {
    pen.globalCompositeOperation = 'source-over';
    pen.drawImage(picture, 0, 0);
    strokes.forEach(disc);
  };
  const tell = () => {
    const field = document.querySelector('.@name@ textarea');
    if (!field) return;
    field.value = JSON.stringify(strokes);
    for (const kind of ['input', 'change']) field.dispatchEvent(new Event(kind, {bubbles: true}));
  };
  const add = event => {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
    const row = (event.clientY - box.top) * scale, column = (event.clientX - box.left) * scale;
    if (last && Math.hypot(row - last[0], column - last[1]) < size.value / 2) return;
    last = [row, column];
    strokes.push([Math.round(row), Math.round(column), Number(size.value), shade.value]);
    disc(strokes[strokes.length - 1]);
  };
  canvas.onpointerdown = event => {
    if (event.isTrusted) canvas.setPointerCapture(event.pointerId);  // a stroke goes on outside the canvas
    begun.push(strokes.length); last = null; add(event);
  };
  canvas.onpointermove = event => { if (event.buttons) add(event); };
  canvas.onpointerup = tell;
  undo.onclick = () => { strokes = strokes.slice(0, begun.length ? begun.pop() : 0); draw(); tell(); };
  clear.onclick = () => { strokes = []; begun = []; draw(); tell(); };
  picture.onload = draw;
  picture.src = 'data:image/png;base64,@picture@';
})()</script>"""
