"""One training step's computation: the network on a batch, and the target of Eq. 11 (§3.2, §3.4.2)."""

from __future__ import annotations

import torch
import torch.nn as nn
from diffusers.training_utils import compute_snr

from .. import encoders as conditioning
from ..control import GuidedControlNet
from ..data import latent_cache
from ..data.dataset import Batch, References
from ..guidance import GuidanceOutput
from ..srg import make_grid


class Denoiser(nn.Module):
    """UNet and copy as one network, so that a distributed wrapper sees a single forward pass.

    ``forward`` returns the UNet's prediction, the ColorHint and the gate, each (B, C, h, w). ``dtype`` is what
    networks that are trained compute in, where they can, with their weights in float32.
    """

    def __init__(self, unet, control: GuidedControlNet, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.unet, self.control, self.dtype = unet, control, dtype

    def forward(self, noisy, timestep, text, gray, references: list[References]):
        """Predict from ``noisy`` z_t, ``gray`` (B, C, h, w), ``timestep`` (B,), ``text`` (B, L, D) and references."""
        kind, mixed = noisy.device.type, self.dtype != torch.float32
        with torch.autocast(kind, self.dtype, enabled=mixed):
            hint, tokens = self.guide(gray, references)
            residuals = self.control(noisy, timestep, tokens, gray, hint=hint)
        dtype, frozen = self.unet.dtype, not next(self.unet.parameters()).requires_grad
        # A frozen UNet in half precision needs no autocast, which would only run its normalisations in float32.
        with torch.autocast(kind, self.dtype, enabled=mixed and not frozen):
            prediction = self.unet(
                noisy.to(dtype),
                timestep,
                text.to(dtype),
                down_block_additional_residuals=[r.to(dtype) for r in residuals.down_block_res_samples],
                mid_block_additional_residual=residuals.mid_block_res_sample.to(dtype),
            ).sample
        return prediction, hint.hint, hint.gate

    def guide(self, gray: torch.Tensor, references: list[References]) -> tuple[GuidanceOutput, torch.Tensor]:
        """Return a batch's ColorHints and its image tokens, padded to equal numbers without a change in meaning.

        References of one kind have one size, so each kind goes through the guidance by itself. In cross-attention a
        set of tokens repeated weighs as the set does, and zeros as one zero: padding by repetition is exact.
        """
        most = max([group.tokens.shape[1] * group.tokens.shape[2] for group in references] + [1])
        parts, tokens = [], []
        for group in references:
            own = gray[group.rows]
            ref_gray, ref_color = (_join(latents, own) for latents in (group.gray, group.color))
            parts.append(self.control.hint(own, ref_gray, ref_color))
            of_group = group.tokens.flatten(1, 2)  # (b, n, N, D) -> (b, n*N, D)
            if of_group.shape[1] == 0:
                of_group = of_group.new_zeros(len(own), 1, of_group.shape[2])
            tokens.append(of_group.repeat(1, most // of_group.shape[1], 1))
        order = torch.cat([group.rows for group in references]).argsort()
        together = {
            name: torch.cat([getattr(part, name) for part in parts])[order]
            for name in ("hint", "color", "gate", "features")
        }
        return GuidanceOutput(**together), torch.cat(tokens)[order]


def _join(latents: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Join references (b, n, C, h, w) into one picture each: (b, C, h', w'); zeros for the mask, n = 0."""
    if latents.shape[1] == 0:
        return torch.zeros_like(like)
    if latents.shape[1] == 1:
        return latents[:, 0]
    return torch.stack([make_grid(tiles) for tiles in latents])


def denoising_target(scheduler, clean: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Return the UNet's target at a timestep (B,), by the scheduler's prediction type: (B, C, h, w).

    Raises ValueError for a type that is none of epsilon, v_prediction and sample.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(clean, noise, timestep)
    if kind == "sample":
        return clean
    raise ValueError(f"the scheduler's prediction_type is {kind!r}; epsilon, v_prediction or sample can be trained.")


def snr_weights(scheduler, timestep: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return Min-SNR weights (Hang et al. 2023) of squared errors at a timestep (B,), by the prediction type: (B,)."""
    snr = compute_snr(scheduler, timestep)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return (gamma / snr.clamp(min=1e-12)).clamp(max=1.0)  # min(snr, gamma) / snr, also where there is only noise
    return snr.clamp(max=gamma) / (snr + 1 if kind == "v_prediction" else 1)


@torch.no_grad()
def encode_batch(batch: Batch, pipe, condition: str, device: torch.device | str) -> Batch:
    """Encode a batch of pixels into latents and image tokens with the pipeline's own encoders."""
    if batch.encoded:
        return batch

    def latents(pixels: torch.Tensor) -> torch.Tensor:
        flat = pixels.flatten(0, -4)  # (..., c, H, W) -> (n, c, H, W)
        flat = flat.expand(-1, 3, -1, -1)  # gray as RGB with equal channels
        chunks = [conditioning.encode_pixels(pipe.vae, chunk) for chunk in flat.split(latent_cache.CHUNK)]
        return torch.cat(chunks).unflatten(0, pixels.shape[:-3])

    target, gray = latents(batch.target), latents(batch.gray)
    groups = []
    for group in batch.references:
        count, tiles = group.color.shape[:2]
        if tiles:
            shown = group.color.flatten(0, 1).permute(0, 2, 3, 1).cpu().numpy()  # (b*n, H, W, 3)
            tokens = latent_cache.encode_tokens(pipe, shown, condition, device).unflatten(0, (count, tiles))
            groups.append(References(group.kind, group.rows, latents(group.color), latents(group.gray), tokens))
        else:
            empty = target.new_zeros(count, 0, *target.shape[1:])
            width = pipe.image_encoder.config.projection_dim
            groups.append(References(group.kind, group.rows, empty, empty, target.new_zeros(count, 0, 1, width)))
    return Batch(target, gray, groups, batch.captions, batch.seeds, batch.labels, encoded=True)


def draw_noise(seeds: list[int], like: torch.Tensor, timesteps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw noise (B, C, h, w) and timestep (B,), uniform as in Eq. 11, each sample's from its own seed."""
    noise, steps = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        steps.append(torch.randint(timesteps, (1,), generator=generator))
        noise.append(torch.randn(like.shape[1:], generator=generator))
    return torch.stack(noise).to(like.device), torch.cat(steps).to(like.device)
