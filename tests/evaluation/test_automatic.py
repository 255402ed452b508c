"""Figures of automatic colouring on pictures whose figures are known by hand."""

import cv2
import numpy as np
import pytest
import torch

from gcgkit import metrics
from gcgkit.color import to_gray
from gcgkit.evaluation import automatic


class Oracle:
    """In a pipeline's place: colours that are known. It takes what the pipeline takes, and makes no noise."""

    def __init__(self, color):
        self.color = color

    def __call__(self, gray, prompt="", generator=None, **options):
        assert isinstance(generator, torch.Generator)
        return type("Output", (), {"frames": np.stack([self.color(frame, prompt) for frame in gray])})


def vivid(height=48, width=64) -> np.ndarray:
    x = np.linspace(0, 1, width)[None].repeat(height, 0)
    return np.stack([60 + 150 * x, 120 + 0 * x, 200 - 150 * x], -1).astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.roll(vivid(), 9 * i, axis=1)[..., ::-1])
    (tmp_path / "notes.txt").write_text("no photograph")
    return tmp_path


def test_true_colours_and_gray_ones(photos):
    paths = automatic.list_photos(photos)
    assert [p.name for p in paths] == ["0.png", "1.png", "2.png"]
    truths = iter([np.roll(vivid(), 9 * i, axis=1) for i in range(3)])
    result, pictures = automatic.photo_quality(Oracle(lambda gray, _: next(truths)), paths, perceptual=False)
    summary = result["summary"]
    assert summary["better_than_gray"] == 1 and summary["psnr"] > 90
    assert summary["colorfulness_ratio"] == pytest.approx(1) and summary["blotches_ratio"] == pytest.approx(1)
    assert len(pictures) == 3 and all((ours == truth).all() for _, ours, truth in pictures)

    plain, _ = automatic.photo_quality(Oracle(lambda gray, _: np.dstack([gray] * 3)), paths, perceptual=False)
    assert plain["summary"]["psnr_gain"] == 0 and plain["summary"]["better_than_gray"] == 0
    truth = vivid()[None]
    expected = metrics.psnr_rgb(np.repeat(to_gray(truth)[..., None], 3, -1), truth)
    assert plain["photographs"][0]["psnr_gray"] == pytest.approx(expected)


def test_blotches_are_colour_that_changes_where_gray_does_not():
    gray = np.full((64, 64), 120, np.uint8)
    even = np.dstack([gray] * 3)
    spotted = even.copy()
    spotted[20:40, 20:40] = (180, 100, 100)
    assert automatic.blotchiness(even, gray) == pytest.approx(0, abs=1e-4)
    assert automatic.blotchiness(spotted, gray) > 0.3
    edged = gray.copy()
    edged[14:46, 14:46] = 10  # now the gray picture has its edges there too, wide enough for the blur
    edged[20:40, 20:40] = 250
    assert automatic.blotchiness(spotted, edged) < automatic.blotchiness(spotted, gray)


def test_words_that_move_the_object_alone(tmp_path):
    masks = tmp_path / "DAVIS/Annotations/480p/dog"
    frames = tmp_path / "DAVIS/JPEGImages/480p/dog"
    masks.mkdir(parents=True), frames.mkdir(parents=True)
    mask = np.zeros((256, 448), np.uint8)
    mask[:, :200] = 255
    cv2.imwrite(str(masks / "00000.png"), mask)
    cv2.imwrite(str(frames / "00000.jpg"), np.full((256, 448, 3), 128, np.uint8))

    def color(gray, prompt):
        picture = np.dstack([gray] * 3)
        if prompt == "red dog":
            picture[:, :200] = (200, 110, 110)
        elif prompt == "blue dog":
            picture[:] = (110, 110, 200)
        return picture

    result, pictures = automatic.word_quality(Oracle(color), tmp_path, words=("red", "blue"))
    red, blue = result["cases"]
    assert red["cosine"] > 0.9 and blue["cosine"] > 0.9 and result["summary"]["moved"] == 1
    assert red["outside"] == pytest.approx(0, abs=0.5) and blue["inside"] == pytest.approx(blue["outside"], rel=0.05)
    expected = (red["inside"] + blue["inside"]) / (red["outside"] + blue["outside"])
    assert result["summary"]["inside_over_outside"] == pytest.approx(expected)
    assert len(pictures) == 1 and len(pictures[0]) == 3


def test_folders_without_photographs_and_without_masks_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="photographs"):
        automatic.list_photos(tmp_path)
    with pytest.raises(FileNotFoundError, match="masks of dog"):
        automatic.object_masks(tmp_path, "dog", (10, 10))


def test_spread_keeps_the_first_and_the_last():
    assert automatic.spread(list(range(10)), 4) == [0, 3, 6, 9]
    assert automatic.spread([1, 2], 4) == [1, 2]


def test_sheet_holds_all_pictures():
    sets = [(vivid(), vivid(), vivid())] * 5
    sheet = automatic.contact_sheet(sets, columns=2, width=64)
    assert sheet.shape == (3 * (48 + 4), 2 * (3 * 64 + 4), 3)
    np.testing.assert_array_equal(sheet[2:50, 2:66], vivid())


def test_spreads_of_keyframes_together_alone_and_true(monkeypatch):
    """Frames of one colour each, so that the spread is that of a few points in the plane of a* and b*."""
    shades = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [128, 128, 128]], np.uint8)
    clip = shades[:, None, None].repeat(16, 1).repeat(24, 2)
    mask = np.zeros((4, 16, 24), bool)
    mask[:, :8] = True
    monkeypatch.setattr(automatic.footage, "measuring_clips", lambda data, frames: [("cows", clip[:frames])])
    monkeypatch.setattr(automatic, "object_masks", lambda *args: mask)

    class Painter:
        """Together: gray everywhere. Alone: true colours in even frames, gray in odd ones."""

        def color_keyframes(self, gray, num_keyframes, generator, **options):
            if num_keyframes > 1:
                return {i: np.full_like(clip[i], 99) for i in range(4)}
            number = int(np.abs(to_gray(clip).astype(int) - gray[0]).reshape(4, -1).sum(1).argmin())
            return {0: clip[number] if number % 2 == 0 else np.full_like(clip[0], 99)}

    points = [automatic.rgb_to_lab(shade[None, None])[0, 0, 1:].astype(float) for shade in shades]
    radius = lambda found: np.sqrt(np.var(found, axis=0).sum())  # noqa: E731
    found = automatic.keyframe_quality(Painter(), "", frames=4, seeds=(0,))["summary"]
    expected = {"together": 0, "alone": radius([points[0], [0, 0], points[2], [0, 0]]), "truth": radius(points)}
    for kind in ("spread_shared", "object_spread_independent"):
        assert found[kind] == pytest.approx({**expected, "ratio": 0}, abs=0.02)
