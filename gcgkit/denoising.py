"""Denoising of frames under their ColorHints (§3.2): the frozen UNet with its copy, text guidance, and the solver.

Both stages use it, stage 1 for a batch of keyframes, stage 2 for one frame, or for one of each stretch.
"""

import inspect
from collections.abc import Iterable
from contextlib import nullcontext

import torch
from diffusers.utils.torch_utils import randn_tensor

from . import attention
from .guidance import GuidanceOutput, toward_hint
from .settings import Settings
from .utils import compilation
from .utils.solvers import scheduler_for


class DenoisingLoop:
    """One call's text embeddings, noise and scheduler, and the loop over the denoising steps.

    settings: completed. size: the latents' (h, w). Raises ValueError for a generator that is not one torch.Generator.
    """

    def __init__(self, pipe, settings: Settings, size: tuple[int, int], generator: torch.Generator | None):
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator must be one torch.Generator or None, not {type(generator).__name__}.")
        self.pipe, self.settings = pipe, settings
        self.device, self.dtype = pipe._execution_device, pipe.unet.dtype
        # Text: (2, N, D) [negative, prompt], or (1, N, D) where guidance would change nothing.
        text = pipe.encode_prompt([settings.negative_prompt, settings.prompt]).to(self.device, self.dtype)
        if settings.guidance_scale == 1 or torch.equal(text[0], text[1]):
            text = text[1:]
        networks = pipe.unet, pipe.control.unet_copy
        self.projected = settings.shortcuts.keys and all(map(attention.usable, networks))
        self.text = attention.keys_and_values(pipe.unet, text) if self.projected else text
        self._reading = attention.ReadingProjected(*networks) if self.projected else nullcontext()
        # Everything random follows from these two draws: both stages of one seed share them, called together or apart.
        shape = (1, pipe.unet.config.in_channels, *size)
        self._noise = randn_tensor(shape, generator=generator, device=self.device, dtype=self.dtype)
        self.noise_device = generator.device if generator is not None else torch.device("cpu")
        self.seed = int(torch.randint(2**62, (1,), generator=generator, device=self.noise_device))
        self.scheduler = scheduler_for(pipe.scheduler, settings.solver)
        # The colour guess knows no words, so with some a frame starts from noise.
        self.starts_from_guess = None not in (pipe.semantic_encoder, pipe.control.pyramid) and not settings.prompt

    def timesteps(self, guided: bool) -> torch.Tensor:
        """Set the scheduler, and return its timesteps, the last ones by ``strength`` or ``guess_strength``.

        They are on the CPU: asking a GPU for them would wait until it has caught up. Raises ValueError for more steps
        than the scheduler was trained with.
        """
        count, scheduler = self.settings.num_inference_steps, self.scheduler
        scheduler.set_timesteps(count, device="cpu")
        most = scheduler.config.num_train_timesteps
        if float(scheduler.timesteps.max()) >= most:  # as diffusers' steps_offset makes of the last few
            raise ValueError(f"num_inference_steps must be below the scheduler's {most} training steps, not {count}.")
        share = self.settings.guess_strength if self.starts_from_guess else 1.0
        skipped = count - max(1, round((self.settings.strength if guided else share) * count))
        if hasattr(scheduler, "set_begin_index"):  # a multistep solver would look a timestep up that may come twice
            scheduler.set_begin_index(skipped)
        return scheduler.timesteps[skipped:]

    def noise(self, frames: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Generator]]:
        """Starting noise ``(m, C, h, w)`` of some frames, and a generator for each one's later draws."""
        generators = [torch.Generator(self.noise_device).manual_seed(self.seed + frame) for frame in frames]
        if self.settings.noise == "shared":
            return self._noise.expand(len(frames), -1, -1, -1).clone(), generators
        noise = [randn_tensor(self._noise.shape, generator=g, device=self.device, dtype=self.dtype) for g in generators]
        return torch.cat(noise), generators

    def __call__(
        self,
        gray: torch.Tensor,
        frames: tuple[int, ...],
        stage: str,
        timesteps: torch.Tensor,
        guidance: Iterable[tuple[GuidanceOutput, torch.Tensor]],
        guided: bool,
        bar=None,
    ) -> torch.Tensor:
        """Denoise m frames together: gray latents ``(m, C, h, w)`` -> clean latents ``(m, C, h, w)``.

        timesteps: as the method gives them. guidance: for each of them the frames' ColorHints and image tokens.
        guided: the frames have references. Frames that skip steps start from their ColorHints, or without references
        from the copy's colour guess, noised as far.
        Classifier-free guidance is on text only: the copy sees no text, so it runs once per step and its residuals
        serve both halves.
        """
        settings, scheduler, count, halves = self.settings, self.scheduler, len(frames), len(self.text)
        text = self.text.repeat_interleave(count, 0)  # (halves*m, N, D or W), a half's frames side by side
        noise, generators = self.noise(frames)
        noise = noise * settings.noise_scale
        accepted = inspect.signature(scheduler.step).parameters
        options = {"eta": settings.eta, "generator": generators if count > 1 else generators[0]}
        options = {name: value for name, value in options.items() if name in accepted}
        latents = noise * scheduler.init_noise_sigma
        skipped = len(scheduler.timesteps) - len(timesteps)
        if bar is not None:
            bar.update(skipped)
        steps = zip(timesteps, timesteps.to(self.device), guidance, strict=True)
        for step, (now, timestep, (hint, tokens)) in enumerate(steps):
            if step == 0 and skipped:
                start = hint.hint if guided else self.pipe.control.guess(gray, hint.semantics)
                latents = scheduler.add_noise(start, noise, now.expand(count))
            sample = scheduler.scale_model_input(latents, now)
            with self._reading:
                output = self.predict(sample, timestep, text, gray, hint, tokens, self.projected)
            if halves == 2:
                negative, positive = output.chunk(2)
                output = negative + settings.guidance_scale * (positive - negative)
            if guided and settings.hint_weight:
                output = toward_hint(scheduler, output, sample, now, hint, settings.hint_weight)
            latents = scheduler.step(output, now, latents, **options).prev_sample
            latents = self._call_back(step, timestep, latents, stage, frames)
            if bar is not None:
                bar.update()
            if self.pipe.interrupt:
                break
        return latents

    def predict(self, sample, timestep, text, gray, hint, tokens, projected: bool = False) -> torch.Tensor:
        """Predict as the UNet does for m samples under n texts each, ``(n*m, N, D)``, text by text: ``(n*m, C, h, w)``.

        projected: of text and image tokens the keys and values are given, ``(n*m, N, W)`` and ``(m, N, W')``.
        """
        pipe, shortcuts, halves = self.pipe, self.settings.shortcuts, len(text) // len(sample)
        compilation.begin_step(pipe)
        repeat = lambda x: x.repeat(halves, *[1] * (x.ndim - 1))  # noqa: E731  (m, ...) -> (halves*m, ...)
        if shortcuts.copy:
            residuals = pipe.control(sample, timestep, tokens, gray, hint=hint, projected=projected)
            down, mid = [repeat(r) for r in residuals.down_block_res_samples], repeat(residuals.mid_block_res_sample)
        else:
            hint = GuidanceOutput(**{name: repeat(part) for name, part in hint.items()})
            given = [repeat(part) for part in (tokens, gray)]
            residuals = pipe.control(repeat(sample), timestep, *given, hint=hint, projected=projected)
            down, mid = residuals.down_block_res_samples, residuals.mid_block_res_sample
        size = len(text) if shortcuts.halves else len(sample)
        outputs, samples = [], repeat(sample)
        for part in (slice(i, i + size) for i in range(0, len(text), size)):
            added = {"down_block_additional_residuals": [r[part] for r in down]}
            added["mid_block_additional_residual"] = mid[part]
            outputs.append(pipe.unet(samples[part], timestep, encoder_hidden_states=text[part], **added).sample)
        return torch.cat(outputs)

    def _call_back(self, step: int, timestep, latents: torch.Tensor, stage: str, frames: tuple[int, ...]):
        callback = self.settings.callback_on_step_end
        if callback is None:
            return latents
        changed = callback(self.pipe, step, timestep, {"latents": latents, "stage": stage, "frames": frames})
        if changed is not None and not isinstance(changed, dict):
            raise ValueError(f"callback_on_step_end must return None or a dict, not {type(changed).__name__}.")
        changed = (changed or {}).get("latents", latents)
        if not isinstance(changed, torch.Tensor) or changed.shape != latents.shape:
            wanted, given = tuple(latents.shape), tuple(getattr(changed, "shape", ())) or type(changed).__name__
            raise ValueError(f"callback_on_step_end must return latents of shape {wanted}, not {given}.")
        return changed
