"""Dissimilarities against independent implementations, and keyframe selection (Eq. 6) against brute force."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize_local_mean

from gcgkit import keyframes
from gcgkit.color import to_gray
from gcgkit.keyframes import compare, describe, pairwise_dissimilarity, select_keyframes


def random_distance(seed, total):
    values = np.random.default_rng(seed).random((total, total))
    distance = values + values.T
    np.fill_diagonal(distance, 0)
    return distance


def smooth_clip(seed=0, frames=6, height=48, width=80):
    """A moving pattern, so that frames differ by degrees."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    phase = rng.uniform(0, 6, 3)
    clip = [np.stack([128 + 100 * np.sin(x / 9 + y / 7 + t * 0.5 + p) for p in phase], -1) for t in range(frames)]
    return np.array(clip).astype(np.uint8)


def equation_6(distance, chosen):
    return sum(distance[i, j] for i in chosen for j in chosen if i != j)


def encode(frames):
    """A stand-in for latents: mean colour in four columns."""
    return torch.tensor(frames.astype(np.float32)).reshape(len(frames), frames.shape[1], 4, -1, 3).mean(dim=(1, 3))


def mean_difference(a, b):
    return np.abs(a.astype(float) - b.astype(float)).mean(axis=(1, 2, 3))


OPTIONS = {"latent": {"encoder": encode}, "lpips": {"network": mean_difference}}


@given(seed=st.integers(0, 2**32 - 1), total=st.integers(2, 10), data=st.data())
@settings(max_examples=60)
def test_exact_selection_is_the_brute_force_maximum(seed, total, data):
    count = data.draw(st.integers(2, total))
    distance = random_distance(seed, total)
    best = max(
        equation_6(distance, (0, *inner, total - 1))
        for inner in combinations(range(1, total - 1), count - 2)
    )
    for method in ("exact", "auto"):
        chosen = select_keyframes(distance, count, method)
        assert chosen == sorted(set(chosen)) and len(chosen) == count
        assert chosen[0] == 0 and chosen[-1] == total - 1
        assert equation_6(distance, chosen) == pytest.approx(best, rel=1e-12)


@given(seed=st.integers(0, 2**32 - 1), total=st.integers(3, 12), data=st.data())
@settings(max_examples=40)
def test_greedy_selection_has_no_better_single_exchange(seed, total, data):
    count = data.draw(st.integers(2, total))
    distance = random_distance(seed, total)
    chosen = select_keyframes(distance, count, "greedy")
    assert len(set(chosen)) == count and chosen[0] == 0 and chosen[-1] == total - 1
    value = equation_6(distance, chosen)
    for out in chosen[1:-1]:
        for into in set(range(total)) - set(chosen):
            other = [into if frame == out else frame for frame in chosen]
            assert equation_6(distance, other) <= value + 1e-9


def test_auto_is_exact_at_the_size_of_a_clip_and_takes_over_greedily_beyond():
    distance = random_distance(1, 200)
    assert select_keyframes(distance, 4) == select_keyframes(distance, 4, "exact")
    assert select_keyframes(distance, 30) == select_keyframes(distance, 30, "greedy")
    with pytest.raises(ValueError, match="too long"):
        select_keyframes(distance, 30, "exact")


def test_the_outlier_is_taken():
    distance = np.ones((7, 7)) - np.eye(7)
    distance[3, :] = distance[:, 3] = 10
    distance[3, 3] = 0
    for method in ("exact", "greedy", "auto"):
        assert select_keyframes(distance, 3, method) == [0, 3, 6]


def test_a_still_clip_gets_evenly_spread_keyframes():
    for method in ("auto", "exact", "greedy", "uniform"):
        assert select_keyframes(np.zeros((10, 10)), 4, method) == [0, 3, 6, 9]


@given(total=st.integers(1, 60), count=st.integers(1, 70), method=st.sampled_from(["uniform", "random", "greedy"]))
@settings(max_examples=60)
def test_every_method_returns_that_many_distinct_frames(total, count, method):
    chosen = select_keyframes(random_distance(total, total), count, method, generator=3)
    assert len(chosen) == len(set(chosen)) == min(count, total)
    assert chosen == sorted(chosen) and all(isinstance(frame, int) and 0 <= frame < total for frame in chosen)
    if min(count, total) >= 2:
        assert chosen[0] == 0 and chosen[-1] == total - 1


