"""Black bars stay as they are and do not reach the model; a film that has colour is told."""

import numpy as np
import pytest
import small_films as films
import tiny

from gcgkit import cli, video
from gcgkit.color import to_gray
from gcgkit.films import shots
from gcgkit.films.folder import JobFolder
from gcgkit.films.look import Box, find_box, fit_tint, has_color, shade
from gcgkit.video import film


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


def test_bars_that_come_and_go_within_a_shot_get_no_tint():
    gray = to_gray(films.pictures(1, (64, 96))[0])
    barred, titled = gray.copy(), gray.copy()
    barred[:12] = barred[-9:] = barred[:, :20] = 7
    titled[:16] = 0
    titled[4:9, 30:60] = 220  # which is coloured with the rows from its own down
    for frame, bars in ((barred, barred == 7), (titled, np.indices(gray.shape)[0] < 4)):
        colored = Box(0, 64, 0, 96).frame(frame, np.full((64, 96, 3), (200, 50, 9), np.uint8))
        assert (colored[bars] == frame[bars][:, None]).all() and (colored[~bars] == (200, 50, 9)).all()
    dusk, ramp = gray.copy(), np.tile(np.arange(96, dtype=np.uint8), (64, 1))  # dark parts of pictures, with shades
    dusk[:20] = np.arange(96) // 4
    for frame in (dusk, ramp):
        assert (Box(0, 64, 0, 96).frame(frame, np.full((64, 96, 3), (9, 0, 30), np.uint8)) == (9, 0, 30)).all()


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


TINTS = {"blue": (0.25, 0.4, 1.0), "amber": (1.0, 0.75, 0.35), "sepia": (1.0, 0.9, 0.7), "red": (1.0, 0.2, 0.15)}


def tinted(gray, tint):
    """A gray clip in shades of one colour."""
    return np.rint(gray[..., None] * np.array(tint)).astype(np.uint8)


@pytest.mark.parametrize("name", TINTS)
def test_a_tinted_film_has_the_lightness_it_had_before(name):
    gray = to_gray(films.pictures(4))
    clip = tinted(gray, TINTS[name])
    tint = fit_tint(clip)
    np.testing.assert_allclose(tint, TINTS[name], atol=0.01)
    for frame, wanted in zip(clip, gray, strict=True):
        assert np.abs(shade(frame, tint).astype(int) - wanted).max() <= 2
        assert name == "sepia" or np.abs(to_gray(frame).astype(int) - wanted).mean() > 20  # what luma makes of it
    noisy = np.clip(clip + np.random.default_rng(0).normal(0, 2, clip.shape), 0, 255).astype(np.uint8)
    np.testing.assert_allclose(fit_tint(noisy), TINTS[name], atol=0.03)


def test_gray_films_and_films_of_several_colours_have_no_tint():
    gray = to_gray(films.pictures(4))
    assert fit_tint(np.repeat(gray[..., None], 3, axis=-1)) is None
    assert fit_tint(films.pictures(4)) is None and fit_tint(np.zeros((2, 32, 64, 3), np.uint8)) is None
    two = np.concatenate([tinted(gray[:, :24], TINTS["blue"]), tinted(gray[:, 24:], TINTS["amber"])], axis=1)
    assert fit_tint(two) is None and fit_tint(films.pictures(4) // 12) is None
    assert fit_tint(tinted(gray // 5, TINTS["blue"])) is not None  # night
    np.testing.assert_array_equal(shade(films.pictures(1)[0], None), to_gray(films.pictures(1)[0]))


def test_each_shot_is_coloured_by_its_own_tint_also_after_a_stop(tmp_path, model, capsys):
    """Pure red and pure blue give back the gray levels exactly: the result is that of the gray film, bit for bit."""
    gray = to_gray(tiny.clip(9))
    plain, clip = np.repeat(gray[..., None], 3, axis=-1), np.zeros((9, *gray.shape[1:], 3), np.uint8)
    clip[:4, ..., 0], clip[4:, ..., 2] = gray[:4], gray[4:]
    shots.write_csv(tmp_path / "shots.csv", [shots.Shot(0, 3), shots.Shot(4, 8)])
    results = {}
    for name, source, more in (("plain", plain, []), ("tinted", clip, ["--tinted"]), ("luma", clip, [])):
        video.write(tmp_path / f"{name}.mkv", source, 24, lossless=True)
        run = ["colorize", tmp_path / f"{name}.mkv", tmp_path / f"{name}-out.mkv", "--profile", model, "--steps", 1]
        run += ["--chunk", 3, "--keyframes", 2, "--lossless", "--shots", tmp_path / "shots.csv"]
        if more:
            assert cli.main([*map(str, [*run, *more, "--only-shots", 2])]) == 0
            JobFolder(tmp_path / f"{name}-out.mkv.job").frame_file(7).unlink()
            assert "by the tint of each shot" in capsys.readouterr().out
        assert cli.main([*map(str, run)]) == 0  # the job knows
        results[name] = np.stack(list(film.frames(tmp_path / f"{name}-out.mkv")))
    np.testing.assert_array_equal(results["tinted"], results["plain"])
    assert (results["luma"] != results["plain"]).any()
    assert cli.main([*map(str, [*run, "--tinted"])]) == 1
    assert "was begun with no --tinted" in capsys.readouterr().err


@pytest.mark.parametrize(("top", "left"), [(1, 0), (0, 8), (0, 1), (2, 3), (40, 0)])
def test_thin_and_large_bars_are_found_to_the_pixel(top, left):
    """A line at the edge, the eight columns beside a DVD's picture, and a wide picture in a tall frame."""
    frames = np.zeros((4, 96, 160, 3), np.uint8)
    frames[:, top : 96 - top, left : 160 - left] = np.random.default_rng(0).integers(60, 250, (4, 1, 1, 3))
    assert find_box(frames) == Box(top, 96 - top, left, 160 - left)


def test_a_lamp_in_the_night_has_no_bars_around_it():
    """What is bright is small, and its edge is soft."""
    rows, columns = np.mgrid[:96, :160]
    glow = 200 * np.exp(-((rows - 40) ** 2 + (columns - 70) ** 2) / 30)
    frames = np.repeat(glow[None, ..., None].astype(np.uint8), 3, -1)
    assert find_box(frames) == Box(0, 96, 0, 160)
