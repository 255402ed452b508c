"""Words for what a frame shows: the colours that cover it, and the thing in its file's name (§4.1, the mini profile).

Such captions teach colour words and little else. Nothing here reads video, so that a training machine without a video
library can use it.
"""

import re

import cv2
import numpy as np

# Prefixes of clip names in the mini profile's training set: the collection that a clip is from.
_COLLECTIONS = ("tuneavideo", "tokenflow", "cotracker", "torchcodec nasa", "torchcodec", "sam2")

# Upper bounds of LAB hue angles in degrees, from 0 on; each of sRGB's pure colours lies inside its range.
_HUES = (
    (15.0, "pink"), (48.0, "red"), (80.0, "orange"), (112.0, "yellow"), (178.0, "green"), (225.0, "cyan"),
    (307.0, "blue"), (340.0, "purple"), (360.0, "pink"),
)  # fmt: skip
COLOR_WORDS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "gray", "white")
# The sRGB colour of each word, to measure how far a picture moved towards it.
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
    """Return an index into ``COLOR_WORDS`` for every pixel of an RGB uint8 frame: ``(H, W, 3)`` -> ``(H, W)``."""
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lightness, a, b = lab[..., 0], lab[..., 1], lab[..., 2]
    hue = np.degrees(np.arctan2(b, a)) % 360
    bounds = [bound for bound, _ in _HUES]
    words = np.array([COLOR_WORDS.index(word) for _, word in _HUES])
    named = words[np.minimum(np.searchsorted(bounds, hue), len(words) - 1)]
    reddish = np.isin(named, [COLOR_WORDS.index("red"), COLOR_WORDS.index("orange")])
    named = np.where(reddish & (lightness < 50) & (np.hypot(a, b) < 50), COLOR_WORDS.index("brown"), named)
    light_red = (named == COLOR_WORDS.index("red")) & (lightness > 70)
    named = np.where(light_red, COLOR_WORDS.index("pink"), named)
    neutral = np.where(lightness < 22, COLOR_WORDS.index("black"), COLOR_WORDS.index("gray"))
    neutral = np.where(lightness > 82, COLOR_WORDS.index("white"), neutral)
    return np.where(np.hypot(a, b) < 9, neutral, named)


def main_colors(frame: np.ndarray, least: float = 0.2, most: int = 2) -> list[str]:
    """Return words for the colours that cover a share ``least`` of a frame, widest first, at most ``most`` words."""
    shares = np.bincount(name_colors(frame).ravel(), minlength=len(COLOR_WORDS)) / (frame.shape[0] * frame.shape[1])
    # Black, gray and white show in the gray frame already: name them only if they cover nearly all of it.
    shares[[COLOR_WORDS.index(word) for word in ("black", "gray", "white")]] *= 0.35
    order = np.argsort(-shares, kind="stable")[:most]
    return [COLOR_WORDS[i] for i in order if shares[i] >= least]


def thing_of(name: str) -> str:
    """Return the thing that a file's or clip's name names: ``n02165456_ladybug`` -> ``ladybug``; "" for a number.

    The name of the collection is left out: ``tokenflow_wolf`` -> ``wolf``, ``sam2_02_cups`` -> ``cups``.
    """
    words = re.sub(r"[^a-z0-9]+", " ", re.sub(r"^n\d+_", "", name).lower()).strip()
    words = re.sub(rf"^(?:{'|'.join(_COLLECTIONS)})\b", "", words)
    return " ".join(re.findall(r"[a-z]{2,}", words))


def caption(frame: np.ndarray, thing: str, rng: np.random.Generator) -> str:
    """Caption one RGB frame in one of several forms: with colours of the whole, or of the middle and its surround."""
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
