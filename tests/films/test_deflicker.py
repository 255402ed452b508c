"""`--deflicker` in a job: brightness is evened shot by shot, alike after a stop, and the film is written so."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import gcgkit
from gcgkit import cli, video
from gcgkit.color import to_gray
from gcgkit.films import shot, shots
from gcgkit.films.folder import JobFolder
from gcgkit.video import film, flicker

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="bit for bit is promised on the CPU only")
LENGTHS, FIRST, STEPS = (22, 9, 3), (0, 22, 31), 1


def three_shots() -> np.ndarray:
    """Gray frames of three scenes, the second much brighter, as RGB."""
    parts = [
        to_gray(tiny.clip(n, seed=i)) // 2 + level
        for i, (n, level) in enumerate(zip(LENGTHS, (20, 110, 50), strict=True))
    ]
    parts[1] = parts[1][:, :, ::-1]
    return np.repeat(np.concatenate(parts)[..., None], 3, axis=-1)


@pytest.fixture(scope="module")
def flickering(tmp_path_factory) -> Path:
    steady = three_shots()
    factors = np.exp(np.random.default_rng(1).normal(0, 0.05, len(steady)))[:, None, None, None]
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    video.write(path, np.clip(np.rint(steady * factors), 0, 255).astype(np.uint8), 24, lossless=True)
    listed = [shots.Shot(first, first + n - 1) for first, n in zip(FIRST, LENGTHS, strict=True)]
    shots.write_csv(path.with_suffix(".csv"), listed)
    return path


def arguments(source: Path, out: Path, model, *more) -> list[str]:
    run = ["colorize", source, out, "--profile", model, "--steps", STEPS, "--keyframes", 2, "--chunk", 4, "--lossless"]
    return [*map(str, [*run, *more])]


def colour(source: Path, out: Path, model, *more) -> np.ndarray:
    assert cli.main(arguments(source, out, model, *more)) == 0
    return np.stack(list(film.frames(out)))


@pytest.fixture(scope="module")
def whole(flickering, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out.mkv"
    return colour(flickering, out, model, "--shots", flickering.with_suffix(".csv"), "--deflicker")


def test_each_shot_is_coloured_as_the_evened_shot_alone(whole, flickering, model):
    """Bit for bit the library's stream of what `flicker.remove` makes of each shot; so no shot tells of another."""
    gray = to_gray(np.stack(list(film.frames(flickering))))
    pipe = gcgkit.GCGPipeline.from_pretrained(model)
    changed = []
    for first, count in zip(FIRST, LENGTHS, strict=True):
        own = flicker.remove(gray[first : first + count])
        changed.append((own != gray[first : first + count]).any())
        seeded = torch.Generator().manual_seed(0)
        wanted = list(pipe.stream(own, 4, generator=seeded, num_keyframes=2, num_inference_steps=STEPS))
        np.testing.assert_array_equal(whole[first : first + count], wanted)
    assert changed == [True, True, False]  # three frames do not tell


@pytest.mark.parametrize("stop", [2, 7, 13])
def test_a_stop_at_any_frame_changes_none(stop, whole, flickering, model, tmp_path, monkeypatch):
    calls, usual = 0, shot.color_frame

    def stopping(*inputs):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return usual(*inputs)

    run = arguments(flickering, tmp_path / "out.mkv", model, "--shots", flickering.with_suffix(".csv"), "--deflicker")
    monkeypatch.setattr(shot, "color_frame", stopping)
    assert cli.main(run) == 130
    folder = JobFolder(tmp_path / "out.mkv.job")
    assert 0 < len(folder.done()) < sum(LENGTHS)
    folder.frame_file(0).unlink()  # and a gap
    # the job knows that it evens out
    np.testing.assert_array_equal(colour(flickering, tmp_path / "out.mkv", model), whole)


def test_a_film_without_flicker_keeps_its_lightness_and_bars_stay(model, tmp_path):
    frames = np.pad(three_shots()[:12], ((0, 0), (8, 8), (0, 0), (0, 0)), constant_values=7)
    video.write(tmp_path / "in.mkv", frames, 24, lossless=True)
    plain = colour(tmp_path / "in.mkv", tmp_path / "plain.mkv", model)
    np.testing.assert_array_equal(colour(tmp_path / "in.mkv", tmp_path / "out.mkv", model, "--deflicker"), plain)
    dark = np.rint(frames * np.where(np.arange(12) % 2, 0.8, 1.1)[:, None, None, None]).astype(np.uint8)
    dark[:, :8] = dark[:, -8:] = 7
    video.write(tmp_path / "dark.mkv", dark, 24, lossless=True)
    evened = colour(tmp_path / "dark.mkv", tmp_path / "dark-out.mkv", model, "--deflicker")
    assert (evened[:, :8] == 7).all() and (evened[:, -8:] == 7).all()
    levels = to_gray(evened)[:, 8:-8].mean(axis=(1, 2))
    assert (
        np.abs(np.diff(np.log(levels), 2)).mean()
        < 0.25 * np.abs(np.diff(np.log(dark[:, 8:-8].mean((1, 2, 3))), 2)).mean()
    )


@pytest.mark.parametrize(("begun", "sentence"), [([], "no --deflicker, not with it"), (["--deflicker"], None)])
def test_another_setting_is_refused_and_the_same_goes_on(begun, sentence, flickering, model, tmp_path, capsys):
    shown = ["--shots", flickering.with_suffix(".csv"), "--only-shots", 3]
    assert cli.main(arguments(flickering, tmp_path / "out.mkv", model, *shown, *begun)) == 0
    again = cli.main(arguments(flickering, tmp_path / "out.mkv", model, *shown, "--deflicker"))
    text = capsys.readouterr().err
    assert (again, sentence is not None and sentence in text) == ((1, True) if sentence else (0, False))


def test_a_job_from_before_goes_on_without(flickering, model, tmp_path):
    shown = ["--shots", flickering.with_suffix(".csv"), "--only-shots", 3]
    assert cli.main(arguments(flickering, tmp_path / "out.mkv", model, *shown)) == 0
    path = tmp_path / "out.mkv.job" / "job.json"
    record = json.loads(path.read_text())
    assert record["settings"].pop("deflicker") is False
    path.write_text(json.dumps(record))
    assert cli.main(arguments(flickering, tmp_path / "out.mkv", model, "--only-shots", 3)) == 0
    assert JobFolder(path.parent).read().settings["deflicker"] is False
