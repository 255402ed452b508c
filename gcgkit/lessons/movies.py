"""Moving pictures in a notebook: clips side by side as H.264 in the page, with a still for readers without a player."""

import base64
import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import video
from ..color import resize
from . import plots
from .demo import side_by_side

WIDTH = 800  # pixels of the page that a movie fills at most
CRF = 26  # of H.264: small enough for a page, and colours are still true


class Movie:
    """Clips side by side that a notebook plays in a loop: ``{label: (T, H, W) or (T, H, W, 3)}``, uint8, one size.

    Below the player stands a still of some frames, because GitHub and printed pages show no video.

    Args:
        rows: the clips; the shortest decides where the movie ends.
        caption: a self-contained description.
        fps: frames per second; low values let slow changes be seen.
        columns: clips beside each other.
        picks: positions of the frames in the still, as ``plots.frames`` takes them.
        first: number of the clips' first frame in their film, for the still.
    """

    def __init__(
        self, rows: Mapping[str, Sequence], *, caption: str = "", fps: float = 8.0, columns: int = 2, picks=None,
        first: int = 0,
    ):  # fmt: skip
        if not rows:
            raise ValueError("rows is empty: give at least one {label: frames}.")
        count = min(len(clip) for clip in rows.values())
        self.rows = {label: [plots.as_rgb(frame) for frame in clip[:count]] for label, clip in rows.items()}
        self.caption, self.fps, self.columns = " ".join(caption.split()), fps, columns
        self.picks, self.first = picks, first

    def frames(self) -> np.ndarray:
        """Return the joined and labelled frames ``(T, H, W, 3)``, of even size and at most ``WIDTH`` wide."""
        columns = min(self.columns, len(self.rows))
        height, width = self.rows[next(iter(self.rows))][0].shape[:2]
        scale = min(1.0, WIDTH / columns / width)
        size = [2 * round(scale * side / 2) for side in (height, width)]
        small = {label: np.stack([resize(x, *size) for x in clip]) for label, clip in self.rows.items()}
        return side_by_side(small, columns)

    def mp4(self) -> bytes:
        """Return the movie as H.264 in MP4, which every browser plays."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "movie.mp4"
            video.write(path, self.frames(), self.fps, crf=CRF)
            return path.read_bytes()

    def still(self) -> plots.Picture:
        """Return the picture that stands for the movie on a page that plays none."""
        return plots.frames(self.rows, self.picks, caption=self.caption, first=self.first)

    def _repr_html_(self) -> str:
        source = f"data:video/mp4;base64,{base64.b64encode(self.mp4()).decode()}"
        label = html.escape(self.caption or "a clip", quote=True)
        return (
            f'<video src="{source}" title="{label}" aria-label="{label}" autoplay loop muted playsinline controls '
            'style="max-width: 100%"></video>'
        )

    def __repr__(self) -> str:
        return self.caption or "a movie"

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display({"text/html": self._repr_html_(), "text/plain": repr(self)}, raw=True)
        display(self.still())
