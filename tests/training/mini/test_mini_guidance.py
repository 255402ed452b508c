"""The stages in which the mini model's guidance learns by itself, and the fresh scenes that one of them learns from."""

import itertools

import cv2
import numpy as np
import pytest
import torch

from gcgkit.guidance import GatedColorGuidance
from gcgkit.training import log as training_log
from gcgkit.training.mini import encoders as mini_parts
from gcgkit.training.mini import guidance as mini_guidance
from gcgkit.training.mini import scenes as fresh_scenes
from gcgkit.training.mini.scenes import FreshScenes, camera_view, encode_scenes, pair_views, scene_batches
from gcgkit.vae import LumaChromaAutoencoder

SMALL = (64, 96)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photographs that are held out, one of three red ones that is not, and a green clip beside a measuring one."""
    root, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def write(path, tint):
        path.parent.mkdir(parents=True, exist_ok=True)
        blobs = noise.integers(60, 256, (6, 10, 3)).astype(np.uint8)
        cv2.imwrite(str(path), cv2.resize(blobs, (460, 276)) // 3 + np.uint8(tint))  # blue, green, red

    for name, tint in (("a", (150, 0, 0)), ("b", (0, 0, 150)), ("c", (0, 0, 150))):  # the first is held out
        write(root / f"photos/{name}.jpg", tint)
    for i in range(8):
        write(root / f"DAVIS/JPEGImages/480p/goat/{i:05d}.jpg", (0, 150, 0))
        write(root / f"DAVIS/JPEGImages/480p/dog/{i:05d}.jpg", (150, 0, 0))
    return root


def test_a_scene_is_drawn_from_its_seed_and_number_alone(data):
    scenes = FreshScenes(data, 12, SMALL, seed=5)
    again = [FreshScenes(data, 12, SMALL, seed=5)[i] for i in reversed(range(12))][::-1]
    for number, other in enumerate(again):
        assert scenes[number].shape == (6, *SMALL, 3) and scenes[number].dtype == np.uint8
        assert np.array_equal(scenes[number], other)
    different = [*again, FreshScenes(data, 12, SMALL, seed=6)[0]]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(different, 2))
    for scene in again:  # or matching two views would be copying
        assert all(np.abs(a.astype(int) - b).mean() > 0.5 for a, b in itertools.combinations(scene, 2))


def test_scenes_show_photographs_and_clips_for_training_and_nothing_else(data, monkeypatch):
    monkeypatch.setattr(fresh_scenes.augment, "random_hsv", lambda rng, natural: (0.0, 1.0, 1.0))  # keep the tints
    scenes = FreshScenes(data, 40, SMALL)
    strongest = [int(scenes[i].mean((0, 1, 2)).argmax()) for i in range(40)]
    assert 2 not in strongest  # blue: held out, or a measuring clip
    assert 8 < strongest.count(0) < 32  # half of them photographs, half from the clip


def test_one_kind_of_footage_is_enough_and_none_is_named(data, tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only/photos").symlink_to(data / "photos")
    assert FreshScenes(tmp_path / "only", 1, SMALL)[0].shape == (6, *SMALL, 3)
    with pytest.raises(ValueError, match="neither photographs nor clips"):
        FreshScenes(tmp_path / "empty", 1)


def test_turning_moves_each_pixel_by_its_matrix():
    """Without motion a view stays; with it a bright dot lands where the matrix of the same draws sends it."""
    view = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert np.array_equal(camera_view(view, 0.0, np.random.default_rng(1)), view)
    dark = np.zeros((200, 300, 3), np.uint8)
    cv2.circle(dark, (170, 80), 4, (255, 255, 255), -1)
    for seed in range(5):
        found = camera_view(dark, 1.0, np.random.default_rng(seed))[..., 0].astype(float)
        rng = np.random.default_rng(seed)
        angle, scale = np.radians(rng.normal(0, 8)), np.exp(abs(rng.normal(0, 0.15)))
        turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        middle = np.array([150, 100])
        shift = middle - turn @ middle
        place = (turn + rng.normal(0, 0.05, (2, 2))) @ (170, 80) + shift + rng.normal(0, 0.04, 2) * (300, 200)
        rows, columns = np.indices(found.shape)
        centre = np.array([(columns * found).sum(), (rows * found).sum()]) / found.sum()
        assert np.abs(centre - place).max() < 0.5, seed


def test_batches_go_on_where_a_run_stopped_and_workers_change_nothing(data):
    scenes = FreshScenes(data, 6, SMALL)
    whole = list(scene_batches(scenes, 2, workers=0))
    assert len(whole) == 3 and whole[0].shape == (2, 6, *SMALL, 3)
    for first, workers in ((1, 0), (1, 1), (2, 1)):
        rest = list(scene_batches(scenes, 2, first, workers))
        assert len(rest) == 3 - first and all(torch.equal(a, b) for a, b in zip(rest, whole[first:], strict=True))


def test_latents_of_scenes_are_those_of_their_views_one_by_one():
    torch.manual_seed(0)
    vae = LumaChromaAutoencoder(width=8).eval()
    scenes = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 6, 32, 48, 3), dtype=np.uint8))
    found = encode_scenes(vae, scenes)
    assert found.shape == (2, 6, 4, 4, 6)
    for s, v in ((0, 0), (1, 4)):
        pixels = scenes[s, v].permute(2, 0, 1)[None].float() / 127.5 - 1  # (1, 3, 32, 48) in [-1, 1]
        with torch.no_grad():
            alone = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        assert torch.allclose(found[s, v], alone[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["single", "grid"])
def test_references_are_other_views_of_the_targets_own_scene(kind):
    """Latents that hold their own address: scene, view, row, column."""
    address = torch.stack(torch.meshgrid(*map(torch.arange, (3, 6, 2, 4)), indexing="ij"), 2).float()  # (S, V, C, h, w)
    seen = set()
    for seed in range(30):
        found = pair_views(address, kind, luma=2, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(found["target"], address.flatten(0, 1))
        for name, full in (("gray", "target"), ("ref_gray", "ref_color")):
            assert torch.equal(found[name][:, :2], found[full][:, :2]) and not found[name][:, 2:].any()
        ref = found["ref_color"]
        assert ref.shape == (18, 4, 4, 8) if kind == "grid" else ref.shape == (18, 4, 2, 4)
        tiles = [ref[:, :, r : r + 2, c : c + 4] for r in range(0, ref.shape[2], 2) for c in range(0, ref.shape[3], 4)]
        for sample in range(18):
            scene, view = divmod(sample, 6)
            views = [int(tile[sample, 1, 0, 0]) for tile in tiles]
            assert view not in views and len(set(views)) == len(tiles)
            assert all(torch.equal(t[sample], address[scene, v]) for t, v in zip(tiles, views, strict=True))
            seen.update((view, v) for v in views)
    assert len(seen) == 6 * 5  # any other view, sooner or later


def test_the_error_is_the_weighted_mean_of_squares():
    rng = np.random.default_rng(0)
    color, target = rng.normal(size=(2, 2, 4, 3, 5))
    error, chroma = mini_guidance.fetched_error(torch.tensor(color), torch.tensor(target), luma=2)
    squares = (color.astype(np.float32) - target) ** 2
    by_hand = sum(w * squares[:, c] for c, w in enumerate((0.3, 0.3, 1, 1))).mean() / 4
    assert abs(error - by_hand) < 1e-5 and abs(chroma - squares[:, 2:].mean()) < 1e-5


def test_matching_goes_on_from_the_hint_and_the_gate_from_matching(data, tmp_path):
    """One step at a rate of 5e-4 / 100 and Adam's first step, which moves every weight by about the rate."""
    torch.manual_seed(0)
    out = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="run the stage hint"):
        mini_guidance.attention_folder(out)
    mini_parts.save(LumaChromaAutoencoder(width=8), out / "parts/vae")
    mini_parts.save(mini_guidance.make_guidance(), out / "hint/guidance")
    assert mini_guidance.attention_folder(out) == out / "hint/guidance"
    mini_guidance.train_matching(data, out, steps=1, batch=1, workers=0)
    before, after = (GatedColorGuidance.from_pretrained(out / n / "guidance") for n in ("hint", "matching"))
    assert mini_guidance.attention_folder(out) == out / "matching/guidance"
    for name, weight in before.named_parameters():
        moved = (after.get_parameter(name) - weight).abs().max()
        assert (moved == 0) if name.startswith("cdga") else (1e-6 < moved < 6e-6), name
    (line,) = training_log.read_log(out / "matching")
    assert {"loss", "step"} < set(line) and any(name.startswith("hint_") for name in line)
