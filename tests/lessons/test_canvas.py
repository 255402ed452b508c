"""Painting on a keyframe: discs against a loop over pixels, the text field by typing, the canvas in a browser."""

import html
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from gcgkit.lessons import canvas, plots
from gcgkit.lessons import notebook as lesson

GRAY = np.tile(np.linspace(60, 200, 40).astype(np.uint8), (24, 1))  # (H, W)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(autouse=True)
def live(monkeypatch):
    monkeypatch.delenv(lesson.STATIC, raising=False)


def lab(image):
    """CIELAB of uint8 RGB, by OpenCV on its own."""
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def test_a_stroke_colours_a_disc_and_keeps_the_lightness():
    painted = canvas.paint(GRAY, [(10, 12, 5, "#7a5030")])
    before, after = lab(plots.as_rgb(GRAY)), lab(painted)
    wanted = lab(np.uint8([[[0x7A, 0x50, 0x30]]]))[0, 0]
    for row in range(24):
        for column in range(40):
            if (row - 10) ** 2 + (column - 12) ** 2 <= 25:
                np.testing.assert_allclose(after[row, column], (before[row, column, 0], *wanted[1:]), atol=1.2)
            else:
                assert (painted[row, column] == GRAY[row, column]).all()


def test_a_colour_too_vivid_for_its_place_keeps_lightness_and_hue():
    light = np.full((8, 8), 240, np.uint8)
    after = lab(canvas.paint(light, [(4, 4, 20, "#0000ff")]))
    blue = lab(np.uint8([[[0, 0, 255]]]))[0, 0]
    np.testing.assert_allclose(after[..., 0], lab(plots.as_rgb(light))[..., 0], atol=1)
    hue = np.degrees(np.arctan2(after[..., 2], after[..., 1]) - np.arctan2(blue[2], blue[1]))
    assert np.abs(hue).max() < 8 and np.hypot(after[..., 1], after[..., 2]).min() > 3


def test_later_strokes_cover_earlier_ones_and_the_frame_stays():
    frame = np.random.default_rng(0).integers(60, 180, (24, 40, 3), dtype=np.uint8)
    kept = frame.copy()
    both = canvas.paint(frame, [(12, 20, 6, "#a04040"), (12, 20, 6, "#4040a0")])
    np.testing.assert_array_equal(both, canvas.paint(frame, [(12, 20, 6, "#4040a0")]))
    np.testing.assert_array_equal(frame, kept)
    np.testing.assert_array_equal(canvas.paint(frame, []), frame)
    np.testing.assert_array_equal(both[:, :13], frame[:, :13])  # as it was, without a rounding


def test_a_line_covers_the_way_without_gaps():
    strokes = canvas.line((4, 4), (20, 34), 3, "#a04040")
    painted = canvas.paint(np.full((24, 40), 128, np.uint8), strokes)
    for t in np.linspace(0, 1, 50):
        row, column = round(4 + 16 * t), round(4 + 30 * t)
        assert np.ptp(painted[row, column]) > 20
    assert strokes[0][:2] == (4, 4) and strokes[-1][:2] == (20, 34)


@pytest.mark.parametrize(
    ("stroke", "words"),
    [((1, 2, 3), "must be"), ((1, 2, 0, "#ffffff"), "radius above 0"), ((1, 2, 3, "red"), "such as"),
     (("a", 2, 3, "#ffffff"), "must be"), ((1, float("nan"), 3, "#ffffff"), "finite"), (7, "must be")],
)  # fmt: skip
def test_wrong_strokes_are_refused(stroke, words):
    with pytest.raises(ValueError, match=words):
        canvas.paint(GRAY, [stroke])


def test_the_text_field_changes_the_painted_frame():
    board = canvas.Board(GRAY, [(10, 12, 5, "#7a5030")])
    field = board.text_field()
    assert [tuple(stroke) for stroke in json.loads(field.value)] == [(10, 12, 5, "#7a5030")]
    field.value = '[[5, 6, 4, "#3366ff"]]'
    np.testing.assert_array_equal(board.painted, canvas.paint(GRAY, [(5, 6, 4, "#3366ff")]))
    for half_typed in ("[[5, 6", "7", '[[5, 6, 4, "blue"]]'):
        field.value = half_typed
        assert board.strokes == [(5, 6, 4, "#3366ff")]
    field.value = ""
    np.testing.assert_array_equal(board.painted, plots.as_rgb(GRAY))


def shown(board):
    """What the board gives to IPython's display."""
    pytest.importorskip("IPython")
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("IPython.display.display", given.append)
        board._ipython_display_()
    return given


def test_without_a_front_end_the_painted_frame_is_a_picture(monkeypatch):
    board = canvas.Board(GRAY, [(10, 12, 5, "#7a5030")], caption="A painted frame.")
    page, field = shown(board)
    assert "<canvas" in page.data and field is board.field
    monkeypatch.setenv(lesson.STATIC, "1")
    (picture,) = shown(board)
    assert isinstance(picture, plots.Picture) and picture.caption == "A painted frame."
    np.testing.assert_array_equal(picture.axes[1].images[0].get_array(), board.painted)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_drag_in_a_browser_writes_strokes(tmp_path):
    board = canvas.Board(GRAY, [(1, 2, 3, "#ff0000")], shade="#3366ff", radius=4)
    drag = """<script>onload = () => {
      const canvas = document.querySelector('canvas'), box = canvas.getBoundingClientRect();
      const send = (kind, x, y) => canvas.dispatchEvent(new PointerEvent(
        kind, {clientX: box.left + x * box.width, clientY: box.top + y * box.height, buttons: 1}));
      send('pointerdown', .25, .5); send('pointermove', .26, .5);
      send('pointermove', .75, .5); send('pointerup', .75, .5);
      const drawn = document.querySelector('textarea').value;
      document.querySelector('button').click();
      document.body.dataset.drawn = drawn; document.body.dataset.undone = document.querySelector('textarea').value;
    }</script>"""
    page = f'<body>{board.page()}<div class="{board.name}"><textarea></textarea></div>{drag}</body>'
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", f"file://{tmp_path / 'page.html'}"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    if "<canvas" not in made:
        pytest.skip("Chromium does not start here")
    drawn, undone = (json.loads(html.unescape(re.search(rf'data-{x}="([^"]*)"', made)[1])) for x in ("drawn", "undone"))
    assert drawn == [[1, 2, 3, "#ff0000"], [12, 10, 4, "#3366ff"], [12, 30, 4, "#3366ff"]]  # the short step is left out
    assert undone == [[1, 2, 3, "#ff0000"]]
