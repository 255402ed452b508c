"""Flicker that a test puts in is measured and taken out; films without it stay as they are."""

import numpy as np
import pytest

from gcgkit import video
from gcgkit.color import to_gray
from gcgkit.data import clips
from gcgkit.video import flicker

COUNT = 40


def scene(count=COUNT, moving=2) -> np.ndarray:
    """A gray scene ``(T, 64, 96)`` of smooth texture that moves to the right, between 60 and 170."""
    rows, columns = np.mgrid[:64, : 96 + moving * count]
    whole = 115 + 30 * np.sin(rows / 5 + columns / 9) + 25 * np.cos(columns / 23)
    return np.stack([np.rint(whole[:, moving * t : moving * t + 96]) for t in range(count)]).astype(np.uint8)


def exposed(gray: np.ndarray, factors) -> np.ndarray:
    return np.clip(np.rint(gray * np.asarray(factors)[:, None, None]), 0, 255).astype(np.uint8)


RANDOM = np.exp(np.random.default_rng(3).normal(0, 0.06, COUNT))
FLICKERS = {
    "random": RANDOM,
    "every other frame": np.where(np.arange(COUNT) % 2, 0.9, 1.1),
    "of three frames": np.array([0.92, 1.0, 1.08])[np.arange(COUNT) % 3],
    "in a fade": RANDOM * np.linspace(0.6, 1.4, COUNT),
}


def jerk(factors) -> float:
    """How much brightness jumps from frame to frame: the typical second difference of its logarithm."""
    return float(np.std(np.diff(np.log(factors), 2)))


@pytest.mark.parametrize("kind", FLICKERS)
def test_known_flicker_is_taken_out(kind):
    factors = FLICKERS[kind]
    film = exposed(scene(), factors)
    found = flicker.changes(film)
    left = factors * [flicker.gain(found, i) for i in range(COUNT)]  # exposure times correction, by the known exposure
    assert jerk(left) < 0.25 * jerk(factors)
    out = flicker.remove(film)
    assert jerk(out.mean(axis=(1, 2))) < 0.25 * jerk(film.mean(axis=(1, 2)))
    inside = slice(flicker.RADIUS, -flicker.RADIUS)
    trend = np.polyval(np.polyfit(np.arange(COUNT)[inside], np.log(left[inside]), 2), np.arange(COUNT)[inside])
    assert np.abs(np.log(left[inside]) - trend).max() < 0.05


def test_changes_are_the_logarithm_of_the_exposures_ratio():
    still = np.repeat(scene(1), COUNT, axis=0)
    np.testing.assert_allclose(flicker.changes(exposed(still, RANDOM))[1:, 0], np.diff(np.log(RANDOM)), atol=3e-3)
    assert not flicker.changes(still).any()
    moving, plain = flicker.changes(scene(moving=6)), flicker.changes(exposed(still, RANDOM))
    assert moving[1:, 1].min() > 0.1 and plain[1:, 1].max() < 0.02  # motion spreads the pixels' changes


def shaken() -> np.ndarray:
    """A scene that jumps by up to an eighth of its width from frame to frame, with a light and a dark half."""
    steps = np.random.default_rng(2).integers(40, 53, COUNT)
    whole = np.concatenate([scene(1)[0] // 2, scene(1)[0]], axis=1)
    return np.stack([whole[:, step : step + 96] for step in steps])


def with_one(frame: int, value: int) -> np.ndarray:
    film = scene()
    film[frame] = value
    return film


STEADY = {
    "still": np.repeat(scene(1), COUNT, axis=0),
    "moving": scene(),
    "moving fast": scene(moving=13),
    "shaken": shaken(),
    "fade in": exposed(scene(), np.linspace(0, 1, COUNT)),
    "fade out": exposed(scene(), np.linspace(1.3, 0, COUNT)),
    "light switched on": exposed(scene(), np.where(np.arange(COUNT) < 17, 0.5, 1.2)),
    "white flash": with_one(20, 255),
    "gray flash": with_one(20, 200),
    "black frame": with_one(9, 0),
    "slow breath": exposed(scene(), 1 + 0.2 * np.sin(np.arange(COUNT) / 8)),
    "uneven fade": exposed(scene(), np.cumsum(np.where(np.arange(COUNT) % 5, 0.02, 0.04))),
    "black film": np.zeros((COUNT, 64, 96), np.uint8),
}


@pytest.mark.parametrize("kind", STEADY)
def test_a_film_without_flicker_stays_as_it_is(kind):
    before = STEADY[kind]
    assert np.abs(flicker.remove(before).astype(int) - before).max() <= 1


@pytest.mark.parametrize("name", clips.NAMES)
def test_a_real_clip_stays_as_it_is(name):
    frames = to_gray(video.read(clips.find(name)).frames[:60])
    assert np.abs(flicker.remove(frames).astype(int) - frames).max() <= 1


def test_corrections_are_small_even_where_flicker_is_not():
    film = exposed(scene(), np.where(np.arange(COUNT) % 4, 1.0, 0.45))
    gains = [flicker.gain(flicker.changes(film), i) for i in range(COUNT)]
    assert np.exp(-flicker.LIMIT) <= min(gains) and max(gains) <= np.exp(flicker.LIMIT) < 1.29


@pytest.mark.parametrize("first", [0, 3, 20, 37])
def test_a_part_with_its_surroundings_has_the_gains_of_the_whole(first):
    film = exposed(scene(), RANDOM)
    whole, reach = flicker.changes(film), 2 * flicker.RADIUS
    low = max(0, first - reach)
    part = flicker.changes(film[low : first + 3 + reach])
    assert [flicker.gain(part, n - low) for n in range(first, min(first + 3, COUNT))] == [
        flicker.gain(whole, n) for n in range(first, min(first + 3, COUNT))
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_few_frames_tell_of_no_flicker(count):
    film = exposed(scene(count), RANDOM[:count])
    np.testing.assert_array_equal(flicker.remove(film), film)


def test_levels_are_rounded_and_clipped():
    gray = np.uint8([[0, 100, 101, 250]])
    assert flicker.brighten(gray, 1.1).tolist() == [[0, 110, 111, 255]]
    assert flicker.brighten(gray, 1.0).tolist() == gray.tolist()
