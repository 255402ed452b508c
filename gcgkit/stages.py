"""The two stages of colouring, on latents: keyframes jointly (§3.3), then every other frame with references (§3.4).

A ``Run`` holds what one call of the pipeline needs throughout. Frames go through one at a time, or a few, so that
memory does not grow with the clip.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from . import attention as cross_attention
from . import blending, compilation, keyframes, solvers, srg
from . import encoders as conditioning
from .attention import joint_self_attention
from .color import merge_luminance
from .guidance import GuidanceOutput
from .references import Reference, ReferencePool, ReferenceRun, join_references, run_lengths
from .settings import Settings

TOGETHER = 8  # frames that go through the autoencoder at once on a GPU
PICTURES = 32  # through the image encoder, whose pictures are small: launching its kernels takes longer than they do


class Run:
    """One call's canvas, text embeddings, noise and settings, and the steps that both stages share."""

    def __init__(self, pipe, frame_size: tuple[int, int], settings: Settings, generator: torch.Generator | None):
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator must be one torch.Generator or None, not {type(generator).__name__}.")
        self.device, self.dtype = pipe._execution_device, pipe.unet.dtype
        settings = settings.completed(pipe.config)
        size = settings.working_size
        if size is None:
            size = (pipe.config.height, pipe.config.width)
            upright = (frame_size[0] - frame_size[1]) * (size[0] - size[1]) < 0
            size = size[::-1] if upright else size
        self.canvas = conditioning.fit_canvas(
            frame_size, tuple(size), conditioning.canvas_multiple(pipe.vae, pipe.unet)
        )
        if pipe.control.guidance.config.mode == "concat":  # its hint is the reference itself: another frame's structure
            settings = dataclasses.replace(settings, strength=1.0, hint_weight=0.0)
        self.pipe, self.settings = pipe, settings
        networks = pipe.unet, pipe.control.unet_copy
        self.projected = settings.shortcuts.keys and all(map(cross_attention.usable, networks))
        self._reading = cross_attention.ReadingProjected(*networks) if self.projected else nullcontext()
        text = self._text()
        self.text = cross_attention.keys_and_values(pipe.unet, text) if self.projected else text
        # Everything random follows from these two draws: both stages of one seed share them, called together or apart.
        shape = (1, pipe.unet.config.in_channels, *conditioning.latent_size(pipe.vae, self.canvas))
        self._noise = randn_tensor(shape, generator=generator, device=self.device, dtype=self.dtype)
        self.noise_device = generator.device if generator is not None else torch.device("cpu")
        self.seed = int(torch.randint(2**62, (1,), generator=generator, device=self.noise_device))
        for attention in filter(None, (pipe.control.guidance.cga, pipe.control.guidance.cdga)):
            attention.padded_values = settings.shortcuts.values
        self.scheduler = solvers.scheduler_for(pipe.scheduler, settings.solver)
        accepted = inspect.signature(self.scheduler.step).parameters
        self._step_options = {"eta": settings.eta} if "eta" in accepted else {}
        self._step_takes_generator = "generator" in accepted

    def _text(self) -> torch.Tensor:
        """Text embeddings: ``(2, N, D)`` [negative, prompt], or ``(1, N, D)`` where guidance would change nothing."""
        prompts = [self.settings.negative_prompt, self.settings.prompt]
        text = self.pipe.encode_prompt(prompts).to(self.device, self.dtype)
        guided = self.settings.guidance_scale != 1 and not torch.equal(text[0], text[1])
        return text if guided else text[1:]

    def noise(self, frames: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Generator]]:
        """Starting noise ``(m, C, h, w)`` of some frames, and a generator for each one's later draws."""
        generators = [torch.Generator(self.noise_device).manual_seed(self.seed + frame) for frame in frames]
        if self.settings.noise == "shared":
            return self._noise.expand(len(frames), -1, -1, -1).clone(), generators
        noise = [randn_tensor(self._noise.shape, generator=g, device=self.device, dtype=self.dtype) for g in generators]
        return torch.cat(noise), generators

    def encode(self, *frames: np.ndarray) -> torch.Tensor:
        """Latents of n frames at the clip's size, gray or RGB: ``(n, C, h, w)``."""
        parts = []
        for some in self._together(frames):
            compilation.begin_step(self.pipe)
            canvases = [self.canvas.place(frame) for frame in some]
            parts.append(conditioning.encode(self.pipe.vae, canvases, self.device).to(self.dtype))
        return torch.cat(parts)

    def recognise(self, *gray: np.ndarray) -> torch.Tensor | None:
        """Features of what n gray frames ``(H, W)`` show: ``(n, S, h, w)``; None for a copy that reads none."""
        encoder, control = self.pipe.semantic_encoder, self.pipe.control
        if encoder is None or control.pyramid is None:
            return None
        size, parts = conditioning.latent_size(self.pipe.vae, self.canvas), []
        for some in self._together(gray):
            canvases = torch.from_numpy(np.stack([self.canvas.place(frame) for frame in some])).to(self.device)
            pixels = (canvases[:, None].float() / 127.5 - 1).to(self.dtype)  # (n, 1, H, W)
            parts.append(control.semantics(encoder(pixels), size))
        return torch.cat(parts)

    def _together(self, items: Sequence, most: int = TOGETHER) -> list[Sequence]:
        """What goes through a network, in parts: one by one on a CPU, where more are no faster but round otherwise."""
        count = most if self.device.type == "cuda" else 1
        return [items[i : i + count] for i in range(0, len(items), count)]

    def describe(self, gray: np.ndarray, latents: torch.Tensor) -> np.ndarray:
        """What D compares of a gray frame ``(H, W)``, whose latents are at hand."""
        settings = self.settings
        return keyframes.describe(
            gray[None], settings.dissimilarity, encoder=lambda _: latents.float(), network=settings.network
        )[0]

    def tokens(self, *colored: np.ndarray) -> torch.Tensor:
        """Image tokens ``(n, N, D)`` of n coloured frames; of none under the reference mask: ``(1, N, D)``."""
        pipe, condition, parts = self.pipe, self.settings.image_condition, []
        for some in self._together(colored, PICTURES) or [None]:
            images = some and [self.canvas.place(frame, padded=False) for frame in some]
            tokens = conditioning.image_tokens(
                pipe.image_encoder, pipe.feature_extractor, images, condition, self.device
            )
            parts.append(tokens.to(self.dtype))
        return torch.cat(parts)

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the copy's cross-attention reads of image tokens ``(n, N, D)``: their keys and values, once for all."""
        return self.pipe.control.keys_and_values(tokens) if self.projected else tokens

    def reference(self, frame: int, gray: np.ndarray, colored: np.ndarray) -> Reference:
        """Encode a coloured frame, once, as a reference: gray ``(H, W)``, coloured ``(H, W, 3)``."""
        return self.references([frame], [gray], [colored])[0]

    def references(
        self,
        frames: Sequence[int],
        gray: Sequence[np.ndarray],
        colored: Sequence[np.ndarray],
        latents: torch.Tensor | None = None,
        descriptors: Sequence[np.ndarray] | None = None,
    ) -> list[Reference]:
        """``reference`` for n frames; of the gray ones latents ``(n, C, h, w)`` and what D compares, if at hand."""
        if not frames:
            return []
        if latents is None:
            latents = self.encode(*gray)
        if descriptors is None:
            descriptors = list(map(self.describe, gray, latents.split(1)))
        kept = itertools.repeat(None) if self.settings.shortcuts.references else zip(gray, colored, strict=True)
        tokens = map(self._read, self.tokens(*colored).split(1))
        parts = latents.split(1), self.encode(*colored).split(1), tokens, descriptors, kept
        return list(map(Reference, frames, *parts))

    def finish(self, latents: torch.Tensor, gray: np.ndarray) -> np.ndarray:
        """Decode, crop, and put the colours on the frame's own L* at full resolution (§3.4.2): ``(H, W, 3)``."""
        return self.finish_all(latents, [gray])[0]

    def finish_all(
        self, latents: torch.Tensor, gray: list[np.ndarray], meanwhile: Callable[[], object] | None = None
    ) -> list[np.ndarray]:
        """``finish`` for the latents of n frames ``(n, C, h, w)``, each one's colours put on in a thread.

        meanwhile: called once all are decoded, so that a GPU has something to do while colours are put on.
        """
        merged: list[Future] = []
        with ThreadPoolExecutor(len(gray)) as threads:
            for some, images in zip(self._together(latents), self._together(gray), strict=True):
                compilation.begin_step(self.pipe)
                decoded = map(self.canvas.crop, conditioning.decode_all(self.pipe.vae, some))  # (H, W, 3) each
                merged += map(partial(threads.submit, merge_luminance), images, decoded)
            if meanwhile is not None:
                meanwhile()
            return [frame.result() for frame in merged]

    def mask(self, gray: torch.Tensor):
        """What ``guide`` gives under the reference mask, g_ref = z_ref = 0 (§3.2), for gray ``(m, C, h, w)``."""
        empty = torch.zeros_like(gray)
        return self.pipe.control.hint(gray, empty, empty), self._read(self.tokens()).expand(len(gray), -1, -1)

    def guide(self, gray: torch.Tensor, references: list[list[Reference]]):
        """ColorHint of m frames, each with its list of references (equally many), and what the copy reads of these."""
        if not self.settings.shortcuts.references:
            references = [[self.reference(r.frame, *r.pictures) for r in guiding] for guiding in references]
        grids = [join_references(r, self.settings.grid_size) for r in references]
        ref_gray, ref_color, tokens = (torch.cat(parts) for parts in zip(*grids, strict=True))
        return self.pipe.control.hint(gray, ref_gray, ref_color), tokens

    def steps(self, guided: bool = True) -> int:
        """How many of the denoising steps frames with references go through, or without: one at least."""
        return max(1, round((self.settings.strength if guided else 1.0) * self.settings.num_inference_steps))

    def denoise(
        self,
        gray: torch.Tensor,
        frames: tuple[int, ...],
        stage: str,
        condition: Callable,
        bar=None,
        guided: bool = True,
        semantics: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Denoise m frames together: gray latents ``(m, C, h, w)`` -> clean latents ``(m, C, h, w)``.

        ``condition(t)`` gives the ColorHint and the image tokens at t of Eq. 10, in [0, tau]. Guidance is on text
        only: the copy sees no text, so it runs once per step and its residuals serve both halves. ``guided`` frames
        have references: below strength 1 they skip steps and start from their ColorHints, noised as far. ``semantics``
        is what ``recognise`` makes of the frames.
        """
        count, halves = len(frames), len(self.text)
        text = self.text.repeat_interleave(count, 0)  # (halves*m, N, D or W), a half's frames side by side
        noise, generators = self.noise(frames)
        noise = noise * self.settings.noise_scale
        options = dict(self._step_options)
        if self._step_takes_generator:
            options["generator"] = generators if count > 1 else generators[0]
        scheduler, skipped = self.scheduler, self.settings.num_inference_steps - self.steps(guided)
        timesteps = solvers.timesteps(scheduler, self.settings.num_inference_steps, skipped)
        latents = noise * scheduler.init_noise_sigma
        if bar is not None:
            bar.update(skipped)
        for step, (now, timestep) in enumerate(zip(timesteps, timesteps.to(self.device), strict=True)):
            t = srg.rescale_timestep(float(now), scheduler.config.num_train_timesteps, self.settings.tau)
            hint, tokens = condition(t)
            if step == 0 and skipped:
                latents = scheduler.add_noise(hint.hint, noise, now.expand(count))
            sample = scheduler.scale_model_input(latents, now)
            with self._reading:
                output = self.predict(sample, timestep, text, gray, hint, tokens, self.projected, semantics)
            if halves == 2:
                negative, positive = output.chunk(2)
                output = negative + self.settings.guidance_scale * (positive - negative)
            if guided and self.settings.hint_weight:
                output = blending.toward_hint(scheduler, output, latents, now, hint, self.settings.hint_weight)
            latents = scheduler.step(output, now, latents, **options).prev_sample
            latents = self._callback(step, timestep, latents, stage, frames)
            if bar is not None:
                bar.update()
        return latents

    def predict(
        self, sample, timestep, text, gray, hint, tokens, projected: bool = False, semantics: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the UNet says of m samples under n texts each, ``(n*m, N, D)``, text by text: ``(n*m, C, h, w)``.

        projected: of text and image tokens the keys and values are given, ``(n*m, N, W)`` and ``(m, N, W')``.
        """
        pipe, shortcuts, halves = self.pipe, self.settings.shortcuts, len(text) // len(sample)
        compilation.begin_step(pipe)
        repeat = lambda x: x.repeat(halves, *[1] * (x.ndim - 1))  # noqa: E731  (m, ...) -> (halves*m, ...)
        options = {"projected": projected}
        if semantics is not None:
            options["semantics"] = semantics if shortcuts.copy else repeat(semantics)
        if shortcuts.copy:
            given = pipe.control(sample, timestep, tokens, gray, hint=hint, **options)
            down, mid = [repeat(r) for r in given.down_block_res_samples], repeat(given.mid_block_res_sample)
        else:
            hint = GuidanceOutput(*(repeat(part) for part in (hint.hint, hint.color, hint.gate, hint.features)))
            given = pipe.control(repeat(sample), timestep, repeat(tokens), repeat(gray), hint=hint, **options)
            down, mid = given.down_block_res_samples, given.mid_block_res_sample
        size = len(text) if shortcuts.halves else len(sample)
        outputs, samples = [], repeat(sample)
        for part in (slice(i, i + size) for i in range(0, len(text), size)):
            outputs.append(
                pipe.unet(
                    samples[part],
                    timestep,
                    encoder_hidden_states=text[part],
                    down_block_additional_residuals=[r[part] for r in down],
                    mid_block_additional_residual=mid[part],
                ).sample
            )
        return torch.cat(outputs)

    def _callback(self, step: int, timestep, latents: torch.Tensor, stage: str, frames: tuple[int, ...]):
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


def color_jointly(
    run: Run, gray: np.ndarray, frames: tuple[int, ...], exemplars: list[Reference], bar=None
) -> tuple[list[np.ndarray], dict[int, list[ReferenceRun]]]:
    """Stage 1 (§3.3): colour m frames ``(m, H, W)`` as one batch with joint self-attention (Eq. 8).

    Without exemplars the references are masked; with some, each frame has its nearest as reference grid. Returns the
    coloured frames and, with exemplars, the record of which guided which.
    """
    latents, semantics, record = run.encode(*gray), run.recognise(*gray), {}  # (m, C, h, w), (m, S, h, w)
    if exemplars and not run.settings.reference_mask:
        pool = ReferencePool(run.settings.dissimilarity, None, run.settings.network)
        nearest = []
        for frame, image, latent in zip(frames, gray, latents, strict=True):
            order = np.argsort(pool.distance(run.describe(image, latent[None]), exemplars), kind="stable")
            nearest.append([exemplars[i] for i in order[: run.settings.grid_size if run.settings.use_srg else 1]])
            used = tuple(r.frame for r in nearest[-1])
            record[frame] = [ReferenceRun(run.steps(), used, ())]
        guide = partial(run.guide, latents, nearest)
    else:
        guide = partial(run.mask, latents)
    guidance = guide()
    condition = (lambda t: guidance) if run.settings.shortcuts.hints else (lambda t: guide())
    with joint_self_attention(run.pipe.unet, len(frames)) if len(frames) > 1 else nullcontext():
        clean = run.denoise(latents, frames, "keyframes", condition, bar, guided=bool(record), semantics=semantics)
    return run.finish_all(clean, list(gray)), record


def color_frame(
    run: Run, gray: np.ndarray, frame: int, pool: ReferencePool
) -> tuple[np.ndarray, Reference | None, list[ReferenceRun]]:
    """Stage 2 (§3.4) for one frame ``(H, W)``: the references slide from keyframes to earlier frames as t falls.

    Returns the coloured frame, the same as a reference for later frames (None where none will be asked for), and the
    record of what guided it.
    """
    (colored,), (record,), references = color_together(run, [gray], (frame,), pool)
    return colored, next(iter(references()), None), record


def color_together(
    run: Run,
    gray: list[np.ndarray],
    frames: tuple[int, ...],
    pool: ReferencePool,
    latents: torch.Tensor | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> tuple[list[np.ndarray], list[list[ReferenceRun]], Callable[[], list[Reference]]]:
    """Stage 2 for some frames ``(H, W)`` as one batch, each with its own references.

    latents: of the gray frames ``(m, C, h, w)``, if at hand. meanwhile: see ``Run.finish_all``. Returns the coloured
    frames, the record of what guided each, and what encodes them as references, if called.
    """
    settings = run.settings
    latents = run.encode(*gray) if latents is None else latents
    descriptors = [run.describe(image, latent[None]) for image, latent in zip(gray, latents, strict=True)]
    distances = [pool.distances(descriptor) for descriptor in descriptors]
    records, held = [[] for _ in frames], {}

    def choose(t: float, of_frame: tuple[np.ndarray, np.ndarray]) -> tuple[list[Reference], list[Reference]]:
        if settings.reference_mask:
            return [], []
        if settings.use_srg:
            return pool.select(of_frame, t, settings.grid_size)
        return pool.single(of_frame, settings.single_reference), []

    def condition(t: float):
        chosen = [choose(t, of_frame) for of_frame in distances]
        used = tuple((tuple(r.frame for r in keys), tuple(r.frame for r in past)) for keys, past in chosen)
        for record, of_frame in zip(records, used, strict=True):
            record.append(of_frame)
        if used not in held or not settings.shortcuts.hints:
            held.clear()  # the hint depends on the references, not on t: it is made anew only when they change
            guiding = [keys + past for keys, past in chosen]  # equally many for each frame, from one pool
            held[used] = run.guide(latents, guiding) if guiding[0] else run.mask(latents)
        return held[used]

    guided = not settings.reference_mask and bool(pool.keys or pool.past)
    clean = run.denoise(latents, frames, "remaining", condition, guided=guided, semantics=run.recognise(*gray))
    colored = run.finish_all(clean, gray, meanwhile)
    if not settings.use_srg or settings.reference_mask:
        return colored, list(map(run_lengths, records)), list
    kept = [frame.copy() for frame in colored]  # whoever gets a frame may draw on it before the next is asked for
    encode = partial(run.references, frames, gray, kept, latents, descriptors)
    return colored, list(map(run_lengths, records)), encode


def color_in_order(
    run: Run, frames: Iterable[tuple[int, np.ndarray]], colored_keys: dict[int, np.ndarray], pool: ReferencePool
) -> Iterator[tuple[int, np.ndarray, list[ReferenceRun]]]:
    """Stage 2 for frames ``(number, gray (H, W))``: yields (number, coloured frame, record of use) as they are done.

    That is in time order, unless ``side_by_side`` stretches are coloured at once. Keyframes come out as they are in
    ``colored_keys``, with no record; the others join the pool once a later frame asks for it.
    """
    ahead: list[torch.Tensor] = []  # gray latents of the batch that comes next
    for batch, following in _batches(frames, colored_keys, run.settings.side_by_side):
        if batch[0][0] in colored_keys:
            yield from ((number, colored_keys[number], []) for number, _ in batch)
            continue
        numbers, gray = zip(*batch, strict=True)
        pool.settle()
        latents = ahead.pop() if ahead else None
        encode = partial(_encode_ahead, run, following, ahead) if following else None
        colored, records, pool.owed = color_together(run, list(gray), numbers, pool, latents, encode)
        yield from zip(numbers, colored, records, strict=True)


def _encode_ahead(run: Run, batch: list, ahead: list[torch.Tensor]) -> None:
    ahead.append(run.encode(*(gray for _, gray in batch)))


def _batches(frames: Iterable, keys: dict[int, np.ndarray], stretches: int) -> Iterator[tuple[list, list]]:
    """Each batch with the one that follows it, where that is known.

    Frames one by one; or first the keyframes, then the first of each stretch of the others, the second of each...
    """
    if stretches == 1:
        yield from (([item], []) for item in frames)
        return
    frames = list(frames)
    yield from (([item], []) for item in frames if item[0] in keys)
    others = [item for item in frames if item[0] not in keys]
    length = math.ceil(len(others) / stretches)
    for first in range(length):
        yield others[first::length], others[first + 1 :: length] if first + 1 < length else []
