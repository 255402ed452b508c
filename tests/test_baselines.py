"""Classical baselines on synthetic clips whose right colours are known."""

import cv2
import numpy as np
import pytest
from skimage.color import rgb2lab

from gcgkit import baselines, metrics
from gcgkit.color import merge_luminance, to_gray


def texture(height, width, seed=0):
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 1, cv2.NORM_MINMAX)


def moving_clip(frames=6, step=2):
    """A window that moves over a textured picture in soft colours: RGB ``(T, 64, 96, 3)``."""
    wide = np.stack([60 + 130 * texture(64, 140, seed) for seed in (0, 1, 2)], axis=-1).astype(np.uint8)
    return np.stack([wide[:, step * t : step * t + 96] for t in range(frames)])


def test_flow_finds_a_shift_and_warp_undoes_it():
    picture = (255 * texture(64, 120)).astype(np.uint8)
    now, before = picture[:, 4:100], picture[:, :96]
    flow = baselines.optical_flow(now, before)
    inner = (slice(8, -8), slice(8, -8))
    assert np.median(flow[inner][..., 0]) == pytest.approx(4, abs=0.2)  # what is at x now was at x + 4
    assert np.median(flow[inner][..., 1]) == pytest.approx(0, abs=0.2)
    difference = np.abs(baselines.warp(before, flow)[inner].astype(float) - now[inner])
    assert difference.mean() < 3


def test_warp_fetches_from_where_the_flow_points_and_repeats_the_edge():
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    flow = np.zeros((3, 4, 2), np.float32)
    flow[..., 0], flow[..., 1] = 1, -1
    expected = image[np.clip(np.arange(3) - 1, 0, 2)][:, np.clip(np.arange(4) + 1, 0, 3)]
    np.testing.assert_allclose(baselines.warp(image, flow), expected)
    two = baselines.warp(np.dstack([image, -image]), flow)
    np.testing.assert_allclose(two[..., 1], -expected)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (12, 300), (300, 12)])
def test_flow_takes_tiny_and_narrow_frames(shape):
    frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    flow = baselines.optical_flow(frame, frame)
    assert flow.shape == (*shape, 2) and np.isfinite(flow).all()


def test_propagation_carries_the_first_frames_colours_along():
    clip = moving_clip()
    gray = to_gray(clip)
    out = baselines.propagate_by_flow(gray, clip[0])
    assert out.shape == clip.shape and out.dtype == np.uint8
    np.testing.assert_array_equal(out[0], merge_luminance(gray[:1], clip[:1])[0])
    still = merge_luminance(gray, np.repeat(clip[:1], len(clip), axis=0))  # the first frame's colours, not moved
    inner = np.s_[1:, 8:-8, 8:-16]
    assert metrics.psnr_rgb(out[inner], clip[inner]) > metrics.psnr_rgb(still[inner], clip[inner]) + 5


def test_propagation_over_a_still_clip_does_not_drift():
    first = moving_clip(1)
    gray = np.repeat(to_gray(first), 12, axis=0)
    out = baselines.propagate_by_flow(gray, first[0])
    assert np.abs(out[-1].astype(int) - out[0]).max() <= 1


def test_propagation_resizes_the_reference():
    clip = moving_clip(2)
    large = cv2.resize(clip[0], (192, 128), interpolation=cv2.INTER_NEAREST)
    a, b = (baselines.propagate_by_flow(to_gray(clip), reference) for reference in (clip[0], large))
    assert np.abs(a.astype(int) - b).max() <= 2


@pytest.mark.parametrize("method", [baselines.propagate_by_flow, baselines.global_transfer])
def test_lightness_is_that_of_the_input(method):
    clip = moving_clip(3)
    gray = to_gray(clip)
    lightness = rgb2lab(method(gray, clip[0]))[..., 0]
    wanted = rgb2lab(np.repeat(gray[..., None], 3, axis=-1))[..., 0]
    assert np.abs(lightness - wanted).max() < 0.5


