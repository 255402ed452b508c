"""The cache of latents against frames encoded one by one, and its life on the disk."""

import dataclasses
import hashlib
import json
import os

import numpy as np
import prepared
import pytest
import tiny
import torch
from safetensors.torch import load_file
from skimage.color import rgb2hsv

from gcgkit import color, encoders
from gcgkit.data import latent_cache
from gcgkit.data.dataset import collate, read_clips
from gcgkit.data.latent_cache import LatentDataset, build_cache, cache_folder, missing, scenes, variants
from gcgkit.training.loss import encode_batch
from gcgkit.training.recipes import PAPER
from gcgkit.utils import files

DATA = dataclasses.replace(
    PAPER.data, sets=("davis-train",), height=32, width=64, targets_per_clip=12, cache_variants=4, cache_views=5
)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny.pipeline(tmp_path_factory.mktemp("pipe"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepared.write_clips(folder, frames=6)
    return folder


@pytest.fixture(scope="module")
def cache(root, pipe):
    """Clips of a cache that was built, and where."""
    clips = read_clips(root, ["davis-train"])
    folder = cache_folder(root, clips, DATA, pipe, "patch")
    build_cache(folder, clips, DATA, pipe, "patch", "cpu")
    return clips, folder


def test_samples_are_the_encoded_frames(cache, pipe):
    clips, folder = cache
    dataset, kinds = LatentDataset(folder, clips, DATA, seed=2), set()
    for i in range(24):
        draw, sample = dataset.stream.draw(i), dataset[i]
        kinds.add(sample.kind)
        variant = dataset.variant(draw, draw.clip)
        assert draw.recolored == (variant >= variants(clips[draw.clip], DATA)[1])
        frames, views, _ = list(scenes(clips[draw.clip], DATA))[variant]
        chosen = [draw.target, *draw.references]
        assert sample.labels == tuple(f"{clips[draw.clip].label} {frames[view]}" for view in chosen)
        latents = torch.cat([sample.target[None], sample.color]), torch.cat([sample.gray[None], sample.ref_gray])
        for place, view in enumerate(chosen):
            with torch.no_grad():
                z = encoders.encode(pipe.vae, views[view])[0]
                g = encoders.encode(pipe.vae, color.to_gray(views[view]))[0]
                tokens = encoders.image_tokens(pipe.image_encoder, pipe.feature_extractor, views[view])[0]
            torch.testing.assert_close(latents[0][place].float(), z, atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(latents[1][place].float(), g, atol=2e-3, rtol=2e-3)
            if place:
                torch.testing.assert_close(sample.tokens[place - 1].float(), tokens, atol=2e-3, rtol=2e-3)
    assert kinds == {"mask", "single", "grid"}


def test_variants_differ_in_colour_and_keep_some_as_they_are(root, cache):
    clips, _ = cache
    frames, views, texts = zip(*scenes(clips[0], DATA), strict=True)
    assert variants(clips[0], DATA) == (4, 2) and len(views) == 4 and all(text for text in texts)
    for numbers, variant in zip(frames, views, strict=True):
        assert numbers == sorted(set(numbers)) and len(numbers) == 5 and variant.shape == (5, 32, 64, 3)
    truth = [np.stack([clips[0].read(i) for i in numbers]) for numbers in frames]
    turns = []
    for before, after in zip(map(rgb2hsv, truth), map(rgb2hsv, views), strict=True):
        vivid = (before[..., 1] > 0.3) & (after[..., 1] > 0.3) & (after[..., 2] > 0.3)
        turns.append(abs((np.median((360 * (after - before)[..., 0][vivid]) % 360) + 180) % 360 - 180))
    assert max(turns[:2]) < 5 < min(turns[2:])
    again = [v for _, v, _ in scenes(clips[0], DATA)]
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))
    assert frames[0] != frames[1] or frames[2] != frames[3]


def test_views_of_a_variant_are_within_the_window(cache):
    clips, _ = cache
    for numbers, views, _ in scenes(clips[0], dataclasses.replace(DATA, window=3)):
        assert max(numbers) - min(numbers) <= 2 and len(views) == 3


def test_a_batch_of_pixels_encodes_to_what_the_cache_holds_in_kind(cache, root, pipe):
    from gcgkit.data.dataset import FrameDataset

    pixels = FrameDataset(root, DATA, seed=2)
    batch = collate([pixels[i] for i in range(10)])
    encoded = encode_batch(batch, pipe, "patch", "cpu")
    clips, folder = cache
    cached = collate([LatentDataset(folder, clips, DATA, seed=2)[i] for i in range(10)])
    assert encoded.encoded and cached.encoded and encode_batch(cached, pipe, "patch", "cpu") is cached
    assert encoded.target.shape == cached.target.shape == (10, 4, 4, 8)
    for a, b in zip(encoded.references, cached.references, strict=True):
        assert a.kind == b.kind and torch.equal(a.rows, b.rows) and a.color.shape == b.color.shape
        assert a.tokens.shape[:2] == b.tokens.shape[:2] and (a.kind == "mask" or a.tokens.shape == b.tokens.shape)
    with torch.no_grad():
        for group, raw in zip(encoded.references, batch.references, strict=True):
            for place, row in enumerate(group.rows.tolist()):
                one = encoders.encode(pipe.vae, batch.target[row].permute(1, 2, 0).numpy())[0]
                torch.testing.assert_close(encoded.target[row], one, atol=1e-4, rtol=1e-4)
                for tile in range(group.color.shape[1]):
                    view = raw.color[place, tile].permute(1, 2, 0).numpy()
                    gray = np.asarray(raw.gray[place, tile, 0])
                    z, g = (encoders.encode(pipe.vae, image)[0] for image in (view, gray))
                    torch.testing.assert_close(group.color[place, tile], z, atol=1e-4, rtol=1e-4)
                    torch.testing.assert_close(group.gray[place, tile], g, atol=1e-4, rtol=1e-4)
                    tokens = encoders.image_tokens(pipe.image_encoder, pipe.feature_extractor, view)[0]
                    torch.testing.assert_close(group.tokens[place, tile], tokens, atol=1e-4, rtol=1e-4)


def test_photographs_can_have_fewer_variants(tmp_path, pipe):
    """Each sample's latents are those of a variant of its own clip, also beside a reference of the other kind."""
    prepared.write_clips(tmp_path, count=1, frames=6)
    prepared.write_set(tmp_path, "photos-train", {"photo": tiny.clip(1, 64, 96, seed=9)}, kind="photos")
    data = dataclasses.replace(
        DATA, sets=("davis-train", "photos-train"), cache_photo_variants=2, targets_per_photo=12, mask=0.0, single=0.5,
        grid=0.0, unrelated=0.5,
    )  # fmt: skip
    clips = read_clips(tmp_path, data.sets)
    folder = cache_folder(tmp_path, clips, data, pipe, "none")
    assert folder != cache_folder(tmp_path, clips, dataclasses.replace(data, cache_photo_variants=0), pipe, "none")
    build_cache(folder, clips, data, pipe, "none", "cpu")
    assert [len(list(scenes(clip, data))) for clip in clips] == [4, 2] == [variants(clip, data)[0] for clip in clips]
    held = {clip.label: load_file(folder / clip.set / f"{clip.name}.safetensors")["color"] for clip in clips}
    assert [latents.shape[0] for latents in held.values()] == [4, 2]
    dataset, seen = LatentDataset(folder, clips, data), set()
    for draw, sample in ((dataset.stream.draw(i), dataset[i]) for i in range(60)):
        target, source = clips[draw.clip].label, clips[draw.source].label
        seen.add((target, source))
        for latents, label in ((sample.target, target), (sample.color[0], source)):
            assert (held[label] == latents).flatten(2).all(2).any()
    assert len(seen) == 4


def test_a_cut_off_build_goes_on(root, pipe, tmp_path):
    clips = read_clips(root, ["davis-train"])
    folder = tmp_path / "cache"
    build_cache(folder, clips, DATA, pipe, "none", "cpu", rank=1, world=2)
    assert [clip.name for clip in missing(folder, clips)] == ["a", "c"]
    (folder / "davis-train/a.safetensors.123.tmp").write_bytes(b"torn")
    with pytest.raises(FileNotFoundError, match="a.safetensors is missing: the cache is incomplete"):
        LatentDataset(folder, clips, DATA)
    done = folder / "davis-train/b.safetensors"
    os.utime(done, (1, 1))
    build_cache(folder, clips, DATA, pipe, "none", "cpu")
    assert missing(folder, clips) == [] and done.stat().st_mtime == 1
    whole = tmp_path / "whole"
    build_cache(whole, clips, DATA, pipe, "none", "cpu")
    for clip in clips:
        name = f"davis-train/{clip.name}.safetensors"
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    sample = next(s for s in LatentDataset(folder, clips, DATA) if s.kind == "single")
    assert sample.tokens.shape == (1, 1, tiny.WIDTH) and not sample.tokens.any()


def test_the_folders_name_tells_what_it_depends_on(root, pipe):
    clips = read_clips(root, ["davis-train"])
    name = lambda data=DATA, clips=clips, condition="patch", pipe=pipe: cache_folder(  # noqa: E731
        root, clips, data, pipe, condition
    )
    assert name() == name(dataclasses.replace(DATA, mask=0.1, single=0.5, targets_per_clip=3))
    others = [
        name(dataclasses.replace(DATA, cache_seed=1)), name(dataclasses.replace(DATA, cache_views=4)),
        name(dataclasses.replace(DATA, recolor=0.2)), name(dataclasses.replace(DATA, height=64)),
        name(clips=clips[:2]), name(condition="none"),
    ]  # fmt: skip
    changed = tiny.vae(seed=0)
    with torch.no_grad():
        changed.encoder.conv_in.weight[0, 0, 0, 0] += 1e-6
    parts = {"vae": changed, "image_encoder": pipe.image_encoder, "semantic_encoder": None}
    others.append(name(pipe=type("Pipe", (), parts)()))
    assert len({name(), *others}) == 1 + len(others)


def test_a_disk_that_is_too_small_is_told_before_anything_is_done(root, pipe, tmp_path, monkeypatch):
    clips = read_clips(root, ["davis-train"])
    monkeypatch.setattr(files, "free_space", lambda folder: 1000)
    with pytest.raises(OSError, match=r"the latent cache needs \d+\.\d kB .* has 1.0 kB free: make room or .* --cache"):
        build_cache(tmp_path / "cache", clips, DATA, pipe, "patch", "cpu")
    assert not (tmp_path / "cache").exists()


def test_the_space_asked_for_is_what_is_written(cache, pipe, tmp_path, monkeypatch):
    clips, folder = cache
    told = []
    monkeypatch.setattr(files, "free_space", lambda place: 0)
    monkeypatch.setattr(files, "size_text", lambda count: told.append(count) or "")
    with pytest.raises(OSError):
        build_cache(tmp_path / "cache", clips, DATA, pipe, "patch", "cpu")
    written = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert told[0] == pytest.approx(written, rel=0.1)


def test_photographs_are_cached_as_crops(tmp_path, pipe):
    rng = np.random.default_rng(0)
    prepared.write_set(tmp_path, "photos-train", {"p": rng.integers(0, 256, (1, 43, 85, 3), dtype=np.uint8)})
    data = dataclasses.replace(DATA, sets=("photos-train",), targets_per_photo=12)
    clips = read_clips(tmp_path, data.sets)
    folder = cache_folder(tmp_path, clips, data, pipe, "patch")
    build_cache(folder, clips, data, pipe, "patch", "cpu")
    dataset = LatentDataset(folder, clips, data)
    grid = next(sample for sample in dataset if sample.kind == "grid")
    assert grid.labels == ("photos-train/p",) * 5 and grid.color.shape == (4, 4, 4, 8)
    assert all(not torch.equal(grid.target, tile) for tile in grid.color)
    assert latent_cache.CHUNK > 4


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A pipeline with a semantic encoder."""
    return tiny.pipeline(tmp_path_factory.mktemp("seeing"), semantics=True)


def test_cached_semantics_are_those_of_the_gray_frames(root, seeing, tmp_path):
    clips = read_clips(root, ["davis-train"])
    folder = cache_folder(tmp_path, clips, DATA, seeing, "patch")
    build_cache(folder, clips, DATA, seeing, "patch", "cpu")
    for clip in clips:
        held = load_file(folder / clip.set / f"{clip.name}.safetensors")["semantics"]
        assert held.dtype == torch.float16 and held.shape == (4, 5, 8, 4, 8)  # (K, V, S, h, w)
        for own, (_, views, _) in zip(held, scenes(clip, DATA), strict=True):
            for features, view in zip(own, views, strict=True):
                wanted = encoders.semantics(seeing, color.to_gray(view))[0]
                torch.testing.assert_close(features.float(), wanted, atol=5e-3, rtol=5e-3)
    assert float(held[0, 0].float().std((1, 2)).max()) > 0.1  # places differ
    dataset = LatentDataset(folder, clips, DATA, seed=2)
    for i in range(24):
        draw, sample = dataset.stream.draw(i), dataset[i]
        clip = clips[draw.clip]
        own = load_file(folder / clip.set / f"{clip.name}.safetensors")["semantics"][dataset.variant(draw, draw.clip)]
        assert torch.equal(sample.semantics, own[draw.target])
        assert torch.equal(sample.ref_semantics, own[list(draw.references)])
    told = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError):
        patch.setattr(files, "free_space", lambda place: 0)
        patch.setattr(files, "size_text", lambda count: told.append(count) or "")
        build_cache(tmp_path / "other", clips, DATA, seeing, "patch", "cpu")
    written = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    assert told[0] == pytest.approx(written, rel=0.1)


def test_the_semantic_networks_are_part_of_the_folders_name(root, seeing, tmp_path):
    clips = read_clips(root, ["davis-train"])
    name = lambda pipe: cache_folder(root, clips, DATA, pipe, "patch")  # noqa: E731
    names = [name(tiny.pipeline(tmp_path / "blind")), name(seeing)]
    for part in ("semantic_encoder", "pyramid"):
        changed = tiny.pipeline(tmp_path / part, semantics=True)
        module = changed.control.pyramid if part == "pyramid" else changed.semantic_encoder
        with torch.no_grad():
            next(module.parameters()).view(-1)[0] += 1e-3
        names.append(name(changed))
    assert len(set(names)) == 4 and name(tiny.pipeline(tmp_path / "again", semantics=True)) == names[1]


def test_a_cache_without_semantics_is_named_as_before_there_were_any(root, cache, pipe):
    """Caches of the paper's model made by earlier versions stay valid: the digest of their inputs, written out."""

    def digest(module: torch.nn.Module) -> str:
        content = b""
        for key, weights in sorted(module.state_dict().items()):
            content += f"{key} {weights.dtype} {tuple(weights.shape)}".encode() + weights.numpy().tobytes()
        return hashlib.sha256(content).hexdigest()

    clips, folder = cache
    content = {
        "format": 2,
        "clips": [["davis-train", clip.name, f"{i:064x}"] for i, clip in enumerate(clips)],
        "size": [32, 64],
        "variants": [[4, 2]],
        "views": [5, DATA.cache_seed],
        "drawn": [DATA.crops, DATA.window],
        "encoders": [digest(pipe.vae), digest(pipe.image_encoder)],
        "scaling": [0.5, None],
        "condition": "patch",
    }
    assert folder.name == "latents-" + hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    for clip in clips:
        held = load_file(folder / "davis-train" / f"{clip.name}.safetensors")
        assert set(held) == {"color", "gray", "tokens", "frames"}
    batch = collate([LatentDataset(folder, clips, DATA)[i] for i in range(10)])
    assert batch.semantics is None and all(group.semantics is None for group in batch.references)
