"""Colour names and automatic captions made of a frame's own colours (the mini profile's stand-in for BLIP, §4.1).

A caption names what a file's name says it shows and the colours that cover most of the picture, in the middle and
around it. Such captions teach colour words honestly and little else; the model card says so.
"""

from __future__ import annotations

import re

import cv2
import numpy as np

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
    """What a file's or clip's name says it shows: ``n02165456_ladybug`` -> ``ladybug``; a bare number says nothing."""
    words = re.sub(r"^n\d+_", "", name).replace("tuneavideo_", "").replace("tokenflow_", "")
    return " ".join(re.findall(r"[a-z]{2,}", words.lower()))


def caption(frame: np.ndarray, thing: str, rng: np.random.Generator) -> str:
    """A caption of one RGB frame, in one of several forms: colours of the whole, or of the middle and its surround."""
    height, width = frame.shape[:2]
    thing = thing or "picture"
    if rng.random() < 0.4:
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


def remove_color_words(text: str) -> str:
    """The text without ``COLOR_WORDS`` and their joints: ``"red and blue car, green background"`` -> ``"car"``."""
    word = rf"\b(?:\w+-)*(?:{'|'.join((*COLOR_WORDS, 'grey'))})(?:-\w+)*\b"  # light-blue and red-haired go whole
    text = re.sub(rf"{word}(?:\s+and\b(?=\s+{word}))?", " ", text.lower())
    text = re.sub(r",\s*background\b", "", text)
    parts = (re.sub(r"^(and\s+)+|(\s+and)+$|^and$", "", " ".join(part.split())) for part in text.split(","))
    return ", ".join(part for part in parts if part)
