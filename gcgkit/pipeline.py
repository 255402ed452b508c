"""The whole method as a diffusers pipeline: gray frames in, coloured frames out (§3).

Component classes are imported at the top, used by name here or not: diffusers loads a saved component of ours only
from a module that is already imported. (No ``from __future__ import annotations`` here: older diffusers read the
types of ``__init__``'s parameters from the signature.)
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ConfigMixin, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from . import encoders, profiles
from .color import to_gray
from .control import GuidedControlNet
from .references import Reference, ReferencePool, ReferenceRun, check_exemplars, on_luminance
from .semantics import SemanticEncoder
from .settings import Settings
from .stages import Run, color_in_order, color_keyframes
from .utils import hub
from .utils.checks import check_frames, each_frame, is_whole
from .utils.pictures import as_array, as_clip, check_output_type, converted
from .utils.weights import align_weights, chosen_dtype
from .vae import LumaChromaAutoencoder


@dataclass
class GCGOutput(BaseOutput):
    """A coloured clip.

    Attributes:
        frames: uint8 RGB ``(T, H, W, 3)`` at the input's size, or as ``output_type`` asks.
        keyframes: sorted frame numbers of the keyframes.
        references: for each guided frame number a list of ``ReferenceRun(steps, keyframes, past)``, the frame numbers
            that guided it for some denoising steps in a row, first step first; -1 is an exemplar from outside the clip.
    """

    frames: np.ndarray
    keyframes: list[int]
    references: dict[int, list[ReferenceRun]]


class GCGPipeline(DiffusionPipeline):
    """Video colorization in two stages: keyframes jointly (§3.3), then all frames with a sliding reference grid (§3.4).

    Args:
        vae, text_encoder, tokenizer, unet, control, image_encoder, feature_extractor, scheduler: the components;
            ``control`` is a ``GuidedControlNet``, ``unet`` stays as it was trained.
        height, width: the profile's working size in pixels, which frames are scaled to fit.
        guidance_scale, tau, strength, hint_weight, guess_strength, noise_scale, keyframe_weight, mask_latents,
            grid_tiles, image_condition: the profile's own values of these options, see ``settings.Settings``.
        semantic_encoder: recognises things in gray frames for the copy; None (the paper) for a copy that reads none.
    """

    _optional_components = ["semantic_encoder"]
    # The text encoder works once a call. The other networks take turns at each step or frame, so they stay together.
    model_cpu_offload_seq = "text_encoder"
    _exclude_from_cpu_offload = ["vae", "unet", "control", "image_encoder", "semantic_encoder"]
    _interrupt = False

    def __init__(
        self,
        vae: AutoencoderKL | LumaChromaAutoencoder,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        control: GuidedControlNet,
        image_encoder: CLIPVisionModelWithProjection,
        feature_extractor: CLIPImageProcessor,
        scheduler: DDIMScheduler,
        guidance_scale: float = 9.0,
        height: int = 256,
        width: int = 448,
        tau: float = 4.0,
        strength: float = 1.0,
        hint_weight: float = 0.0,
        guess_strength: float = 1.0,
        noise_scale: float = 1.0,
        keyframe_weight: float = 1.0,
        semantic_encoder: SemanticEncoder | None = None,
        mask_latents: str = "zeros",
        grid_tiles: str = "full",
        image_condition: str = "patch",
    ):
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, control=control, scheduler=scheduler,
            image_encoder=image_encoder, feature_extractor=feature_extractor, semantic_encoder=semantic_encoder,
        )  # fmt: skip
        self.register_to_config(
            guidance_scale=guidance_scale, height=height, width=width, tau=tau, strength=strength,
            hint_weight=hint_weight, guess_strength=guess_strength, noise_scale=noise_scale,
            keyframe_weight=keyframe_weight, mask_latents=mask_latents, grid_tiles=grid_tiles,
            image_condition=image_condition,
        )  # fmt: skip

    @classmethod
    def from_pretrained(cls, name="mini", *, dtype=None, torch_dtype=None, **kwargs) -> "GCGPipeline":
        """Load a bundled profile ("mini"), a folder or a hub id, float32 by default (``dtype`` or ``torch_dtype``).

        Other keywords are those of ``DiffusionPipeline.from_pretrained``, revision, token and cache_dir among them.
        Raises FileNotFoundError for a name that is none of these or cannot be fetched, ValueError for another
        pipeline's folder or repository, or for both dtypes at once.
        """
        dtype = chosen_dtype(dtype, torch_dtype)
        source = profiles.resolve(name)
        if not Path(source).is_dir():
            source = str(hub.fetch_pipeline(source, cls.__name__, **kwargs))
        if lender := profiles.lender(source):
            shared = cls.from_pretrained(profiles.WEIGHTS / lender, dtype=dtype).components
            kwargs = {**{k: part for k, part in shared.items() if not Path(source, k).is_dir()}, **kwargs}
        try:
            pipe = super().from_pretrained(source, dtype=dtype, **kwargs)
        except OSError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FileNotFoundError(f"'{name}' cannot be loaded: {reason}") from error
        # older diffusers know only torch_dtype and let dtype pass by
        if isinstance(dtype, torch.dtype) and pipe.unet.dtype != dtype:
            pipe.to(dtype=dtype)
        align_weights(pipe)
        pipe.register_to_config(_name_or_path=str(name))
        return pipe

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save all components to a folder, without the places on this machine that they were loaded from."""
        for part in (self, *self.components.values()):
            if isinstance(part, ConfigMixin) and part.config.get("_name_or_path"):
                part.register_to_config(_name_or_path="")
        super().save_pretrained(str(save_directory), *args, **kwargs)  # with push_to_hub, diffusers wants a str

    def encode_prompt(self, prompts: list[str]) -> torch.Tensor:
        """Text embeddings of n prompts: ``(n, N, D)``."""
        return encoders.text_embeddings(self.tokenizer, self.text_encoder, prompts, self._execution_device)

    @property
    def interrupt(self) -> bool:
        """True from the moment that a callback sets ``pipe._interrupt``: all that is not yet coloured stays gray."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        frames=None,
        prompt: str = "",
        negative_prompt: str = "",
        num_keyframes: int = 4,
        reference=None,
        grid_size: int = 4,
        num_inference_steps: int = 32,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: Callable | None = None,
        *,
        output_type: str | None = None,
        return_dict: bool = True,
        **options,
    ) -> GCGOutput | tuple:
        """Colour a clip.

        frames: uint8, gray ``(T, H, W)`` or RGB ``(T, H, W, 3)``, whose colour is not looked at; also PIL pictures and
        tensors, see ``utils.pictures``. output_type: "np", "pt" or "pil", as in diffusers. reference: exemplars,
        ``{frame number: RGB frame}``, or one RGB frame of any size that is no frame of the clip. generator: makes the
        result repeatable. callback_on_step_end(pipe, step, timestep, kwargs) gets "latents", "stage" ("keyframes" or
        "remaining") and "frames" (their numbers), and may return {"latents": ...}. options: the others of
        ``settings.Settings``. Returns a ``GCGOutput`` (a tuple with return_dict=False); L* is the input's.
        Raises ValueError for frames, exemplars or options that are not as described, TypeError for unknown options.
        """
        settings = Settings.of(
            prompt=prompt, negative_prompt=negative_prompt, num_keyframes=num_keyframes, grid_size=grid_size,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            callback_on_step_end=callback_on_step_end, **options,
        )  # fmt: skip
        check_output_type(output_type)
        run, gray, exemplars, outside = self._prepare(frames, reference, generator, settings)
        colored, record = color_keyframes(run, gray, exemplars, outside, show=True)
        output = _color_remaining(run, gray, colored, outside, output_type)
        output.references = dict(sorted({**record, **output.references}.items()))
        self.maybe_free_model_hooks()
        return output if return_dict else tuple(output.values())

    @torch.no_grad()
    def color_keyframes(
        self,
        frames,
        prompt: str = "",
        negative_prompt: str = "",
        num_keyframes: int = 4,
        reference=None,
        generator: torch.Generator | None = None,
        **options,
    ) -> dict[int, np.ndarray]:
        """Stage 1 alone (§3.3): select keyframes and colour them jointly: ``{frame number: RGB (H, W, 3)}``, in order.

        Exemplars that are frames of the clip are among them. Arguments and errors as for the pipeline itself;
        ``options`` are those of ``settings.Settings``.
        """
        settings = Settings.of(prompt=prompt, negative_prompt=negative_prompt, num_keyframes=num_keyframes, **options)
        colored = color_keyframes(*self._prepare(frames, reference, generator, settings), show=True)[0]
        self.maybe_free_model_hooks()
        return colored

    @torch.no_grad()
    def color_remaining(
        self,
        frames,
        keyframes: dict[int, np.ndarray],
        prompt: str = "",
        negative_prompt: str = "",
        reference=None,
        grid_size: int = 4,
        generator: torch.Generator | None = None,
        *,
        output_type: str | None = None,
        return_dict: bool = True,
        **options,
    ) -> GCGOutput | tuple:
        """Stage 2 alone (§3.4): colour all frames from coloured keyframes ``{frame number: RGB frame}``, from any hand.

        reference: one RGB frame from outside the clip that joins the keyframes as a reference. With a generator of the
        same seed, the two stages give what the pipeline gives at once. Arguments and errors as for the pipeline itself.
        """
        settings = Settings.of(prompt=prompt, negative_prompt=negative_prompt, grid_size=grid_size, **options)
        check_output_type(output_type)
        if not isinstance(keyframes, dict):
            raise ValueError(f"keyframes must be {{frame number: RGB frame}}, not {type(keyframes).__name__}.")
        if isinstance(reference, dict):
            raise ValueError("reference must be one RGB frame here: put coloured frames of the clip into keyframes.")
        if not keyframes and reference is None:
            raise ValueError("keyframes is empty: give at least one coloured frame, or a reference.")
        run, gray, _, outside = self._prepare(frames, reference, generator, settings)
        colored = check_exemplars(as_array(keyframes), len(gray), gray.shape[1:], name="keyframes")
        colored = {i: on_luminance(gray[i], frame) for i, frame in colored.items()}
        output = _color_remaining(run, gray, colored, outside, output_type)
        self.maybe_free_model_hooks()
        return output if return_dict else tuple(output.values())

    def stream(
        self,
        frames: Iterable,
        chunk_size: int = 64,
        reference=None,
        generator: torch.Generator | None = None,
        **options,
    ) -> Iterator[np.ndarray]:
        """Colour frames as they come, ``(H, W)`` or ``(H, W, 3)`` each, and yield them in order, ``(H, W, 3)``.

        Works in chunks of ``chunk_size`` frames, so that memory does not grow with the film: each chunk has its own
        keyframes, with those of the chunk before as their references, and earlier frames guide across the border. A
        film of one chunk comes out as from the pipeline at once. Arguments and errors as for the pipeline itself;
        numbers in ``reference`` count from the film's first frame, and one beyond its end is an error there.
        """
        settings = Settings.of(**options)
        if not is_whole(chunk_size) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a whole number of at least 1, not {chunk_size!r}.")
        if not isinstance(frames, Iterable):
            raise ValueError(f"frames must be an iterable of frames, not {type(frames).__name__}.")
        gray = map(to_gray, each_frame(map(as_array, frames), color=None))
        return self._stream(gray, int(chunk_size), reference, generator, settings)

    @torch.no_grad()
    def _stream(self, frames: Iterator, chunk_size: int, reference, generator, settings: Settings):
        run, offset, carried, self._interrupt = None, 0, [], False
        while chunk := list(islice(frames, chunk_size)):
            gray = np.stack(chunk)
            if run is None:
                run = Run(self, gray.shape[1:], settings, generator)
                exemplars = check_exemplars(as_array(reference), None, gray.shape[1:])
                outside = run.outside_references(exemplars)
                pool = ReferencePool(settings.dissimilarity, settings.past_window, settings.network)
            due = {i - offset: e for i, e in exemplars.items() if offset <= i < offset + len(gray)}
            colored, _ = color_keyframes(run, gray, due, [*carried, *outside], offset)
            new = run.clip_references(gray, colored, offset)
            pool.keys = [*carried, *new, *outside]
            done = color_in_order(run, enumerate(gray, offset), colored, pool)
            if settings.side_by_side > 1:
                done = sorted(done, key=lambda result: result[0])
            for _, frame, _ in done:
                yield frame
            carried, offset = new, offset + len(gray)
        self.maybe_free_model_hooks()
        if late := [i for i in exemplars if i >= offset]:
            raise ValueError(f"reference has the frame number {late[0]}, but the film ended after {offset} frames.")

    def _prepare(
        self, frames, reference, generator: torch.Generator | None, settings: Settings
    ) -> tuple[Run, np.ndarray, dict[int, np.ndarray], list[Reference]]:
        """Check a clip and its exemplars: run, gray frames ``(T, H, W)``, exemplars, and references from outside."""
        self._interrupt = False
        gray = to_gray(check_frames(as_clip(frames)))
        run = Run(self, gray.shape[1:], settings, generator)
        exemplars = check_exemplars(as_array(reference), len(gray), gray.shape[1:])
        return run, gray, exemplars, run.outside_references(exemplars)


def _color_remaining(
    run: Run, gray: np.ndarray, colored: dict[int, np.ndarray], outside: list[Reference], output_type: str | None
) -> GCGOutput:
    """Colour a whole clip ``(T, H, W)`` from its coloured keyframes (§3.4)."""
    frames, references = np.repeat(gray[..., None], 3, axis=-1), {}  # (T, H, W, 3), gray until coloured
    for number, frame in colored.items():
        frames[number] = frame
    pool = ReferencePool(run.settings.dissimilarity, run.settings.past_window, run.settings.network)
    if len(colored) < len(gray):
        pool.keys = [*run.clip_references(gray, colored), *outside]
    with run.bar(len(gray) - len(colored), "Frames") as bar:
        for number, frame, record in () if run.pipe.interrupt else color_in_order(run, enumerate(gray), colored, pool):
            if run.pipe.interrupt:
                break
            frames[number] = frame
            if record:
                references[number] = record
                bar.update()
    return GCGOutput(frames=converted(frames, output_type), keyframes=list(colored), references=references)
