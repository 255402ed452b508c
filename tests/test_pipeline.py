"""The two-stage pipeline with real classes at toy size: against plain diffusers loops, brute force, and itself."""

import copy
import json
import shutil
import socket
import subprocess
import sys
import time
import weakref
from functools import partial
from itertools import combinations
from pathlib import Path

import by_hand
import cv2
import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from PIL import Image
from skimage.color import rgb2lab

from gcgkit import profiles, references
from gcgkit.color import merge_luminance, to_gray
from gcgkit.encoders import fit_canvas, image_tokens
from gcgkit.evaluation import methods
from gcgkit.keyframes import small_gray
from gcgkit.paper import build_paper
from gcgkit.pipeline import GCGPipeline
from gcgkit.settings import Settings
from gcgkit.stages import Run

STEPS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def pipe(folder) -> GCGPipeline:
    return tiny.pipeline(folder)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return tiny.clip(5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def color(pipe, frames, *, seed: int = 0, **options):
    """Colour with few steps and two keyframes unless told otherwise."""
    return pipe(frames, generator=seeded(seed), **{"num_inference_steps": STEPS, "num_keyframes": 2, **options})


def lightness_error(frames: np.ndarray, gray: np.ndarray) -> float:
    """Largest difference of L*, of 100, where the result was not clipped to the gamut; scikit-image's CIELAB."""
    inside = ((frames > 0) & (frames < 255)).all(-1)
    assert inside.mean() > 0.2
    wanted = rgb2lab(np.repeat(gray[..., None], 3, axis=-1))[..., 0]
    return float(np.abs(rgb2lab(frames)[..., 0] - wanted)[inside].max())


# --- whole clips -----------------------------------------------------------------------------------------------------


def test_same_seed_same_clip_and_lightness_kept(pipe, clip):
    first, again, other = color(pipe, clip), color(pipe, clip), color(pipe, clip, seed=1)
    assert first.frames.shape == clip.shape and first.frames.dtype == np.uint8
    assert np.array_equal(first.frames, again.frames) and first.references == again.references
    assert not np.array_equal(first.frames, other.frames)
    assert first.keyframes == [0, 4]
    assert lightness_error(first.frames, to_gray(clip)) < 0.5
    assert rgb2lab(first.frames)[..., 1:].std() > 1  # and it is coloured


def test_input_color_is_not_looked_at(pipe, clip):
    assert np.array_equal(color(pipe, clip).frames, color(pipe, to_gray(clip)).frames)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_clips(pipe, clip, length):
    out = color(pipe, clip[:length], num_keyframes=4)
    assert out.keyframes == list(range(length)) and out.references == {}
    assert lightness_error(out.frames, to_gray(clip[:length])) < 0.5


@pytest.mark.parametrize("size", [(33, 47), (64, 20), (16, 100), (7, 9)])
def test_any_size_comes_back_at_that_size(pipe, size):
    frames = tiny.clip(3, *size)
    out = color(pipe, frames)
    assert out.frames.shape == frames.shape
    assert lightness_error(out.frames, to_gray(frames)) < 0.5


def test_tuple_and_explicit_defaults(pipe, clip):
    frames, keyframes, used = color(pipe, clip, return_dict=False)
    out = color(pipe, clip, tau=4.0, guidance_scale=2.0, past_window=32, working_size=tiny.WORKING_SIZE)
    assert np.array_equal(frames, out.frames) and keyframes == out.keyframes and used == out.references


# --- against loops written out here ----------------------------------------------------------------------------------


def plain_loop(pipe, gray_frame, steps, scale, prompts, seed, mask=None):
    """Text-to-image with UNet and DDIM, as any diffusers example has it; one frame.

    With the copy, under a reference mask of "zeros" or of an encoded "black" picture, if there is one.
    """
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    latents = torch.randn(1, 4, 4, 8, generator=seeded(seed))
    ids = pipe.tokenizer(prompts, padding="max_length", max_length=8, truncation=True, return_tensors="pt").input_ids
    text = pipe.text_encoder(ids).last_hidden_state
    pixels = torch.from_numpy(gray_frame)[None, None].repeat(1, 3, 1, 1).float() / 127.5 - 1
    gray = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    black = pipe.vae.encode(torch.full_like(pixels, -1.0)).latent_dist.mode() * pipe.vae.config.scaling_factor
    for t in scheduler.timesteps:
        extra = {}
        if mask:
            masked, tokens = black if mask == "black" else black * 0, torch.zeros(1, 16, tiny.WIDTH)
            down, middle = pipe.control(latents, t, tokens, gray, masked, masked, return_dict=False)
            extra = {
                "down_block_additional_residuals": [torch.cat([d, d]) for d in down],
                "mid_block_additional_residual": torch.cat([middle, middle]),
            }
        negative, positive = pipe.unet(torch.cat([latents, latents]), t, text, **extra).sample.chunk(2)
        latents = scheduler.step(negative + scale * (positive - negative), t, latents).prev_sample
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample[0].permute(1, 2, 0)
    return merge_luminance(gray_frame, ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy())


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for rounding: one level, in a few pixels."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return difference.max() <= 1 and (difference > 0).mean() < 0.01


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_zero_initialised_copy_leaves_plain_diffusers(folder, clip, prediction):
    pipe = tiny.pipeline(folder, zero_control=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction)
    out = color(pipe, clip[:1], prompt="red car", num_inference_steps=4, guidance_scale=3.0, seed=7)
    wanted = plain_loop(pipe, to_gray(clip[:1])[0], 4, 3.0, ["", "red car"], 7)
    assert close(out.frames[0], wanted)


@torch.no_grad()
@pytest.mark.parametrize("mask", ["zeros", "black"])
def test_trained_copy_under_the_mask(pipe, clip, mask):
    """One frame is a keyframe under the reference mask; a zero token does for the sixteen that are written out here."""
    words = {"prompt": "red car", "negative_prompt": "sky"}
    out = color(pipe, clip[:1], **words, num_inference_steps=4, seed=7, mask_latents=mask)
    wanted = plain_loop(pipe, to_gray(clip[:1])[0], 4, 2.0, ["sky", "red car"], 7, mask)
    assert close(out.frames[0], wanted)
    without = plain_loop(pipe, to_gray(clip[:1])[0], 4, 2.0, ["sky", "red car"], 7)
    assert not close(out.frames[0], without)


def test_prompt_and_guidance_matter(pipe, clip):
    plain = color(pipe, clip[:2]).frames
    red, stronger = (color(pipe, clip[:2], prompt="red", guidance_scale=s).frames for s in (2.0, 8.0))
    negative = color(pipe, clip[:2], negative_prompt="red").frames
    results = [plain, red, stronger, negative]
    assert all(not np.array_equal(a, b) for i, a in enumerate(results) for b in results[:i])


@torch.no_grad()
def test_equal_embeddings_take_the_short_way_to_the_same_result(pipe, clip):
    batches = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    try:
        out = color(pipe, clip[:1], prompt="car", negative_prompt="car", guidance_scale=5.0, seed=3)
        color(pipe, clip[:1], prompt="car", guidance_scale=1.0, seed=3)
        color(pipe, clip[:1], prompt="car", guidance_scale=5.0, seed=3)
    finally:
        handle.remove()
    assert batches == [1] * STEPS + [1] * STEPS + [2] * STEPS
    wanted = plain_loop(pipe, to_gray(clip[:1])[0], STEPS, 5.0, ["car", "car"], 3, "zeros")
    assert close(out.frames[0], wanted)


def test_scaling_and_shift_factor_come_from_the_configuration(pipe):
    image = tiny.clip(1)[0]
    run = Run(pipe, (32, 64), Settings(), seeded())
    with torch.no_grad():
        plain = run.encode(image)
        pipe.vae.register_to_config(scaling_factor=1.0, shift_factor=0.25)
        try:
            shifted = run.encode(image)
            gray = to_gray(image)
            decoded = run.finish(shifted, [gray])[0]
        finally:
            pipe.vae.register_to_config(scaling_factor=0.5, shift_factor=None)
        torch.testing.assert_close(plain / 0.5, shifted + 0.25)
        assert np.array_equal(run.finish(plain, [gray])[0], decoded)


# --- references ------------------------------------------------------------------------------------------------------


def brute_force_references(gray, keyframes, timesteps, count, window):
    """Eq. 10 tried with every set of keyframes and earlier frames, in frame numbers; timesteps rescaled already."""
    small = small_gray(gray)
    distance = ((small[:, None] - small[None]) ** 2).mean((2, 3), dtype=np.float64)
    result = {}
    for i in (i for i in range(len(gray)) if i not in keyframes):
        past = [k for k in range(i) if k not in keyframes][-window:]
        result[i] = []
        for t in timesteps:
            total, options = min(count, len(keyframes) + len(past)), []
            for c1 in range(max(0, total - len(past)), min(total, len(keyframes)) + 1):
                for keys in combinations(keyframes, c1):
                    for others in combinations(past, total - c1):
                        first = sum(distance[i, k] for k in keys) / np.sqrt(t**4 + 1)
                        second = sum(distance[i, k] for k in others) / np.sqrt(1 + 1 / t**4)
                        options.append((first + second, set(keys), set(others)))
            result[i].append(min(options, key=lambda option: option[0]))
    return result


def unrolled(runs):
    return [(run.keyframes, run.past) for run in runs for _ in range(run.steps)]


@pytest.mark.parametrize(("count", "tau", "window", "trained"), [(4, 4, 32, 1000), (3, 2, 2, 1000), (1, 4, None, 120)])
def test_record_is_the_minimiser_of_equation_10(folder, count, tau, window, trained):
    pipe, clip = tiny.pipeline(folder), tiny.clip(8, seed=1)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, num_train_timesteps=trained)
    options = {"num_keyframes": 3, "grid_size": count, "tau": tau, "past_window": window, "num_inference_steps": 6}
    out = color(pipe, clip, seed=2, **options)
    pipe.scheduler.set_timesteps(6)
    timesteps = [tau * t / trained for t in pipe.scheduler.timesteps.tolist()]
    wanted = brute_force_references(to_gray(clip), out.keyframes, timesteps, count, window or 99)
    assert set(out.references) == set(wanted) == set(range(8)) - set(out.keyframes)
    for frame, steps in wanted.items():
        used = unrolled(out.references[frame])
        assert len(used) == 6
        for (keys, past), (_, best_keys, best_past) in zip(used, steps, strict=True):
            assert (set(keys), set(past)) == (best_keys, best_past)
    changes = [len(runs) for runs in out.references.values()]
    assert max(changes) > 1  # the references do slide in this clip


