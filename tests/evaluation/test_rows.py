"""Paired differences of two rows against cases small enough to be worked out by hand."""

from itertools import product

import numpy as np
import pytest

from gcgkit.evaluation import rows


def row(values, metric="psnr_rgb"):
    """Records of one method: ``{clip: one value for each seed}``."""
    return [{"clip": clip, "metrics": {metric: value}} for clip, seeds in values.items() for value in seeds]


WITH = {"bear": (30.0, 32.0), "cow": (25.0,), "dog": (28.0,), "fox": (20.0,)}
WITHOUT = {"bear": (29.0,), "cow": (23.0,), "dog": (25.0,), "elk": (40.0,)}  # on common clips less by 2, 2 and 3


def test_a_difference_is_taken_clip_by_clip_and_its_interval_is_that_of_all_draws():
    found = rows.difference(row(WITH), row(WITHOUT), "psnr_rgb")
    draws = sorted(np.mean(draw) for draw in product((2.0, 2.0, 3.0), repeat=3))  # all 27 draws, equally likely
    assert found.mean == pytest.approx(7 / 3)
    # One draw in 27, more than 2.5 %, is 3, 3, 3; eight of them are 2, 2, 2.
    assert (found.low, found.high) == pytest.approx((draws[0], draws[-1])) == (2, 3)
    assert found.verdict == "yes"


@pytest.mark.parametrize(
    ("metric", "steps", "verdict"),
    [
        ("psnr_rgb", (1.0, 2.0, 3.0), "yes"),
        ("psnr_rgb", (-1.0, -2.0, -3.0), "no"),
        ("psnr_rgb", (1.0, -1.0, 0.5), "not decided"),
        ("st_lpips", (1.0, 2.0, 3.0), "no"),  # less is better
        ("st_lpips", (-1.0, -2.0, -3.0), "yes"),
        ("st_lpips", (1.0, -1.0, 0.5), "not decided"),
        ("psnr_rgb", (0.0, 0.0, 0.0), "not decided"),
    ],
)
def test_the_verdict_asks_on_which_side_the_whole_interval_lies(metric, steps, verdict):
    plain = {clip: (10.0,) for clip in "abc"}
    better = {clip: (10.0 + step,) for clip, step in zip("abc", steps, strict=True)}
    assert rows.difference(row(better, metric), row(plain, metric), metric).verdict == verdict


def test_differences_are_in_the_unit_of_the_table():
    first, second = ({clip: (value,) for clip in "ab"} for value in (0.03, 0.02))
    assert rows.difference(row(first, "cdc"), row(second, "cdc"), "cdc")[:3] == pytest.approx((1, 1, 1))  # x 10^-2


def test_too_few_clips_are_refused():
    with pytest.raises(ValueError, match=r"share 1 clip\(s\) with PSNR \(RGB\); an interval needs two"):
        rows.difference(row(WITH), row({"cow": (1.0,)}), "psnr_rgb")
