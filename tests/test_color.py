"""Colour conversions against scikit-image, and the recombination of section 3.4.2 against its definition."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2gray, rgb2lab

from gcgkit import color


def random_clip(seed, frames=3, height=12, width=17):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_rgb_to_lab_agrees_with_scikit_image():
    clip = random_clip(0, height=40, width=50)
    expected = rgb2lab(clip)
    assert np.abs(color.rgb_to_lab(clip) - expected).max() < 0.05
    assert np.abs(color.rgb_to_lab(clip.astype(np.float32) / 255) - expected).max() < 0.05


def test_lab_to_rgb_agrees_with_scikit_image_inside_the_gamut():
    lab = rgb2lab(random_clip(1, height=40, width=50))
    assert np.abs(color.lab_to_rgb(lab) - lab2rgb(lab)).max() < 0.5 / 255


def test_every_gray_level_and_a_sample_of_colours_survive_the_round_trip():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for colors in (cube, grays):
        back = np.rint(color.lab_to_rgb(color.rgb_to_lab(colors)) * 255).astype(np.uint8)
        np.testing.assert_array_equal(back, colors)


def test_lightness_of_gray_is_that_of_the_gray_colour():
    grays = np.arange(256, dtype=np.uint8)
    expected = rgb2lab(np.repeat(grays[:, None], 3, axis=1))[:, 0]
    assert np.abs(color.lightness_of_gray(grays) - expected).max() < 0.01


def test_to_gray_weighs_the_channels_as_bt601_luma():
    clip = random_clip(2)
    expected = clip @ np.array([0.299, 0.587, 0.114])
    gray = color.to_gray(clip)
    assert gray.dtype == np.uint8 and gray.shape == clip.shape[:3]
    assert np.abs(gray - expected).max() <= 0.51
    assert np.abs(gray / 255 - rgb2gray(clip)).max() > 0.02  # not the BT.709 weights that scikit-image takes
    np.testing.assert_array_equal(color.to_gray(clip[0]), gray[0])


def test_to_gray_returns_gray_frames_as_they_are():
    gray = random_clip(3)[..., 0]
    np.testing.assert_array_equal(color.to_gray(gray), gray)
    np.testing.assert_array_equal(color.to_gray(gray[0]), gray[0])


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")  # scikit-image says so of colours outside the gamut
@given(seed=st.integers(0, 2**32 - 1), chroma=st.floats(0, 40))
@settings(max_examples=20)
def test_merge_keeps_lightness_and_takes_ab_inside_the_gamut(seed, chroma):
    rng = np.random.default_rng(seed)
    gray = rng.integers(0, 256, (2, 9, 11), dtype=np.uint8)
    angle = rng.uniform(0, 2 * np.pi, gray.shape)
    lightness = rng.uniform(40, 70, gray.shape)  # of the colour picture, which must not matter
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    picture = np.rint(lab2rgb(lab) * 255).astype(np.uint8)
    merged = color.merge_luminance(gray, picture)

    wanted = np.concatenate([rgb2lab(np.repeat(gray[..., None], 3, -1))[..., :1], rgb2lab(picture)[..., 1:]], axis=-1)
    inside = np.abs(rgb2lab(lab2rgb(wanted)) - wanted).max(axis=-1) < 0.01
    exact = rgb2lab(np.rint(lab2rgb(wanted) * 255) / 255)  # what eight bits allow
    got = rgb2lab(merged)
    difference = np.abs(got - exact)[inside]
    assert inside.any()
    assert difference.max() < 1.5  # one level of one channel, in the darks
    assert np.abs(got[..., 0] - wanted[..., 0])[inside].max() < 0.5


def test_merge_of_a_picture_with_its_own_lightness_gives_it_back():
    """A gray picture has the L* of its gray version, so nothing changes."""
    gray = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    picture = np.repeat(gray[..., None], 3, axis=-1)
    np.testing.assert_array_equal(color.merge_luminance(gray, picture), picture)


def test_merge_outside_the_gamut_clip_shifts_lightness_and_chroma_keeps_it_and_the_hue():
    gray = np.full((1, 4, 4), 240, np.uint8)
    blue = np.zeros((1, 4, 4, 3), np.uint8)
    blue[..., 2] = 255
    wanted = rgb2lab(np.full((1, 1, 3), 240, np.uint8))[0, 0, 0]
    clipped = rgb2lab(color.merge_luminance(gray, blue))[0, 0, 0]
    fitted = rgb2lab(color.merge_luminance(gray, blue, gamut="chroma"))[0, 0, 0]
    assert abs(clipped[0] - wanted) > 3
    assert abs(fitted[0] - wanted) < 0.3
    source = rgb2lab(blue)[0, 0, 0]
    cosine = fitted[1:] @ source[1:] / np.linalg.norm(fitted[1:]) / np.linalg.norm(source[1:])
    assert cosine > 0.995
    # It is as colourful as the gamut allows: a little more chroma, and some channel would have to be clipped.
    fit = color.fit_chroma(np.array([wanted, *source[1:]]))
    assert 0 < np.linalg.norm(fit[1:]) < np.linalg.norm(source[1:])
    for factor, inside in ((1.0, True), (1.01, False)):
        lab = fit * [1, factor, factor]
        assert (np.abs(rgb2lab(lab2rgb(lab)) - lab).max() < 0.05) == inside


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_fit_chroma_changes_only_colours_outside_the_gamut(seed):
    rng = np.random.default_rng(seed)
    inside = rgb2lab(rng.integers(0, 256, (30, 3), dtype=np.uint8)).astype(np.float32)
    np.testing.assert_array_equal(color.fit_chroma(inside), inside)
    anything = rng.uniform([0, -120, -120], [100, 120, 120], (60, 3)).astype(np.float32)
    fitted = color.fit_chroma(anything)
    assert np.abs(rgb2lab(lab2rgb(fitted)) - fitted).max() < 0.6  # survives sRGB unclipped
    ratio = np.linalg.norm(fitted[:, 1:], axis=1) / np.linalg.norm(anything[:, 1:], axis=1)
    assert (ratio <= 1 + 1e-6).all()
    np.testing.assert_allclose(fitted[:, 1:], anything[:, 1:] * ratio[:, None], atol=1e-3)


def test_merge_resizes_colour_by_area_down_and_linearly_up():
    gray = np.full((1, 3, 4), 120, np.uint8)
    picture = random_clip(5, frames=1, height=12, width=16) // 4 + 96  # soft colours stay inside the gamut
    ab = rgb2lab(picture[0])[..., 1:]
    merged = rgb2lab(color.merge_luminance(gray, picture))[0, ..., 1:]
    averaged = ab.reshape(3, 4, 4, 4, 2).mean(axis=(1, 3))
    assert np.abs(merged - averaged).max() < 1.0
    tall = np.full((1, 24, 32), 120, np.uint8)
    grown = rgb2lab(color.merge_luminance(tall, picture))[0, ..., 1:]
    expected = cv2.resize(ab.astype(np.float32), (32, 24), interpolation=cv2.INTER_LINEAR)
    assert np.abs(grown - expected).max() < 1.0


def test_merge_of_one_frame_is_that_of_a_clip_of_one():
    gray, picture = random_clip(6)[..., 0], random_clip(7)
    merged = color.merge_luminance(gray, picture)
    np.testing.assert_array_equal(color.merge_luminance(gray[1], picture[1]), merged[1])


@pytest.mark.parametrize(
    ("gray", "picture", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), np.zeros((3, 4, 4, 3), np.uint8), "as many"),
        (np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4, 3), np.uint8), "gray must be uint8"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 3), np.float32), "color must be uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8), "must be gray"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 4), np.uint8), "alpha"),
        (np.zeros((0, 4, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8), "no frames"),
        ("clip.mp4", np.zeros((0, 4, 4, 3), np.uint8), "must be a NumPy array"),
    ],
)
def test_merge_refuses_bad_input_in_one_sentence(gray, picture, message):
    with pytest.raises(ValueError, match=message):
        color.merge_luminance(gray, picture)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="gamut"):
        color.merge_luminance(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), gamut="squeeze")
    with pytest.raises(ValueError, match="uint8"):
        color.to_gray(np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match="different sizes"):
        color.to_gray([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)])
    with pytest.raises(ValueError, match="channel comes last"):
        color.to_gray(np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match="three channels"):
        color.rgb_to_lab(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="int64"):
        color.rgb_to_lab(np.zeros((4, 3), np.int64))
    with pytest.raises(ValueError, match="gray must be uint8"):
        color.lightness_of_gray(np.array([0.5]))
