"""Other solvers: held against diffusers' own schedulers, stepped by hand over the UNet's own predictions."""

import by_hand
import diffusers
import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from test_pipeline import color, seeded

from gcgkit.color import to_gray
from gcgkit.pipeline import GCGPipeline
from gcgkit.settings import SOLVERS
from gcgkit.utils.solvers import KINDS, scheduler_for

ZERO_SNR = {"prediction_type": "sample", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return tiny.clip(3)


@pytest.fixture(
    scope="module", params=[{}, {**ZERO_SNR, "set_alpha_to_one": True, "steps_offset": 0}], ids=["epsilon", "mini"]
)
def pipe(tmp_path_factory, request) -> GCGPipeline:
    """A tiny pipeline with Stable Diffusion's kind of schedule, or the mini profile's."""
    pipe = tiny.pipeline(tmp_path_factory.mktemp("tiny"))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **request.param)
    return pipe


def kind(solver: str) -> type:
    """Return the scheduler's class, which a new solver's author has named."""
    return getattr(diffusers, KINDS[solver])


def test_the_names_mean_the_published_solvers():
    wanted = {"ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}
    assert {solver: kind(solver) for solver in wanted} == wanted and SOLVERS[0] == "ddim"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_frames_are_those_of_diffusers_own_scheduler(pipe, clip, solver, strength):
    """One exemplar, one frame, written out step by step."""
    options = {"reference": {0: clip[0]}, "num_keyframes": 1, "num_inference_steps": 6}
    out = pipe(to_gray(clip)[:2], **options, strength=strength, solver=solver, generator=seeded())
    scheduler = kind(solver).from_config(pipe.scheduler.config)
    wanted = by_hand.second_frame(pipe, clip, scheduler, 6, strength)
    assert np.abs(out.frames[1].astype(int) - wanted).max() <= 1


def test_the_multistep_solvers_take_other_steps(pipe, clip):
    """Six steps from noise differ; a single one is the prediction of the clean sample for all three."""
    options = {"reference": {0: clip[0]}, "num_keyframes": 1, "seed": 3}
    many = [color(pipe, clip, **options, num_inference_steps=6, solver=solver).frames for solver in SOLVERS]
    assert all(not np.array_equal(a, b) for i, a in enumerate(many) for b in many[:i])
    assert np.array_equal(many[0], color(pipe, clip, **options, num_inference_steps=6).frames)
    if pipe.scheduler.config.prediction_type == "sample":
        first, *others = (
            color(pipe, clip, **options, num_inference_steps=1, solver=solver).frames for solver in SOLVERS
        )
        assert all(np.abs(first.astype(int) - other).max() <= 1 for other in others)


def test_a_call_leaves_the_pipelines_own_scheduler_as_it_was(pipe, clip):
    pipe.scheduler.set_timesteps(7)
    before = color(pipe, clip, num_inference_steps=3).frames
    pipe.scheduler.set_timesteps(7)
    color(pipe, clip, num_inference_steps=3, solver="unipc")
    assert isinstance(pipe.scheduler, DDIMScheduler) and len(pipe.scheduler.timesteps) == 7
    assert np.array_equal(before, color(pipe, clip, num_inference_steps=3).frames)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_noise_schedule_stays(pipe, solver):
    made = scheduler_for(pipe.scheduler, solver)
    assert isinstance(made, kind(solver)) and made is not pipe.scheduler
    assert made.config.prediction_type == pipe.scheduler.config.prediction_type
    # diffusers keeps the last one of a schedule that ends in nothing but noise a little above 0, or its sigma were inf
    assert torch.allclose(made.alphas_cumprod, pipe.scheduler.alphas_cumprod, atol=1e-7)
    made.set_timesteps(8)
    pipe.scheduler.set_timesteps(8)
    if pipe.scheduler.config.timestep_spacing == "trailing":
        assert made.timesteps.tolist() == pipe.scheduler.timesteps.tolist()
    assert scheduler_for(pipe.scheduler, None) is pipe.scheduler


def test_keyframes_and_stretches_go_by_a_solver_too(pipe, clip):
    longer = tiny.clip(6)
    options = {"solver": "dpm++", "num_inference_steps": 4, "use_srg": False}
    one, many = (color(pipe, longer, **options, side_by_side=n).frames for n in (1, 3))
    assert np.abs(one.astype(int) - many).max() <= 1
    key = color(pipe, clip, num_keyframes=3, num_inference_steps=4).frames
    assert not np.array_equal(key, color(pipe, clip, num_keyframes=3, num_inference_steps=4, solver="dpm++").frames)


@pytest.mark.parametrize("wrong", ["nosuch", "", 2, ["ddim"]])
def test_an_unknown_solver_is_told(pipe, clip, wrong):
    with pytest.raises(ValueError, match="solver must be None or one of ddim, dpm\\+\\+, unipc"):
        color(pipe, clip, solver=wrong)
