"""Training a pipeline with a semantic encoder: each sample by hand, the cache, and a pyramid that stays as it is."""

import dataclasses

import numpy as np
import prepared
import pytest
import tiny
import torch
from prepared import run, run_config

from gcgkit import GCGPipeline, encoders
from gcgkit.color import to_gray
from gcgkit.data import latent_cache
from gcgkit.data.dataset import FrameDataset, References, Sample, collate, read_clips
from gcgkit.training import run as training_run
from gcgkit.training.loss import Denoiser, Objective


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Prepared clips and a model with a semantic encoder to start training from."""
    return prepared.workplace(tmp_path_factory.mktemp("semantics"), semantics=True)


@pytest.fixture(scope="module")
def objective(place):
    """Eq. 11 for weights none of which is zero, so that all inputs matter."""
    config = run_config(place, data__mask=0.4, data__single=0.3, data__grid=0.3)
    objective = Objective(config, training_run.build_pipeline(config), "cpu")
    tiny.trained(objective.pipe.control)
    objective.network.eval()
    return objective


def pyramid_of(pipe: GCGPipeline) -> dict[str, torch.Tensor]:
    return {name: weights.clone() for name, weights in pipe.control.pyramid.state_dict().items()}


def grid(tiles: torch.Tensor) -> torch.Tensor:
    """One tile as it is, or four, two above two: (n, C, h, w) -> (1, C, h', w')."""
    if len(tiles) == 1:
        return tiles
    return torch.cat([torch.cat([tiles[0], tiles[1]], 2), torch.cat([tiles[2], tiles[3]], 2)], 1)[None]


def test_a_mixed_batch_is_each_sample_alone(objective):
    """The mask, a frame and a grid in one batch against the parts of the pipeline, called for one sample after another.

    As in the pipeline, the mask has no semantic features.
    """
    pipe, width = objective.pipe, objective.pipe.control.config.semantic_width
    torch.manual_seed(0)
    noisy, gray, text, semantics = (torch.randn(3, *shape) for shape in ((4, 4, 8), (4, 4, 8), (8, 16), (width, 4, 8)))
    timestep = torch.tensor([10, 500, 900])
    references = [
        References(kind, torch.tensor([row]), *(torch.randn(1, n, *shape) for shape in
                   ((4, 4, 8), (4, 4, 8), (16, 16), (width, 4, 8))))
        for kind, row, n in (("single", 2, 1), ("grid", 0, 4))
    ]  # fmt: skip
    masked = [torch.zeros(1, 0, *shape) for shape in ((4, 4, 8), (4, 4, 8), (1, 16), (width, 4, 8))]
    references.append(References("mask", torch.tensor([1]), *masked))
    with torch.no_grad():
        found = Denoiser(pipe.unet, pipe.control)(noisy, timestep, text, gray, references, semantics)
        for group in references:
            at = group.rows
            g, seen, t = gray[at], semantics[at], timestep[at]
            if group.kind == "mask":
                hint = pipe.control.hint(g, torch.zeros_like(g), torch.zeros_like(g), seen)
                tokens = torch.zeros(1, 1, 16)
            else:
                of_references = grid(group.semantics[0])
                hint = pipe.control.hint(g, grid(group.gray[0]), grid(group.color[0]), seen, of_references)
                tokens = group.tokens.flatten(1, 2)
            residuals = pipe.control(noisy[at], t, tokens, g, hint=hint, semantics=seen)
            prediction = pipe.unet(
                noisy[at], t, text[at], down_block_additional_residuals=residuals.down_block_res_samples,
                mid_block_additional_residual=residuals.mid_block_res_sample,
            ).sample  # fmt: skip
            for together, alone in zip(found, (prediction, hint.hint, hint.gate), strict=True):
                torch.testing.assert_close(together[at], alone, atol=1e-4, rtol=1e-4, msg=group.kind)
        without = Denoiser(pipe.unet, pipe.control)(noisy, timestep, text, gray, references, semantics * 0)
    assert (without[0] - found[0]).abs().max() > 1e-2  # the features count


def test_cached_and_uncached_training_have_the_same_loss(place, objective, tmp_path):
    """The views of the cache's samples as pixels, encoded while training; the cache rounds to float16."""
    pipe, data = objective.pipe, dataclasses.replace(objective.config.data, cache_variants=2, cache_views=5)
    clips = read_clips(place / "data", data.sets)
    folder = latent_cache.cache_folder(tmp_path, clips, data, pipe, "patch")
    latent_cache.build_cache(folder, clips, data, pipe, "patch", "cpu")
    dataset = latent_cache.LatentDataset(folder, clips, data)
    cached, pixels = [dataset[i] for i in range(12)], []
    for i, sample in enumerate(cached):
        draw = dataset.stream.draw(i)
        views = []
        for clip, numbers in ((draw.clip, [draw.target]), (draw.source, draw.references)):
            variant = list(latent_cache.scenes(clips[clip], data))[dataset.variant(draw, clip)]
            views += [variant[1][number] for number in numbers]
        views = np.stack(views)  # (1 + n, H, W, 3)
        color, gray = torch.from_numpy(views).permute(0, 3, 1, 2), torch.from_numpy(to_gray(views))[:, None]
        pixels.append(
            Sample(
                color[0], gray[0], color[1:], gray[1:], None, sample.kind, sample.caption, sample.seed, sample.labels
            )
        )
    with torch.no_grad():
        one, other = objective(collate(cached)), objective(collate(pixels))
    assert {"loss_mask", "loss_single", "loss_grid"} <= set(one)
    torch.testing.assert_close(one["loss"], other["loss"], rtol=0.01, atol=0)


