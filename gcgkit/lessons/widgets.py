"""Interactive parts of the notebooks: small drawing functions under a few controls.

``explore`` puts sliders and menus on any function that returns a ``plots.Picture`` or an RGB array. Where there is no
ipywidgets, or where outputs are made to be kept (`notebook.static`), every function here returns the picture of the
starting values, so that a reader without a kernel sees it; a live widget carries its picture along, too.
"""

import base64
import importlib.util
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from . import notebook as lesson
from . import plots

PATCH = 4  # latents on a side of a patch that one can click
_LINE = 3  # pixels


def explore(
    render: Callable, start: Mapping | None = None, still: Callable | None = None, above: Callable | None = None,
    **choices: Sequence,
):  # fmt: skip
    """Show a picture under controls: ``render(**values)`` is called at each change.

    render: returns a ``plots.Picture`` or uint8 RGB ``(H, W, 3)``. choices: the values of each argument, a slider each,
    or a menu where they are words. start: values to begin with, the first ones by default. still: the picture without
    a front end, ``render`` with the starting values by default. above: makes a further widget, which stands above the
    controls, of the controls by name. Returns an `Explorer` or a ``Picture``. Raises ValueError
    for an empty choice or a start that is none of its values.
    """
    start = dict(start or {})
    for name, values in choices.items():
        if len(values) == 0:
            raise ValueError(f"{name} has no values to choose from.")
        if start.setdefault(name, values[0]) not in values:
            raise ValueError(f"start has {name}={start[name]!r}, which is none of its values.")
    if not front_end():
        return still() if still else _picture(render(**start))
    controls = {name: _control(name, values, start[name]) for name, values in choices.items()}
    return Explorer(render, controls, [above(controls)] if above else [])


class Explorer:
    """Controls above the picture that ``render`` draws from their values; ``box`` is the ipywidgets box of all.

    Args:
        render: as for `explore`.
        controls: ipywidgets controls by the name of the argument that each sets.
        above: further widgets, above the controls.
    """

    def __init__(self, render: Callable, controls: Mapping, above: Sequence = ()):
        import ipywidgets

        self.render, self.controls = render, dict(controls)
        self.image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", width="max-content"))
        self.update()
        for control in self.controls.values():
            control.observe(self.update, "value")
        self.box = ipywidgets.VBox([*above, *self.controls.values(), self.image])

    def update(self, _change=None) -> None:
        """Redraw with the controls' present values."""
        self.image.value = _png(self.render(**{name: control.value for name, control in self.controls.items()}))

    def _repr_mimebundle_(self, **kwargs):
        bundle = self.box._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        # What cannot run widgets, such as a code host's preview, shows the picture.
        return {**data, "image/png": base64.b64encode(self.image.value).decode()}, metadata


