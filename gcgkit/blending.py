"""Blending the ColorHint into what the UNet predicts, where the gate is open (on top of Eq. 5).

As blended latent diffusion (Avrahami et al. 2023) keeps the known part of a picture under a mask, so the gate, which
says how far the reference's colour is to be trusted, keeps that colour: what the gate lets through need not be copied
by the UNet, which is left with what the reference does not show. The paper has no such step: its weight is zero there.
"""

from __future__ import annotations

import torch

from .guidance import GuidanceOutput


def toward_hint(
    scheduler, output: torch.Tensor, latents: torch.Tensor, timestep, hint: GuidanceOutput, weight: float
) -> torch.Tensor:
    """The UNet's output, changed so that its clean latents x become ``x + weight * gate * (color - x)``.

    ``output`` and ``latents`` z_t (B, C, h, w), ``hint`` of the same frames; ``timestep`` is one of the scheduler's,
    which also says what the output stands for. Weight 0 leaves it as it is; at weight 1 an open gate leaves nothing of
    it. Raises ValueError for a prediction type that is none of epsilon, v_prediction and sample.
    """
    share = scheduler.alphas_cumprod[int(timestep)]  # a tensor still: its value would have to come from the GPU
    signal, noise = share.sqrt(), (1 - share).sqrt()
    kind = scheduler.config.prediction_type
    if kind == "sample":
        clean, per_output = output, 1.0
    elif kind == "epsilon":  # z = signal * x + noise * epsilon
        clean, per_output = (latents - noise * output) / signal, -signal / noise
    elif kind == "v_prediction":  # v = signal * epsilon - noise * x
        clean, per_output = signal * latents - noise * output, -1 / noise
    else:
        raise ValueError(f"the scheduler's prediction_type is {kind!r}; none of epsilon, v_prediction and sample.")
    return output + per_output * weight * hint.gate * (hint.color - clean)