def test_run_lengths_and_grid():
    steps = [((0,), (1,)), ((0,), (1,)), ((), (1, 2)), ((0,), (1,))]
    runs = references.run_lengths(steps)
    assert runs == [(2, (0,), (1,)), (1, (), (1, 2)), (1, (0,), (1,))]
    assert unrolled(runs) == steps

    def reference(value):
        tile = torch.full((1, 4, 2, 3), float(value))
        tokens, descriptor, semantics = torch.full((1, 5, 6), float(value)), np.zeros(1), 2 * tile.repeat(1, 2, 1, 1)
        return references.Reference(value, tile, -tile, tokens, descriptor, semantics=semantics)

    gray, z, tokens, semantics, weights = references.join_references([reference(k) for k in (7, 8, 9)], 4, [5, 5, 1])
    corners = gray[0, 0, ::2, ::3]  # one value of each tile
    assert corners.tolist() == [[7, 8], [9, 7]] and torch.equal(z, -gray) and gray.shape == (1, 4, 4, 6)
    assert tokens[0, ::5, 0].tolist() == [7, 8, 9] and torch.equal(semantics, 2 * gray.repeat(1, 2, 1, 1))
    assert weights.shape == (1, 1, 4, 6) and weights[0, 0, ::2, ::3].tolist() == [[5, 5], [1, 5]]
    gray, _, tokens, _, weights = references.join_references([reference(7)], 4, [5])
    assert gray.shape == (1, 4, 2, 3) and tokens.shape == (1, 5, 6) and weights is None