def split_view(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    """Join ``before`` left and ``after`` right of a line at ``share`` (0..1) of the width: uint8 ``(H, W, 3)``.

    Frames ``(H, W)`` or ``(H, W, 3)``. Raises ValueError for different sizes or a share outside 0..1.
    """
    if before.shape[:2] != after.shape[:2]:
        raise ValueError(f"before and after differ in size: {before.shape[:2]} and {after.shape[:2]}.")
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in 0..1, not {share}.")
    before, view = plots.as_rgb(before), plots.as_rgb(after).copy()
    column = round(share * view.shape[1])
    view[:, :column] = before[:, :column]
    view[:, max(0, column - _LINE // 2) : column + _LINE - _LINE // 2] = 255
    return view


def before_after(before: np.ndarray, after: np.ndarray, labels: tuple[str, str] = ("before", "after")):
    """Show two clips ``(T, H, W)`` or ``(T, H, W, 3)`` with a line to drag between them and a slider for the frame."""
    if len(before) != len(after):
        raise ValueError(f"before has {len(before)} frames and after {len(after)}; they must be as many.")
    middle = len(before) // 2

    def still() -> plots.Picture:
        halves = [split_view(b, a, 0.5) for b, a in zip(before, after, strict=True)]
        caption = f"Frames of the two clips, and below them halves of both: {labels[0]} left, {labels[1]} right."
        return plots.frames({labels[0]: before, labels[1]: after, "half and half": halves}, caption=caption)

    return explore(
        lambda frame, line: split_view(before[frame], after[frame], line / 100),
        {"frame": middle, "line": 50},
        still,
        line=range(0, 101, 2),
        frame=range(len(before)),
    )


def patch_weights(weights, size: tuple[int, int], ref_size: tuple[int, int], row: int, column: int, patch: int = PATCH):
    """Return a patch's attention over the reference: the mean of its weights over its tokens and heads.

    weights ``(1, heads, h*w, h'*w')`` as ``GuidanceOutput`` holds them; size (h, w), ref_size (h', w') in latents; row
    and column count patches of ``patch`` latents on a side. Returns ``(h', w')`` float32. Raises ValueError for a patch
    outside the frame or weights of another shape.
    """
    rows, columns = patches(size, patch)
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"the patch ({row}, {column}) lies outside the {rows} x {columns} patches of the frame.")
    weights = np.asarray(weights.detach().cpu().float() if hasattr(weights, "detach") else weights)
    if weights.ndim != 4 or weights.shape[2:] != (size[0] * size[1], ref_size[0] * ref_size[1]):
        raise ValueError(
            f"weights of shape {weights.shape} do not fit latents of {size} and a reference of {ref_size}."
        )
    per_token = weights[0].mean(0).reshape(*size, *ref_size)  # (h, w, h', w')
    block = per_token[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    return block.mean((0, 1))


def patches(size: tuple[int, int], patch: int = PATCH) -> tuple[int, int]:
    """Return rows and columns of whole patches in latents of ``size``; incomplete ones at the edges do not count."""
    return max(1, size[0] // patch), max(1, size[1] // patch)


def attention_picker(
    frame: np.ndarray, reference: np.ndarray, weights, size: tuple[int, int], ref_size: tuple[int, int],
    start: tuple[int, int] | None = None, caption: str = "",
):  # fmt: skip
    """Show a patch's attention to the reference (Eq. 2); choose it by a click in the gray frame or by sliders.

    frame ``(H, W)``, reference ``(H', W', 3)``; weights, size, ref_size as for `patch_weights`; start: row and column
    of the first patch, the middle one by default.
    """
    rows, columns = patches(size)
    start = start or (rows // 2, columns // 2)
    side = frame.shape[0] / size[0] * PATCH  # pixels

    def render(row: int, column: int) -> plots.Picture:
        looks = patch_weights(weights, size, ref_size, row, column)
        return plots.attention(frame, reference, looks, (column * side, row * side, side, side), caption=caption)

    return explore(
        render,
        dict(zip(("row", "column"), start, strict=True)),
        above=lambda controls: _buttons(frame, rows, columns, controls),
        row=range(rows),
        column=range(columns),
    )


def gate_explorer(cases: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], caption: str = ""):
    """Show a slider over references, and for each its gate (Eq. 4) and ColorHint (Eq. 5).

    cases: ``{label: (reference (H, W, 3), gate (h, w) in 0..1, hint (H, W, 3))}``. Without a front end all cases stand
    below one another.
    """
    if not cases:
        raise ValueError("cases is empty: give at least one {label: (reference, gate, hint)}.")
    return explore(
        lambda reference: plots.gates({reference: cases[reference]}, caption=caption),
        still=lambda: plots.gates(cases, caption=caption),
        reference=_Steps(cases),
    )


def srg_timeline(references: Mapping[int, Sequence], num_frames: int, caption: str = ""):
    """Show a slider over frames, and for each its references at each step (Eq. 10).

    references: ``GCGOutput.references``. Without a front end the last frame that was guided by earlier ones shows, or
    simply the last.
    """
    if not references:
        raise ValueError("references is empty: no frame of this clip was guided.")
    frames = sorted(references)
    slid = [frame for frame in frames if any(run[2] for run in references[frame])]
    return explore(
        lambda frame: plots.timeline(references[frame], frame, num_frames, caption=caption),
        {"frame": (slid or frames)[-1]},
        frame=frames,
    )


class _Steps(tuple):
    """Ordered words, shown as a slider instead of a menu."""


def front_end() -> bool:
    """Return True if widgets are available and wanted."""
    return not lesson.static() and importlib.util.find_spec("ipywidgets") is not None


def _control(name: str, values: Sequence, value):
    import ipywidgets

    label = name.replace("_", " ")
    style, layout = {"description_width": "90px"}, ipywidgets.Layout(width="480px")
    words = any(isinstance(v, str) for v in values) and not isinstance(values, _Steps)
    kind = ipywidgets.Dropdown if words else ipywidgets.SelectionSlider
    return kind(options=list(values), value=value, description=label, style=style, layout=layout)


def _buttons(frame: np.ndarray, rows: int, columns: int, controls: Mapping):
    """Return the frame with a transparent button on each patch, which sets the controls ``row`` and ``column``."""
    import ipywidgets

    width = 560
    cell = width // columns
    height, width = cell * rows, cell * columns
    shown = cv2.resize(plots.as_rgb(frame), (width, height), interpolation=cv2.INTER_AREA)
    image = ipywidgets.Image(
        value=_png(shown), format="png", layout=ipywidgets.Layout(width=f"{width}px", height=f"{height}px", margin="0")
    )
    cells = []
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        button = ipywidgets.Button(
            tooltip=f"row {row}, column {column}",
            layout=ipywidgets.Layout(
                width=f"{cell}px", height=f"{cell}px", margin="0", padding="0", border="1px solid rgba(255,255,255,.3)"
            ),
            style={"button_color": "transparent"},
        )
        button.on_click(lambda _, row=row, column=column: _set(controls, row=row, column=column))
        cells.append(button)
    grid = ipywidgets.GridBox(
        cells,
        layout=ipywidgets.Layout(
            grid_template_columns=f"repeat({columns}, {cell}px)",
            grid_template_rows=f"repeat({rows}, {cell}px)",
            width=f"{width}px",
            height=f"{height}px",
            margin=f"-{height}px 0 0 0",  # lays the buttons on the picture
        ),
    )
    return ipywidgets.VBox([image, grid], layout=ipywidgets.Layout(overflow="visible"))


def _set(controls: Mapping, **values) -> None:
    for name, value in values.items():
        controls[name].value = value


def _picture(drawn) -> plots.Picture:
    return drawn if isinstance(drawn, plots.Picture) else plots.gallery({"": drawn})


def _png(drawn) -> bytes:
    if isinstance(drawn, plots.Picture):
        return drawn.png()
    return cv2.imencode(".png", cv2.cvtColor(drawn, cv2.COLOR_RGB2BGR))[1].tobytes()
