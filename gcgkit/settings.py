"""Options of a colouring, checked once, as every public method of the pipeline takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from . import keyframes
from .encoders import IMAGE_CONDITIONS
from .utils.checks import check_choice, check_number, check_options, is_whole
from .utils.solvers import SOLVERS


@dataclass(frozen=True)
class Shortcuts:
    """Exact shortcuts. Each can be switched off to measure what it saves; the result is the same to a gray level.

    hints: make a ColorHint once per set of references, not per denoising step. references: make a reference's latents
    and image tokens once, not whenever it guides. copy: run the UNet copy once per step for both halves of guidance, as
    it sees no text. keys: make the keys and values of cross-attention once per text and per reference, not per step; at
    Stable Diffusion's size a reference then holds 5.9 MB in 16 bits, not 0.5. halves: run both halves of guidance
    through the UNet as one batch. values: pad values to the keys' width, which PyTorch's fused attention kernel wants.
    """

    hints: bool = True
    references: bool = True
    copy: bool = True
    keys: bool = True
    halves: bool = True
    values: bool = True


NO_SHORTCUTS = Shortcuts(hints=False, references=False, copy=False, keys=False, halves=False, values=False)

_NUMBERS = {  # the numbers that each option may be
    "guidance_scale": ("from 0 on", lambda x: x >= 0),
    "tau": ("above 0", lambda x: x > 0),
    "strength": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "hint_weight": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "guess_strength": ("above 0 and at most 1", lambda x: 0 < x <= 1),
    "noise_scale": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "keyframe_weight": ("above 0 and at most a million", lambda x: 0 < x <= 1e6),
    "eta": ("from 0 on", lambda x: x >= 0),
}
_CHOICES = {
    "keyframe_method": keyframes.METHODS,
    "dissimilarity": keyframes.MEASURES,
    "single_reference": ("nearest", "first"),
    "image_condition": (None, *IMAGE_CONDITIONS),
    "exemplar_mode": ("given", "literal"),
    "solver": (None, *SOLVERS),
    "noise": ("shared", "independent"),
    "mask_latents": (None, "zeros", "black"),
    "grid_tiles": (None, "full", "shrunk"),
}
# The options of which each profile has its own value.
OWN = (*(name for name in _NUMBERS if name != "eta"), "mask_latents", "grid_tiles", "image_condition")


@dataclass(frozen=True)
class Settings:
    """Options of a colouring; every public method of the pipeline takes them as keywords.

    None stands for the profile's own value. Raises ValueError for values outside those named here.

    Args:
        prompt: words for the wanted colours. ``negative_prompt``: for the unwanted ones.
        num_keyframes: m of §3.3, the exemplars that are frames included. grid_size: references per frame, c of Eq. 10.
        num_inference_steps: denoising steps per frame. guidance_scale: of the prompts; without any it does nothing.
        callback_on_step_end: as in diffusers.
        keyframe_method, dissimilarity: see ``keyframes``. network: the function that measures dissimilarity "lpips".
        tau: the t of Eq. 10 runs from tau to 0.
        strength: share of the denoising steps for frames with references, above 0 to 1. Below 1 (the paper) they start
            from their noised ColorHints, as image-to-image does, and not from pure noise.
        hint_weight: share of the ColorHint in each step's clean prediction of a frame with references, where the gate
            is open, 0 (the paper) to 1; see ``guidance.toward_hint``.
        guess_strength: as ``strength``, for frames under the reference mask without a prompt, which start from the
            noised colour guess of a copy that reads semantic features; see ``semantics``.
        noise_scale: standard deviation of the noise that frames start from, over the scheduler's, 0 to 1. Below 1 (the
            paper) a frame's colouring is nearer to the mean of those that fit it, less odd and less vivid.
        keyframe_weight: as how many tokens each token of a keyframe counts in CGA beside those of earlier frames, whose
            colours hold more errors; 1 in the paper. It has no effect where few steps at a large tau leave these out.
        past_window: earlier frames that are kept as possible references; None for all.
        use_srg: False guides by a single keyframe (Ours***), the one that ``single_reference`` names, "nearest" or
            "first".
        reference_mask: True masks every reference, to measure the effect of GCG.
        mask_latents: g_ref and z_ref under the reference mask, "zeros" or those of an encoded "black" picture. Image
            tokens and semantic features are zeros either way.
        grid_tiles: "full" tiles of the reference grid keep their size; "shrunk" ones are averaged by area, so that the
            grid has the size of one frame.
        image_condition: image tokens that the copy's cross-attention reads, "patch", "pooled" or "none".
        exemplar_mode: "given" colours the other keyframes with the exemplars as references. "literal" (§4.4) colours
            ``num_keyframes`` frames in a row under the mask, and the exemplars join them in the second stage.
        working_size: (height, width) of the model's canvas, which frames are scaled to fit. The profile's own is turned
            for upright frames.
        solver: one of ``SOLVERS``; see ``utils.solvers``. ``eta``: DDIM's.
        noise: "shared" starts every frame from the same noise, "independent" each from its own.
        side_by_side: stretches of the clip that the second stage colours at once, a frame of each as one batch; 1 is
            the paper's order. With more, "earlier frames" are those that were coloured earlier.
        shortcuts: see ``Shortcuts``.
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
    hint_weight: float | None = None
    guess_strength: float | None = None
    noise_scale: float | None = None
    keyframe_weight: float | None = None
    past_window: int | None = 32
    use_srg: bool = True
    single_reference: str = "nearest"
    reference_mask: bool = False
    mask_latents: str | None = None
    grid_tiles: str | None = None
    image_condition: str | None = None
    exemplar_mode: str = "given"
    working_size: tuple[int, int] | None = None
    solver: str | None = None
    eta: float = 0.0
    noise: str = "shared"
    side_by_side: int = 1
    shortcuts: Shortcuts = Shortcuts()

    @classmethod
    def of(cls, **options) -> Settings:
        """Return the settings with these options; TypeError, with the nearest name, for one that does not exist."""
        if options.keys() & {"height", "width"}:  # as diffusers calls the working size
            options["working_size"] = options.pop("height", None), options.pop("width", None)
        if options.keys() & {"image", "images", "video"}:
            raise TypeError("give the clip as frames=, the first argument, not as image or video.")
        check_options(options, [field.name for field in dataclasses.fields(cls)])
        return cls(**options)

    def completed(self, pipe) -> Settings:
        """Fill in a pipeline's own values for the options that are None.

        Without the colour attention (Ours*) the hint is the reference itself, with another frame's structure: frames
        start from pure noise then, and take nothing from the hint.
        """
        own = {name: pipe.config[name] for name in OWN if getattr(self, name) is None}
        if pipe.control.guidance.config.mode == "concat":
            own |= {"strength": 1.0, "hint_weight": 0.0}
        return dataclasses.replace(self, **own)

    def __post_init__(self):
        for name, value in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            if not isinstance(value, str):
                raise ValueError(f"{name} must be one string for the whole clip, not {type(value).__name__}.")
        for name in ("num_keyframes", "grid_size", "num_inference_steps", "past_window", "side_by_side"):
            value = getattr(self, name)
            if not (is_whole(value) and value >= 1) and not (name == "past_window" and value is None):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")
        for name, (domain, holds) in _NUMBERS.items():
            if getattr(self, name) is not None or name not in OWN:
                check_number(name, getattr(self, name), domain, holds)
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        if self.dissimilarity == "lpips" and not callable(self.network):
            raise ValueError("dissimilarity 'lpips' needs network=, a callable (a_frames, b_frames) -> (N,) distances.")
        if self.callback_on_step_end is not None and not callable(self.callback_on_step_end):
            raise ValueError("callback_on_step_end must be callable as (pipe, step, timestep, kwargs).")
        if not isinstance(self.shortcuts, Shortcuts):
            raise ValueError(f"shortcuts must be gcgkit.settings.Shortcuts, not {type(self.shortcuts).__name__}.")
        size = self.working_size
        pair = isinstance(size, (tuple, list)) and len(size) == 2
        if size is not None and not (pair and all(is_whole(s) and s >= 8 for s in size)):
            raise ValueError(f"working_size must be (height, width) in pixels, 8 at least, not {size!r}.")
