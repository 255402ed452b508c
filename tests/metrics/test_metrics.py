"""Metrics against hand-made cases, scikit-image, SciPy and plain NumPy."""

import math
import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from skimage.color import lab2rgb, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

from gcgkit import metrics
from gcgkit.evaluation.columns import METRICS
from gcgkit.lessons import psnr_study
from gcgkit.utils.optical_flow import optical_flow, warp


def random_clip(seed, frames=6, height=10, width=14):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def texture(height=64, width=96, seed=0):
    """A smooth random gray picture, uint8."""
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def test_psnr_of_hand_made_differences():
    target = np.full((2, 4, 4, 3), 100, np.uint8)
    pred = target.copy()
    pred[0] += 10  # mean square 100
    pred[1, ..., 0] -= 30  # a third of the values: mean square 300
    expected = (10 * math.log10(255**2 / 100) + 10 * math.log10(255**2 / 300)) / 2
    assert metrics.psnr_rgb(pred, target) == pytest.approx(expected, abs=1e-9)
    # Black against white must not wrap around to a small difference.
    assert metrics.psnr_rgb(np.zeros_like(target), np.full_like(target, 255)) == pytest.approx(0.0)
    assert metrics.psnr_rgb(np.full_like(target, 1), np.full_like(target, 255)) == pytest.approx(0.0342, abs=1e-3)


@given(first=st.integers(0, 1000), second=st.integers(1001, 2000))
@settings(max_examples=15)
def test_psnr_agrees_with_scikit_image_and_is_symmetric(first, second):
    a, b = random_clip(first), random_clip(second)
    expected = np.mean([peak_signal_noise_ratio(y, x, data_range=255) for x, y in zip(a, b, strict=True)])
    assert metrics.psnr_rgb(a, b) == pytest.approx(expected, abs=1e-9)
    assert metrics.psnr_rgb(b, a) == metrics.psnr_rgb(a, b)


def test_psnr_luma_is_on_lightness_alone():
    a, b = random_clip(1), random_clip(2)
    lightness = rgb2lab(a)[..., 0], rgb2lab(b)[..., 0]
    squares = ((lightness[0] - lightness[1]) ** 2).mean(axis=(1, 2))
    expected = np.mean(10 * np.log10(100**2 / squares))
    assert metrics.psnr_luma(a, b) == pytest.approx(expected, abs=1e-5)  # scikit-image's constants are rounded


def test_lightness_is_that_of_scikit_image():
    clip = random_clip(4, height=40, width=50)
    np.testing.assert_allclose(metrics.lightness(clip), rgb2lab(clip)[..., 0], atol=1e-4)
    grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    np.testing.assert_allclose(metrics.lightness(grays), rgb2lab(grays)[:, 0], atol=1e-4)  # whose constants are rounded
    assert metrics.lightness(np.uint8([255, 255, 255])) == pytest.approx(100, abs=1e-9)
    for wrong in (clip / 255, clip[..., 0], np.uint8(3)):
        with pytest.raises(ValueError, match="three channels in its last axis"):
            metrics.lightness(wrong)


def test_psnr_luma_is_right_where_nothing_but_rounding_differs():
    """Near 60 dB a lightness that is off by 0.004 would be seen."""
    a = texture(48, 64)[None, ..., None] // 2 + np.uint8([60, 40, 20])
    b = a.copy()
    b[..., 2] += 3  # blue hardly counts
    squares = ((rgb2lab(a)[..., 0] - rgb2lab(b)[..., 0]) ** 2).mean()
    expected = 10 * math.log10(100**2 / squares)
    assert 50 < expected < 70 and metrics.psnr_luma(a, b) == pytest.approx(expected, abs=1e-4)


def test_identical_frames_count_as_the_cap():
    clip = random_clip(0, frames=2)
    changed = clip.copy()
    changed[1] = 255 - changed[1]
    assert metrics.psnr_rgb(clip, clip) == metrics.psnr_luma(clip, clip) == metrics.PSNR_CAP == 100.0
    assert metrics.psnr_rgb(changed, clip) == pytest.approx((100 + metrics.psnr_rgb(changed[1:], clip[1:])) / 2)


def test_colorfulness_of_hand_made_frames():
    assert metrics.colorfulness(np.full((2, 5, 5, 3), 90, np.uint8)) == 0
    frame = np.zeros((1, 2, 2, 3), np.uint8)
    frame[0, 0] = (200, 0, 0)  # rg = 200, yb = 100 above
    frame[0, 1] = (0, 0, 100)  # rg = 0, yb = -100 below
    signed = math.hypot(100, 100) + 0.3 * math.hypot(100, 0)
    absolute = math.hypot(100, 0) + 0.3 * math.hypot(100, 100)
    assert metrics.colorfulness(frame) == pytest.approx(signed)
    assert metrics.colorfulness(frame, form="abs") == pytest.approx(absolute)
    # Red and blue are not interchangeable.
    assert metrics.colorfulness(frame[..., ::-1]) != pytest.approx(signed, rel=1e-3)


