"""Training samples: every latent holds the number of its scene and view, so that a batch tells where it came from."""

import colorsys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gcgkit import srg
from gcgkit.data.augment import (
    KINDS,
    Mixture,
    Scenes,
    augment_hsv,
    caption_scene,
    clip_scene,
    cut_views,
    draw_batch,
    draw_kind,
    join_references,
    photo_scene,
    random_hsv,
)
from gcgkit.data.naming import COLOR_WORDS

COUNT, VIEWS, SIZE = 9, 5, (3, 4)
PLAIN = Mixture(drop_text=0.0, strip_colors=0.0)


def make_scenes(count: int = COUNT, views: int = VIEWS) -> Scenes:
    """Scene n's view v is 10 n + v in every place; gray latents are its negative, thumbnails the number itself."""
    number = 10 * torch.arange(count)[:, None] + torch.arange(views) + 1  # (N, V)
    latents = number[..., None, None, None].expand(-1, -1, 4, *SIZE).half()
    return Scenes(
        latents=latents,
        gray=-latents,
        thumbnails=number[..., None, None, None].expand(-1, -1, 64, 64, 3).to(torch.uint8),
        captions=[f"red thing{chr(97 + n)}" for n in range(count)],
        natural=torch.arange(count) % 3 == 0,
    )


def batch_of(kind: str, size: int = 200, seed: int = 0, mixture: Mixture = PLAIN, scenes: Scenes | None = None) -> dict:
    return draw_batch(scenes or make_scenes(), kind, size, mixture, torch.Generator().manual_seed(seed))