@pytest.mark.parametrize("method", keyframes.METHODS)
@pytest.mark.parametrize("total", [1, 2, 3, 9])
def test_a_method_takes_the_first_the_last_and_as_many_frames_as_wanted(method, total):
    for count in range(1, total + 2):
        chosen = select_keyframes(random_distance(total, total), count, method, generator=count)
        assert chosen == sorted(set(chosen)) and len(chosen) == min(count, total)
        assert set(chosen) <= set(range(total))
        if len(chosen) > 1:
            assert {0, total - 1} <= set(chosen)


def test_uniform_gaps_differ_by_one_at_most():
    for total in (5, 17, 100):
        for count in range(2, total):
            gaps = np.diff(select_keyframes(np.zeros((total, total)), count, "uniform"))
            assert gaps.max() - gaps.min() <= 1


def test_random_follows_its_generator():
    distance = random_distance(0, 50)
    assert select_keyframes(distance, 5, "random", generator=7) == select_keyframes(distance, 5, "random", generator=7)
    drawn = {tuple(select_keyframes(distance, 5, "random", generator=seed)) for seed in range(10)}
    assert len(drawn) > 1
    first, second = (
        select_keyframes(distance, 5, "random", generator=torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert first == second


def test_one_keyframe_is_the_one_nearest_to_all():
    places = np.array([0.0, 1.0, 2.0, 2.5, 10.0])
    distance = np.abs(places[:, None] - places[None, :])
    for method in ("auto", "exact", "greedy"):
        assert select_keyframes(distance, 1, method) == [2]
    assert select_keyframes(distance, 1, "uniform") == [2]


def dissimilarity(a, b_frames, measure: str, **options) -> np.ndarray:
    """D of one frame and each of others, as the second stage compares them."""
    (one,), many = describe(a[None], measure, **options), describe(b_frames, measure, **options)
    return compare(one, many, measure, network=options.get("network"))


@pytest.mark.parametrize("measure", keyframes.MEASURES)
def test_pairwise_is_symmetric_zero_on_the_diagonal_and_agrees_with_one_against_many(measure):
    clip = smooth_clip()
    options = OPTIONS.get(measure, {})
    distance = pairwise_dissimilarity(clip, measure, **options)
    assert distance.shape == (6, 6) and distance.dtype == np.float64
    np.testing.assert_array_equal(distance, distance.T)
    np.testing.assert_array_equal(np.diag(distance), 0)
    assert (distance[np.triu_indices(6, 1)] > 0).all()
    np.testing.assert_allclose(dissimilarity(clip[2], clip, measure, **options), distance[2], atol=1e-9)
    assert dissimilarity(clip[2], clip[2:3], measure, **options) == pytest.approx([0], abs=1e-9)


def test_mse_is_the_mean_square_of_area_averaged_frames():
    clip = smooth_clip(height=90, width=150)
    small = [resize_local_mean(frame.astype(float), (38, 64)) / 255 for frame in to_gray(clip)]
    expected = [[np.mean((a - b) ** 2) for b in small] for a in small]
    np.testing.assert_allclose(pairwise_dissimilarity(clip), expected, atol=1e-6)


@pytest.mark.parametrize(("height", "side"), [(40, 7), (6, 5), (1, 1)])
def test_ssim_is_the_published_formula_over_windows(height, side):
    clip = smooth_clip(height=height, width=64)
    windows = np.lib.stride_tricks.sliding_window_view(to_gray(clip) / 255, (side, side), (1, 2))
    windows = windows.reshape(len(clip), -1, side**2)  # (T, N, pixels of a window)
    mean = windows.mean(-1)
    deviation = windows - mean[..., None]
    product = lambda i, j: (deviation[i] * deviation[j]).sum(-1) / max(side**2 - 1, 1)  # noqa: E731  unbiased
    c1, c2 = 0.01**2, 0.03**2
    expected = [
        1 - np.mean(
            (2 * mean[0] * mean[i] + c1) * (2 * product(0, i) + c2)
            / ((mean[0] ** 2 + mean[i] ** 2 + c1) * (product(0, 0) + product(i, i) + c2))
        )
        for i in range(len(clip))
    ]  # fmt: skip
    np.testing.assert_allclose(dissimilarity(clip[0], clip, "ssim"), expected, atol=1e-6)


def test_histogram_counts_the_share_of_pixels_that_changed_their_level():
    black, white = np.zeros((2, 8, 8), np.uint8), np.full((1, 8, 8), 255, np.uint8)
    half = black[:1].copy()
    half[:, :4] = 255
    assert dissimilarity(black[0], np.concatenate([black[1:], half, white]), "histogram") == pytest.approx([0, 0.5, 1])
    # Where things are does not matter to it.
    assert dissimilarity(half[0], half[:, ::-1], "histogram") == pytest.approx([0])


def test_kept_small_frames_give_the_same_distances_as_the_clip():
    clip = smooth_clip()
    small = np.concatenate([keyframes.small_gray(frame[None]) for frame in clip])
    for measure in ("mse", "histogram", "ssim"):
        np.testing.assert_array_equal(pairwise_dissimilarity(small, measure), pairwise_dissimilarity(clip, measure))


def test_small_gray_keeps_the_aspect_and_never_enlarges():
    assert keyframes.small_gray(np.zeros((2, 256, 448), np.uint8)).shape == (2, 37, 64)
    assert keyframes.small_gray(np.zeros((1, 10, 20), np.uint8)).shape == (1, 10, 20)
    assert keyframes.small_gray(np.zeros((1, 2, 900), np.uint8)).shape == (1, 1, 64)


def test_gray_and_colour_clips_are_measured_alike():
    clip = smooth_clip()
    np.testing.assert_array_equal(pairwise_dissimilarity(clip), pairwise_dissimilarity(to_gray(clip)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairwise_dissimilarity(smooth_clip(), "colour"), "measure must be one of"),
        (lambda: pairwise_dissimilarity(smooth_clip(), "latent"), "needs encoder="),
        (lambda: pairwise_dissimilarity(smooth_clip(), "lpips"), "needs network="),
        (lambda: pairwise_dissimilarity(smooth_clip(), "latent", encoder=lambda f: np.eye(2)), "encoder returned"),
        (lambda: pairwise_dissimilarity(smooth_clip(), "lpips", network=lambda a, b: np.zeros(1)), "network returned"),
        (lambda: pairwise_dissimilarity(smooth_clip().astype(float)), "uint8"),
        (lambda: pairwise_dissimilarity(smooth_clip()[..., 0].astype(np.float32)), "small_gray"),
        (lambda: dissimilarity(smooth_clip()[0, :40], smooth_clip(), "mse"), "differ in size"),
        (lambda: select_keyframes(np.zeros((3, 4)), 2), "square"),
        (lambda: select_keyframes(np.zeros((0, 0)), 2), "square"),
        (lambda: select_keyframes(np.full((3, 3), np.nan), 2), "finite"),
        (lambda: select_keyframes(np.triu(np.ones((3, 3)), 1), 2), "symmetric"),
        (lambda: select_keyframes(np.zeros((3, 3)), 0), "count"),
        (lambda: select_keyframes(np.zeros((3, 3)), 2.0), "count"),
        (lambda: select_keyframes(np.zeros((3, 3)), 2, "best"), "method must be one of"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("numbers", [[0], [0, 4], [1, 2, 5], [5, 0, 3, 2]])
def test_dispersion_is_half_of_equation_6_which_counts_each_pair_twice(numbers):
    distance = random_distance(3, 6)
    assert keyframes.dispersion(distance, numbers) == pytest.approx(equation_6(distance, numbers) / 2)


def test_the_exact_choice_has_the_largest_dispersion():
    distance = pairwise_dissimilarity(smooth_clip(frames=7))
    sums = {inner: keyframes.dispersion(distance, (0, *inner, 6)) for inner in combinations(range(1, 6), 2)}
    assert select_keyframes(distance, 4, "exact") == [0, *max(sums, key=sums.get), 6]


@pytest.mark.parametrize("numbers", [[0, 0], [0, 6], [-1, 2]])
def test_dispersion_refuses(numbers):
    with pytest.raises(ValueError, match="different frame numbers from 0 to 5"):
        keyframes.dispersion(np.zeros((6, 6)), numbers)
