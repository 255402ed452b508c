"""Captions of frames: BLIP's as in the paper (§4.1), or made of a frame's own colours; and the file they are kept in.

The mini profile's captions name what a file's name says it shows and the colours that cover most of the picture, in the
middle and around it. Such captions teach colour words honestly and little else; the model card says so.

A caption file (``captions.jsonl``) has one JSON object per line, ``{"clip": ..., "frame": ..., "caption": ...}``, and
may be edited by hand: what is there is never computed again. torch and transformers load when BLIP is first asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

from ..color import to_gray
from . import prepare as preparation
from .color_words import remove_color_words
from .footage import read_image

__all__ = [
    "BLIP",
    "COLOR_WORDS",
    "Blip",
    "ColorCaptions",
    "WORD_RGB",
    "caption",
    "caption_folder",
    "main_colors",
    "missing_captions",
    "name_colors",
    "nearest_caption",
    "read_captions",
    "remove_color_words",
    "sampled_frames",
    "thing_of",
]

BLIP = "Salesforce/blip-image-captioning-base"
# What a clip of the mini profile's training set is called after comes behind the collection that it is from.
_COLLECTIONS = ("tuneavideo", "tokenflow", "cotracker", "torchcodec nasa", "torchcodec", "sam2")

# Upper bound of LAB hue angles in degrees, going round from 0; hues of sRGB's pure colours lie inside their range.
_HUES = ((15.0, "pink"), (48.0, "red"), (80.0, "orange"), (112.0, "yellow"), (178.0, "green"), (225.0, "cyan"))
_MORE_HUES = ((307.0, "blue"), (340.0, "purple"), (360.0, "pink"))
COLOR_WORDS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "gray", "white")
# sRGB of the colour that each word means, for measuring whether a picture moved towards it.
WORD_RGB = {
    "red": (255, 0, 0),
    "orange": (255, 165, 0),
    "yellow": (255, 255, 0),
    "green": (0, 128, 0),
    "cyan": (0, 255, 255),
    "blue": (0, 0, 255),
    "purple": (128, 0, 128),
    "pink": (255, 105, 180),
    "brown": (139, 69, 19),
}


def name_colors(frame: np.ndarray) -> np.ndarray:
    """Index into ``COLOR_WORDS`` for every pixel of an RGB uint8 frame: ``(H, W, 3)`` -> ``(H, W)``."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lightness, a, b = lab[..., 0], lab[..., 1], lab[..., 2]
    hue = np.degrees(np.arctan2(b, a)) % 360
    bounds = [bound for bound, _ in _HUES + _MORE_HUES]
    words = np.array([COLOR_WORDS.index(word) for _, word in _HUES + _MORE_HUES])
    named = words[np.minimum(np.searchsorted(bounds, hue), len(words) - 1)]
    reddish = np.isin(named, [COLOR_WORDS.index("red"), COLOR_WORDS.index("orange")])
    named = np.where(reddish & (lightness < 50) & (np.hypot(a, b) < 50), COLOR_WORDS.index("brown"), named)
    light_red = (named == COLOR_WORDS.index("red")) & (lightness > 70)
    named = np.where(light_red, COLOR_WORDS.index("pink"), named)
    neutral = np.where(lightness < 22, COLOR_WORDS.index("black"), COLOR_WORDS.index("gray"))
    neutral = np.where(lightness > 82, COLOR_WORDS.index("white"), neutral)
    return np.where(np.hypot(a, b) < 9, neutral, named)


def main_colors(frame: np.ndarray, least: float = 0.2, most: int = 2) -> list[str]:
    """Words for the colours that cover at least a share ``least`` of a frame, widest first, ``most`` at the most."""
    shares = np.bincount(name_colors(frame).ravel(), minlength=len(COLOR_WORDS)) / (frame.shape[0] * frame.shape[1])
    # What is black, gray or white shows in the gray frame already: name it only when it is nearly all there is.
    shares[[COLOR_WORDS.index(word) for word in ("black", "gray", "white")]] *= 0.35
    order = np.argsort(-shares, kind="stable")[:most]
    return [COLOR_WORDS[i] for i in order if shares[i] >= least]


