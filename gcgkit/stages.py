"""The two stages of colouring, on latents: keyframes jointly (§3.3), then every other frame with references (§3.4).

A ``Run`` holds what one call of the pipeline needs throughout. Frames go through one at a time, so that memory does not
grow with the clip.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from . import conditioning, keyframes, srg
from .attention import joint_self_attention
from .color import merge_luminance
from .references import Reference, ReferencePool, ReferenceRun, join_references, run_lengths

NOISES = ("shared", "independent")
SINGLE_REFERENCES = ("nearest", "first")
EXEMPLAR_MODES = ("given", "literal")


@dataclass(frozen=True)
class Settings:
    """Options of a colouring; every public method of the pipeline takes them as keywords.

    prompt, negative_prompt: what the colours should and should not be; classifier-free guidance acts on text only.
    num_inference_steps: denoising steps per frame. guidance_scale: None for the profile's own.
    grid_size: references per frame, c of Eq. 10. num_keyframes: m of §3.3, the exemplars that are frames included.
    keyframe_method, dissimilarity: see ``keyframes``; network: what measures dissimilarity "lpips".
    tau: the t of Eq. 10 runs from tau to 0; None for the profile's own. past_window: earlier frames held as possible
    references, None for all.
    use_srg: False guides by a single keyframe (Ours***), the one that single_reference names, "nearest" or "first".
    reference_mask: True masks every reference, to measure what GCG brings.
    image_condition: what the copy's cross-attention reads, "patch", "pooled" or "none".
    exemplar_mode: "given" colours the other keyframes with the exemplars as references; "literal" (§4.4) colours
    num_keyframes frames in a row under the mask, and the exemplars join them in the second stage.
    working_size: (height, width) of the model's canvas, which frames are scaled to fit; None for the profile's own,
    turned for upright frames.
    strength: share of the denoising steps that a frame with references goes through, above 0 to 1; it starts from its
    noised ColorHint then, as image-to-image does, and from pure noise at 1 (the paper). None for the profile's own.
    Frames under the mask always start from noise.
    eta: DDIM's. noise: "shared" starts every frame from the same noise, "independent" each from its own.
    Raises ValueError for values outside these.
    """

    prompt: str = ""
    negative_prompt: str = ""
    num_keyframes: int = 4
    grid_size: int = 4
    num_inference_steps: int = 32
    guidance_scale: float | None = None
    callback_on_step_end: Callable | None = None
    keyframe_method: str = "auto"
    dissimilarity: str = "mse"
    network: Callable | None = None
    tau: float | None = None
    strength: float | None = None
    past_window: int | None = 32
    use_srg: bool = True
    single_reference: str = "nearest"
    reference_mask: bool = False
    image_condition: str = "patch"
    exemplar_mode: str = "given"
    working_size: tuple[int, int] | None = None
    eta: float = 0.0
    noise: str = "shared"

    def __post_init__(self):
        for name in ("prompt", "negative_prompt"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{name} must be one string for the whole clip, not {type(value).__name__}.")
        for name in ("num_keyframes", "grid_size", "num_inference_steps", "past_window"):
            value = getattr(self, name)
            if not (_is_whole(value) and value >= 1) and not (name == "past_window" and value is None):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")
        for name, lowest in (("guidance_scale", 0), ("tau", None), ("strength", None), ("eta", 0)):
            value = getattr(self, name)
            if value is None and name != "eta":
                continue
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or (value <= 0 if lowest is None else value < lowest):
                domain = "above 0" if lowest is None else "from 0 on"
                raise ValueError(f"{name} must be a number {domain}, not {value!r}.")
        for name, allowed in (
            ("keyframe_method", keyframes.METHODS),
            ("dissimilarity", keyframes.MEASURES),
            ("single_reference", SINGLE_REFERENCES),
            ("image_condition", conditioning.IMAGE_CONDITIONS),
            ("exemplar_mode", EXEMPLAR_MODES),
            ("noise", NOISES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        if self.strength is not None and not self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, not {self.strength!r}.")
        if self.dissimilarity == "lpips" and self.network is None:
            raise ValueError("dissimilarity 'lpips' needs network=, a callable (a_frames, b_frames) -> (N,) distances.")
        if self.callback_on_step_end is not None and not callable(self.callback_on_step_end):
            raise ValueError("callback_on_step_end must be callable as (pipe, step, timestep, kwargs).")
        size = self.working_size
        if size is not None and not (
            isinstance(size, (tuple, list)) and len(size) == 2 and all(_is_whole(s) and s >= 8 for s in size)
        ):
            raise ValueError(f"working_size must be (height, width) in pixels, 8 at least, not {size!r}.")


class Run:
    """One call's canvas, text embeddings, noise and settings, and the steps that both stages share."""

    def __init__(self, pipe, frame_size: tuple[int, int], settings: Settings, generator: torch.Generator | None):
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator must be one torch.Generator or None, not {type(generator).__name__}.")
        self.pipe, self.settings = pipe, settings
        self.device, self.dtype = pipe._execution_device, pipe.unet.dtype
        size = settings.working_size
        if size is None:
            size = (pipe.config.height, pipe.config.width)
            upright = (frame_size[0] - frame_size[1]) * (size[0] - size[1]) < 0
            size = size[::-1] if upright else size
        self.canvas = conditioning.fit_canvas(
            frame_size, tuple(size), conditioning.canvas_multiple(pipe.vae, pipe.unet)
        )
        self.tau = pipe.config.tau if settings.tau is None else settings.tau
        self.strength = pipe.config.strength if settings.strength is None else settings.strength
        if pipe.control.guidance.config.mode == "concat":
            self.strength = 1.0  # its hint is the reference itself, whose structure is another frame's
        scale = pipe.config.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
        self.guidance_scale = float(scale)
        self.text = self._text()
        # Everything random follows from these two draws: both stages of one seed share them, called together or apart.
        shape = (1, pipe.unet.config.in_channels, *conditioning.latent_size(pipe.vae, self.canvas))
        self._noise = randn_tensor(shape, generator=generator, device=self.device, dtype=self.dtype)
        self.noise_device = generator.device if generator is not None else torch.device("cpu")
        self.seed = int(torch.randint(2**62, (1,), generator=generator, device=self.noise_device))
        accepted = inspect.signature(pipe.scheduler.step).parameters
        self._step_options = {"eta": settings.eta} if "eta" in accepted else {}
        self._step_takes_generator = "generator" in accepted

    def _text(self) -> torch.Tensor:
        """Text embeddings: ``(2, N, D)`` [negative, prompt], or ``(1, N, D)`` where guidance would change nothing."""
        prompts = [self.settings.negative_prompt, self.settings.prompt]
        text = self.pipe.encode_prompt(prompts).to(self.device, self.dtype)
        guided = self.guidance_scale != 1 and not torch.equal(text[0], text[1])
        return text if guided else text[1:]

    def noise(self, frames: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Generator]]:
        """Starting noise ``(m, C, h, w)`` of some frames, and a generator for each one's later draws."""
        generators = [torch.Generator(self.noise_device).manual_seed(self.seed + frame) for frame in frames]
        if self.settings.noise == "shared":
            return self._noise.expand(len(frames), -1, -1, -1).clone(), generators
        noise = [
            randn_tensor(self._noise.shape, generator=g, device=self.device, dtype=self.dtype) for g in generators
        ]
        return torch.cat(noise), generators

    def encode(self, frame: np.ndarray) -> torch.Tensor:
        """Latents of a frame at the clip's size, gray or RGB: ``(1, C, h, w)``."""
        return conditioning.encode(self.pipe.vae, self.canvas.place(frame), self.device).to(self.dtype)

    def describe(self, gray: np.ndarray, latents: torch.Tensor) -> np.ndarray:
        """What D compares of a gray frame ``(H, W)``, whose latents are at hand."""
        settings = self.settings
        return keyframes.describe(
            gray[None], settings.dissimilarity, encoder=lambda _: latents.float(), network=settings.network
        )[0]

    def tokens(self, colored: np.ndarray | None) -> torch.Tensor:
        """Image tokens ``(1, N, D)`` of a coloured frame; None for the reference mask."""
        image = None if colored is None else self.canvas.place(colored, padded=False)
        tokens = conditioning.image_tokens(
            self.pipe.image_encoder, self.pipe.feature_extractor, image, self.settings.image_condition, self.device
        )
        return tokens.to(self.dtype)

    def reference(self, frame: int, gray: np.ndarray, colored: np.ndarray) -> Reference:
        """Encode a coloured frame, once, as a reference: gray ``(H, W)``, coloured ``(H, W, 3)``."""
        latents = self.encode(gray)
        return Reference(frame, latents, self.encode(colored), self.tokens(colored), self.describe(gray, latents))

    def finish(self, latents: torch.Tensor, gray: np.ndarray) -> np.ndarray:
        """Decode, crop, and put the colours on the frame's own L* at full resolution (§3.4.2): ``(H, W, 3)``."""
        return merge_luminance(gray, self.canvas.crop(conditioning.decode(self.pipe.vae, latents)))

    def mask(self, gray: torch.Tensor):
        """ColorHint and image tokens under the reference mask, g_ref = z_ref = 0 (§3.2), for gray ``(m, C, h, w)``."""
        empty = torch.zeros_like(gray)
        return self.pipe.control.hint(gray, empty, empty), self.tokens(None).expand(len(gray), -1, -1)

    def guide(self, gray: torch.Tensor, references: list[list[Reference]]):
        """ColorHint and image tokens of m frames, each with its list of references (equally many)."""
        grids = [join_references(r, self.settings.grid_size) for r in references]
        ref_gray, ref_color, tokens = (torch.cat(parts) for parts in zip(*grids, strict=True))
        return self.pipe.control.hint(gray, ref_gray, ref_color), tokens

    def steps(self, strength: float) -> int:
        """How many of the denoising steps are gone through at a strength, one at least."""
        return max(1, round(strength * self.settings.num_inference_steps))

    def denoise(
        self,
        gray: torch.Tensor,
        frames: tuple[int, ...],
        stage: str,
        condition: Callable,
        bar=None,
        strength: float = 1.0,
    ) -> torch.Tensor:
        """Denoise m frames together: gray latents ``(m, C, h, w)`` -> clean latents ``(m, C, h, w)``.

        ``condition(t)`` gives the ColorHint and the image tokens at t of Eq. 10, in [0, tau]. Guidance is on text
        only: the copy sees no text, so it runs once per step and its residuals serve both halves. With ``strength``
        below 1 the first steps are left out and the frames start from their ColorHints, noised as far.
        """
        pipe, count, halves = self.pipe, len(frames), len(self.text)
        text = self.text.repeat_interleave(count, 0)  # (halves*m, N, D), a half's frames side by side
        noise, generators = self.noise(frames)
        options = dict(self._step_options)
        if self._step_takes_generator:
            options["generator"] = generators if count > 1 else generators[0]
        scheduler = pipe.scheduler
        scheduler.set_timesteps(self.settings.num_inference_steps, device=self.device)
        latents = noise * scheduler.init_noise_sigma
        skipped = self.settings.num_inference_steps - self.steps(strength)
        if bar is not None:
            bar.update(skipped)
        for step, timestep in enumerate(scheduler.timesteps[skipped:]):
            t = srg.rescale_timestep(float(timestep), scheduler.config.num_train_timesteps, self.tau)
            hint, tokens = condition(t)
            if step == 0 and skipped:
                latents = scheduler.add_noise(hint.hint, noise, timestep.expand(count))
            sample = scheduler.scale_model_input(latents, timestep)
            residuals = pipe.control(sample, timestep, tokens, gray, hint=hint)
            output = pipe.unet(
                sample.repeat(halves, 1, 1, 1),
                timestep,
                encoder_hidden_states=text,
                down_block_additional_residuals=[r.repeat(halves, 1, 1, 1) for r in residuals.down_block_res_samples],
                mid_block_additional_residual=residuals.mid_block_res_sample.repeat(halves, 1, 1, 1),
            ).sample
            if halves == 2:
                negative, positive = output.chunk(2)
                output = negative + self.guidance_scale * (positive - negative)
            latents = scheduler.step(output, timestep, latents, **options).prev_sample
            latents = self._callback(step, timestep, latents, stage, frames)
            if bar is not None:
                bar.update()
        return latents

    def _callback(self, step: int, timestep, latents: torch.Tensor, stage: str, frames: tuple[int, ...]):
        callback = self.settings.callback_on_step_end
        if callback is None:
            return latents
        changed = callback(self.pipe, step, timestep, {"latents": latents, "stage": stage, "frames": frames})
        return (changed or {}).get("latents", latents)


