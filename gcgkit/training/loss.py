"""The loss of a batch: UNet and copy as one network, the target of Eq. 11, and its parts in the log (§3.2, §3.4.2)."""

import copy
import inspect

import numpy as np
import torch
import torch.nn as nn
from diffusers.training_utils import compute_snr

from .. import encoders
from ..control import GuidedControlNet
from ..data import latent_cache
from ..data.augment import join_references
from ..data.dataset import Batch, References
from ..guidance import GuidanceOutput
from ..utils.weights import OF_PRECISION
from .config import TrainConfig


class Denoiser(nn.Module):
    """UNet and copy as one network, so that a distributed wrapper sees a single forward pass.

    ``forward`` returns the UNet's prediction, the ColorHint and the gate, each (B, C, h, w). ``dtype`` is what
    networks that are trained compute in, where they can, with their weights in float32. ``shrink``: reference grids
    have the size of one frame.
    """

    def __init__(self, unet, control: GuidedControlNet, dtype: torch.dtype = torch.float32, shrink: bool = False):
        super().__init__()
        self.unet, self.control, self.dtype, self.shrink = unet, control, dtype, shrink

    def forward(self, noisy, timestep, text, gray, references: list[References], semantics=None):
        """Predict from ``noisy`` z_t, ``gray`` (B, C, h, w), ``timestep`` (B,), ``text`` (B, L, D) and references.

        semantics: of the gray frames (B, S, h, w), for a copy that reads them.
        """
        kind, mixed = noisy.device.type, self.dtype != torch.float32
        with torch.autocast(kind, self.dtype, enabled=mixed):
            hint, tokens = self.guide(gray, references, semantics)
            residuals = self.control(noisy, timestep, tokens, gray, hint=hint)  # the hint holds the semantics too
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

    def guide(
        self, gray: torch.Tensor, references: list[References], semantics: torch.Tensor | None = None
    ) -> tuple[GuidanceOutput, torch.Tensor]:
        """Return a batch's ColorHints and its image tokens, padded to equal numbers without a change in meaning.

        References of one kind have one size, so each kind goes through the guidance by itself. In cross-attention a
        set of tokens repeated weighs as the set does, and zeros as one zero: padding by repetition is exact.
        """
        most = max([group.tokens.shape[1] * group.tokens.shape[2] for group in references] + [1])
        parts, tokens = [], []
        for group in references:
            own = gray[group.rows]
            ref_gray, ref_color = (self._join_or_zeros(latents, own) for latents in (group.gray, group.color))
            seen = of_references = None
            if semantics is not None:
                seen = semantics[group.rows]  # (b, S, h, w)
                of_references = self._join_or_zeros(group.semantics, seen)  # (b, S, h', w')
            parts.append(self.control.hint(own, ref_gray, ref_color, seen, of_references))
            of_group = group.tokens.flatten(1, 2)  # (b, n, N, D) -> (b, n*N, D)
            if of_group.shape[1] == 0:
                of_group = of_group.new_zeros(len(own), 1, of_group.shape[2])
            tokens.append(of_group.repeat(1, most // of_group.shape[1], 1))
        order = torch.cat([group.rows for group in references]).argsort()
        together = {
            name: torch.cat([getattr(part, name) for part in parts])[order]
            for name in ("hint", "color", "gate", "features")
        }
        return GuidanceOutput(**together, semantics=semantics), torch.cat(tokens)[order]

    def _join_or_zeros(self, latents: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Join references (b, n, C, h, w) into one picture each: (b, C, h', w'); zeros for n = 0."""
        return join_references(latents, self.shrink) if latents.shape[1] else torch.zeros_like(like)


def _float(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.float()


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
    """Encode a batch of pixels into latents, image tokens and semantic features with the pipeline's own encoders."""
    if batch.encoded:
        return batch

    def latents(pixels: torch.Tensor) -> torch.Tensor:
        flat = pixels.flatten(0, -4)  # (..., c, H, W) -> (n, c, H, W)
        flat = flat.expand(-1, 3, -1, -1)  # gray as RGB with equal channels
        chunks = [encoders.encode_pixels(pipe.vae, chunk) for chunk in flat.split(latent_cache.CHUNK)]
        return torch.cat(chunks).unflatten(0, pixels.shape[:-3])

    def semantics_of(pixels: torch.Tensor) -> torch.Tensor | None:
        found = encoders.semantics(pipe, pixels.flatten(0, -3).cpu().numpy())  # (..., 1, H, W) -> (n, H, W)
        return None if found is None else found.unflatten(0, pixels.shape[:-3])

    target, gray, semantics = latents(batch.target), latents(batch.gray), semantics_of(batch.gray)
    groups = []
    for group in batch.references:
        count, tiles = group.color.shape[:2]
        if tiles:
            shown = group.color.flatten(0, 1).permute(0, 2, 3, 1).cpu().numpy()  # (b*n, H, W, 3)
            tokens = latent_cache.encode_tokens(pipe, shown, condition, device).unflatten(0, (count, tiles))
            encoded = latents(group.color), latents(group.gray), tokens, semantics_of(group.gray)
            groups.append(References(group.kind, group.rows, *encoded))
        else:
            empty = target.new_zeros(count, 0, *target.shape[1:])
            tokens = target.new_zeros(count, 0, 1, pipe.image_encoder.config.projection_dim)
            unseen = None if semantics is None else target.new_zeros(count, 0, *semantics.shape[1:])
            groups.append(References(group.kind, group.rows, empty, empty, tokens, unseen))
    return Batch(target, gray, groups, batch.captions, batch.seeds, batch.labels, encoded=True, semantics=semantics)


@torch.no_grad()
def black_latents(pipe, size: tuple[int, int], device: torch.device | str) -> torch.Tensor:
    """Encode a black picture of a size (height, width) on a device: ``(1, C, h, w)`` float32.

    The autoencoder goes back to where it was.
    """
    home = pipe.vae.device
    latents = encoders.encode(pipe.vae.to(device), np.zeros(size, np.uint8), device).float()
    pipe.vae.to(home)
    return latents


def draw_noise(seeds: list[int], like: torch.Tensor, timesteps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw noise (B, C, h, w) and timestep (B,), uniform as in Eq. 11, each sample's from its own seed."""
    noise, steps = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        steps.append(torch.randint(timesteps, (1,), generator=generator))
        noise.append(torch.randn(like.shape[1:], generator=generator))
    return torch.stack(noise).to(like.device), torch.cat(steps).to(like.device)


class Objective:
    """Eq. 11 for a pipeline in training, with the configuration's additions: batch in, loss and log entries out.

    Args:
        config: the run's configuration.
        pipe: a ``GCGPipeline`` with the parts; its control, and with ``model.joint`` its UNet, are to be trained.
        device: of what is trained and of the text encoder.
        precision: "no", "bf16" or "fp16".

    ``network`` is what learns. Put the one that accelerate prepared in its place.
    """

    def __init__(self, config: TrainConfig, pipe, device: torch.device | str, precision: str = "no"):
        self.config, self.pipe, self.device, self.dtype = config, pipe, device, OF_PRECISION[precision]
        run, joint = config.run, config.model.joint
        self.frozen_dtype = self.dtype if run.frozen_dtype == "auto" else getattr(torch, run.frozen_dtype)
        self.scheduler = copy.deepcopy(pipe.scheduler)  # a validation sets the pipeline's own to its steps
        cast = nn.Module.to  # diffusers' own warns of layers to be kept in float32, of which these models have none
        frozen = (pipe.vae, pipe.text_encoder, pipe.image_encoder, pipe.semantic_encoder)
        for part in filter(None, frozen):
            cast(part.requires_grad_(False).eval(), self.frozen_dtype)
        pipe.text_encoder.to(device)
        dtype = torch.float32 if joint else self.frozen_dtype
        cast(pipe.unet.requires_grad_(joint), device=device, dtype=dtype)
        cast(pipe.control.requires_grad_(True), device=device, dtype=torch.float32)
        if pipe.control.pyramid is not None:  # it belongs to the semantic encoder, and stays as it is
            pipe.control.pyramid.requires_grad_(False)
        if torch.device(device).type == "cuda":
            for part in (pipe.unet, pipe.control):
                part.to(memory_format=torch.channels_last)  # in which its convolutions in half precision are fastest
        if run.gradient_checkpointing:
            pipe.unet.enable_gradient_checkpointing()
            pipe.control.unet_copy.enable_gradient_checkpointing()
        if run.compile:
            compile_for_training(pipe)
        self.black = None  # latents under the reference mask, where they are not zeros
        if config.model.mask_latents == "black":
            self.black = black_latents(pipe, (config.data.height, config.data.width), device)
        self.network = Denoiser(pipe.unet, pipe.control, self.dtype, config.model.grid_tiles == "shrunk")

    def encode(self, batch: Batch) -> Batch:
        """Encode a batch into latents on the device."""
        return encode_batch(batch.to(self.device), self.pipe, self.config.model.image_condition, self.device)

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the ``objective`` to minimise, and by kind of reference what goes to the log, each sample's (b,).

        That is Eq. 11's plain error ``loss``, whatever weights it has in the objective, and the mean gate.
        """
        batch, settings, mode = self.encode(batch), self.config.loss, self.config.model.mode
        target, gray = batch.target.float(), batch.gray.float()
        noise, timestep = draw_noise(batch.seeds, target, self.scheduler.config.num_train_timesteps)
        noisy = self.scheduler.add_noise(target, noise, timestep)
        with torch.no_grad():
            tokenizer, encoder = self.pipe.tokenizer, self.pipe.text_encoder
            text = encoders.text_embeddings(tokenizer, encoder, batch.captions, self.device)
        groups = [
            References(
                g.kind, g.rows, g.color.float(), g.gray.float(), g.tokens.to(self.dtype), _float(g.semantics)
            )
            for g in batch.references
        ]  # fmt: skip
        for group in groups if self.black is not None else ():
            if group.kind == "mask":  # one black reference each, of which no image tokens are read
                group.color = group.gray = self.black.expand(len(group.rows), 1, -1, -1, -1)
        prediction, hint, gate = self.network(noisy, timestep, text, gray, groups, _float(batch.semantics))
        goal = denoising_target(self.scheduler, target, noise, timestep)
        errors = (prediction.float() - goal).square().mean((1, 2, 3))  # (B, C, h, w) -> (B,), Eq. 11
        weighted = errors
        if settings.snr_gamma:
            weighted = errors * snr_weights(self.scheduler, timestep, settings.snr_gamma)
        objective = weighted.mean()
        if settings.hint_weight and mode != "concat":
            hint_errors = (hint.float() - target).square().mean((1, 2, 3))
            if mode == "attention":  # without a gate there is no way to decline a reference that does not match
                for group in groups:
                    if group.kind not in ("single", "grid"):
                        hint_errors = hint_errors.index_fill(0, group.rows, 0.0)
            objective = objective + settings.hint_weight * hint_errors.mean()
        logged = {"loss": errors.detach()}
        for group in groups:
            logged[f"loss_{group.kind}"] = errors.detach()[group.rows]
            if mode == "gated":
                logged[f"gate_{group.kind}"] = gate.detach()[group.rows].float().mean((1, 2, 3))
        return {"objective": objective, **logged}

    def trained_pipeline(self, weights: dict[str, torch.Tensor], dtype: torch.dtype):
        """Return a pipeline with copies of the network's weights in a dtype, and the other parts unchanged.

        weights: of what learns, by name; the rest of the network is as it was. Using the pipeline does not touch the
        training.
        """
        parts = dict(self.pipe.components)
        for name in ["control"] + ["unet"] * self.config.model.joint:
            source = getattr(self.pipe, name)
            # All values as they are: diffusers marks those that were given by position as defaults, to be left out.
            config = {key: value for key, value in source.config.items() if key != "_use_default_values"}
            with torch.device("meta"):  # no weights that would only be replaced
                part = type(source).from_config(config)
            own = {key: weights.get(f"{name}.{key}", weight) for key, weight in source.state_dict().items()}
            copied = {k: w.detach().to(dtype, copy=True).contiguous() for k, w in own.items()}
            part.load_state_dict(copied, assign=True)
            parts[name] = part.requires_grad_(False).eval()
        parts["scheduler"] = copy.deepcopy(self.scheduler)
        options = inspect.signature(type(self.pipe).__init__).parameters
        own = {name: value for name, value in self.pipe.config.items() if name in options and name not in parts}
        own |= {name: getattr(self.config.model, name) for name in ("mask_latents", "grid_tiles", "image_condition")}
        return type(self.pipe)(**parts, **own)


def compile_for_training(pipe, backend: str = "inductor") -> None:
    """Compile a pipeline's UNet and UNet copy in place, for the static shapes of a training run's batches.

    Kernels are fused, forwards and backwards; there are no CUDA graphs, which would hold gradients in their own memory.
    A batch whose references have another number of image tokens is another shape, and compiled by itself.
    """
    for part in (pipe.unet, pipe.control.unet_copy):
        part.compile(dynamic=False, backend=backend)