def test_references_are_encoded_once_and_hints_made_only_on_change(pipe, monkeypatch):
    clip = tiny.clip(6)
    encoded, hints, encode, hint = [], [], Run.encode, type(pipe.control).hint

    def counted(self, *frames):
        encoded.extend(frame.ndim for frame in frames)
        return encode(self, *frames)

    monkeypatch.setattr(Run, "encode", counted)
    monkeypatch.setattr(type(pipe.control), "hint", lambda self, *args: (hints.append(1), hint(self, *args))[1])
    out = color(pipe, clip, num_inference_steps=8)
    assert out.keyframes == [0, 5]
    # keyframes: gray for stage 1, then gray and colour as references; each other frame: gray, and colour if one follows
    assert encoded.count(2) == 2 + 2 + 4 and encoded.count(3) == 2 + 3
    assert len(hints) == 1 + sum(len(runs) for runs in out.references.values()) < 1 + 4 * 8


def test_frames_encoded_together_are_what_they_are_alone(pipe, monkeypatch):
    """On a GPU some frames go through the encoders and the decoder at once."""
    clip = tiny.clip(9)
    options = {"num_keyframes": 4, "side_by_side": 2, "prompt": "red"}
    alone = color(pipe, clip, **options).frames
    sizes = []

    def together(self, items, most=None):
        parts = [items[i : i + 3] for i in range(0, len(items), 3)]
        sizes.extend(map(len, parts))
        return parts

    monkeypatch.setattr(Run, "_in_parts", together)
    assert np.abs(color(pipe, clip, **options).frames.astype(int) - alone).max() <= 1
    assert {1, 2, 3} <= set(sizes)


def test_without_the_sliding_grid_one_keyframe_guides(pipe):
    clip = tiny.clip(6)
    nearest = color(pipe, clip, use_srg=False)
    first = color(pipe, clip, use_srg=False, single_reference="first")
    small = small_gray(clip)
    for frame in range(1, 5):
        distance = [((small[frame] - small[k]) ** 2).mean() for k in (0, 5)]
        assert nearest.references[frame] == [(STEPS, ((0, 5)[int(np.argmin(distance))],), ())]
        assert first.references[frame] == [(STEPS, (0,), ())]
    assert {runs[0].keyframes for runs in nearest.references.values()} == {(0,), (5,)}


def test_reference_mask_and_image_condition_change_the_result(pipe, clip):
    results = [color(pipe, clip).frames, color(pipe, clip, reference_mask=True).frames]
    results += [color(pipe, clip, image_condition=c).frames for c in ("pooled", "none")]
    assert all(not np.array_equal(a, b) for i, a in enumerate(results) for b in results[:i])
    assert unrolled(color(pipe, clip, reference_mask=True).references[2]) == [((), ())] * STEPS


@pytest.mark.parametrize("measure", ["histogram", "ssim", "latent", "lpips"])
def test_other_dissimilarities(pipe, measure):
    network = (lambda a, b: np.abs(a.astype(float) - b).mean((1, 2, 3))) if measure == "lpips" else None
    out = color(pipe, tiny.clip(4), dissimilarity=measure, network=network, num_inference_steps=1)
    assert out.keyframes == [0, 3] and set(out.references) == {1, 2}


def test_long_clips_are_thinned_for_selection():
    chosen = references.candidates(10_000)
    assert len(chosen) == references.MAX_CANDIDATES and chosen[0] == 0 and chosen[-1] == 9_999
    assert np.diff(chosen).max() <= 40 and references.candidates(5).tolist() == [0, 1, 2, 3, 4]


# --- exemplars -------------------------------------------------------------------------------------------------------


def test_exemplar_in_the_clip_is_a_keyframe_with_its_own_colors(pipe, clip):
    plain, out = color(pipe, clip), color(pipe, clip, reference={0: clip[0]})
    assert out.keyframes == [0, 4] and 0 not in out.references
    assert np.abs(out.frames[0].astype(int) - clip[0]).mean() < 2  # the true colours on the true L*
    assert out.references[4] == [(STEPS, (0,), ())]  # the other keyframe is guided by it
    assert not np.array_equal(plain.frames[4], out.frames[4]) and not np.array_equal(plain.frames[2], out.frames[2])


def test_exemplar_takes_the_place_of_the_keyframe_most_like_it(pipe, clip):
    assert color(pipe, clip, reference={3: clip[3]}).keyframes == [0, 3]
    assert color(pipe, clip, reference={3: clip[3]}, num_keyframes=1).keyframes == [3]
    everything = color(pipe, clip, reference=dict(enumerate(clip)), num_keyframes=1)
    assert everything.keyframes == [0, 1, 2, 3, 4] and everything.references == {}
    distance = np.abs(np.subtract.outer(np.arange(9.0), np.arange(9.0)))
    assert references.include_exemplars([0, 4, 8], distance, [5]) == [0, 5, 8]
    assert references.include_exemplars([0, 4, 8], distance, [4, 5]) == [0, 4, 5]  # a chosen one stays