def test_colorfulness_agrees_with_the_published_formula_and_averages_over_frames():
    clip = random_clip(3)
    red, green, blue = np.moveaxis(clip.astype(float), -1, 0)
    rg, yb = red - green, 0.5 * (red + green) - blue
    axes = (1, 2)
    spread = np.sqrt(rg.var(axis=axes) + yb.var(axis=axes))
    centre = np.sqrt(rg.mean(axis=axes) ** 2 + yb.mean(axis=axes) ** 2)
    assert metrics.colorfulness(clip) == pytest.approx((spread + 0.3 * centre).mean(), rel=1e-6)


def test_cdc_of_a_still_clip_is_zero_and_of_a_flashing_one_known():
    assert metrics.cdc([np.full((6, 3, 3, 3), 40, np.uint8)]) == 0
    flashing = np.zeros((8, 3, 3, 3), np.uint8)
    flashing[1::2] = 255
    # Neighbours share no value: ln 2. Frames 2 and 4 apart are equal: 0.
    assert metrics.cdc([flashing]) == pytest.approx(math.log(2) / 3)
    only_green = np.zeros((8, 3, 3, 3), np.uint8)
    only_green[1::2, ..., 1] = 255
    assert metrics.cdc([only_green]) == pytest.approx(math.log(2) / 9)
    half = np.zeros((8, 2, 2, 3), np.uint8)
    half[1::2, 0] = 255  # P = (1, 0), Q = (1/2, 1/2), M = (3/4, 1/4)
    divergence = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert metrics.cdc([half]) == pytest.approx(divergence / 3)


def test_cdc_agrees_with_scipys_distance_and_means_over_videos():
    videos = [random_clip(4, frames=5), random_clip(5, frames=9, height=7)]

    def histogram(frame, channel):
        return np.histogram(frame[..., channel], bins=256, range=(0, 256))[0] / frame[..., channel].size

    per_gap = []
    for gap in (1, 2, 4):
        per_video = [
            np.mean(
                [
                    jensenshannon(histogram(video[t], c), histogram(video[t + gap], c)) ** 2
                    for t in range(len(video) - gap)
                    for c in range(3)
                ]
            )
            for video in videos
        ]
        per_gap.append(np.mean(per_video))
    assert metrics.cdc(videos) == pytest.approx(np.mean(per_gap), rel=1e-9)
    assert metrics.cdc(videos[0]) == metrics.cdc([videos[0]])


def test_metrics_read_streams_frame_by_frame():
    a, b = random_clip(6), random_clip(7)
    assert metrics.psnr_rgb(iter(a), (frame for frame in b)) == metrics.psnr_rgb(a, b)
    assert metrics.psnr_luma(iter(a), iter(b)) == metrics.psnr_luma(a, b)
    assert metrics.colorfulness(iter(a)) == metrics.colorfulness(a)
    assert metrics.cdc(iter([iter(a), iter(b)])) == metrics.cdc([a, b])


