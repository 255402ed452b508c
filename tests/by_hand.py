"""The second stage for one frame, written out step by step: what the pipeline's own loop is held against."""

from collections.abc import Callable

import numpy as np
import torch

from gcgkit import encoders
from gcgkit.color import merge_luminance, to_gray


@torch.no_grad()
def second_frame(
    pipe, clip: np.ndarray, scheduler, steps: int, strength: float, seed: int = 0, change: Callable | None = None
) -> np.ndarray:
    """Frame 1 of a clip ``(T, H, W, 3)`` coloured from frame 0 by a diffusers scheduler: ``(H, W, 3)``.

    ``change(output, latents, t, hint)`` stands between the UNet's output and the scheduler's step; the latents have the
    scheduler's own scale, as Euler's, which grow with sigma.
    """
    gray = to_gray(clip[:2])
    key = merge_luminance(gray[0], clip[0])
    g, ref_gray, ref_color = (encoders.encode(pipe.vae, x) for x in (gray[1], gray[0], key))
    tokens = encoders.image_tokens(pipe.image_encoder, pipe.feature_extractor, key)
    hint, text = pipe.control.guidance(g, ref_gray, ref_color), pipe.encode_prompt([""])
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[round(steps * (1 - strength)) :]
    noise = torch.randn(g.shape, generator=torch.Generator().manual_seed(seed))
    latents = noise * scheduler.init_noise_sigma
    if strength < 1:
        latents = scheduler.add_noise(hint.hint, noise, timesteps[:1])
    for t in timesteps:
        sample = scheduler.scale_model_input(latents, t)
        down, middle = pipe.control(sample, t, tokens, g, hint=hint, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        output = pipe.unet(sample, t, text, **residuals).sample
        if change is not None:
            output = change(output, latents, t, hint)
        latents = scheduler.step(output, t, latents).prev_sample
    return merge_luminance(gray[1], encoders.decode(pipe.vae, latents))
