"""Colour errors of aged clips, with a colouring whose error is known in place of the model."""

import json

import cv2
import numpy as np
import pytest
import torch
from skimage.color import rgb2lab

from gcgkit import metrics
from gcgkit.color import merge_luminance, to_gray
from gcgkit.data.aging import Wear
from gcgkit.evaluation import aged
from gcgkit.video import flicker


def clip(count=8, height=256, width=448) -> np.ndarray:
    x = np.linspace(0, 1, width)[None].repeat(height, 0)
    frame = np.stack([60 + 150 * x, 120 + 0 * x, 200 - 150 * x], -1).astype(np.uint8)
    return np.stack([np.roll(frame, 3 * t, axis=1) for t in range(count)])


@pytest.fixture
def data(tmp_path):
    for name in ("dog", "soapbox"):
        folder = tmp_path / "DAVIS/JPEGImages/480p" / name
        folder.mkdir(parents=True)
        for t, frame in enumerate(clip()):
            cv2.imwrite(str(folder / f"{t:05d}.jpg"), frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    return tmp_path


class Painter:
    """In the pipeline's place: gives every frame the exemplar's AB, or none."""

    def __init__(self, gray=False):
        self.gray, self.films = gray, []

    def __call__(self, gray, reference, generator, **options):
        assert isinstance(generator, torch.Generator) and list(reference) == [0]
        self.films.append(gray)
        colors = np.repeat(gray[..., None], 3, -1) if self.gray else np.repeat(reference[0][None], len(gray), 0)
        return type("Output", (), {"frames": merge_luminance(gray, colors)})


def test_error_of_colours_is_that_of_scikit_image():
    one, other = clip(), clip()[:, ::-1, ::-1]
    found = aged.color_error(one, other)
    lab = rgb2lab(one)[..., 1:], rgb2lab(other)[..., 1:]
    assert found["ab"] == pytest.approx(np.sqrt(((lab[0] - lab[1]) ** 2).sum(-1)).mean(), rel=1e-3)
    assert found["psnr"] == pytest.approx(metrics.psnr_rgb(one, other))
    assert aged.color_error(one, one)["ab"] == 0


def test_the_three_films_of_a_clip():
    still, wear = np.repeat(clip(1), 20, 0), Wear(weave=0.0, grain=0.0, scratches=0, dust=0.0, contrast=1.0)
    found = {name: (gray, colors) for name, gray, colors in aged.films(still, wear)}
    assert list(found) == ["clean", "aged", "deflickered"]
    np.testing.assert_array_equal(found["clean"][0], to_gray(still))
    np.testing.assert_array_equal(found["deflickered"][0], flicker.remove(found["aged"][0]))
    levels = {name: np.log(gray.mean((1, 2))).std() for name, (gray, _) in found.items()}
    assert levels["clean"] == 0 and levels["aged"] > 0.05 and levels["deflickered"] < 0.5 * levels["aged"]
    for _, colors in found.values():
        np.testing.assert_array_equal(colors, still)


def test_true_colours_have_no_error_and_gray_has_that_of_gray(data):
    wear = Wear(weave=0.0)
    gray = aged.aged_quality(Painter(gray=True), data, 8, wear)
    assert [(case["clip"], case["film"]) for case in gray["cases"]][:3] == [
        ("dog", "clean"), ("dog", "aged"), ("dog", "deflickered")
    ]  # fmt: skip
    for kind in ("clean", "aged", "deflickered"):
        row = gray["summary"][kind]
        assert row["psnr"] == pytest.approx(row["psnr_gray"], abs=0.1) and row["ab"] == pytest.approx(
            row["ab_gray"], abs=0.2
        )

    still = Painter()  # a still clip: the exemplar's AB are every frame's
    for path in data.rglob("*.jpg"):
        if path.stem != "00000":
            path.write_bytes((path.parent / "00000.jpg").read_bytes())
    same = aged.aged_quality(still, data, 8, wear)
    for row in same["summary"].values():
        assert row["ab"] < 1.5 and row["psnr"] > 40 and row["ab_gray"] > 15
    assert len(still.films) == 6 and not np.array_equal(still.films[0], still.films[1])


def test_the_command_writes_figures_and_settings(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aged, "load_pipeline", lambda weights, device: Painter())
    run = ["--data", str(data), "--frames", "7", "--steps", "3", "--wear", "flicker=0.2", "--seed", "5"]
    aged.main([*run, "--json", str(tmp_path / "new/out.json")])
    written = json.loads((tmp_path / "new/out.json").read_text())
    assert written["settings"]["wear"]["flicker"] == 0.2 and written["settings"]["wear"]["grain"] == Wear().grain
    assert [written["settings"][key] for key in ("frames", "num_inference_steps", "seed", "weights")] == [
        7,
        3,
        5,
        "mini",
    ]
    assert written["summary"]["aged"]["psnr"] == pytest.approx(
        np.mean([case["psnr"] for case in written["cases"] if case["film"] == "aged"])
    )
    assert "deflickered" in capsys.readouterr().out


@pytest.mark.parametrize("wear", ["flikcer=0.2", "flicker=much", "dust=True", "scratches=1.5"])
def test_wear_that_does_not_exist_is_one_sentence(wear, data, capsys):
    assert aged.main(["--data", str(data), "--wear", wear]) == 1
    told = capsys.readouterr().err
    assert "contrast, flicker, weave, grain, scratches, dust" in told and wear in told and told.count("\n") == 1


@pytest.mark.parametrize(("frames", "place", "sentence"), [(5, "", "6 or more"), (8, "empty", "none of the measuring")])
def test_too_few_frames_and_no_clips_are_one_sentence(frames, place, sentence, data):
    with pytest.raises(ValueError, match=sentence):
        aged.aged_quality(Painter(), data / place, frames)
