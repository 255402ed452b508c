"""Eq. 10 against brute force over all subsets, and the grid of Eq. 9 against slices put in by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize_local_mean

from gcgkit.srg import equation_10_weights, make_grid, rescale_timestep, select_references

distances = st.lists(st.floats(0, 100, allow_subnormal=False), max_size=6)


def equation_10(key, past, t):
    """The paper's expression for chosen distances, as it is printed."""
    return sum(key) / math.sqrt(t**4 + 1) + (sum(past) / math.sqrt(1 + 1 / t**4) if t > 0 else 0.0)


times = st.just(0.0) | st.floats(1e-3, 1000)  # below, 1 / t^4 as printed overflows


@given(key=distances, past=distances, t=times, count=st.integers(1, 6))
@settings(max_examples=150)
def test_selection_is_the_brute_force_minimum(key, past, t, count):
    chosen_key, chosen_past = select_references(key, past, t, count)
    total = min(count, len(key) + len(past))
    assert len(chosen_key) + len(chosen_past) == total
    assert len(set(chosen_key)) == len(chosen_key) and len(set(chosen_past)) == len(chosen_past)
    best = min(
        equation_10([key[i] for i in keys], [past[i] for i in pasts], t)
        for c1 in range(total + 1)
        for keys in combinations(range(len(key)), c1)
        for pasts in combinations(range(len(past)), total - c1)
    )
    got = equation_10([key[i] for i in chosen_key], [past[i] for i in chosen_past], t)
    assert got == pytest.approx(best, rel=1e-9, abs=1e-9)


def test_early_steps_take_keyframes_and_late_steps_neighbours():
    key, past = [4.0, 5.0, 6.0, 7.0], [0.5, 0.6, 0.7, 0.8]
    assert select_references(key, past, 100.0) == ([0, 1, 2, 3], [])
    assert select_references(key, past, 0.01) == ([], [0, 1, 2, 3])
    shares = [len(select_references(key, past, t)[0]) for t in np.linspace(0, 4, 30)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 4


def test_the_nearest_come_first():
    assert select_references([3.0, 1.0, 2.0], [], 1.0, 3) == ([1, 2, 0], [])
    assert select_references([], [3.0, 1.0, 2.0], 1.0, 2) == ([], [1, 2])


@pytest.mark.parametrize("t", [0.0, 5e-324, 1e-200, 1e80, 1e200, 1.7e308, math.inf])
def test_extreme_t_neither_overflows_nor_divides_by_zero(t):
    with np.errstate(all="raise"):
        chosen = select_references([1.0, 2.0], [3.0, 4.0], t, 2)
    assert chosen == (([], [0, 1]) if t < 1 else ([0, 1], []))


@given(t=st.floats(1e-3, 1e3))
def test_weights_are_those_printed_in_equation_10(t):
    key, past = equation_10_weights(t)
    assert key == pytest.approx(1 / math.sqrt(t**4 + 1), rel=1e-12)
    assert past == pytest.approx(1 / math.sqrt(1 + 1 / t**4), rel=1e-12)


def test_ties_are_decided_the_same_way_every_time():
    assert select_references([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 1.0, 4) == ([0, 1, 2], [0])
    assert select_references([0.0] * 5, [0.0] * 5, 0.0, 4) == ([0, 1, 2, 3], [])


def test_small_pools_give_what_there_is():
    assert select_references([], [], 1.0) == ([], [])
    assert select_references([2.0], [], 0.0) == ([0], [])
    assert select_references(torch.tensor([2.0, 1.0]), np.array([9.0]), 1.0, 9) == ([1, 0], [0])


def test_rescaling_is_linear_from_zero_to_tau():
    assert rescale_timestep(0, 1000) == 0
    assert rescale_timestep(1000, 1000) == 4
    assert rescale_timestep(torch.tensor(250), 1000, tau=2.0) == pytest.approx(0.5)
    assert rescale_timestep(7, 1000, tau=1000) == pytest.approx(7)  # the paper's text taken literally


def test_grid_places_tiles_row_by_row():
    tiles = torch.randn(4, 3, 5, 7)
    grid = make_grid(tiles)
    assert grid.shape == (3, 10, 14)
    for index in range(4):
        row, column = divmod(index, 2)
        assert torch.equal(grid[:, row * 5 : row * 5 + 5, column * 7 : column * 7 + 7], tiles[index])


@given(count=st.integers(1, 7), columns=st.integers(1, 4), extra_rows=st.integers(0, 2))
def test_missing_tiles_repeat_the_first(count, columns, extra_rows):
    tiles = np.random.default_rng(count).random((count, 2, 3, 4)).astype(np.float32)
    rows = -(-count // columns) + extra_rows
    grid = make_grid(tiles, columns, rows=rows if extra_rows else None)
    assert isinstance(grid, np.ndarray) and grid.shape == (2, rows * 3, columns * 4)
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        tile = tiles[index] if index < count else tiles[0]
        np.testing.assert_array_equal(grid[:, row * 3 : row * 3 + 3, column * 4 : column * 4 + 4], tile)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_shrunk_grid_has_the_size_of_one_tile_and_averages_by_area(size):
    tiles = np.random.default_rng(0).random((3, 2, *size))
    grid = make_grid(tiles, shrink=True)
    assert grid.shape == tiles.shape[1:]
    np.testing.assert_allclose(make_grid(torch.tensor(tiles), shrink=True).numpy(), grid)
    if size == (6, 8):
        expected = resize_local_mean(tiles[1].transpose(1, 2, 0), (3, 4)).transpose(2, 0, 1)
        np.testing.assert_allclose(grid[:, :3, 4:], expected, atol=1e-12)
        np.testing.assert_array_equal(grid[:, 3:, 4:], grid[:, :3, :4])  # the fourth repeats the first
    flat = make_grid(np.stack([np.full((1, *size), value) for value in (1.0, 2.0, 3.0, 4.0)]), shrink=True)
    assert set(np.unique(flat)) == {1.0, 2.0, 3.0, 4.0}


def test_grid_keeps_the_type_of_its_tiles():
    assert make_grid(torch.zeros(2, 1, 4, 4, dtype=torch.float16)).dtype == torch.float16
    pictures = np.full((4, 3, 4, 4), 201, np.uint8)
    assert make_grid(pictures, shrink=True).dtype == np.uint8 and (make_grid(pictures, shrink=True) == 201).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: select_references([[1.0]], [], 1.0), "key_distance must be a vector"),
        (lambda: select_references([1.0], [math.nan], 1.0), "past_distance holds values"),
        (lambda: select_references([1.0], [1.0], -1.0), "t must be"),
        (lambda: select_references([1.0], [1.0], math.nan), "t must be"),
        (lambda: select_references([1.0], [1.0], 1.0, 0), "count"),
        (lambda: rescale_timestep(1001, 1000), "timestep must lie"),
        (lambda: rescale_timestep(10, 1000, tau=0), "tau"),
        (lambda: rescale_timestep(10, 0), "num_train_timesteps"),
        (lambda: make_grid(torch.zeros(3, 4, 4)), r"\(N, C, h, w\)"),
        (lambda: make_grid(torch.zeros(0, 1, 4, 4)), "N >= 1"),
        (lambda: make_grid(torch.zeros(5, 1, 4, 4), rows=2), "do not fit"),
        (lambda: make_grid(torch.zeros(4, 1, 4, 4), 0), "columns"),
        (lambda: make_grid(torch.zeros(4, 1, 1, 4), shrink=True), "too small"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
