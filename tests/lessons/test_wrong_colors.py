"""Fakes are wrong in the one way that they say; and every metric of a clip in one call."""

import numpy as np
import pytest
import tiny

from gcgkit import metrics
from gcgkit.color import rgb_to_lab, to_gray
from gcgkit.evaluation import columns
from gcgkit.lessons import wrong_colors
from gcgkit.metrics import networks

TRUTH = np.clip(tiny.clip(6, 32, 48).astype(int) // 2 + 60, 0, 255).astype(np.uint8)  # muted: any hue has a place in it
KEEP_LIGHTNESS = ("warm tint", "flickering", "colours of frame 0, frozen", "colours mirrored", "colours leak")


@pytest.mark.parametrize("name", wrong_colors.FAKES)
def test_a_fake_is_a_clip_like_the_truth_and_leaves_it_alone(name):
    before = TRUTH.copy()
    made = wrong_colors.FAKES[name](TRUTH)
    assert made.shape == TRUTH.shape and made.dtype == np.uint8
    assert not np.array_equal(made, TRUTH)
    np.testing.assert_array_equal(TRUTH, before)
    with pytest.raises(ValueError, match="truth"):
        wrong_colors.FAKES[name](TRUTH[..., 0])


@pytest.mark.parametrize("name", KEEP_LIGHTNESS)
def test_what_changes_colour_alone_keeps_lightness(name):
    gap = np.abs(rgb_to_lab(wrong_colors.FAKES[name](TRUTH))[..., 0] - rgb_to_lab(TRUTH)[..., 0])
    assert np.median(gap) < 0.5  # of 100; more only where a colour leaves the gamut


def test_fakes_by_hand():
    np.testing.assert_array_equal(wrong_colors.gray(TRUTH)[..., 2], to_gray(TRUTH))
    moved = wrong_colors.shift(TRUTH, 2)
    np.testing.assert_array_equal(moved[:, :, 2:], TRUTH[:, :, :-2])
    np.testing.assert_array_equal(moved[:, :, 0], TRUTH[:, :, 0])
    np.testing.assert_array_equal(wrong_colors.reverse(TRUTH)[0], TRUTH[-1])
    turned = wrong_colors.upside_down(TRUTH)
    np.testing.assert_array_equal(turned[0::2], TRUTH[0::2])
    np.testing.assert_array_equal(turned[1], TRUTH[1][::-1])
    plain = np.full((2, 16, 16, 3), 120, np.uint8)
    lab = rgb_to_lab(wrong_colors.tint(plain, 6.0, 14.0))
    np.testing.assert_allclose(lab[..., 1:].mean((0, 1, 2)), (6, 14), atol=0.5)
    confetti = wrong_colors.confetti(plain, block=4, chroma=20.0)
    np.testing.assert_array_equal(confetti[:, ::4, ::4], confetti[:, 3::4, 3::4])  # one colour to a block
    assert len(np.unique(confetti[0, ::4, ::4].reshape(-1, 3), axis=0)) > 8
    np.testing.assert_array_equal(confetti, wrong_colors.confetti(plain, block=4, chroma=20.0))
    chroma = np.hypot(*np.moveaxis(rgb_to_lab(wrong_colors.flicker(TRUTH))[..., 1:], -1, 0)).mean((1, 2))
    true = np.hypot(*np.moveaxis(rgb_to_lab(TRUTH)[..., 1:], -1, 0)).mean((1, 2))
    np.testing.assert_allclose(chroma[0::2] / true[0::2], 0.5, atol=0.05)
    assert (chroma[1::2] > 1.2 * true[1::2]).all()
    np.testing.assert_allclose(
        rgb_to_lab(wrong_colors.mirrored(TRUTH))[:, :, ::-1, 1:].mean((1, 2)),
        rgb_to_lab(TRUTH)[..., 1:].mean((1, 2)),
        atol=1.5,
    )


def test_what_histograms_cannot_see_cdc_cannot():
    names = ("odd frames upside down", "frames in reverse")
    scores = {name: metrics.cdc([wrong_colors.FAKES[name](TRUTH)]) for name in names}
    assert scores == pytest.approx(dict.fromkeys(scores, metrics.cdc([TRUTH])), abs=1e-12)


def test_scores_are_the_metrics_in_the_tables_units(monkeypatch):
    fake, names = (
        wrong_colors.tint(TRUTH),
        ("psnr_rgb", "psnr_luma", "colorfulness", "colorfulness_abs", "cdc", "flow_warp_error"),
    )
    found = columns.scores(fake, TRUTH, names)
    assert found == {
        "PSNR (RGB)": metrics.psnr_rgb(fake, TRUTH),
        "PSNR (L*)": metrics.psnr_luma(fake, TRUTH),
        "Colourfulness": metrics.colorfulness(fake),
        "Colourfulness (abs)": metrics.colorfulness(fake, "abs"),
        "CDC (×10⁻²)": 100 * metrics.cdc([fake]),
        "Warping error (×10⁻³)": 1000 * metrics.flow_warp_error(fake, to_gray(TRUTH)),
    }
    monkeypatch.setattr(networks, "find_spec", lambda name: None)  # as where no package is installed
    assert columns.scores(fake, TRUTH, ["lpips", "fid"]) == {"LPIPS": None, "FID": None}
    assert set(columns.reasons()) == {"LPIPS", "MUSIQ", "CLIP-IQA", "FID", "ST-LPIPS", "FD-EfficientNet"}
    assert "pip install" in columns.reasons(["fid"])["FID"] and columns.reasons(["cdc"]) == {}