def test_exemplar_from_outside_guides_both_stages(pipe, clip):
    outside = tiny.clip(1, 50, 41, seed=9)[0]
    out = color(pipe, clip, reference=outside)
    assert out.keyframes == [0, 4] and out.references[0] == out.references[4] == [(STEPS, (-1,), ())]
    pool = {number for frame in (1, 2, 3) for keys, _ in unrolled(out.references[frame]) for number in keys}
    assert -1 in pool and pool <= {-1, 0, 4}
    assert not np.array_equal(out.frames, color(pipe, clip).frames)


def test_exemplar_of_another_size(pipe, clip):
    large = cv2.resize(clip[0], (128, 64), interpolation=cv2.INTER_CUBIC)
    out = color(pipe, clip, reference={0: large})
    assert out.frames.shape == clip.shape
    assert np.abs(out.frames[0].astype(int) - clip[0]).mean() < 4
    with pytest.raises(ValueError, match=r"reference\[0\] is 64x64 and the clip 64x32"):
        color(pipe, clip, reference={0: np.zeros((64, 64, 3), np.uint8)})


def test_literal_exemplar_mode(pipe, clip):
    out = color(pipe, clip, reference={0: clip[0]}, exemplar_mode="literal", num_keyframes=2)
    assert out.keyframes == [0, 1, 2] and set(out.references) == {3, 4}  # two in a row, coloured under the mask
    masked = color(pipe, clip[1:], num_keyframes=2, reference={}, keyframe_method="uniform")
    assert masked.keyframes == [0, 3]
    late = color(pipe, clip, reference={4: clip[4]}, exemplar_mode="literal", num_keyframes=2)
    assert late.keyframes == [3, 4]
    outside = color(pipe, clip, reference=clip[2], exemplar_mode="literal", num_keyframes=2)
    assert outside.keyframes == [0, 1]


def test_keyframes_of_the_literal_mode_do_not_see_the_exemplar(pipe, clip):
    results = [
        pipe.color_keyframes(
            clip, reference={0: frame}, exemplar_mode="literal", num_inference_steps=STEPS, generator=seeded()
        )
        for frame in (clip[0], 255 - clip[0])
    ]
    assert np.array_equal(results[0][1], results[1][1]) and not np.array_equal(results[0][0], results[1][0])


# --- stages, streams, memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"noise": "independent"}, {"eta": 0.7}, {"reference": {1: None}}])
def test_the_two_stages_apart_give_the_whole(pipe, clip, options):
    options = dict(options)
    if "reference" in options:
        options["reference"] = {1: clip[1]}
    whole = color(pipe, clip, prompt="blue sky", **options)
    reference = options.pop("reference", None)
    same = {"prompt": "blue sky", "num_inference_steps": STEPS, **options}
    keys = pipe.color_keyframes(clip, num_keyframes=2, reference=reference, generator=seeded(), **same)
    out = pipe.color_remaining(clip, keys, generator=seeded(), **same)
    assert list(keys) == whole.keyframes == out.keyframes
    assert np.array_equal(out.frames, whole.frames)
    assert all(whole.references[frame] == runs for frame, runs in out.references.items())


def test_keyframes_are_colored_jointly(pipe, clip):
    """A keyframe sees the others (Eq. 8); copies of it tell it nothing new; apart from that stage it is on its own."""

    def keyframes(*frames):
        options = {"num_keyframes": 2, "num_inference_steps": 4, "generator": seeded()}
        return pipe.color_keyframes(np.stack(frames), **options)

    alone, doubled = keyframes(clip[0])[0], keyframes(clip[0], clip[0])
    assert close(doubled[0], alone) and close(doubled[1], alone)
    assert not close(keyframes(clip[0], 255 - clip[0])[0], alone)


def test_independent_noise_differs_between_frames_and_shared_does_not(pipe):
    still = np.repeat(tiny.clip(1), 3, axis=0)
    starts = {}

    def note(pipe, step, timestep, kwargs):
        starts.setdefault(kwargs["frames"], kwargs["latents"])

    for noise, count in (("shared", 1), ("independent", 3)):
        starts.clear()
        color(pipe, still, num_keyframes=1, reference_mask=True, noise=noise, callback_on_step_end=note)
        assert len(starts) == 3
        latents = list(starts.values())
        distinct = [x for i, x in enumerate(latents) if not any(torch.allclose(x, y, atol=1e-5) for y in latents[:i])]
        assert len(distinct) == count


def test_keyframes_from_any_hand(pipe, clip):
    painted = np.full_like(clip[2], (200, 40, 40))  # wrong L*, one colour
    out = pipe.color_remaining(clip, {2: painted}, num_inference_steps=STEPS, generator=seeded())
    assert out.keyframes == [2] and set(out.references) == {0, 1, 3, 4}
    assert lightness_error(out.frames[2:3], to_gray(clip[2:3])) < 0.5
    assert rgb2lab(out.frames[2])[..., 1].mean() > 20  # it is red
    assert {number for keys, _ in unrolled(out.references[0]) for number in keys} == {2}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reference": "inside"},
        {"reference": "outside", "exemplar_mode": "literal", "keyframe_method": "uniform"},
        {"noise": "independent", "num_keyframes": 3},
    ],
)
def test_a_stream_of_one_chunk_is_the_call(pipe, clip, options):
    exemplars = {"inside": {3: clip[3]}, "outside": 255 - clip[2], None: None}
    options = {**options, "reference": exemplars[options.get("reference")]}
    whole = color(pipe, clip, **options)
    options = {"num_inference_steps": STEPS, "num_keyframes": 2, **options}
    for source in (clip, iter(clip), (frame for frame in to_gray(clip))):
        frames = list(pipe.stream(source, chunk_size=5, generator=seeded(), **options))
        assert np.array_equal(np.stack(frames), whole.frames)


