"""The whole method as a diffusers pipeline: gray frames in, coloured frames out (§3).

Component classes are imported at the top, used by name here or not: diffusers loads a saved component of ours only
from a module that is already imported. (No ``from __future__ import annotations`` here: older diffusers read the
types of ``__init__``'s parameters from the signature.)
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, ConfigMixin, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from . import encoders as conditioning
from . import profiles
from .color import to_gray
from .control import GuidedControlNet
from .references import (
    OUTSIDE,
    Reference,
    ReferencePool,
    ReferenceRun,
    check_exemplars,
    choose_keyframes,
    frames_in_a_row,
    on_luminance,
)
from .semantics import SemanticEncoder
from .settings import Settings
from .shortcuts import Shortcuts
from .stages import Run, color_in_order, color_jointly
from .utils.checks import check_frame, check_frames
from .utils.hub import fetch_pipeline
from .utils.weights import align_weights
from .vae import LumaChromaAutoencoder


@dataclass
class GCGOutput(BaseOutput):
    """What colouring a clip gives.

    Attributes:
        frames: uint8 RGB ``(T, H, W, 3)`` at the input's size.
        keyframes: sorted frame numbers of the keyframes.
        references: for each frame that was guided, by its number, a list of ``ReferenceRun(steps, keyframes, past)``:
            the frame numbers that guided it, in runs of denoising steps, first step first; -1 is an exemplar from
            outside the clip.
    """

    frames: np.ndarray
    keyframes: list[int]
    references: dict[int, list[ReferenceRun]]


class GCGPipeline(DiffusionPipeline):
    """Video colorization in two stages: keyframes jointly (§3.3), then all frames with a sliding reference grid (§3.4).

    Args:
        vae, text_encoder, tokenizer, unet, control, image_encoder, feature_extractor, scheduler: the components;
            ``control`` is a ``GuidedControlNet``, ``unet`` stays as it was trained.
        guidance_scale: the profile's own scale of classifier-free guidance.
        height, width: the profile's working size in pixels, which frames are scaled to fit.
        tau: the profile's own range of t in Eq. 10.
        strength, hint_weight: the profile's own share of denoising steps for frames with references, and of the
            ColorHint in each, see ``settings.Settings``.
        noise_scale: the profile's own standard deviation of the noise that frames start from, see there.
        semantic_encoder: tells the copy what is in each gray frame; None (the paper) for a copy that reads none.
    """

    _optional_components = ["semantic_encoder"]

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
        noise_scale: float = 1.0,
        semantic_encoder: SemanticEncoder | None = None,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            control=control,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            scheduler=scheduler,
            semantic_encoder=semantic_encoder,
        )
        own = {"guidance_scale": guidance_scale, "tau": tau, "strength": strength, "hint_weight": hint_weight}
        self.register_to_config(height=height, width=width, noise_scale=noise_scale, **own)

    @classmethod
    def from_pretrained(cls, name="mini", *, dtype=None, torch_dtype=None, **kwargs) -> "GCGPipeline":
        """Load a bundled profile ("mini"), a folder or a hub id, float32 by default (``dtype`` or ``torch_dtype``).

        Other keywords are those of ``DiffusionPipeline.from_pretrained``, revision, token and cache_dir among them.
        Raises FileNotFoundError for a name that is none of these or cannot be fetched, ValueError for another
        pipeline's folder or repository, or for both dtypes at once.
        """
        if dtype is not None and torch_dtype is not None:
            raise ValueError("dtype and torch_dtype are one option under two names: give only dtype.")
        dtype = dtype or torch_dtype or torch.float32
        source = profiles.resolve(name)
        if not Path(source).is_dir():
            source = str(fetch_pipeline(source, cls.__name__, **kwargs))
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
        return conditioning.text_embeddings(self.tokenizer, self.text_encoder, prompts, self._execution_device)

    @torch.no_grad()
    def __call__(
        self,
        frames,
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
        keyframe_method: str = "auto",
        dissimilarity: str = "mse",
        network: Callable | None = None,
        tau: float | None = None,
        strength: float | None = None,
        hint_weight: float | None = None,
        noise_scale: float | None = None,
        past_window: int | None = 32,
        use_srg: bool = True,
        single_reference: str = "nearest",
        reference_mask: bool = False,
        image_condition: str = "patch",
        exemplar_mode: str = "given",
        working_size: tuple[int, int] | None = None,
        solver: str | None = None,
        eta: float = 0.0,
        noise: str = "shared",
        side_by_side: int = 1,
        shortcuts: Shortcuts = Shortcuts(),  # noqa: B008  (frozen)
        return_dict: bool = True,
    ) -> GCGOutput | tuple:
        """Colour a clip.

        frames: uint8, gray ``(T, H, W)`` or RGB ``(T, H, W, 3)``, whose colour is not looked at. reference: exemplars,
        ``{frame number: RGB frame}``, or one RGB frame of any size that is no frame of the clip. generator: makes the
        result repeatable. callback_on_step_end(pipe, step, timestep, kwargs) gets "latents", "stage" ("keyframes" or
        "remaining") and "frames" (their numbers), and may return {"latents": ...}. The other options are described at
        ``settings.Settings``. Returns a ``GCGOutput`` (a tuple with return_dict=False); L* is the input's.
        Raises ValueError for frames, exemplars or options that are not as described.
        """
        settings = Settings(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_keyframes=num_keyframes,
            grid_size=grid_size,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            callback_on_step_end=callback_on_step_end,
            keyframe_method=keyframe_method,
            dissimilarity=dissimilarity,
            network=network,
            tau=tau,
            strength=strength,
            hint_weight=hint_weight,
            noise_scale=noise_scale,
            past_window=past_window,
            use_srg=use_srg,
            single_reference=single_reference,
            reference_mask=reference_mask,
            image_condition=image_condition,
            exemplar_mode=exemplar_mode,
            working_size=working_size,
            solver=solver,
            eta=eta,
            noise=noise,
            side_by_side=side_by_side,
            shortcuts=shortcuts,
        )
        gray = to_gray(check_frames(frames))
        run = Run(self, gray.shape[1:], settings, generator)
        exemplars = check_exemplars(reference, len(gray), gray.shape[1:])
        outside = self._outside(run, exemplars)
        colored, record = self._keyframes(run, gray, exemplars, outside, show=True)
        output = self._remaining(run, gray, colored, outside)
        output.references = dict(sorted({**record, **output.references}.items()))
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
        settings = Settings(
            prompt=prompt, negative_prompt=negative_prompt, num_keyframes=num_keyframes, **options
        )
        gray = to_gray(check_frames(frames))
        run = Run(self, gray.shape[1:], settings, generator)
        exemplars = check_exemplars(reference, len(gray), gray.shape[1:])
        return self._keyframes(run, gray, exemplars, self._outside(run, exemplars), show=True)[0]

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
        return_dict: bool = True,
        **options,
    ) -> GCGOutput | tuple:
        """Stage 2 alone (§3.4): colour all frames from coloured keyframes ``{frame number: RGB frame}``, from any hand.

        reference: one RGB frame from outside the clip that joins the keyframes as a reference. With a generator of the
        same seed, the two stages give what the pipeline gives at once. Arguments and errors as for the pipeline itself.
        """
        settings = Settings(prompt=prompt, negative_prompt=negative_prompt, grid_size=grid_size, **options)
        gray = to_gray(check_frames(frames))
        if not isinstance(keyframes, dict):
            raise ValueError(f"keyframes must be {{frame number: RGB frame}}, not {type(keyframes).__name__}.")
        if isinstance(reference, dict):
            raise ValueError("reference must be one RGB frame here: put coloured frames of the clip into keyframes.")
        if not keyframes and reference is None:
            raise ValueError("keyframes is empty: give at least one coloured frame, or a reference.")
        run = Run(self, gray.shape[1:], settings, generator)
        colored = check_exemplars(keyframes, len(gray), gray.shape[1:], name="keyframes")
        colored = {i: on_luminance(gray[i], frame) for i, frame in colored.items()}
        outside = self._outside(run, check_exemplars(reference, len(gray), gray.shape[1:]))
        output = self._remaining(run, gray, colored, outside)
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
        ``num_keyframes`` keyframes, with those of the chunk before as their references, and earlier frames guide on
        across the border. A film of one chunk comes out as from the pipeline at once. Numbers in ``reference`` count
        from the film's first frame. Arguments and errors as for the pipeline itself; a frame number that the film
        never reaches is told at its end.
        """
        settings = Settings(**options)
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, (int, np.integer)) or chunk_size < 1:
            raise ValueError(f"chunk_size must be a whole number of at least 1, not {chunk_size!r}.")
        if not isinstance(frames, Iterable):
            raise ValueError(f"frames must be an iterable of frames, not {type(frames).__name__}.")
        return self._stream(iter(frames), int(chunk_size), reference, generator, settings)

    @torch.no_grad()
    def _stream(self, frames: Iterator, chunk_size: int, reference, generator, settings: Settings):
        run, offset, carried = None, 0, []
        while chunk := list(islice(frames, chunk_size)):
            gray = _gray_chunk(chunk, offset, None if run is None else run.canvas.frame)
            if run is None:
                run = Run(self, gray.shape[1:], settings, generator)
                exemplars = check_exemplars(reference, None, gray.shape[1:])
                outside = self._outside(run, exemplars)
                pool = ReferencePool(settings.dissimilarity, settings.past_window, settings.network)
            due = {i - offset: e for i, e in exemplars.items() if offset <= i < offset + len(gray)}
            colored, _ = self._keyframes(run, gray, due, [*carried, *outside], offset)
            new = self._references(run, gray, colored, offset)
            pool.keys = [*carried, *new, *outside]
            done = color_in_order(run, enumerate(gray, offset), colored, pool)
            if settings.side_by_side > 1:
                done = sorted(done, key=lambda result: result[0])
            for _, frame, _ in done:
                yield frame
            carried, offset = new, offset + len(gray)
        if run is None:
            raise ValueError("frames holds no frames.")
        if late := [i for i in exemplars if i >= offset]:
            raise ValueError(f"reference has the frame number {late[0]}, but the film ended after {offset} frames.")

    def _outside(self, run: Run, exemplars: dict[int, np.ndarray]) -> list[Reference]:
        """The exemplar that is no frame of the clip as a reference: a list of one, or of none."""
        if OUTSIDE not in exemplars or run.settings.reference_mask:
            return []
        return [run.reference(OUTSIDE, to_gray(exemplars[OUTSIDE]), exemplars[OUTSIDE])]

    def _references(self, run: Run, gray: np.ndarray, colored: dict[int, np.ndarray], offset: int = 0):
        """Coloured frames of the clip, encoded as references, in order of time."""
        if run.settings.reference_mask:
            return []
        numbers = sorted(colored)
        return run.references(numbers, [gray[i - offset] for i in numbers], [colored[i] for i in numbers])

    def _keyframes(
        self,
        run: Run,
        gray: np.ndarray,
        exemplars: dict[int, np.ndarray],
        others: list[Reference],
        offset: int = 0,
        show: bool = False,
    ) -> tuple[dict[int, np.ndarray], dict[int, list[ReferenceRun]]]:
        """Stage 1 of a clip whose first frame has the number ``offset``; ``others`` are references from outside it."""
        given = {i: on_luminance(gray[i], e) for i, e in exemplars.items() if i != OUTSIDE}
        exemplified = bool(given) or any(reference.frame == OUTSIDE for reference in others)
        literal = run.settings.exemplar_mode == "literal" and exemplified
        if literal:
            chosen = frames_in_a_row(given, run.settings.num_keyframes, len(gray))
        else:
            chosen = choose_keyframes(given, gray, run.settings, run.encode, run.seed)
        colored = {i + offset: frame for i, frame in given.items()}
        todo = [i for i in chosen if i not in given]
        if not todo:
            return colored, {}
        references = [] if literal else [*others, *self._references(run, gray, colored, offset)]
        with self._bar(run.settings.num_inference_steps, "Keyframes") if show else nullcontext() as bar:
            numbers = tuple(i + offset for i in todo)
            result, record = color_jointly(run, gray[todo], numbers, references, bar)
        return dict(sorted({**colored, **dict(zip(numbers, result, strict=True))}.items())), record

    def _remaining(
        self, run: Run, gray: np.ndarray, colored: dict[int, np.ndarray], outside: list[Reference]
    ) -> GCGOutput:
        """Stage 2 of a whole clip."""
        settings = run.settings
        frames, references = np.empty((*gray.shape, 3), np.uint8), {}
        pool = ReferencePool(settings.dissimilarity, settings.past_window, settings.network)
        if len(colored) < len(gray):
            pool.keys = [*self._references(run, gray, colored), *outside]
        with self._bar(len(gray) - len(colored), "Frames") as bar:
            for number, frame, record in color_in_order(run, enumerate(gray), colored, pool):
                frames[number] = frame
                if record:
                    references[number] = record
                    bar.update()
        return GCGOutput(frames=frames, keyframes=list(colored), references=references)

    def _bar(self, total: int, title: str):
        """A progress bar as ``set_progress_bar_config`` wants it."""
        bar = self.progress_bar(total=total)
        if "desc" not in getattr(self, "_progress_bar_config", {}):
            bar.set_description(title)
        return bar


def _gray_chunk(chunk: list, offset: int, size: tuple[int, int] | None) -> np.ndarray:
    """Gray frames ``(n, H, W)`` of a list of frames, which must all have the same size."""
    gray = []
    for number, frame in enumerate(chunk, offset):
        gray.append(to_gray(check_frame(frame, f"frames[{number}]")))
        size = size or gray[-1].shape
        if gray[-1].shape != size:
            raise ValueError(f"frames[{number}] has size {gray[-1].shape}, those before it {size}: all must agree.")
    return np.stack(gray)
