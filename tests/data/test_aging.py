"""Each defect of an aged film alone, held against its definition in plain NumPy."""

import cv2
import numpy as np
import pytest

from gcgkit.color import to_gray
from gcgkit.data.aging import Wear, age

NONE = {"contrast": 1.0, "flicker": 0.0, "weave": 0.0, "grain": 0.0, "scratches": 0, "dust": 0.0}


def clip(count=30, height=96, width=128) -> np.ndarray:
    """Smooth colours ``(T, H, W, 3)`` with texture in both directions, between 50 and 150."""
    rows, columns = np.mgrid[:height, :width]
    channels = [100 + 25 * np.sin(rows / a) + 25 * np.cos(columns / b) for a, b in ((7, 11), (9, 6), (13, 8))]
    return np.repeat(np.rint(np.stack(channels, -1)).astype(np.uint8)[None], count, 0)


def worn(frames=None, seed=0, **wear) -> np.ndarray:
    return age(clip() if frames is None else frames, Wear(**{**NONE, **wear}), seed)[0].astype(float)


def test_no_wear_is_the_gray_clip_and_its_colours():
    film, colors = age(clip(), Wear(**NONE))
    np.testing.assert_array_equal(film, to_gray(clip()))
    np.testing.assert_array_equal(colors, clip())


def test_contrast_shrinks_the_distance_to_a_middle_gray():
    np.testing.assert_allclose(worn(contrast=0.5), 110 + 0.5 * (to_gray(clip()).astype(float) - 110), atol=0.5)


def test_flicker_is_one_factor_a_frame_with_the_given_spread():
    gray = to_gray(clip(200)).astype(float)
    film = worn(clip(200), flicker=0.1)
    factors = film.mean((1, 2)) / gray.mean((1, 2))
    np.testing.assert_allclose(film, gray * factors[:, None, None], atol=1.0)
    assert np.std(np.log(factors)) == pytest.approx(0.1, rel=0.15) and abs(np.mean(np.log(factors))) < 0.03


def test_weave_moves_film_and_colours_together_as_far_as_it_says():
    rows, columns = np.mgrid[:96, :128]
    spot = np.rint(200 * np.exp(-((rows - 48) ** 2 + (columns - 64) ** 2) / 72)).astype(np.uint8)
    film, colors = age(np.repeat(np.stack([spot, spot // 2, spot], -1)[None], 120, 0), Wear(**{**NONE, "weave": 2.0}))
    np.testing.assert_array_equal(film, to_gray(colors))
    mass = film.sum((1, 2))
    centres = np.stack([(film * rows).sum((1, 2)) / mass - 48, (film * columns).sum((1, 2)) / mass - 64])
    np.testing.assert_allclose(centres.std(1), 2.0, rtol=0.2)
    assert np.abs(centres.mean(1)).max() < 0.6


def test_grain_has_its_size_and_is_new_in_every_frame():
    noise = worn(grain=6.0) - to_gray(clip())
    assert noise.std() == pytest.approx(6.0, rel=0.05) and abs(noise.mean()) < 0.1
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05
    assert np.corrcoef(noise[0, :, 1:].ravel(), noise[0, :, :-1].ravel())[0, 1] > 0.3  # grains are larger than pixels


def test_scratches_are_columns_that_stay_for_some_frames():
    changed = worn(scratches=2) != to_gray(clip())
    columns = [set(np.flatnonzero(frame.any(0))) for frame in changed]
    assert all(1 <= len(found) <= 2 for found in columns) and changed.any(2).mean() > 0.95
    near = [any(abs(a - b) <= 2 for a in one for b in other) for one, other in zip(columns, columns[1:], strict=False)]
    assert np.mean(near) > 0.9 and len(set().union(*columns)) > 4


def test_dust_is_small_and_as_frequent_as_said():
    changed = worn(clip(60), dust=3.0) != to_gray(clip(60))
    counts = [cv2.connectedComponents(frame.astype(np.uint8))[0] - 1 for frame in changed]
    assert np.mean(counts) == pytest.approx(3.0, abs=0.7) and 0 < changed.mean() < 0.01


def test_a_seed_makes_the_same_film_whatever_comes_after():
    whole, _ = age(clip(), seed=4)
    np.testing.assert_array_equal(age(clip(9), seed=4)[0], whole[:9])
    assert (age(clip(9), seed=5)[0] != whole[:9]).mean() > 0.5
    assert len({frame.tobytes() for frame in whole}) == len(whole)


@pytest.mark.parametrize("wrong", [to_gray(clip(2)), clip(2).astype(float), np.zeros((0, 8, 8, 3), np.uint8)])
def test_anything_but_colour_frames_is_refused(wrong):
    with pytest.raises(ValueError, match="frames"):
        age(wrong)
