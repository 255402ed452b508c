"""Widgets: the small functions against loops, the controls by moving and clicking them, the still picture without."""

import importlib.util

import cv2
import ipywidgets
import numpy as np
import pytest

from gcgkit.lessons import notebook as lesson
from gcgkit.lessons import plots, widgets
from gcgkit.references import ReferenceRun

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (4, 32, 56, 3), dtype=np.uint8)
GRAY = FRAMES[..., 0]


@pytest.fixture(params=["static", "no ipywidgets"])
def without_front_end(request, monkeypatch):
    if request.param == "static":
        monkeypatch.setenv(lesson.STATIC, "1")
    else:
        find = importlib.util.find_spec
        hidden = lambda name, *rest: None if name == "ipywidgets" else find(name, *rest)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", hidden)


@pytest.fixture(autouse=True)
def live(monkeypatch):
    monkeypatch.delenv(lesson.STATIC, raising=False)


def decoded(image):
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(image.value, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_split_view_takes_each_side_from_its_frame():
    view = widgets.split_view(GRAY[0], FRAMES[0], 0.5)
    np.testing.assert_array_equal(view[:, :26], np.repeat(GRAY[0][:, :26, None], 3, -1))
    np.testing.assert_array_equal(view[:, 30:], FRAMES[0][:, 30:])
    assert (view[:, 27:30] == 255).all()
    np.testing.assert_array_equal(widgets.split_view(GRAY[0], FRAMES[0], 0)[:, 2:], FRAMES[0][:, 2:])
    np.testing.assert_array_equal(widgets.split_view(FRAMES[1], FRAMES[0], 1)[:, :54], FRAMES[1][:, :54])


@pytest.mark.parametrize(("after", "share"), [(FRAMES[0][:16], 0.5), (FRAMES[0], 1.5), (FRAMES[0], -0.1)])
def test_split_view_refuses(after, share):
    with pytest.raises(ValueError):
        widgets.split_view(GRAY[0], after, share)


def test_split_view_leaves_its_frames_alone():
    before, after = FRAMES[0].copy(), FRAMES[1].copy()
    widgets.split_view(before, after, 0.3)
    np.testing.assert_array_equal(before, FRAMES[0])
    np.testing.assert_array_equal(after, FRAMES[1])


def test_before_after_moves_with_its_sliders():
    shown = widgets.before_after(GRAY, FRAMES)
    assert isinstance(shown, widgets.Explorer)
    np.testing.assert_array_equal(decoded(shown.image), widgets.split_view(GRAY[2], FRAMES[2], 0.5))
    shown.controls["line"].value = 20
    shown.controls["frame"].value = 1
    np.testing.assert_array_equal(decoded(shown.image), widgets.split_view(GRAY[1], FRAMES[1], 0.2))
    assert all(isinstance(control, ipywidgets.SelectionSlider) for control in shown.controls.values())
    with pytest.raises(ValueError, match="as many"):
        widgets.before_after(GRAY, FRAMES[:2])


def test_a_live_widget_carries_its_picture_along():
    shown = widgets.before_after(GRAY, FRAMES)
    data, _ = shown._repr_mimebundle_()
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(data)


def test_without_a_front_end_every_function_gives_a_picture(without_front_end):
    weights = np.full((1, 1, 28, 28), 1 / 28, np.float32)
    runs = {
        1: [ReferenceRun(2, (0,), ())],
        2: [ReferenceRun(1, (0,), ()), ReferenceRun(1, (), (1,))],
        3: [(2, (0,), ())],
    }
    pictures = [
        widgets.explore(lambda x: FRAMES[x], x=range(4)),
        widgets.before_after(GRAY, FRAMES),
        widgets.attention_picker(GRAY[0], FRAMES[1], weights, (4, 7), (4, 7)),
        widgets.gate_explorer(
            {"a": (FRAMES[0], np.zeros((4, 7)), FRAMES[1]), "b": (FRAMES[0], np.ones((4, 7)), FRAMES[1])}
        ),
        widgets.srg_timeline(runs, 4),
    ]
    assert all(isinstance(picture, plots.Picture) for picture in pictures)
    assert all(len(picture.png()) > 1000 for picture in pictures)
    assert len(pictures[3].axes) == 7  # both cases, three panels each, and the bar
    assert pictures[4].axes[0].lines[0].get_ydata()[0] == 2  # the last frame that earlier ones guided


def test_explore_refuses_what_cannot_be_chosen():
    with pytest.raises(ValueError, match="no values"):
        widgets.explore(lambda x: FRAMES[0], x=[])
    with pytest.raises(ValueError, match="none of its values"):
        widgets.explore(lambda x: FRAMES[0], {"x": 9}, x=range(4))


def test_words_get_a_menu_and_numbers_a_slider():
    shown = widgets.explore(lambda kind, x: FRAMES[x], kind=["conv", "none"], x=range(4))
    assert isinstance(shown.controls["kind"], ipywidgets.Dropdown)
    assert isinstance(shown.controls["x"], ipywidgets.SelectionSlider)


@pytest.mark.parametrize(("size", "ref_size", "heads"), [((8, 12), (4, 6), 2), ((9, 13), (8, 12), 1)])
def test_patch_weights_is_the_mean_over_the_patch(size, ref_size, heads):
    h, w = size
    weights = RNG.random((1, heads, h * w, ref_size[0] * ref_size[1])).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    for row in range(h // 4):
        for column in range(w // 4):
            total, count = np.zeros(ref_size), 0
            for y in range(4 * row, 4 * row + 4):
                for x in range(4 * column, 4 * column + 4):
                    for head in range(heads):
                        total += weights[0, head, y * w + x].reshape(ref_size)
                        count += 1
            looks = widgets.patch_weights(weights, size, ref_size, row, column)
            np.testing.assert_allclose(looks, total / count, rtol=1e-5)
            assert looks.sum() == pytest.approx(1, rel=1e-5)


def test_patch_weights_refuses():
    weights = np.ones((1, 1, 32, 32), np.float32)
    with pytest.raises(ValueError, match="outside"):
        widgets.patch_weights(weights, (4, 8), (4, 8), 0, 2)
    with pytest.raises(ValueError, match="do not fit"):
        widgets.patch_weights(weights, (4, 8), (4, 4), 0, 0)


def test_a_click_on_a_patch_shows_where_it_looks():
    size = (8, 12)
    weights = np.zeros((1, 1, 96, 96), np.float32)
    weights[0, 0, :, 0] = 1  # all look at the first token,
    weights[0, 0, [r * 12 + c for r in range(4, 8) for c in range(8, 12)]] = np.eye(96)[
        95
    ]  # the last patch at the last
    frame, reference = np.zeros((64, 96), np.uint8), np.full((64, 96, 3), 250, np.uint8)
    explorer = widgets.attention_picker(frame, reference, weights, size, size, start=(0, 0))
    overlay = explorer.box.children[0]
    buttons = overlay.children[1].children
    assert len(buttons) == 2 * 3
    first = explorer.image.value
    buttons[1].click()  # another patch with the same look: only the box moves
    assert explorer.controls["column"].value == 1 and explorer.image.value != first
    buttons[5].click()
    assert (explorer.controls["row"].value, explorer.controls["column"].value) == (1, 2)
    picture = explorer.render(row=1, column=2)
    lit = picture.axes[1].images[0].get_array()
    assert tuple(lit[-1, -1]) == (255, 170, 0) and tuple(lit[0, 0]) == (150, 150, 150)
    assert picture.axes[0].patches[0].get_bbox().bounds == (64, 32, 32, 32)  # pixels of the patch


def test_gate_explorer_shows_the_chosen_case():
    cases = {
        name: (FRAMES[i], np.full((4, 7), i / 4), FRAMES[i]) for i, name in enumerate(("matching", "half", "wrong"))
    }
    shown = widgets.gate_explorer(cases)
    assert isinstance(shown.controls["reference"], ipywidgets.SelectionSlider)  # an order, from matching to wrong
    first = shown.image.value
    shown.controls["reference"].value = "wrong"
    assert shown.image.value != first
    assert shown.render(reference="half").axes[1].texts[0].get_text() == "mean 0.25"
    with pytest.raises(ValueError, match="empty"):
        widgets.gate_explorer({})


def test_srg_timeline_shows_the_chosen_frame():
    runs = {1: [ReferenceRun(4, (0,), ())], 2: [ReferenceRun(1, (0,), ()), ReferenceRun(3, (), (1,))]}
    shown = widgets.srg_timeline(runs, 4)
    assert shown.controls["frame"].value == 2
    second = shown.image.value
    shown.controls["frame"].value = 1
    assert shown.image.value != second
    assert [p.get_width() for p in shown.render(frame=2).axes[0].patches] == [1, 3]
    with pytest.raises(ValueError, match="empty"):
        widgets.srg_timeline({}, 4)
