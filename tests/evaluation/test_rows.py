"""Paired differences of two rows against cases small enough to be worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from gcgkit.evaluation import rows
from gcgkit.evaluation.run import t_interval


def row(values, metric="psnr_rgb"):
    """Records of one method: ``{clip: one value for each seed}``."""
    return [{"clip": clip, "metrics": {metric: value}} for clip, seeds in values.items() for value in seeds]


WITH = {"bear": (30.0, 32.0), "cow": (25.0,), "dog": (28.0,), "fox": (20.0,)}
WITHOUT = {"bear": (29.0,), "cow": (23.0,), "dog": (25.0,), "elk": (40.0,)}  # on common clips less by 2, 2 and 3


def test_a_difference_is_taken_clip_by_clip_and_its_interval_is_students():
    found = rows.difference(row(WITH), row(WITHOUT), "psnr_rgb")
    error = 1 / 3  # of the mean of 2, 2 and 3: the square root of (1/9 + 1/9 + 4/9) / 2 / 3
    assert found.mean == pytest.approx(7 / 3)
    assert (found.low, found.high) == pytest.approx((7 / 3 - 4.302653 * error, 7 / 3 + 4.302653 * error))
    assert found.verdict == "yes"


@pytest.mark.parametrize("count", [2, 3, 6, 30, 400])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_the_t_interval_agrees_with_scipy(count, level):
    values = np.random.default_rng(count).normal(3, 2, count)
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert t_interval(values, level=level) == pytest.approx(tuple(expected), rel=1e-5)


def test_the_t_interval_of_equal_values_is_the_value_and_of_one_there_is_none():
    assert t_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert t_interval([2.0]) is None
    with pytest.raises(ValueError, match="level must be between 0 and 1, not 95"):
        t_interval([1, 2], level=95)


@pytest.mark.parametrize(
    ("metric", "steps", "verdict"),
    [
        ("psnr_rgb", (2.0, 2.5, 3.0), "yes"),
        ("psnr_rgb", (-2.0, -2.5, -3.0), "no"),
        ("psnr_rgb", (1.0, 2.0, 3.0), "not decided"),  # the mean is 3.5 standard errors, the bound 4.3
        ("psnr_rgb", (1.0, -1.0, 0.5), "not decided"),
        ("st_lpips", (2.0, 2.5, 3.0), "no"),  # less is better
        ("st_lpips", (-2.0, -2.5, -3.0), "yes"),
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