def color_jointly(
    run: Run, gray: np.ndarray, frames: tuple[int, ...], exemplars: list[Reference], bar=None
) -> tuple[list[np.ndarray], dict[int, list[ReferenceRun]]]:
    """Stage 1 (§3.3): colour m frames ``(m, H, W)`` as one batch with joint self-attention (Eq. 8).

    Without exemplars the references are masked; with some, each frame has its nearest as reference grid. Returns the
    coloured frames and, with exemplars, the record of which guided which.
    """
    latents = torch.cat([run.encode(frame) for frame in gray])  # (m, C, h, w)
    record = {}
    if exemplars and not run.settings.reference_mask:
        pool = ReferencePool(run.settings.dissimilarity, None, run.settings.network)
        nearest = []
        for frame, image, latent in zip(frames, gray, latents, strict=True):
            order = np.argsort(pool.distance(run.describe(image, latent[None]), exemplars), kind="stable")
            nearest.append([exemplars[i] for i in order[: run.settings.grid_size if run.settings.use_srg else 1]])
            used = tuple(r.frame for r in nearest[-1])
            record[frame] = [ReferenceRun(run.steps(run.strength), used, ())]
        guidance, strength = run.guide(latents, nearest), run.strength
    else:
        guidance, strength = run.mask(latents), 1.0
    with joint_self_attention(run.pipe.unet, len(frames)) if len(frames) > 1 else nullcontext():
        clean = run.denoise(latents, frames, "keyframes", lambda t: guidance, bar, strength)
    return [run.finish(clean[i : i + 1], image) for i, image in enumerate(gray)], record


