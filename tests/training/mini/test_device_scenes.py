"""Scenes drawn on the training device against OpenCV and arithmetic by hand."""

import cv2
import numpy as np
import pytest
import torch

from gcgkit.color import rgb_to_lab
from gcgkit.data import naming
from gcgkit.training.mini import device_scenes
from gcgkit.training.mini.device_scenes import Scenes

RNG = np.random.default_rng(0)


def smooth(height: int, width: int) -> np.ndarray:
    noise = RNG.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def pack() -> dict:
    photos = []
    for height, width in ((100, 150), (150, 100), (120, 120)):
        mask = np.zeros((height // 8, width // 8), np.uint8)
        mask[: height // 16] = 255  # the upper half
        photos.append(
            {"image": smooth(height, width), "mask": mask, "confidence": 1.0, "things": ["dog"], "split": "train"}
        )
    clip = {"name": "film", "things": ["car"], "images": np.stack([smooth(256, 448)] * 12), "masks": None}
    return {"photos": photos, "clips": [clip]}


@pytest.fixture(scope="module")
def scenes(pack) -> Scenes:
    return Scenes(pack, "cpu")


def test_mirroring_is_numpys():
    wide = np.arange(-14.0, 26.0) + 0.5  # pixel centres around a picture of 7 pixels
    expected = np.pad(np.arange(7) + 0.5, (14, 19), mode="reflect")
    found = device_scenes._mirrored(torch.from_numpy(wide), torch.tensor(7.0))
    np.testing.assert_allclose(found.numpy(), expected)


def test_views_are_what_opencv_warps(scenes, pack):
    image = pack["photos"][0]["image"]
    matrix = np.array([[0.7, 0.1, 20.0], [-0.1, 0.6, 15.0]])  # output pixel (x, y, 1) to input pixel
    expected = cv2.warpAffine(
        image, matrix, (80, 60), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101
    )
    x, y = np.meshgrid(np.arange(80), np.arange(60))
    at = np.stack([x, y, np.ones_like(x)], -1) @ matrix.T + 0.5  # pixel centres
    coords = torch.from_numpy(at[None].astype(np.float32))
    found = device_scenes._sample(scenes.photos[:1], coords, torch.from_numpy(scenes.sizes[:1]))
    np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy() * 255, expected, atol=6)  # OpenCV has 5 bits of place


def test_draw_has_shapes_and_range(scenes):
    batch = scenes.draw(6, 5, (64, 96), np.random.default_rng(1), clips=0.5, recolor=0.5, drop_text=0.5)
    assert batch.rgb.shape == (6, 5, 3, 64, 96) and len(batch.captions) == len(batch.natural) == 6
    assert batch.rgb.min() >= -1 and batch.rgb.max() <= 1


def test_same_seed_same_batch_and_another_another(scenes):
    one, same, other = (scenes.draw(2, 1, (64, 96), np.random.default_rng(s), tint=0.5) for s in (4, 4, 5))
    assert torch.equal(one.rgb, same.rgb) and one.captions == same.captions
    assert not torch.equal(one.rgb, other.rgb)


def recolored(scenes, rgb, mask, turns=(0.0,), gains=(1.0,), colors=(None,)):
    return scenes._recolor(rgb, mask, 1, list(turns), list(gains), list(colors), np.random.default_rng(2))


def test_turned_hues_keep_luma_and_half_a_turn_is_the_opposite(scenes):
    rgb = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 0.1 + 0.45  # nothing will be clipped
    mask = torch.zeros(1, 1, 16, 16)
    weights = torch.tensor(device_scenes.LUMA).view(1, 3, 1, 1)
    luma = (rgb * weights).sum(1, keepdim=True)
    turned = recolored(scenes, rgb, mask, turns=(180.0,))
    torch.testing.assert_close((turned * weights).sum(1, keepdim=True), luma)
    torch.testing.assert_close(turned, 2 * luma - rgb)  # chroma with its sign changed
    torch.testing.assert_close(recolored(scenes, rgb, mask), rgb)


@pytest.mark.parametrize("word", sorted(naming.WORD_RGB))
def test_a_named_colour_is_the_objects_alone(scenes, word):
    rgb = torch.full((1, 3, 16, 16), 0.5)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    tinted = recolored(scenes, rgb, mask, colors=((word, True),))
    torch.testing.assert_close(tinted[..., 8:], rgb[..., 8:])
    lab = rgb_to_lab((tinted[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    wanted = rgb_to_lab(np.uint8([[naming.WORD_RGB[word]]]))[0, 0, 1:]
    found = lab[:, :8, 1:].reshape(-1, 2).mean(0)
    assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.85


def test_scenes_that_were_given_a_colour_say_so(scenes):
    batch = scenes.draw(40, 1, (64, 96), np.random.default_rng(6), tint=0.5, drop_text=1.0)
    for text, natural in zip(batch.captions, batch.natural, strict=True):
        assert (text == "") == bool(natural)
        assert natural or any(word in text for word in naming.WORD_RGB)


def test_regraded_scenes_keep_their_hues_and_have_any_saturation(scenes):
    """The same seed draws the same crop, so the chroma of both can be compared."""
    ratios = []
    for seed in range(30):
        both = [
            scenes.draw(1, 1, (64, 96), np.random.default_rng(seed), clips=0.0, regrade=share) for share in (1.0, 0.0)
        ]
        assert not both[0].natural.any() and both[1].natural.all()
        assert not any(word in both[0].captions[0] for word in naming.WORD_RGB)
        frames = [((batch.rgb[0, 0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8) for batch in both]
        graded, plain = (rgb_to_lab(frame)[..., 1:].ravel() for frame in frames)
        assert graded @ plain / np.linalg.norm(graded) / np.linalg.norm(plain) > 0.7
        ratios.append(np.linalg.norm(graded) / np.linalg.norm(plain))
    assert min(ratios) < 0.5 and max(ratios) > 1.1


def test_views_without_motion_are_one_picture(scenes):
    coords = scenes._cameras(scenes.sizes[:1], 3, (32, 48), np.random.default_rng(7), motion=0.0)
    assert coords.shape == (3, 32, 48, 2)
    assert torch.equal(coords[0], coords[1]) and torch.equal(coords[0], coords[2])
    assert coords[..., 0].min() >= 0 and coords[..., 0].max() <= 150 and coords[..., 1].max() <= 100
