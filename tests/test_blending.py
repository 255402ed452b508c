"""The ColorHint blended in: held against diffusers' own reading of a prediction, and written out by hand."""

import by_hand
import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from test_pipeline import color, seeded

from gcgkit import encoders
from gcgkit.color import merge_luminance, to_gray
from gcgkit.evaluation.ablations import fixed_gate
from gcgkit.guidance import GuidanceOutput, toward_hint
from gcgkit.settings import SOLVERS


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return tiny.clip(4)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny.pipeline(tmp_path_factory.mktemp("tiny"))


def random_hint(shape: tuple[int, ...]) -> GuidanceOutput:
    gray, wanted = torch.randn(2, *shape, generator=seeded(1))
    gate = torch.rand(shape, generator=seeded(2))
    hint = gray * (1 - gate) + wanted * gate
    return GuidanceOutput(hint=hint, color=wanted, gate=gate, features=hint)


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_clean_prediction_is_blended_whatever_the_unet_predicts(kind, weight):
    """What DDIM's own step takes an output to mean is the judge."""
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(5)
    output, latents = torch.randn(2, 3, 4, 5, 6, generator=seeded())
    hint = random_hint(output.shape)
    for timestep in scheduler.timesteps:
        before = scheduler.step(output, timestep, latents).pred_original_sample
        changed = toward_hint(scheduler, output, latents, timestep, hint, weight)
        after = scheduler.step(changed, timestep, latents).pred_original_sample
        share = (weight * hint.gate).numpy()
        wanted = before.numpy() * (1 - share) + hint.color.numpy() * share
        np.testing.assert_allclose(after.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_an_unknown_prediction_type_is_refused():
    scheduler = DDIMScheduler(prediction_type="flow")
    zeros = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="prediction_type is 'flow'"):
        toward_hint(scheduler, zeros, zeros, 10, random_hint(zeros.shape), 1.0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_open_gate_leaves_the_references_colors(pipe, clip, solver):
    """With the gate held open and the whole weight, every way of denoising ends at the colours that CGA fetched."""
    gray = to_gray(clip)
    options = {"reference": {0: clip[0]}, "num_keyframes": 1, "num_inference_steps": 5, "hint_weight": 1.0}
    final_alpha = pipe.scheduler.config.set_alpha_to_one
    pipe.scheduler.register_to_config(set_alpha_to_one=True)  # the last step ends at the clean latents themselves
    try:
        with torch.no_grad(), fixed_gate(pipe.control.guidance, 1.0):
            out = pipe(gray[:2], generator=seeded(), solver=solver, **options).frames
            key = merge_luminance(gray[0], clip[0])
            g, ref_gray, ref_color = (encoders.encode(pipe.vae, x) for x in (gray[1], gray[0], key))
            fetched = pipe.control.guidance(g, ref_gray, ref_color).color
    finally:
        pipe.scheduler.register_to_config(set_alpha_to_one=final_alpha)
    wanted = merge_luminance(gray[1], encoders.decode(pipe.vae, fetched))
    assert np.abs(out[1].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_each_step_is_blended(pipe, clip, strength):
    """One frame under the learned gate with half the weight; the UNet predicts the noise."""
    options = {"reference": {0: clip[0]}, "num_keyframes": 1, "num_inference_steps": 4}
    out = pipe(to_gray(clip)[:2], **options, strength=strength, hint_weight=0.5, generator=seeded())
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def blended(epsilon, latents, t, hint):
        signal, noise = scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt()
        clean = (latents - noise * epsilon) / signal
        clean = clean + 0.5 * hint.gate * (hint.color - clean)
        return (latents - signal * clean) / noise

    wanted = by_hand.second_frame(pipe, clip, scheduler, 4, strength, change=blended)
    assert np.abs(out.frames[1].astype(int) - wanted).max() <= 1


@pytest.mark.parametrize(("weight", "gate"), [(1.0, 1.0), (0.5, 0.7)])
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("karras", [False, True])  # whose timesteps lie between those of training
def test_eulers_steps_are_blended_at_their_own_scale(pipe, clip, weight, gate, strength, karras):
    """Euler's latents are x + sigma * epsilon, of any size; at the whole weight and an open gate, x is the hint's."""
    own, options = pipe.scheduler, {"reference": {0: clip[0]}, "num_keyframes": 1, "num_inference_steps": 4}

    def blended(epsilon, latents, t, hint):
        sigma = scheduler.sigmas[scheduler.step_index]
        share, clean = weight * gate, latents - sigma * epsilon
        return (latents - (1 - share) * clean - share * hint.color) / sigma

    pipe.scheduler = EulerDiscreteScheduler.from_config(own.config, use_karras_sigmas=karras)
    scheduler = EulerDiscreteScheduler.from_config(own.config, use_karras_sigmas=karras)
    try:
        with torch.no_grad(), fixed_gate(pipe.control.guidance, gate):
            gray, how = to_gray(clip)[:2], {"strength": strength, "hint_weight": weight}
            out = pipe(gray, **options, **how, generator=seeded()).frames
            wanted = by_hand.second_frame(pipe, clip, scheduler, 4, strength, change=blended)
    finally:
        pipe.scheduler = own
    assert np.abs(out[1].astype(int) - wanted).max() <= 1


def test_keyframes_are_blended_too_and_the_mask_is_not(pipe, clip):
    assert pipe.config.hint_weight == 0.0
    exemplar = {"reference": {0: clip[0]}, "num_keyframes": 4}  # all frames are keyframes, coloured jointly
    plain = color(pipe, clip, **exemplar).frames
    assert np.array_equal(plain, color(pipe, clip, **exemplar, hint_weight=0.0).frames)
    assert not np.array_equal(plain, color(pipe, clip, **exemplar, hint_weight=1.0).frames)
    for masked in ({"num_keyframes": 4}, {**exemplar, "num_keyframes": 2, "reference_mask": True}):
        without = color(pipe, clip, **masked).frames
        assert np.array_equal(without, color(pipe, clip, **masked, hint_weight=1.0).frames)