def test_a_frame_that_is_drawn_on_guides_as_it_was(pipe):
    clip = tiny.clip(6)
    options = {"num_inference_steps": 2, "num_keyframes": 1, "tau": 1.0, "chunk_size": 4}
    left_alone = np.stack(list(pipe.stream(clip, generator=seeded(), **options)))
    drawn_on = []
    for frame in pipe.stream(clip, generator=seeded(), **options):
        drawn_on.append(frame.copy())
        frame[:] = 255
    assert np.array_equal(np.stack(drawn_on), left_alone)


def test_a_stream_of_chunks(pipe):
    clip = tiny.clip(9)
    stages = []

    def note(pipe, step, timestep, kwargs):
        stages.append((kwargs["stage"], kwargs["frames"]))

    options = {"num_inference_steps": 1, "num_keyframes": 2, "callback_on_step_end": note}
    frames = pipe.stream(iter(clip), chunk_size=4, reference={5: clip[5]}, generator=seeded(), **options)
    first = next(frames)
    assert len(stages) == 1  # nothing is done before it is asked for
    result = np.stack([first, *frames])
    assert result.shape == clip.shape and lightness_error(result, to_gray(clip)) < 0.5
    assert np.abs(result[5].astype(int) - clip[5]).mean() < 2
    colored = [frame for _, numbers in stages for frame in numbers]
    assert sorted(colored) == [0, 1, 2, 3, 4, 6, 7, 8]
    # Colours go on across the border: the second chunk depends on the first one's result, not on its own frames alone.
    other = np.concatenate([np.zeros_like(clip[:4]), clip[4:]])
    again = np.stack(list(pipe.stream(iter(other), chunk_size=4, generator=seeded(), **options)))
    assert not np.array_equal(again[6], result[6])


def test_memory_does_not_grow_with_the_clip(pipe):
    """References held at once, counted where they are made, for a clip and one three times as long."""
    made, most = weakref.WeakSet(), []
    original = references.Reference

    def counting(*args):
        reference = original(*args)
        made.add(reference.gray)
        most.append(len(made))
        return reference

    def peak(frames: int, consume) -> int:
        most.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gcgkit.stages.Reference", counting)
            consume(tiny.clip(frames, 16, 32))
        return max(most)

    options = {"num_inference_steps": 1, "num_keyframes": 2, "past_window": 3}
    whole = [peak(n, lambda clip: pipe(clip, generator=seeded(), **options)) for n in (10, 30)]
    assert whole[0] == whole[1] <= 2 + 3 + 1

    def consume(clip):
        for _ in pipe.stream(iter(clip), chunk_size=4, generator=seeded(), **options):
            pass

    chunks = [peak(n, consume) for n in (12, 36)]
    assert chunks[0] == chunks[1] <= 2 + 2 + 3 + 2


def test_callback_sees_every_step_and_may_change_the_latents(pipe, clip):
    seen = []

    def note(pipe, step, timestep, kwargs):
        seen.append((kwargs["stage"], kwargs["frames"], step, tuple(kwargs["latents"].shape)))

    plain = color(pipe, clip, callback_on_step_end=note)
    assert np.array_equal(plain.frames, color(pipe, clip).frames)
    wanted = [("keyframes", (0, 4), step, (2, 4, 4, 8)) for step in range(STEPS)]
    wanted += [("remaining", (frame,), step, (1, 4, 4, 8)) for frame in (1, 2, 3) for step in range(STEPS)]
    assert seen == wanted
    changed = color(pipe, clip, callback_on_step_end=lambda p, s, t, kwargs: {"latents": kwargs["latents"] * 0.5})
    assert not np.array_equal(plain.frames, changed.frames)


def test_processors_are_back_after_an_error(pipe, clip):
    before = dict(pipe.unet.attn_processors)

    def fail(*args):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        color(pipe, clip, callback_on_step_end=fail)
    assert pipe.unet.attn_processors == before


# --- conditioning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(480, 854), (720, 405), (256, 448), (9, 31), (100, 2)])
def test_canvas_keeps_the_aspect_and_crops_back(size):
    canvas = fit_canvas(size, (256, 448), 16)
    assert canvas.outer[0] % 16 == canvas.outer[1] % 16 == 0
    assert all(o - i in range(16) for o, i in zip(canvas.outer, canvas.inner, strict=True))
    assert canvas.inner[0] <= 256 and canvas.inner[1] <= 448 and (canvas.inner[0] == 256 or canvas.inner[1] == 448)
    scales = [i / s for i, s in zip(canvas.inner, size, strict=True)]
    assert abs(scales[0] - scales[1]) * min(size) <= 1  # to the pixel
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    placed = canvas.place(image)
    assert placed.shape == (*canvas.outer, 3)
    assert np.array_equal(canvas.crop(placed), canvas.place(image, padded=False))


def test_upright_frames_turn_the_canvas(pipe):
    assert Run(pipe, (64, 32), Settings(), None).canvas.outer == (64, 32)
    assert Run(pipe, (32, 64), Settings(), None).canvas.outer == (32, 64)
    assert Run(pipe, (64, 32), Settings(working_size=(32, 64)), None).canvas.inner == (32, 16)