def moving_clip(frames=4, step=3):
    """A textured colour picture seen through a window that moves to the right, and its gray version."""
    wide = texture(64, 160)
    gray = np.stack([wide[:, step * t : step * t + 96] for t in range(frames)])
    return np.stack([gray, gray // 2 + 60, 255 - gray], axis=-1), gray


def test_warp_error_ignores_motion_and_sees_flicker():
    clip, gray = moving_clip()
    steady = metrics.flow_warp_error(clip, gray)
    assert steady < 1e-3
    still = np.mean((np.diff(clip.astype(float), axis=0) / 255) ** 2)
    assert steady < still / 10  # without the flow the same clip would seem to flicker
    flicker = clip.astype(int)
    flicker[1::2, ..., 0] += 20
    flicker = np.clip(flicker, 0, 255).astype(np.uint8)
    bright = flicker[1, ..., 0].astype(float) - clip[1, ..., 0]
    expected = np.mean((bright / 255) ** 2) / 3
    assert metrics.flow_warp_error(flicker, gray) - steady == pytest.approx(expected, rel=0.35)


def test_warp_error_of_a_still_clip_is_zero_and_reads_streams():
    gray = np.repeat(texture()[None], 3, axis=0)
    clip = np.repeat(gray[..., None], 3, axis=-1)
    assert metrics.flow_warp_error(iter(clip), gray) == pytest.approx(0, abs=1e-6)


def test_warp_error_reads_gray_as_a_stream_too():
    clip, gray = moving_clip()
    expected = metrics.flow_warp_error(clip, gray)
    assert metrics.flow_warp_error(iter(clip), (frame for frame in gray)) == expected
    with pytest.raises(ValueError, match="frames has more"):
        metrics.flow_warp_error(clip, iter(gray[:-1]))
    with pytest.raises(ValueError, match="gray has more"):
        metrics.flow_warp_error(clip[:-1], iter(gray))
    with pytest.raises(ValueError, match=r"gray\[0\] must be one frame"):
        metrics.flow_warp_error(clip, iter(clip))


def test_warp_error_leaves_out_what_comes_into_view():
    """A square that moves over a textured ground uncovers ground of another colour, which is no flicker."""
    ground, square = texture(seed=1), texture(32, 32, seed=2)
    gray = np.repeat(ground[None], 3, axis=0)
    tint = np.zeros((3, 64, 96), np.uint8)
    for t in range(3):
        gray[t, 16:48, 20 + 8 * t : 52 + 8 * t] = square
        tint[t, 16:48, 20 + 8 * t : 52 + 8 * t] = 200
    clip = np.stack([tint, tint, tint], axis=-1)
    everywhere = []
    for t in (1, 2):
        warped = warp(clip[t - 1].astype(np.float32), optical_flow(gray[t], gray[t - 1]))
        everywhere.append(np.mean(((clip[t] - warped) / 255) ** 2))
    assert metrics.flow_warp_error(clip, gray) < 0.5 * np.mean(everywhere)


def test_warp_error_leaves_out_what_comes_in_at_the_edge():
    """The camera pans by 3 pixels; all that is new in the second frame has another colour."""
    wide = texture(64, 99)
    gray = np.stack([wide[:, :96], wide[:, 3:]])
    red = np.full_like(gray, 50)
    red[1, :, -3:] = 250
    clip = np.stack([red, np.full_like(red, 90), np.full_like(red, 90)], axis=-1)
    assert metrics.flow_warp_error(clip, gray) < 0.3 * np.mean((np.diff(clip.astype(float), axis=0) / 255) ** 2)


def test_visible_pixels_flow_inside_and_lead_back():
    flow = np.zeros((6, 10, 2), np.float32)
    flow[..., 0] = 3
    back = -flow
    back[:, 6] = (8, 0)  # what arrives in this column leads elsewhere
    visible = metrics._visible(flow, back)
    expected = np.ones((6, 10), bool)
    expected[:, 7:] = False  # leaves the picture
    expected[:, 3] = False  # arrives in column 6
    np.testing.assert_array_equal(visible, expected)


# --- which PSNR is it? -----------------------------------------------------------------------------------------------


def flat(*colors):
    return np.stack([np.full((4, 5, 3), color, np.uint8) for color in colors])


def test_bookkeepings_of_flat_frames_are_known():
    values = psnr_study.bookkeepings(flat((120, 100, 100), (100, 100, 100)), flat((100, 100, 100), (100, 130, 100)))
    decibels = lambda square, peak=255: -10 * math.log10(square / peak**2)  # noqa: E731
    assert values["rgb"] == pytest.approx((decibels(400 / 3) + decibels(900 / 3)) / 2)
    assert values["rgb_pooled"] == pytest.approx(decibels((400 + 900) / 6))
    # Luma: 0.299 * 20 rounds to 6, 0.587 * 30 to 18.
    assert values["luma_gray"] == pytest.approx((decibels(36) + decibels(18**2)) / 2)
    # In uint8, 20 * 20 is 144 and (100 - 130) is 226, whose square is 132.
    assert values["rgb_wrapped"] == pytest.approx((decibels(144 / 3) + decibels(132 / 3)) / 2)
    assert values["rgb_unit_range"] == pytest.approx(values["rgb"] + 20 * math.log10(255))
    light = [rgb2lab(np.uint8([[c]]))[0, 0, 0] for c in ((120, 100, 100), (100, 100, 100), (100, 130, 100))]
    expected = (decibels((light[0] - light[1]) ** 2, 100) + decibels((light[1] - light[2]) ** 2, 100)) / 2
    assert values["luma_lab"] == pytest.approx(expected, abs=0.05)
    assert set(values) == set(psnr_study.BOOKKEEPINGS)
    same = psnr_study.bookkeepings(flat((1, 2, 3)), flat((1, 2, 3)))
    assert same["rgb"] == same["luma_lab"] == math.inf


def test_only_lightness_handed_on_lies_near_the_papers_57_db():
    """True L* with wrong colours, made by scikit-image: far off in RGB, near 57 in L* alone; faults lie elsewhere."""
    gray = texture(48, 64) // 2 + 60
    target = np.stack([gray, gray // 2 + 50, 200 - gray], axis=-1)[None]
    lab = rgb2lab(target)
    lab[..., 1:] = np.roll(lab[..., 1:], 24, axis=2) * 0.5
    pred = np.rint(lab2rgb(lab) * 255).astype(np.uint8)
    values = psnr_study.bookkeepings(pred, target)
    assert psnr_study.nearest(values) in ("luma_lab", "luma_lab_8bit")
    assert abs(values["luma_lab"] - psnr_study.PAPER_DB) < 5
    assert values["rgb"] < 35 and values["rgb_wrapped"] < 40 and values["rgb_unit_range"] > 65
    assert values["ab_8bit"] < 40 and values["luma_lab"] - values["rgb"] > 20


def test_a_hundred_frames_take_less_than_five_seconds_of_processor_time():
    a, b = random_clip(8, 100, 256, 448), random_clip(9, 100, 256, 448)
    begin = time.process_time()
    metrics.psnr_rgb(a, b), metrics.psnr_luma(a, b), metrics.colorfulness(a), metrics.cdc([a])
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("metric", [metrics.psnr_rgb, metrics.psnr_luma])
@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (random_clip(0), random_clip(0, width=15), "differ in size"),
        (random_clip(0), random_clip(0, frames=7), "target has more frames than pred"),
        (random_clip(0, frames=7), random_clip(0), "pred has more frames than target"),
        (random_clip(0) / 255, random_clip(0), "pred must be uint8.*0..255"),
        (random_clip(0), random_clip(0)[..., :2], "target must have shape"),
        (random_clip(0), random_clip(0)[..., 0], "target must have shape"),
        (random_clip(0)[:0], random_clip(0)[:0], "no frames"),
        (iter([]), iter([]), "no frames"),
        (3, random_clip(0), "pred must be"),
    ],
)
def test_psnr_refuses_bad_input_in_one_sentence(metric, pred, target, message):
    with pytest.raises(ValueError, match=message):
        metric(pred, target)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.cdc([random_clip(0, frames=4)]), "at least 5"),
        (lambda: metrics.cdc([random_clip(0), random_clip(0, frames=1)]), r"videos\[1\]"),
        (lambda: metrics.cdc([]), "empty"),
        (lambda: metrics.cdc([random_clip(0) / 255]), "uint8"),
        (lambda: metrics.colorfulness(random_clip(0), form="1999"), "form must be one of"),
        (lambda: metrics.colorfulness(random_clip(0)[0]), "RGB frame|leading axis|single"),
        (lambda: metrics.colorfulness(iter([])), "no frames"),
        (lambda: metrics.flow_warp_error(random_clip(0), random_clip(0)), "must be gray"),
        (lambda: metrics.flow_warp_error(random_clip(0), random_clip(0)[:5, ..., 0]), "frames has more"),
        (lambda: metrics.flow_warp_error(random_clip(0)[:5], random_clip(0)[..., 0]), "gray has more"),
        (lambda: metrics.flow_warp_error(random_clip(0), random_clip(0, width=15)[..., 0]), "differ in size"),
        (lambda: metrics.flow_warp_error(random_clip(0)[:1], random_clip(0)[:1, ..., 0]), "2 are needed"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mean_color_spread_against_scikit_image():
    clip = random_clip(5, frames=4)
    means = rgb2lab(clip)[..., 1:].mean((1, 2))  # (T, 2)
    distances = [np.hypot(*(mean - means.mean(0))) for mean in means]
    assert metrics.mean_color_spread(clip) == pytest.approx(np.sqrt(np.mean(np.square(distances))), abs=0.02)


def test_mean_color_spread_of_clips_that_agree_is_zero():
    frame = random_clip(6, frames=1)[0]
    mirrored = np.stack([frame, frame[:, ::-1], frame[::-1]])  # the same colours, elsewhere
    assert metrics.mean_color_spread(mirrored) == pytest.approx(0, abs=1e-5)
    assert metrics.mean_color_spread(frame[None]) == 0
    gray = np.repeat(random_clip(7)[..., :1], 3, axis=-1)
    assert metrics.mean_color_spread(gray) < 0.02
    with pytest.raises(ValueError, match="no frames"):
        metrics.mean_color_spread([])


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_metric_of_the_tables_is_among_the_public_names(metric):
    if (name := metric.call.__name__) != "<lambda>":  # an option of a metric that has a row of its own
        assert name in metrics.__all__ and getattr(metrics, name) is metric.call