def scene_and_view(latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Undo ``make_scenes`` on maps that must be constant: (..., C, h, w) -> two (...,)."""
    flat = latents.abs().flatten(-3)
    assert (flat == flat[..., :1]).all()
    number = flat[..., 0].long() - 1
    return number // 10, number % 10


def tiles_of(grid: torch.Tensor) -> torch.Tensor:
    """(B, C, 2h, 2w) -> (B, 4, C, h, w), row by row."""
    h, w = SIZE
    return torch.stack([grid[..., r * h : (r + 1) * h, c * w : (c + 1) * w] for r in (0, 1) for c in (0, 1)], 1)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_types(kind):
    sample = batch_of(kind, 6)
    grid = 2 if kind == "grid" else 1
    assert sample["target"].shape == sample["gray"].shape == (6, 4, *SIZE)
    assert sample["ref_color"].shape == sample["ref_gray"].shape == (6, 4, grid * SIZE[0], grid * SIZE[1])
    assert sample["thumbnails"].shape == (6, grid**2, 64, 64, 3) and sample["thumbnails"].dtype == torch.uint8
    assert {sample[n].dtype for n in ("target", "gray", "ref_color", "ref_gray")} == {torch.float32}
    assert sample["masked"] is (kind == "mask") and len(sample["captions"]) == 6


def test_mask_is_zero():
    sample = batch_of("mask")
    for name in ("ref_color", "ref_gray", "thumbnails"):
        assert (sample[name] == 0).all()
    assert (sample["target"] != 0).all()


def test_gray_is_the_targets_own():
    for kind in KINDS:
        sample = batch_of(kind)
        assert torch.equal(sample["gray"], -sample["target"])
        assert torch.equal(sample["ref_gray"], -sample["ref_color"])


def test_single_reference_is_another_view_of_the_scene():
    sample = batch_of("single", 500)
    (scene, view), (ref_scene, ref_view) = scene_and_view(sample["target"]), scene_and_view(sample["ref_color"])
    assert torch.equal(scene, ref_scene)
    assert (view != ref_view).all()
    assert set(scene.tolist()) == set(range(COUNT))
    steps = torch.bincount((ref_view - view) % VIEWS, minlength=VIEWS)  # every other view comes
    assert steps[0] == 0 and (steps[1:] > 80).all()
    numbers = sample["thumbnails"][:, 0, 0, 0, 0].long()
    assert torch.equal(numbers, 10 * ref_scene + ref_view + 1)


def test_grid_tiles_are_other_views_of_the_scene():
    sample = batch_of("grid")
    (scene, view) = scene_and_view(sample["target"])
    tiles_scene, tiles_view = scene_and_view(tiles_of(sample["ref_color"]))  # (B, 4) each
    assert (tiles_scene == scene[:, None]).all() and (tiles_view != view[:, None]).all()
    assert len({tuple(row) for row in tiles_view.tolist()}) > 50  # the tiles are drawn one by one
    assert torch.equal(sample["thumbnails"][:, :, 0, 0, 0].long(), 10 * tiles_scene + tiles_view + 1)


def test_unrelated_reference_is_mostly_another_scene():
    sample = batch_of("unrelated", 900)
    scene, ref_scene = scene_and_view(sample["target"])[0], scene_and_view(sample["ref_color"])[0]
    same = (scene == ref_scene).float().mean().item()
    assert same == pytest.approx(1 / COUNT, abs=0.05)
    shown = sample["thumbnails"][:, 0, 0, 0, 0].long()
    assert torch.equal((shown - 1) // 10, ref_scene)  # and the image encoder sees that one


def test_captions_belong_to_the_target():
    for kind in KINDS:
        sample = batch_of(kind)
        scene = scene_and_view(sample["target"])[0]
        assert sample["captions"] == [f"red thing{chr(97 + n)}" for n in scene]


def test_masked_samples_lose_color_words_and_are_natural():
    sample = batch_of("mask", mixture=Mixture(strip_colors=1.0, drop_text=0.0))
    scene = scene_and_view(sample["target"])[0]
    assert sample["captions"] == [f"thing{chr(97 + n)}" for n in scene]
    assert (scene % 3 == 0).all() and len(set(scene.tolist())) == 3
    half = batch_of("mask", 1000, mixture=Mixture(strip_colors=0.5, drop_text=0.0))["captions"]
    assert sum("red" in text for text in half) / 1000 == pytest.approx(0.5, abs=0.06)
    for kind in ("single", "grid", "unrelated"):
        assert all("red" in text for text in batch_of(kind, mixture=Mixture(drop_text=0.0))["captions"])


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_dropped_at_their_share(kind):
    texts = batch_of(kind, 1000, mixture=Mixture(drop_text=0.3))["captions"]
    assert texts.count("") / 1000 == pytest.approx(0.3, abs=0.06)
    assert "" not in batch_of(kind)["captions"]


@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_same_seed_same_batch(seed, kind):
    one, two, other = (batch_of(kind, 8, s, Mixture()) for s in (seed, seed, seed + 1))
    for name in ("target", "gray", "ref_color", "ref_gray", "thumbnails"):
        assert torch.equal(one[name], two[name])
    assert one["captions"] == two["captions"]
    assert not torch.equal(one["target"], other["target"])


def test_batches_leave_the_scenes_alone():
    scenes, fresh = make_scenes(), make_scenes()
    for kind in KINDS:
        batch_of(kind, mixture=Mixture(), scenes=scenes)
    assert torch.equal(scenes.latents, fresh.latents) and torch.equal(scenes.thumbnails, fresh.thumbnails)
    assert scenes.captions == fresh.captions


def test_kinds_come_in_their_proportions():
    mixture, generator = Mixture(mask=0.2, single=0.35, grid=0.3, unrelated=0.15), torch.Generator().manual_seed(0)
    drawn = [draw_kind(mixture, generator) for _ in range(4000)]
    expected = np.array([0.2, 0.35, 0.3, 0.15]) * 4000
    found = np.array([drawn.count(kind) for kind in KINDS])
    assert ((found - expected) ** 2 / expected).sum() < 16.3  # chi-square of 3 degrees of freedom at 0.001
    assert {draw_kind(Mixture(1.0, 0.0, 0.0), generator) for _ in range(50)} == {"mask"}
    default = Mixture()
    assert default.mask == 0.2 and default.mask + default.single + default.grid + default.unrelated == 1  # §4.1


def test_scenes_save_and_load(tmp_path):
    scenes = make_scenes()
    scenes.save(tmp_path / "scenes.pt")
    loaded = Scenes.load(tmp_path / "scenes.pt")
    assert len(loaded) == COUNT and loaded.captions == scenes.captions
    for name in ("latents", "gray", "thumbnails", "natural"):
        assert torch.equal(getattr(loaded, name), getattr(scenes, name))


# --- colour augmentation ---------------------------------------------------------------------------------------------


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_identity_and_turned_hue():
    frames = noise(2, 8, 9)
    assert np.abs(augment_hsv(frames, 0, 1, 1).astype(int) - frames).max() <= 1
    red = np.full((1, 2, 2, 3), (255, 0, 0), np.uint8)
    assert (augment_hsv(red, 120, 1) == (0, 255, 0)).all()
    assert (augment_hsv(red, 240, 1) == (0, 0, 255)).all()
    assert (augment_hsv(red, 360, 1) == red).all()


@given(st.floats(0, 360), st.floats(0, 2), st.floats(0.5, 1.5), st.integers(0, 1000))
def test_augmentation_equals_colorsys(hue, saturation, value, seed):
    frames = noise(1, 2, 3, seed=seed)
    wanted = []
    for pixel in frames.reshape(-1, 3) / 255:
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        wanted.append(colorsys.hsv_to_rgb((h + hue / 360) % 1, min(1, s * saturation), min(1, v * value)))
    got = augment_hsv(frames, hue, saturation, value).reshape(-1, 3)
    assert np.abs(got - np.array(wanted) * 255).max() < 1.5


def test_augmentation_is_the_same_in_all_frames():
    frame = noise(1, 6, 7)
    out = augment_hsv(np.repeat(frame, 4, 0), *random_hsv(np.random.default_rng(1), natural=False))
    assert (out == out[0]).all() and not np.array_equal(out[0], frame[0])


def test_natural_colors_move_little():
    rng = np.random.default_rng(0)
    natural = np.array([random_hsv(rng, True) for _ in range(300)])
    other = np.array([random_hsv(rng, False) for _ in range(300)])
    assert np.abs(natural[:, 0]).max() <= 4 and np.ptp(other[:, 0]) > 300
    assert (natural[:, 1:] > 0.85).all() and (natural[:, 1:] < 1.3).all()


# --- views -----------------------------------------------------------------------------------------------------------


@given(
    frames=st.integers(1, 3),
    count=st.integers(1, 5),
    jitter=st.sampled_from([0.0, 0.03, 0.5]),
    seed=st.integers(0, 999),
)
def test_views_are_crops(frames, count, jitter, seed):
    clip = noise(frames, 32, 56, seed=seed)
    views = cut_views(clip, count, (16, 28), np.random.default_rng(seed), jitter)
    assert views.shape == (count, 16, 28, 3) and views.dtype == np.uint8
    if jitter == 0:  # the same place in every frame
        assert all(np.array_equal(views[i], views[i % frames]) for i in range(count))


def test_a_photographs_views_overlap_but_differ(tmp_path):
    rows, columns = np.mgrid[:300, :500]
    photo = np.stack([rows * 255 // 300, columns * 255 // 500, np.full((300, 500), 90)], -1).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "ramp.png"), photo[..., ::-1])
    different = []
    for seed in range(20):
        views = photo_scene(tmp_path / "ramp.png", 4, (64, 112), np.random.default_rng(seed))
        assert views.shape == (4, 64, 112, 3)
        assert np.abs(views[..., 2].astype(int) - 90).max() <= 3
        for i in range(4):
            for j in range(i):
                different.append(not np.array_equal(views[i], views[j]))
                a, b = views[i][..., 0], views[j][..., 0]  # their stretches of rows overlap
                assert min(a.max(), b.max()) > max(a.min(), b.min())
    assert np.mean(different) > 0.9


def test_a_clips_views_are_in_order_of_time():
    clip = np.empty((200, 32, 56, 3), np.uint8)
    clip[:] = np.arange(200)[:, None, None, None]  # each frame is its own number
    for seed in range(20):
        views = clip_scene(clip, 6, (16, 28), np.random.default_rng(seed))
        assert views.shape == (6, 16, 28, 3)
        numbers = views.reshape(6, -1).astype(int)
        assert np.ptp(numbers, axis=1).max() == 0
        assert (np.diff(numbers[:, 0]) > 0).all() and np.ptp(numbers[:, 0]) < 80


def test_a_short_clip_gives_its_frames_again():
    clip = noise(3, 32, 56)
    assert clip_scene(clip, 6, (16, 28), np.random.default_rng(0)).shape == (6, 16, 28, 3)


def test_captions_speak_of_the_first_view():
    views = np.zeros((3, 24, 32, 3), np.uint8)
    views[:] = (0, 0, 255)
    views[0] = (255, 0, 0)
    texts = {caption_scene(views, "n02165456_ladybug", np.random.default_rng(seed)) for seed in range(40)}
    assert any("ladybug" in text for text in texts)
    assert {word for text in texts for word in text.replace(",", "").split() if word in COLOR_WORDS} == {"red"}


def test_references_are_joined_as_the_pipeline_lays_its_grid():
    tiles = torch.randn(3, 4, 2, 5, 7)
    expected = torch.stack([srg.make_grid(of_sample) for of_sample in tiles])
    assert torch.equal(join_references(tiles), expected)
    assert torch.equal(join_references(tiles[:, :1]), tiles[:, 0])