def color_frame(
    run: Run, gray: np.ndarray, frame: int, pool: ReferencePool
) -> tuple[np.ndarray, Reference | None, list[ReferenceRun]]:
    """Stage 2 (§3.4) for one frame ``(H, W)``: the references slide from keyframes to earlier frames as t falls.

    Returns the coloured frame, the same as a reference for later frames (None where none will be asked for), and the
    record of what guided it.
    """
    settings = run.settings
    latents = run.encode(gray)  # (1, C, h, w)
    descriptor = run.describe(gray, latents)
    distances = pool.distances(descriptor)
    steps, held = [], {}

    def condition(t: float):
        if settings.reference_mask:
            keys, past = [], []
        elif settings.use_srg:
            keys, past = pool.select(distances, t, settings.grid_size)
        else:
            keys, past = pool.single(distances, settings.single_reference), []
        used = tuple(r.frame for r in keys), tuple(r.frame for r in past)
        steps.append(used)
        if used not in held:  # the hint depends on the references, not on t: it is made anew only when they change
            held.clear()
            held[used] = run.guide(latents, [keys + past]) if keys or past else run.mask(latents)
        return held[used]

    strength = 1.0 if settings.reference_mask or not (pool.keys or pool.past) else run.strength
    clean = run.denoise(latents, (frame,), "remaining", condition, strength=strength)
    colored = run.finish(clean, gray)
    reference = None
    if settings.use_srg and not settings.reference_mask:
        reference = Reference(frame, latents, run.encode(colored), run.tokens(colored), descriptor)
    return colored, reference, run_lengths(steps)


def color_in_order(
    run: Run, frames: Iterable[tuple[int, np.ndarray]], colored_keys: dict[int, np.ndarray], pool: ReferencePool
) -> Iterator[tuple[int, np.ndarray, list[ReferenceRun]]]:
    """Stage 2 for frames in time order, ``(number, gray (H, W))``: yields (number, coloured frame, record of use).

    Keyframes come out as they are in ``colored_keys``, with no record; the others join the pool once coloured.
    """
    for number, gray in frames:
        if number in colored_keys:
            yield number, colored_keys[number], []
            continue
        colored, reference, record = color_frame(run, gray, number, pool)
        if reference is not None:
            pool.past.append(reference)
        yield number, colored, record


def _is_whole(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
