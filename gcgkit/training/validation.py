"""Validation during training: a few clips that are never trained on, coloured by the present pipeline (§4.3)."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from .. import color, metrics
from ..data.color_words import remove_color_words
from ..data.dataset import read_clips
from .config import TrainConfig
from .log import TrainingLog

SHOWN = 4  # frames of each clip in the picture
SEED = 0  # the same noise every time, so that pictures of different steps can be compared


@dataclass(frozen=True)
class ValidationClip:
    """Frames ``(T, H, W, 3)`` of a clip, and the prompt for colouring it without an exemplar."""

    name: str
    frames: np.ndarray
    prompt: str


def load_clips(config: TrainConfig, root: str | Path) -> list[ValidationClip]:
    """Load the first frames of the configuration's validation clips; none if it names none.

    Raises ValueError for a clip that its set does not hold.
    """
    wanted = config.validation
    if not wanted.clips:
        return []
    have = {clip.name: clip for clip in read_clips(root, [wanted.set])}
    missing = [name for name in wanted.clips if name not in have]
    if missing:
        raise ValueError(f"validation.clips: {wanted.set} has no clip {missing[0]!r}, among its {len(have)} clips.")
    found = []
    for name in wanted.clips:
        clip = have[name]
        frames = np.stack([clip.read(i) for i in range(min(clip.frames, wanted.frames))])
        # §4.1, under the mask: the true frame's caption without its colour words.
        found.append(ValidationClip(name, frames, remove_color_words(clip.caption(0))))
    return found


def validate(
    pipe, clips: list[ValidationClip], steps: int, device: torch.device | str
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Colour each clip from its first frame's colours ("exemplar") and from its caption ("automatic").

    Returns numbers by clip and way, and a picture ``(H, W, 3)`` by clip: rows gray, exemplar, automatic, true.
    PSNR is over all frames but the first, which is given; the gray clip's is beside it.
    """
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    homes = [next(part.parameters()).device for part in parts]
    for part in parts:
        part.to(device)
    pipe.set_progress_bar_config(disable=True)
    numbers, pictures = {}, {}
    try:
        for clip in clips:
            gray = color.to_gray(clip.frames)
            rows = {"gray": np.repeat(gray[..., None], 3, axis=3)}  # (T, H, W) -> (T, H, W, 3)
            ways = {"exemplar": {"reference": {0: clip.frames[0]}}, "automatic": {"prompt": clip.prompt}}
            for way, options in ways.items():
                generator = torch.Generator().manual_seed(SEED)
                rows[way] = pipe(gray, num_inference_steps=steps, generator=generator, **options).frames
            numbers[clip.name] = {way: _measure(frames, clip.frames) for way, frames in rows.items()}
            numbers[clip.name]["true"] = _measure(clip.frames, clip.frames)
            pictures[clip.name] = _sheet([*rows.values(), clip.frames])
    finally:
        for part, home in zip(parts, homes, strict=True):
            part.to(home)
    return numbers, pictures


def write(numbers: dict, pictures: dict[str, np.ndarray], step: int, out: Path, log: TrainingLog) -> None:
    """Log the numbers and keep the pictures as ``validation/<clip>/step-00000500.png``."""
    for name, picture in pictures.items():
        path = out / "validation" / name / f"step-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp.png")
        cv2.imwrite(str(partial), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        os.replace(partial, path)
        log.picture(f"validation/{name}", picture, step)
    log.write({"step": step, "validation": numbers})


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """Restore every random generator at the end of the ``with`` block."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def _measure(frames: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return PSNR (dB), colourfulness, and CDC if there are enough frames."""
    found = {"colorfulness": round(metrics.colorfulness(frames), 3)}
    if frames is not truth and len(frames) > 1:
        found["psnr_rgb"] = round(metrics.psnr_rgb(frames[1:], truth[1:]), 3)
    if len(frames) >= 5:
        found["cdc"] = round(metrics.cdc([frames]), 6)
    return found


def _sheet(rows: list[np.ndarray]) -> np.ndarray:
    """Draw some frames of each clip side by side, one clip below the other."""
    chosen = np.unique(np.linspace(0, len(rows[0]) - 1, min(SHOWN, len(rows[0]))).round().astype(int))
    return np.concatenate([np.concatenate(list(frames[chosen]), axis=1) for frames in rows], axis=0)
