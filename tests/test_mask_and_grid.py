"""What the paper leaves open on the mask and the grid: zeros or an encoded black picture, full or shrunk tiles."""

import json

import numpy as np
import pytest
import tiny
import torch

from gcgkit import references
from gcgkit.color import to_gray
from gcgkit.evaluation import methods
from gcgkit.pipeline import GCGPipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def pipe(folder):
    return tiny.pipeline(folder)


@pytest.fixture(scope="module")
def clip():
    return tiny.clip(6)


def color(pipe, clip, **options):
    generator = torch.Generator().manual_seed(0)
    return pipe(clip, generator=generator, **{"num_inference_steps": 2, "num_keyframes": 2, **options})


def encoded(pipe, frame):
    """Latents of a frame ``(H, W)`` or ``(H, W, 3)`` of the working size, by the autoencoder itself."""
    rgb = np.repeat(frame[..., None], 3, axis=-1) if frame.ndim == 2 else frame
    pixels = torch.from_numpy(rgb.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        return pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor


def shrunk_by_hand(tiles):
    """Four tiles ``(C, h, w)``, h and w even, as blocks of 2x2 averaged, row by row: ``(C, h, w)`` in NumPy."""
    means = []
    for tile in tiles:
        tile = np.asarray(tile, np.float64)
        means.append((tile[:, ::2, ::2] + tile[:, 1::2, ::2] + tile[:, ::2, 1::2] + tile[:, 1::2, 1::2]) / 4)
    return np.concatenate([np.concatenate(means[:2], axis=2), np.concatenate(means[2:], axis=2)], axis=1)


def watch(monkeypatch, pipe):
    """Keep what the copy's guidance is given: (gray, ref_gray, ref_color, semantics, ref_semantics, ref_weights)."""
    seen, hint = [], type(pipe.control).hint

    def kept(self, *given):
        seen.append((*given, *[None] * (6 - len(given))))
        return hint(self, *given)

    monkeypatch.setattr(type(pipe.control), "hint", kept)
    return seen


# --- the reference mask ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["zeros", "black"])
def test_the_copy_sees_zeros_or_an_encoded_black_picture_under_the_mask(pipe, clip, monkeypatch, mask):
    seen = watch(monkeypatch, pipe)
    color(pipe, clip, reference_mask=True, mask_latents=mask)
    black = encoded(pipe, np.zeros((32, 64, 3), np.uint8))
    wanted = black if mask == "black" else torch.zeros(1, 4, 4, 8)
    assert black.abs().max() > 0.01 and len(seen) == 1 + 4  # the keyframes together, and four other frames
    for gray, ref_gray, ref_color, *_ in seen:
        assert ref_gray.shape == gray.shape and torch.allclose(ref_gray, wanted, atol=1e-6)
        assert torch.equal(ref_gray, ref_color)


def test_black_is_of_the_canvas_and_masks_keyframes_alone(pipe, monkeypatch):
    """With padding around the frame the picture is black too; frames with references do not see it."""
    upright = tiny.clip(3, 40, 24)
    seen = watch(monkeypatch, pipe)
    out = color(pipe, upright, mask_latents="black")
    (_, ref_gray, ref_color, *_), *guided = seen
    black = encoded(pipe, np.zeros((8 * ref_gray.shape[2], 8 * ref_gray.shape[3], 3), np.uint8))
    assert torch.allclose(ref_gray, black, atol=1e-6) and torch.equal(ref_gray, ref_color) and len(ref_gray) == 2
    assert out.references and not any(torch.allclose(given[1][..., :4, :2], black[..., :4, :2]) for given in guided)


# --- the grid --------------------------------------------------------------------------------------------------------


def test_the_shrunk_grid_is_the_mean_of_blocks_of_the_references_latents(pipe, clip, monkeypatch):
    seen = watch(monkeypatch, pipe)
    options = {"grid_tiles": "shrunk", "keyframe_weight": 8.0, "past_window": 2, "tau": 1.0}
    out = color(pipe, clip, num_inference_steps=4, **options)
    gray, given, sizes = to_gray(clip), iter(seen[1:]), set()
    for _, runs in sorted(out.references.items()):
        for _, keys, past in runs:
            _, ref_gray, ref_color, _, _, weights = next(given)
            used = [*keys, *past]
            places = (used + [used[0]] * 4)[:4]  # the first fills what is left
            sizes.add(len(used))
            wanted = shrunk_by_hand([encoded(pipe, gray[i])[0] for i in places])
            np.testing.assert_allclose(ref_gray[0].numpy(), wanted, atol=1e-5)
            wanted = shrunk_by_hand([encoded(pipe, out.frames[i])[0] for i in places])
            np.testing.assert_allclose(ref_color[0].numpy(), wanted, atol=1e-5)
            if weights is not None:
                of_tile = [np.full((1, 4, 8), 8.0 if i in keys else 1.0) for i in places]
                np.testing.assert_allclose(weights[0].numpy(), shrunk_by_hand(of_tile))
    assert next(given, None) is None and sizes == {2, 3, 4}


def test_semantic_features_are_averaged_like_the_latents():
    def reference(frame):
        tile, semantics = (torch.randn(1, c, 4, 6, generator=torch.Generator().manual_seed(frame)) for c in (4, 3))
        return references.Reference(frame, tile, -tile, torch.zeros(1, 5, 6), np.zeros(1), semantics=semantics)

    four = [reference(frame) for frame in range(4)]
    gray, z, tokens, semantics, weights = references.join_references(four, 4, shrink=True)
    np.testing.assert_allclose(gray[0].numpy(), shrunk_by_hand([r.gray[0] for r in four]), atol=1e-6)
    np.testing.assert_allclose(semantics[0].numpy(), shrunk_by_hand([r.semantics[0] for r in four]), atol=1e-6)
    assert torch.equal(z, -gray) and tokens.shape == (1, 20, 6) and weights is None
    alone = references.join_references(four[:1], 4, shrink=True)
    assert torch.equal(alone[0], four[0].gray)  # a single picture is no grid


# --- where the values come from --------------------------------------------------------------------------------------


def test_zeros_and_full_tiles_are_the_default(pipe, clip):
    assert (pipe.config.mask_latents, pipe.config.grid_tiles) == ("zeros", "full")
    own = color(pipe, clip).frames
    assert np.array_equal(color(pipe, clip, mask_latents="zeros", grid_tiles="full").frames, own)
    assert not np.array_equal(color(pipe, clip, mask_latents="black").frames, own)
    assert not np.array_equal(color(pipe, clip, grid_tiles="shrunk").frames, own)


def test_a_profile_keeps_its_own_values_in_its_folder_and_older_folders_load(pipe, clip, tmp_path):
    wanted = color(pipe, clip, mask_latents="black", grid_tiles="shrunk").frames
    tiny.pipeline(tmp_path, mask_latents="black", grid_tiles="shrunk").save_pretrained(tmp_path / "own")
    own = GCGPipeline.from_pretrained(tmp_path / "own")
    own.set_progress_bar_config(disable=True)
    assert np.array_equal(color(own, clip).frames, wanted)
    assert np.array_equal(color(own, clip, mask_latents="zeros", grid_tiles="full").frames, color(pipe, clip).frames)

    index = tmp_path / "own/model_index.json"
    values = json.loads(index.read_text())
    del values["mask_latents"], values["grid_tiles"]  # as folders were before there was a choice
    index.write_text(json.dumps(values))
    older = GCGPipeline.from_pretrained(tmp_path / "own")
    assert (older.config.mask_latents, older.config.grid_tiles) == ("zeros", "full")


def test_an_evaluation_takes_both_and_records_them(pipe, clip, tmp_path):
    pipe.save_pretrained(tmp_path / "weights")
    method = methods.parse(
        f"gcg:{tmp_path / 'weights'},reference=none,mask_latents=black,grid_tiles=shrunk,num_inference_steps=2"
    )
    method.run(methods.Request("blocks", clip, "cpu"), tmp_path / "frames")
    settings = method.facts()["settings"]
    assert (settings["mask_latents"], settings["grid_tiles"]) == ("black", "shrunk")
    assert method.identity()["options"] == {"mask_latents": "black", "grid_tiles": "shrunk", "num_inference_steps": 2}
    plain = methods.parse(f"gcg:{tmp_path / 'weights'},num_inference_steps=2")
    plain.run(methods.Request("blocks", clip, "cpu"), tmp_path / "plain")
    assert plain.facts()["settings"]["mask_latents"] == "zeros" and plain.facts()["settings"]["grid_tiles"] == "full"