def test_features_of_a_batch_of_pixels_are_those_of_its_gray_frames(place, objective):
    dataset = FrameDataset(place / "data", objective.config.data)
    raw = collate([dataset[i] for i in range(6)])
    batch = objective.encode(raw)
    by_hand = lambda gray: encoders.semantics(objective.pipe, gray[0].numpy())[0]  # noqa: E731  (1, H, W) -> (S, h, w)
    with torch.no_grad():
        for seen, gray in zip(batch.semantics, raw.gray, strict=True):
            torch.testing.assert_close(seen, by_hand(gray), atol=1e-4, rtol=1e-4)
        for group, pixels in zip(batch.references, raw.references, strict=True):
            assert group.semantics.shape[:2] == pixels.gray.shape[:2]
            for seen, gray in zip(group.semantics.flatten(0, 1), pixels.gray.flatten(0, 1), strict=True):
                torch.testing.assert_close(seen, by_hand(gray), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("control", ["new", "keep"])
@pytest.mark.parametrize("cached", [True, False])
def test_the_pyramid_stays_and_all_that_reads_it_learns(place, tmp_path, control, cached):
    config = run_config(place, model__control=control)
    base, start = GCGPipeline.from_pretrained(place / "model"), training_run.build_pipeline(config)
    folder = run(place, tmp_path, model__control=control, run__max_steps=6, optimizer__learning_rate=1e-2,
                 data__cache_variants=2 * cached, data__cache_views=3, validation__every=6)  # fmt: skip
    pipe = GCGPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    for name, weights in pyramid_of(base).items():
        assert torch.equal(pyramid_of(start)[name], weights), name
        assert torch.equal(pyramid_of(pipe)[name], weights), name
    for name, weights in base.semantic_encoder.state_dict().items():
        assert torch.equal(pipe.semantic_encoder.state_dict()[name], weights), name
    reads = "unet_copy.controlnet_cond_embedding.conv_in.weight", "guidance.token_stem.meaning.weight"
    for name in reads:
        before, after = (p.control.get_parameter(name)[:, -pipe.control.config.semantic_width :] for p in (start, pipe))
        assert (after - before).abs().max() > 1e-3, name
    frames = tiny.clip(3)
    made = pipe(frames, num_inference_steps=2, num_keyframes=1, generator=torch.Generator().manual_seed(0)).frames
    assert made.shape == frames.shape and not (made == to_gray(frames)[..., None]).all()


def test_a_pyramid_in_training_gives_what_was_cached(objective):
    """Its dropout stays off, or features would differ from the cached ones, and from call to call."""
    control = objective.pipe.control
    features = objective.pipe.semantic_encoder(torch.linspace(-1, 1, 32 * 64).view(1, 1, 32, 64))
    try:
        control.train()
        assert control.unet_copy.training
        with torch.no_grad():
            one, other = control.semantics(features, (4, 8)), control.semantics(features, (4, 8))
            control.eval()
            torch.testing.assert_close(one, control.semantics(features, (4, 8)), rtol=0, atol=0)
        assert torch.equal(one, other)
    finally:
        control.eval()
