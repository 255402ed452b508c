"""Pictures: what they show, that they stay small, and that colour-blind readers can tell them apart."""

import base64

import cv2
import numpy as np
import pytest

from gcgkit.color import rgb_to_lab
from gcgkit.lessons import plots
from gcgkit.lessons.picture import LARGEST

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (5, 32, 56, 3), dtype=np.uint8)


def pixels(picture):
    """The picture as a reader gets it: (H, W, 3)."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(picture.png(), np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def test_a_picture_too_rich_for_a_notebook_is_drawn_smaller():
    noise = RNG.integers(0, 256, (700, 1400, 3), dtype=np.uint8)
    rich = plots.gallery({"noise": noise}, columns=1)
    assert len(rich.png()) <= LARGEST
    plain = plots.gallery({"plain": np.full_like(noise, 128)}, columns=1)
    assert pixels(plain).shape[1] == round(plots.WIDTH * 120) > pixels(rich).shape[1]


def test_a_picture_brings_its_caption_as_text():
    picture = plots.bars({"a": 1.0}, ylabel="dB", caption="One bar,\n  of one.")
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] == "One bar, of one."
    assert picture.get_supxlabel() == "One bar, of one."


def test_a_photograph_is_kept_as_a_small_jpeg_near_what_it_was():
    smooth = cv2.resize(RNG.integers(0, 256, (24, 42, 3), dtype=np.uint8), (448, 256), interpolation=cv2.INTER_CUBIC)
    grain = RNG.integers(-6, 7, smooth.shape)
    photograph = plots.gallery({"a": np.clip(smooth + grain, 0, 255).astype(np.uint8)}, columns=1, caption="A picture.")
    data, metadata = photograph._repr_mimebundle_()
    assert metadata["image/jpeg"]["alt"] == "A picture."
    kept = base64.b64decode(data["image/jpeg"])
    assert len(kept) < len(photograph.png()) / 2
    decoded = cv2.cvtColor(cv2.imdecode(np.frombuffer(kept, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    shown = pixels(photograph)
    assert decoded.shape == shown.shape and np.abs(decoded.astype(int) - shown).mean() < 5
    assert plots.bars({"a": 1.0}, ylabel="dB").stored()[0] == "image/png"


@pytest.mark.parametrize("word", ["mmm", "iiii", "WWWWWWW"])
def test_no_caption_runs_over_the_edge(word):
    picture = plots.Picture(3.0, f"{word} " * 30)
    picture.canvas.draw()
    assert picture.figure._supxlabel.get_window_extent().x1 <= picture.bbox.x1


def test_a_caption_is_wrapped_and_makes_room_for_itself():
    short, long = (plots.Picture(3.0, caption) for caption in ("few words", "many words " * 25))
    lines = long.get_supxlabel().split("\n")
    assert len(lines) > 2 and max(map(len, lines)) <= 96
    assert long.get_figheight() == pytest.approx(short.get_figheight() + 0.24 * (len(lines) - 1))


def test_letters_can_be_read_at_half_size():
    picture = plots.lines({"a": ([0, 1], [0, 1])}, xlabel="t", ylabel="dB", caption="A line.")
    picture.png()
    texts = [t for t in picture.findobj(lambda x: hasattr(x, "get_fontsize")) if t.get_text()]
    assert len(texts) > 5
    # Width in points of the page, halved: 8 inches become 4, and a letter of 11 points becomes 5.5.
    assert min(text.get_fontsize() for text in texts) >= 11


# Viénot, Brettel and Mollon (1999): linear RGB as people without the red or the green cones see it.
BLIND = {
    "protan": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
    "deutan": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
}


@pytest.mark.parametrize("kind", BLIND)
def test_colours_of_lines_differ_for_colour_blind_readers(kind):
    rgb = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in plots.COLORS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(BLIND[kind]).T, 0, 1)
    lab = rgb_to_lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 100 * np.eye(len(lab))
    assert distance.min() > 9  # about four times what is just noticed
    assert len(set(plots.MARKS)) >= len(plots.COLORS)  # and marks tell them apart besides


def test_frames_shows_the_frames_that_were_picked():
    picture = plots.frames({"gray": FRAMES[..., 0], "colour": FRAMES}, [0, 4], numbers=[10, 14])
    grid = [axes for axes in picture.axes]
    assert len(grid) == 4
    assert [axes.get_title() for axes in grid[:2]] == ["frame 10", "frame 14"]
    named = plots.frames({"gray": FRAMES}, [0, 4], numbers=["t = 9", "t = 1"])
    assert [axes.get_title() for axes in named.axes] == ["t = 9", "t = 1"]
    assert [grid[0].get_ylabel(), grid[2].get_ylabel()] == ["gray", "colour"]
    np.testing.assert_array_equal(grid[3].images[0].get_array(), FRAMES[4])
    np.testing.assert_array_equal(grid[1].images[0].get_array()[..., 2], FRAMES[4, ..., 0])


def test_a_missing_frame_leaves_its_place_empty():
    picture = plots.frames({"a": FRAMES, "b": [None, FRAMES[0]]}, [0, 1])
    assert [len(axes.images) for axes in picture.axes] == [1, 1, 0, 1]
    assert [axes.spines["top"].get_visible() for axes in picture.axes] == [True, True, False, True]
    assert picture.axes[2].get_ylabel() == "b" and picture.axes[2].axison


def test_frames_picks_four_evenly_spread_ones_ends_included():
    picture = plots.frames({"clip": np.repeat(FRAMES, 2, 0)})
    assert [axes.get_title() for axes in picture.axes] == ["frame 0", "frame 3", "frame 6", "frame 9"]
    with pytest.raises(ValueError, match="empty"):
        plots.frames({})


def test_gallery_and_maps_leave_no_empty_axes():
    assert len(plots.gallery({str(i): FRAMES[i] for i in range(4)}, columns=3).axes) == 4
    drawn = plots.maps(
        {"a": FRAMES[0, ..., 0] / 255, "b": FRAMES[1, ..., 0] / 510, "c": FRAMES[2, ..., 0] / 255}, unit="dB"
    )
    assert len(drawn.axes) == 4  # three maps and the bar
    assert drawn.axes[-1].get_ylabel() == "dB"


def test_maps_share_their_limits():
    picture = plots.maps({"low": np.zeros((4, 5)), "high": np.full((4, 5), 3.0)}, unit="dB")
    assert {axes.images[0].get_clim() for axes in picture.axes[:2]} == {(0.0, 3.0)}
    picture = plots.maps({"low": np.zeros((4, 5))}, unit="dB", limits=(-1, 1))
    assert picture.axes[0].images[0].get_clim() == (-1, 1)


def test_maps_may_have_a_colour_map_and_a_bar_each():
    maps = {"a*": np.zeros((4, 5)), "b*": np.full((4, 5), 3.0)}
    picture = plots.maps(maps, unit="a*, b*", cmap={"a*": "PiYG_r", "b*": "PuOr_r"})
    assert [axes.images[0].get_cmap().name for axes in picture.axes[:2]] == ["PiYG_r", "PuOr_r"]
    assert [axes.get_xlabel() for axes in picture.axes[2:]] == ["a*, b*"] * 2  # a bar below each


def test_attention_lights_the_reference_where_the_weight_is():
    weights = np.zeros((4, 7), np.float32)
    weights[3, 0], weights[1, 5] = 0.5, 0.125
    reference = np.full((32, 56, 3), 200, np.uint8)
    lit = plots.attention(FRAMES[0], reference, weights, (8, 0, 8, 8)).axes[1].images[0].get_array()
    np.testing.assert_allclose(lit[24:, :8], np.broadcast_to((255, 170, 0), (8, 8, 3)))  # the largest weight
    half = (0.5 * 120 + 0.5 * 255, 0.5 * 120 + 0.5 * 170, 0.5 * 120)  # a quarter of it has half the light
    np.testing.assert_allclose(lit[8:16, 40:48], np.broadcast_to(half, (8, 8, 3)), atol=1)
    np.testing.assert_allclose(lit[:8], 0.6 * 200, atol=1)  # no weight: dim


def test_attention_without_any_weight_lights_nothing():
    assert np.ptp(plots.lit(np.full((8, 8), 100, np.uint8), np.zeros((2, 2)))) == 0


def test_bars_write_their_values():
    axes = plots.bars({"exact": 12.345, "greedy": 1.0}, ylabel="PSNR, dB").axes[0]
    assert [text.get_text() for text in axes.texts] == ["12.35", "1.00"] or axes.texts[0].get_text() == "12.34"
    assert axes.get_xlabel() == "PSNR, dB"
    assert [patch.get_width() for patch in axes.patches] == [12.345, 1.0]


def test_lines_differ_in_more_than_colour():
    picture = plots.lines({str(i): ([0, 1], [i, i + 1]) for i in range(4)}, xlabel="m", ylabel="s", yscale="linear")
    drawn = picture.axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in drawn}) == 4
    assert len({line.get_linestyle() for line in drawn}) == 4
    assert [t.get_text() for t in picture.axes[0].get_legend().get_texts()] == ["0", "1", "2", "3"]
    picture.canvas.draw()
    axes, legend = picture.axes[0], picture.axes[0].get_legend().get_window_extent()
    assert legend.y0 >= axes.bbox.y1  # above the curves, whatever their course
    assert 0 <= legend.x0 and legend.x1 <= picture.bbox.x1 and legend.y1 <= picture.bbox.y1


def test_timeline_draws_each_run_at_its_steps():
    runs = [(3, (0, 7), ()), (2, (7,), (3, 4))]
    patches = plots.timeline(runs, 5, 8).axes[0].patches
    drawn = sorted((p.get_x(), p.get_width(), round(p.get_y() + 0.4)) for p in patches)
    assert drawn == [(0, 3, 0), (0, 3, 7), (3, 2, 3), (3, 2, 4), (3, 2, 7)]
    keyframe, earlier = (
        {p.get_hatch() for p in patches if round(p.get_y() + 0.4) in rows} for rows in ((0, 7), (3, 4))
    )
    assert keyframe.isdisjoint(earlier)


def test_roofline_bends_where_memory_and_peak_meet():
    picture = plots.roofline({"a": (0.5, 3.0), "b": (64.0, 70.0)}, peak=80.0, bandwidth=10.0)
    (axes,) = picture.axes
    (roof,) = axes.lines
    x, y = roof.get_data()
    assert (x[1], y[1]) == (8, 80) and y[0] == pytest.approx(10 * x[0]) and y[2] == 80
    assert x[0] < 0.5 and x[2] > 64
    assert [tuple(dots.get_offsets()[0]) for dots in axes.collections] == [(0.5, 3.0), (64.0, 70.0)]


def test_distances_marks_each_methods_frames():
    distance = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    picture = plots.distances(distance, {"exact": [0, 3, 5], "greedy": [0, 2, 5]}, label="D (ssim)")
    assert picture.axes[2].get_ylabel() == "D (ssim)"
    np.testing.assert_array_equal(picture.axes[0].images[0].get_array(), distance)
    marked = [c.get_offsets()[:, 0].tolist() for c in picture.axes[1].collections]
    assert marked == [[0, 3, 5], [0, 2, 5]]


def test_gates_shows_every_case_between_0_and_1():
    gate = np.linspace(0.2, 0.4, 20).reshape(4, 5)
    picture = plots.gates({"matching": (FRAMES[0], gate, FRAMES[1]), "masked": (FRAMES[0] * 0, gate * 0, FRAMES[1])})
    maps = [axes.images[0] for axes in picture.axes[:6]][1::3]
    assert [image.get_clim() for image in maps] == [(0, 1), (0, 1)]
    assert [axes.texts[0].get_text() for axes in picture.axes[1:6:3]] == ["mean 0.30", "mean 0.00"]


def test_tensors_are_drawn_too():
    torch = pytest.importorskip("torch")
    values = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    shown = plots.maps({"a": values}, unit="x").axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, values.detach().numpy(), rtol=1e-6)


def test_a_figure_drawn_elsewhere_gets_a_caption_and_keeps_its_axes():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    figure.subplots().plot([0, 1], [1, 0])
    picture = plots.captioned(figure, "A line,\n falling.")
    assert picture.caption == picture.get_supxlabel() == "A line, falling."
    assert len(picture.axes) == 1 and picture.get_figheight() == pytest.approx(3.24)
    assert pixels(picture).shape[1] == 6 * 120
