"""Options of a colouring, checked once, as every public method of the pipeline takes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import encoders as conditioning
from . import keyframes
from .shortcuts import Shortcuts
from .solvers import SOLVERS

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
    hint_weight: how much of the ColorHint each step's clean prediction of a frame with references is given where the
    gate is open, 0 (the paper) to 1, see ``blending``; None for the profile's own.
    noise_scale: standard deviation of the noise that frames start from, over the scheduler's, 0 to 1. At 1 (the paper)
    a gray frame gets one of the many colourings that fit it; below, one nearer to what they have in common, with less
    that is odd and less that is vivid. None for the profile's own.
    solver: which way the denoising steps go, "ddim", "dpm++" or "unipc", see ``solvers``; None for the profile's own.
    eta: DDIM's. noise: "shared" starts every frame from the same noise, "independent" each from its own.
    side_by_side: how many stretches of the clip the second stage colours at once, a frame of each as one batch; 1 is
    the paper's order. With more, "earlier frames" are those that were coloured earlier. shortcuts: see ``shortcuts``.
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
    hint_weight: float | None = None
    noise_scale: float | None = None
    past_window: int | None = 32
    use_srg: bool = True
    single_reference: str = "nearest"
    reference_mask: bool = False
    image_condition: str = "patch"
    exemplar_mode: str = "given"
    working_size: tuple[int, int] | None = None
    solver: str | None = None
    eta: float = 0.0
    noise: str = "shared"
    side_by_side: int = 1
    shortcuts: Shortcuts = Shortcuts()

    def __post_init__(self):
        for name in ("prompt", "negative_prompt"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(f"{name} must be one string for the whole clip, not {type(value).__name__}.")
        for name in ("num_keyframes", "grid_size", "num_inference_steps", "past_window", "side_by_side"):
            value = getattr(self, name)
            if not (_is_whole(value) and value >= 1) and not (name == "past_window" and value is None):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")
        for name, lowest in (
            ("guidance_scale", 0), ("tau", None), ("strength", None), ("hint_weight", 0),
            ("noise_scale", 0), ("eta", 0),
        ):  # fmt: skip
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
        if self.solver is not None and self.solver not in SOLVERS:
            raise ValueError(f"solver must be None or one of {', '.join(SOLVERS)}, not {self.solver!r}.")
        if self.strength is not None and not self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, not {self.strength!r}.")
        for name in ("hint_weight", "noise_scale"):
            value = getattr(self, name)
            if value is not None and not value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {value!r}.")
        if self.dissimilarity == "lpips" and self.network is None:
            raise ValueError("dissimilarity 'lpips' needs network=, a callable (a_frames, b_frames) -> (N,) distances.")
        if self.callback_on_step_end is not None and not callable(self.callback_on_step_end):
            raise ValueError("callback_on_step_end must be callable as (pipe, step, timestep, kwargs).")
        if not isinstance(self.shortcuts, Shortcuts):
            raise ValueError(f"shortcuts must be gcgkit.shortcuts.Shortcuts, not {type(self.shortcuts).__name__}.")
        size = self.working_size
        if size is not None and not (
            isinstance(size, (tuple, list)) and len(size) == 2 and all(_is_whole(s) and s >= 8 for s in size)
        ):
            raise ValueError(f"working_size must be (height, width) in pixels, 8 at least, not {size!r}.")


def _is_whole(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