@torch.no_grad()
def test_image_tokens_against_the_equation(pipe):
    image = tiny.clip(1, 16, 16)[0]  # the encoder's own size, so that nothing is resized
    mean, std = (np.array(v) for v in (pipe.feature_extractor.image_mean, pipe.feature_extractor.image_std))
    pixels = torch.from_numpy((image / 255 - mean) / std).permute(2, 0, 1)[None].float()
    hidden = pipe.image_encoder.vision_model(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    wanted = pipe.image_encoder.visual_projection(pipe.image_encoder.vision_model.post_layernorm(hidden))
    encoder = (pipe.image_encoder, pipe.feature_extractor)
    torch.testing.assert_close(image_tokens(*encoder, image), wanted)
    pooled = image_tokens(*encoder, image, "pooled")
    torch.testing.assert_close(pooled[:, 0], pipe.image_encoder(pixels).image_embeds)
    assert image_tokens(*encoder, None).abs().sum() == 0 == image_tokens(*encoder, image, "none").abs().sum()
    wide = np.zeros((16, 64, 3), np.uint8)
    wide[:, :8] = 255  # far from the middle: a centre crop would miss it
    assert not torch.allclose(image_tokens(*encoder, wide), image_tokens(*encoder, np.zeros_like(wide)))


@torch.no_grad()
@pytest.mark.parametrize("height", [1, 3])
def test_flat_pictures_are_not_taken_for_channels(pipe, height):
    """Rows that are all alike look the same however many they are."""
    row = tiny.clip(1, 16, 16)[0][:1]
    flat, square = (np.repeat(row, rows, axis=0) for rows in (height, 16))
    encoder = (pipe.image_encoder, pipe.feature_extractor)
    torch.testing.assert_close(image_tokens(*encoder, flat), image_tokens(*encoder, square))


# --- saving and loading ----------------------------------------------------------------------------------------------

_LOAD_AND_COLOR = """
import sys, numpy as np, torch
from gcgkit.pipeline import GCGPipeline
pipe = GCGPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
out = pipe(np.load(sys.argv[2]), prompt="red car", num_keyframes=2, num_inference_steps=2,
           generator=torch.Generator().manual_seed(0))
np.save(sys.argv[3], out.frames)
"""


@pytest.mark.slow
def test_saved_and_loaded_in_a_fresh_process_bit_for_bit(pipe, clip, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["control"] == ["gcgkit.control", "GuidedControlNet"] and index["tau"] == 4.0
    assert not list((tmp_path / "saved").rglob("*.bin")) and list((tmp_path / "saved").rglob("*.safetensors"))
    np.save(tmp_path / "clip.npy", clip)
    arguments = [str(tmp_path / name) for name in ("saved", "clip.npy", "out.npy")]
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", _LOAD_AND_COLOR, *arguments], check=True, cwd=root, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), color(pipe, clip, prompt="red car").frames)


def test_no_path_of_this_machine_is_saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "first")
    GCGPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    texts = {p.name: p.read_text(encoding="utf-8") for p in (tmp_path / "second").rglob("*.json")}
    assert "model_index.json" in texts and not any(str(tmp_path) in text for text in texts.values())
    assert GCGPipeline.from_pretrained(tmp_path / "second").config.tau == 4.0


def test_dtype_under_both_names(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert GCGPipeline.from_pretrained(tmp_path).unet.dtype == torch.float32
    for name in ("dtype", "torch_dtype"):
        loaded = GCGPipeline.from_pretrained(tmp_path, **{name: torch.float64})
        assert {m.dtype for m in loaded.components.values() if isinstance(m, torch.nn.Module)} == {torch.float64}
    out = loaded(tiny.clip(2), num_inference_steps=1, num_keyframes=1, generator=seeded())
    assert out.frames.shape == (2, 32, 64, 3)
    with pytest.raises(ValueError, match="give only dtype"):
        GCGPipeline.from_pretrained(tmp_path, dtype=torch.float32, torch_dtype=torch.float32)


def test_names_that_cannot_be_loaded(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(FileNotFoundError, match="profile 'mini' are not in this installation"):
        GCGPipeline.from_pretrained("mini")
    with pytest.raises(FileNotFoundError, match="neither a profile .* nor a folder nor a hub id"):
        GCGPipeline.from_pretrained("minni")
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        GCGPipeline.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="nobody/nothing is not in the hub's cache"):
        GCGPipeline.from_pretrained("nobody/nothing", local_files_only=True)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline, not a GCGPipeline"):
        GCGPipeline.from_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path / "weights" / "mini")
    assert profiles.available() == ["mini"]
    assert GCGPipeline.from_pretrained("mini").config._name_or_path == "mini"


def test_a_variant_takes_the_parts_that_it_shares_from_its_lenders(pipe, clip, tmp_path, monkeypatch):
    """The last of three profiles lends from the second, and that from the first."""
    weights, lenders = tmp_path / "weights", {"mini": None, "middle": "mini", "last": "middle"}
    monkeypatch.setattr(profiles, "WEIGHTS", weights)
    monkeypatch.setattr(profiles, "LENDERS", lenders)
    monkeypatch.setattr(profiles, "BUNDLED", tuple(lenders))
    for seed, name in enumerate(lenders):
        parts = dict(pipe.components)
        if name != "mini":  # the other two have the same UNet, and each a control of its own
            parts["unet"] = tiny.trained(copy.deepcopy(pipe.unet), seed=9)
            parts["control"] = tiny.trained(copy.deepcopy(pipe.control), seed=seed)
        GCGPipeline(**parts, height=32, width=64).save_pretrained(weights / name)
    whole = GCGPipeline.from_pretrained(shutil.copytree(weights / "last", tmp_path / "whole"))
    for name, own in (("middle", ("control", "unet")), ("last", ("control",))):
        for part in (weights / name).iterdir():
            if part.is_dir() and part.name not in own:
                shutil.rmtree(part)
    variant = GCGPipeline.from_pretrained("last")
    assert np.array_equal(color(variant, clip[:2]).frames, color(whole, clip[:2]).frames)
    before = methods.weights_digest("last")
    pipe.unet.save_pretrained(weights / "middle" / "unet")
    assert methods.weights_digest("last") != before


def test_paper_profile_from_folders(pipe, clip, tmp_path):
    """A Stable Diffusion folder with another scheduler, and an image encoder's, as the hub has them."""
    tiny.paper_parts(pipe, tmp_path)
    paper = build_paper(tmp_path / "base", tmp_path / "clip", height=32, width=64, mode="attention")
    paper.set_progress_bar_config(disable=True)
    assert paper.config.guidance_scale == 9.0 and paper.control.guidance.config.mode == "attention"
    assert paper.scheduler.config.prediction_type == "v_prediction" and not paper.scheduler.config.clip_sample
    assert paper.scheduler.config.beta_schedule == "scaled_linear"
    assert color(paper, clip, prompt="red").frames.shape == clip.shape
    with pytest.raises(FileNotFoundError, match="UNet2DConditionModel cannot be loaded from"):
        build_paper(tmp_path / "nothing", tmp_path / "clip")


def test_without_a_network_the_papers_parts_are_refused_at_once(monkeypatch):
    from huggingface_hub import constants

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(FileNotFoundError, match="cannot be loaded from 'owner/never-seen/unet'.*weights.py"):
            build_paper("owner/never-seen", "owner/never-seen-either")
        assert time.monotonic() - began < 5


# --- strength --------------------------------------------------------------------------------------------------------


def test_strength_starts_from_the_noised_hint(pipe, clip):
    rgb = clip if clip.ndim == 4 else np.repeat(clip[..., None], 3, -1)
    options = {"reference": {0: rgb[0]}, "num_keyframes": 1, "num_inference_steps": 4, "strength": 0.5}
    out = pipe(to_gray(rgb)[:2], **options, generator=seeded())
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert close(out.frames[1], by_hand.second_frame(pipe, rgb, scheduler, 4, 0.5))
    assert [run.steps for run in out.references[1]] == [2]


def test_strength_one_is_the_default_and_the_mask_ignores_strength(pipe, clip):
    assert pipe.config.strength == 1.0
    exemplar = {"reference": {0: tiny.clip(5)[0]}}
    whole = color(pipe, clip, **exemplar, strength=1.0).frames
    assert np.array_equal(whole, color(pipe, clip, **exemplar).frames)
    assert not np.array_equal(whole, color(pipe, clip, **exemplar, strength=0.5).frames)
    masked = color(pipe, clip, reference_mask=True).frames
    assert np.array_equal(masked, color(pipe, clip, reference_mask=True, strength=0.5).frames)


# --- bad input -------------------------------------------------------------------------------------------------------

_BLACK = np.zeros((3, 32, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frames": "clip.mp4"}, "frames must be a NumPy array"),
        ({"frames": _BLACK.astype(np.float32)}, "frames must be uint8"),
        ({"frames": _BLACK[:0]}, "frames holds no frames"),
        ({"frames": []}, "frames holds no frames"),
        ({"frames": _BLACK[..., :2]}, "frames must have shape"),
        ({"frames": _BLACK[0]}, "looks like one RGB frame"),
        ({"reference": {3: _BLACK[0]}}, "frame number 3, outside the clip: give one from 0 to 2"),
        ({"reference": {-1: _BLACK[0]}}, "frame number -1, outside the clip"),
        ({"reference": {"0": _BLACK[0]}}, "has the key '0'"),
        ({"reference": {True: _BLACK[0]}}, "has the key True"),
        ({"reference": _BLACK}, "reference must be one frame"),
        ({"reference": {0: _BLACK[0, ..., 0]}}, r"reference\[0\] must be one frame"),
        ({"num_keyframes": 0}, "num_keyframes must be a whole number"),
        ({"grid_size": 2.0}, "grid_size must be a whole number"),
        ({"num_inference_steps": -1}, "num_inference_steps must be a whole number"),
        ({"num_inference_steps": 1000}, "num_inference_steps must be below the scheduler's 1000 training steps"),
        ({"past_window": 0}, "past_window must be a whole number"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number"),
        ({"tau": 0}, "tau must be a number above 0"),
        ({"strength": 0}, "strength must be a number above 0"),
        ({"strength": 1.5}, "strength must be a number above 0 and at most 1"),
        ({"hint_weight": -0.1}, "hint_weight must be a number from 0 to 1"),
        ({"hint_weight": 1.5}, "hint_weight must be a number from 0 to 1"),
        ({"eta": -0.1}, "eta must be a number from 0 on"),
        ({"prompt": ["red", "blue"]}, "prompt must be one string"),
        ({"negative_prompt": None}, "negative_prompt must be one string"),
        ({"keyframe_method": "best"}, "keyframe_method must be one of auto"),
        ({"dissimilarity": "psnr"}, "dissimilarity must be one of mse"),
        ({"dissimilarity": "lpips"}, "needs network="),
        ({"single_reference": "last"}, "single_reference must be one of nearest, first"),
        ({"image_condition": "all"}, "image_condition must be None or one of patch"),
        ({"exemplar_mode": "other"}, "exemplar_mode must be one of given"),
        ({"noise": "pink"}, "noise must be one of shared"),
        ({"mask_latents": "gray"}, "mask_latents must be None or one of zeros, black"),
        ({"grid_tiles": True}, "grid_tiles must be None or one of full, shrunk"),
        ({"grid_tiles": "shrunk", "num_keyframes": 2, "grid_size": 99}, "tiles of 4 x 8 are too small"),
        ({"working_size": 256}, "working_size must be"),
        ({"working_size": (256, 0)}, "working_size must be"),
        ({"generator": 42}, "generator must be one torch.Generator"),
        ({"callback_on_step_end": 3}, "callback_on_step_end must be callable"),
        ({"callback_on_step_end": lambda p, s, t, kwargs: kwargs["latents"]}, "None or a dict, not Tensor"),
        ({"callback_on_step_end": lambda *_: {"latents": None}}, "latents of shape .*, not NoneType"),
        ({"callback_on_step_end": lambda *_: {"latents": torch.zeros(1, 4)}}, r"latents of shape .*, not \(1, 4\)"),
    ],
)
def test_bad_input(pipe, options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        pipe(**{"frames": _BLACK, "num_inference_steps": 1, **options})
    assert str(caught.value).count("\n") == 0


def test_an_unknown_option_is_refused_with_the_nearest_name(pipe):
    for colour in (pipe, pipe.color_keyframes, pipe.stream, partial(pipe.color_remaining, keyframes={0: _BLACK[0]})):
        with pytest.raises(TypeError, match="there is no option 'strenght': did you mean 'strength'?"):
            colour(_BLACK, strenght=0.5)
    with pytest.raises(TypeError, match="there is no option 'xyz': the options are prompt, .*, shortcuts"):
        pipe(_BLACK, xyz=1)
    for name in ("image", "video"):  # as other pipelines call the input
        with pytest.raises(TypeError, match="give the clip as frames="):
            pipe(**{name: _BLACK}, prompt="red")


def test_bad_input_of_the_stages_apart(pipe):
    with pytest.raises(ValueError, match="keyframes is empty"):
        pipe.color_remaining(_BLACK, {})
    with pytest.raises(ValueError, match="keyframes must be"):
        pipe.color_remaining(_BLACK, _BLACK)
    with pytest.raises(ValueError, match="keyframes has the frame number 7"):
        pipe.color_remaining(_BLACK, {7: _BLACK[0]})
    with pytest.raises(ValueError, match="put coloured frames of the clip into keyframes"):
        pipe.color_remaining(_BLACK, {0: _BLACK[0]}, reference={1: _BLACK[0]})


def test_bad_streams(pipe):
    with pytest.raises(ValueError, match="chunk_size"):
        pipe.stream(_BLACK, chunk_size=0)
    with pytest.raises(ValueError, match="iterable"):
        pipe.stream(3)
    with pytest.raises(ValueError, match="frames holds no frames"):
        list(pipe.stream([]))
    with pytest.raises(ValueError, match=r"frames\[1\] has size \(9, 9\), those before it \(32, 64\)"):
        list(pipe.stream([_BLACK[0], np.zeros((9, 9, 3), np.uint8)], num_inference_steps=1))
    with pytest.raises(ValueError, match="frame number 9, but the film ended after 3 frames"):
        list(pipe.stream(_BLACK, reference={9: _BLACK[0]}, num_inference_steps=1))


# --- diffusers' habits -----------------------------------------------------------------------------------------------


def test_frames_come_as_pil_pictures_tensors_and_lists(pipe):
    clip = tiny.clip(4)
    wanted, gray = color(pipe, clip, reference={0: clip[0]}).frames, to_gray(clip)
    tensor = torch.from_numpy(clip).permute(0, 3, 1, 2)  # (T, 3, H, W)
    pictures = [Image.fromarray(frame) for frame in clip]
    for frames in (pictures, tensor, tensor / 255, list(tensor / 255), list(clip), gray[..., None]):
        for exemplar in (pictures[0], tensor[0] / 255):
            np.testing.assert_array_equal(color(pipe, frames, reference={0: exemplar}).frames, wanted)
    streamed = pipe.stream(
        iter(pictures), reference={0: pictures[0]}, num_inference_steps=2, num_keyframes=2,
        generator=seeded(),
    )  # fmt: skip
    np.testing.assert_array_equal(list(streamed), wanted)
    with pytest.raises(ValueError, match=r"in -1..1: write \(x \+ 1\) / 2"):
        pipe(torch.linspace(-1, 1, 2 * 3 * 32 * 64).reshape(2, 3, 32, 64))


def test_output_comes_as_asked_for(pipe):
    clip = tiny.clip(3)
    wanted = color(pipe, clip).frames
    as_floats, tensor, pictures = (color(pipe, clip, output_type=kind).frames for kind in ("np", "pt", "pil"))
    np.testing.assert_array_equal(np.round(as_floats * 255), wanted)
    np.testing.assert_array_equal((tensor * 255).round().permute(0, 2, 3, 1).numpy(), wanted)
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in pictures]), wanted)
    with pytest.raises(ValueError, match="output_type must be"):
        pipe(clip, output_type="latent")


