"""Black bars stay as they are and do not reach the model; a film that has colour is told."""

import numpy as np
import pytest
import small_films as films
import tiny

from gcgkit import cli, video
from gcgkit.color import to_gray
from gcgkit.films.look import Box, find_box, has_color
from gcgkit.video import film


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.pipeline(folder / "source").save_pretrained(folder / "tiny")
    return folder / "tiny"


def in_bars(clip, box, level, size=(64, 96)):
    """The clip within bars of about this level, with grain."""
    grain = np.random.default_rng(0).integers(0, 5, (len(clip), *size, 1))
    whole = np.repeat(np.clip(level + grain, 0, 255), 3, axis=-1).astype(np.uint8)
    whole[:, box.top : box.bottom, box.left : box.right] = clip
    return whole


@pytest.mark.parametrize("box", [Box(16, 48, 0, 96), Box(0, 64, 12, 84), Box(9, 50, 20, 90), Box(0, 64, 0, 96)])
@pytest.mark.parametrize("level", [0, 12])
def test_bars_are_found_to_the_pixel(box, level):
    clip = films.pictures(5, (box.bottom - box.top, box.right - box.left))
    assert find_box(in_bars(clip, box, level)) == box


def test_a_dark_film_and_titles_in_the_bars_have_no_bars():
    assert find_box(np.full((3, 64, 96, 3), 9, np.uint8)) == Box(0, 64, 0, 96)
    clip = in_bars(films.pictures(5, (32, 96)), Box(16, 48, 0, 96), 2)
    clip[3, 52:58, 30:60] = 230
    assert find_box(clip) == Box(16, 58, 0, 96)


@pytest.mark.parametrize("size", [[], ["--size", "32x16"], ["--size", "96x64"]])
def test_bars_get_no_tint_and_the_picture_is_coloured_as_without_them(tmp_path, model, size):
    clip, box = tiny.clip(6), Box(16, 48, 8, 72)
    whole = in_bars(clip, box, 4, (64, 80))
    video.write(tmp_path / "in.mkv", whole, 24, lossless=True)
    video.write(tmp_path / "cut.mkv", clip, 24, lossless=True)
    results = {}
    for name in ("in", "cut"):
        run = ["colorize", tmp_path / f"{name}.mkv", tmp_path / f"{name}-out.mkv", "--profile", model, "--steps", 2]
        assert cli.main([*map(str, run), "--chunk", "4", "--keyframes", "2", "--lossless", *size]) == 0
        results[name] = np.stack(list(film.frames(tmp_path / f"{name}-out.mkv")))
    inside = np.zeros(whole.shape[1:3], bool)
    inside[16:48, 8:72] = True
    np.testing.assert_array_equal(results["in"][:, 16:48, 8:72], results["cut"])
    np.testing.assert_array_equal(results["in"][:, ~inside], np.repeat(to_gray(whole)[:, ~inside, None], 3, -1))


def test_color_and_sepia_are_told_and_gray_with_coding_noise_is_not(tmp_path, model, capsys):
    gray = np.repeat(to_gray(films.pictures(4))[..., None], 3, axis=-1)
    noisy = gray + np.random.default_rng(0).integers(0, 2, gray.shape).astype(np.uint8)
    sepia = (gray * np.array([1.0, 0.9, 0.7])).astype(np.uint8)
    assert not has_color(gray) and not has_color(noisy) and has_color(sepia) and has_color(films.pictures(4))
    for name, clip in (("gray", noisy), ("sepia", sepia)):
        video.write(tmp_path / f"{name}.mkv", clip, 24, lossless=True)
        run = ["colorize", tmp_path / f"{name}.mkv", tmp_path / f"{name}-out.mkv", "--profile", model, "--steps", 1]
        assert cli.main([*map(str, run)]) == 0
        assert ("has colour; its lightness is used" in capsys.readouterr().out) == (name == "sepia")