def thing_of(name: str) -> str:
    """What a file's or clip's name says it shows: ``n02165456_ladybug`` -> ``ladybug``; a bare number says nothing.

    The collection that a clip is from is no thing: ``tokenflow_wolf`` -> ``wolf``, ``sam2_02_cups`` -> ``cups``.
    """
    words = re.sub(r"[^a-z0-9]+", " ", re.sub(r"^n\d+_", "", name).lower()).strip()
    words = re.sub(rf"^(?:{'|'.join(_COLLECTIONS)})\b", "", words)
    return " ".join(re.findall(r"[a-z]{2,}", words))


def caption(frame: np.ndarray, thing: str, rng: np.random.Generator) -> str:
    """A caption of one RGB frame, in one of several forms: colours of the whole, or of the middle and its surround."""
    height, width = frame.shape[:2]
    thing = thing or "picture"
    if rng.random() < 0.4 and min(height, width) >= 4:  # smaller frames have no surround
        middle = frame[height // 4 : -(height // 4), width // 4 : -(width // 4)]
        around = np.concatenate([frame[: height // 4].reshape(-1, 1, 3), frame[-(height // 4) :].reshape(-1, 1, 3)])
        inner, outer = main_colors(middle, 0.25, 1), main_colors(around, 0.25, 1)
        if inner and outer:
            return f"{inner[0]} {thing}, {outer[0]} background"
    colors = main_colors(frame)
    if not colors:
        return thing
    if rng.random() < 0.3:
        return " and ".join(colors) if rng.random() < 0.5 else colors[0]
    form = rng.integers(3)
    if form == 0:
        return f"{colors[0]} {thing}"
    return f"a photo of a {thing}, {' and '.join(colors)}" if form == 1 else f"{' and '.join(colors)} {thing}"


# --- caption files ----------------------------------------------------------------------------------------------------


def sampled_frames(count: int, every: int = 30) -> list[int]:
    """Indices of the frames that get a caption: the first, and every ``every``-th after it."""
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}.")
    return list(range(0, count, every))


def read_captions(path: str | Path) -> dict[str, dict[int, str]]:
    """Captions of a file by clip and frame; of two lines for one frame the later counts. A missing file is empty.

    A last line that was cut off by a broken run is left out. Raises ValueError, naming the line, for any other that is
    no such object.
    """
    path, captions = Path(path), {}
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            clip, frame, text = entry["clip"], entry["frame"], entry["caption"]
            if not (isinstance(clip, str) and isinstance(text, str) and isinstance(frame, int) and frame >= 0):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            wanted = '{"clip": "...", "frame": 0, "caption": "..."}'
            raise ValueError(f"{path}, line {number}, is not of the form {wanted}: mend or delete it.") from None
        captions.setdefault(clip, {})[frame] = text
    return captions


def nearest_caption(captions: dict[str, dict[int, str]], clip: str, frame: int) -> str:
    """Caption of the captioned frame nearest in time, the earlier one in a tie; empty for a clip without any."""
    known = captions.get(clip)
    return known[min(known, key=lambda index: (abs(index - frame), index))] if known else ""


def caption_folder(
    folder: str | Path,
    captioner: Callable[[Sequence[np.ndarray], Sequence[str]], list[str]],
    *,
    every: int = 30,
    batch: int = 16,
    gray: bool = False,
    path: str | Path | None = None,
) -> Path:
    """Caption the sampled frames of a prepared folder and return the caption file, ``captions.jsonl`` in it by default.

    captioner: takes RGB frames ``(H, W, 3)`` uint8 and their clips' names, returns as many texts. It is called only for
    frames without a caption, ``batch`` at a time; each batch is in the file before the next starts. gray: show it gray
    frames, as one has at test time. Raises ValueError for a folder or file that cannot be read (see `preparation`).
    """
    folder = Path(folder)
    path = Path(path) if path else folder / preparation.CAPTIONS
    missing = missing_captions(folder, every=every, path=path)
    _end_line(path)
    with path.open("a", encoding="utf-8") as file, tqdm(total=len(missing), desc=path.name, disable=None) as bar:
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            frames = [read_image(image) for _, _, image in part]
            if gray:
                frames = [np.repeat(to_gray(frame)[..., None], 3, axis=-1) for frame in frames]
            for (clip, frame, _), text in zip(part, captioner(frames, [clip for clip, _, _ in part]), strict=True):
                file.write(json.dumps({"clip": clip, "frame": frame, "caption": text}, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(part))
    return path


def missing_captions(
    folder: str | Path, *, every: int = 30, path: str | Path | None = None
) -> list[tuple[str, int, Path]]:
    """The sampled frames of a prepared folder that have no caption yet: clip, index, image."""
    manifest = preparation.read_manifest(folder)
    known = read_captions(path or Path(folder) / preparation.CAPTIONS)
    missing = []
    for clip in manifest["clips"]:
        images = preparation.frame_paths(folder, clip, manifest["format"])
        done = known.get(clip["clip"], {})
        missing += [(clip["clip"], i, images[i]) for i in sampled_frames(len(images), every) if i not in done]
    return missing


def _end_line(path: Path) -> None:
    """Take away the rest of a line that a broken run left, so that the next one starts where lines start."""
    data = path.read_bytes() if path.is_file() else b""
    if data and not data.endswith(b"\n"):
        whole, last = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
        try:
            json.loads(last)
            path.write_bytes(data + b"\n")  # whole after all: an editor left out the last end of line
        except ValueError:
            path.write_bytes(whole)


# --- captioners -------------------------------------------------------------------------------------------------------


class ColorCaptions:
    """Captioner by `caption`: a thing from the clip's name, colours from the frame. Needs no weights."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)

    def __call__(self, frames: Sequence[np.ndarray], clips: Sequence[str]) -> list[str]:
        return [caption(frame, thing_of(clip), self.rng) for frame, clip in zip(frames, clips, strict=True)]


class Blip:
    """Captioner by BLIP through transformers (§4.1), greedy, at most ``length`` tokens.

    model: hub id or folder. device: CUDA where there is one by default; weights in float16 there, float32 elsewhere.
    They load at the first call. Raises FileNotFoundError, with the command that gets them, where they cannot be had.
    """

    def __init__(self, model: str | Path = BLIP, revision: str | None = None, device=None, length: int = 30):
        self.name, self.revision, self.device, self.length = str(model), revision, device, length
        self.model = self.processor = None

    def __call__(self, frames: Sequence[np.ndarray], clips: Sequence[str] = ()) -> list[str]:
        import torch

        if self.model is None:
            self._load()
        with torch.inference_mode():
            pixels = self.processor(images=list(frames), return_tensors="pt").pixel_values  # (B, 3, 384, 384)
            tokens = self.model.generate(
                pixel_values=pixels.to(self.model.device, self.model.dtype),
                max_new_tokens=self.length,
                num_beams=1,
                do_sample=False,
            )
        return [" ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    def _load(self) -> None:
        import torch
        from transformers import BlipForConditionalGeneration, BlipProcessor

        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        try:
            self.processor = BlipProcessor.from_pretrained(self.name, revision=self.revision)
            model = BlipForConditionalGeneration.from_pretrained(self.name, revision=self.revision)
        except OSError:
            raise FileNotFoundError(
                f"BLIP cannot be loaded from '{self.name}': run python data_scripts/weights.py blip, or give a folder."
            ) from None
        self.model = model.to(device, dtype).eval()