def test_height_and_width_are_the_working_size(pipe):
    clip = tiny.clip(3)
    wanted = color(pipe, clip, working_size=(48, 96)).frames
    np.testing.assert_array_equal(color(pipe, clip, height=48, width=96).frames, wanted)
    with pytest.raises(ValueError, match="working_size must be"):
        pipe(clip, height=48)


def test_an_interrupted_call_returns_what_is_coloured(pipe):
    clip, seen = tiny.clip(6), []

    def stop(pipe, step, timestep, state):
        seen.append((state["stage"], step))
        pipe._interrupt = len([stage for stage, _ in seen if stage == "remaining"]) == 3
        return {}

    out = color(pipe, clip, callback_on_step_end=stop)
    gray = np.repeat(to_gray(clip)[..., None], 3, axis=-1)
    untouched = [i for i in range(6) if np.array_equal(out.frames[i], gray[i])]
    assert seen[-1] == ("remaining", 0) and len(untouched) == 3 and not set(untouched) & set(out.keyframes)
    assert not any(np.array_equal(frame, g) for frame, g in zip(color(pipe, clip).frames, gray, strict=True))


def test_the_text_encoder_can_be_offloaded(tmp_path):
    """Offloaded to the CPU and used there: the hooks are diffusers' own, the result the same."""
    pipe, clip = tiny.pipeline(tmp_path), tiny.clip(3)
    wanted = color(pipe, clip, prompt="red car").frames
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        np.testing.assert_array_equal(color(pipe, clip, prompt="red car").frames, wanted)
    assert hasattr(pipe.text_encoder, "_hf_hook")


def test_dtype_as_text(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert GCGPipeline.from_pretrained(tmp_path, torch_dtype="float64").unet.dtype == torch.float64
    with pytest.raises(ValueError, match="dtype must be one of torch's"):
        GCGPipeline.from_pretrained(tmp_path, dtype="half-ish")