def two_tone(height=40, width=60):
    """Dark red on the left, light blue on the right."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2] = (110, 40, 40)
    picture[:, width // 2 :] = (150, 180, 220)
    return picture


def test_transfer_gives_each_lightness_its_colour_from_a_reference_of_any_size():
    reference = two_tone(33, 71)
    mirrored = two_tone()[:, ::-1]
    gray = to_gray(np.repeat(mirrored[None], 2, axis=0))
    out = baselines.global_transfer(gray, reference)
    inner = np.ones(60, bool)
    inner[27:33] = False  # the neighbourhoods that the edge crosses
    difference = np.abs(out[0].astype(int) - mirrored)[:, inner]
    assert difference.max() <= 6
    np.testing.assert_array_equal(out[0], out[1])


def test_transfer_matches_after_the_lightness_statistics_are_brought_together():
    """A clip much darker than its reference still finds both colours."""
    gray = (to_gray(two_tone()) // 3)[None]
    ab = rgb2lab(baselines.global_transfer(gray, two_tone())[0])[..., 1:]
    assert ab[20, 10, 0] > 10 and ab[20, 50, 1] < -5  # red where it is darker, blue where it is lighter


def test_transfer_tells_texture_from_plain_areas_of_the_same_lightness():
    reference = np.zeros((64, 128, 3), np.uint8)
    stripes = np.where(np.arange(64) % 2 == 0, 70, 170).astype(np.uint8)
    reference[:, :64] = np.stack([stripes + 40, stripes, stripes], axis=-1)[None]  # reddish, striped
    reference[:, 64:] = (110, 110, 170)  # bluish, plain
    gray = to_gray(reference[:, ::-1].copy()[None])
    ab = rgb2lab(baselines.global_transfer(gray, reference)[0])[..., 1:]
    assert ab[:, 70:-4, 0].mean() > 5 and ab[:, 4:58, 1].mean() < -10


def test_transfer_is_the_nearest_sample_found_by_brute_force():
    """Against the definition, with the deviation rounded to the table's step."""
    clip = moving_clip(1)
    reference = moving_clip(1)[0, ::-1, ::-1]
    gray = to_gray(clip)
    lightness = rgb2lab(np.repeat(gray[0][..., None], 3, axis=-1))[..., 0]
    lab = rgb2lab(reference)
    matched = (lab[..., 0] - lab[..., 0].mean()) / lab[..., 0].std() * lightness.std() + lightness.mean()

    def deviation(values):
        padded = np.pad(values, 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
        return windows.std(axis=(-1, -2))

    rows, columns = baselines._jittered(reference.shape[:2], 64, seed=0)
    sample = np.stack([matched, deviation(matched)], axis=-1)[rows, columns]
    here = np.stack([lightness, np.rint(deviation(lightness) * 4) / 4], axis=-1)
    cost = np.abs(here[:, :, None, :] - sample).sum(axis=-1)
    chosen_ab = lab[rows, columns, 1:][cost.argmin(axis=-1)]
    got_ab = rgb2lab(baselines.global_transfer(gray, reference, samples=64)[0])[..., 1:]
    agree = np.abs(got_ab - chosen_ab).max(axis=-1) < 1.5
    assert agree.mean() > 0.97  # the rest are ties within float32


def test_transfer_depends_on_its_seed_alone():
    clip = moving_clip(1)
    gray = to_gray(clip)
    first, again, other = (baselines.global_transfer(gray, clip[0], seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_flat_input_and_flat_reference_are_no_special_case():
    gray = np.full((1, 8, 8), 77, np.uint8)
    reference = np.zeros((5, 5, 3), np.uint8) + np.array([140, 100, 100], np.uint8)
    ab = rgb2lab(baselines.global_transfer(gray, reference))[..., 1:]
    assert np.abs(ab - rgb2lab(reference)[0, 0, 1:]).max() < 1.5


@pytest.mark.parametrize("method", [baselines.propagate_by_flow, baselines.global_transfer])
def test_bad_input_is_refused_in_one_sentence(method):
    gray, reference = np.zeros((2, 40, 40), np.uint8), np.zeros((40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="gray must be gray"):
        method(np.zeros((2, 40, 40, 3), np.uint8), reference)
    with pytest.raises(ValueError, match="reference must be one frame"):
        method(gray, reference[None])
    with pytest.raises(ValueError, match="reference must be uint8"):
        method(gray, reference / 255)
    with pytest.raises(ValueError, match="no frames"):
        method(gray[:0], reference)


def test_transfer_refuses_bad_options():
    gray, reference = np.zeros((1, 8, 8), np.uint8), np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="window"):
        baselines.global_transfer(gray, reference, window=4)
    with pytest.raises(ValueError, match="samples"):
        baselines.global_transfer(gray, reference, samples=0)
