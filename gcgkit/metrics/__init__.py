"""Metrics of colourized video (section 4.3): fidelity, vividness and steadiness of colour.

Clips are RGB uint8 arrays ``(T, H, W, 3)``, or any iterable of frames ``(H, W, 3)``, which is read one frame at a
time. Metrics of colour only are easily misled: gray or frozen output has the best CDC, so always show the true clip's
own value too. The metrics that are neural networks are in `networks`.
"""

import math
from collections.abc import Iterable

import cv2
import numpy as np
from scipy.special import rel_entr

from ..color import LUMINANCE_OF_BYTE, lightness_of_gray, rgb_to_lab, to_gray
from ..utils.checks import check_choice, each_frame, frame_pairs
from ..utils.optical_flow import optical_flow, warp
from .networks import clip_iqa, fd_efficientnet, fid, lpips, musiq, st_lpips

__all__ = [
    "CDC_GAPS",
    "COLORFULNESS_FORMS",
    "PSNR_CAP",
    "cdc",
    "clip_iqa",
    "colorfulness",
    "fd_efficientnet",
    "fid",
    "flow_warp_error",
    "lightness",
    "lpips",
    "mean_color_spread",
    "musiq",
    "psnr_luma",
    "psnr_rgb",
    "st_lpips",
    "swapped_channels",
]

PSNR_CAP = 100.0
COLORFULNESS_FORMS = ("2003", "abs")
CDC_GAPS = (1, 2, 4)


def psnr_rgb(pred, target) -> float:
    """Return the mean over frames of the PSNR of red, green and blue together, in dB, peak 255.

    pred, target: clips of one size and length. Each frame counts at most 100 dB (`PSNR_CAP`), so that an identical
    frame does not make the mean infinite. Raises ValueError if type, size or length do not fit.
    """
    values = []
    for a, b in frame_pairs(pred, target, ("pred", "target")):
        difference = np.subtract(a, b, dtype=np.int32)  # signed: uint8 differences would wrap
        values.append(_decibels(float(np.square(difference).mean(dtype=np.float64)), 255.0))
    return float(np.mean(values))


def psnr_luma(pred, target) -> float:
    """Return the mean over frames of the PSNR of CIELAB lightness L*, in dB, peak 100; otherwise as `psnr_rgb`.

    A method that keeps its input's lightness scores high with any colours.
    """
    values = []
    for a, b in frame_pairs(pred, target, ("pred", "target")):
        values.append(_decibels(float(np.square(lightness(a) - lightness(b)).mean()), 100.0))
    return float(np.mean(values))


def lightness(rgb) -> np.ndarray:
    """L* in 0..100, float64, of sRGB uint8 ``(..., 3)``, by the definition itself (CIE 15): for measuring.

    `color.rgb_to_lab` gives all three channels in the same time, but is off by up to 0.004.
    """
    rgb = np.asarray(rgb)
    if rgb.ndim < 1 or rgb.shape[-1] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"rgb must be uint8 with three channels in its last axis, not {rgb.dtype} {rgb.shape}.")
    red, green, blue = (table[rgb[..., channel]] for channel, table in enumerate(LUMINANCE_OF_BYTE))
    y = red + green + blue  # (...), 1 for white
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def colorfulness(frames, form: str = "2003") -> float:
    """Return the colourfulness of Hasler and Suesstrunk (2003), mean over frames: 0 for gray, 109 for very colourful.

    With rg = R - G and yb = (R + G)/2 - B, their third and cheapest formula is
    sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2). form="2003" is this formula; form="abs" takes |rg| and
    |yb| first, as several public implementations do. Raises ValueError for wrong frames or an unknown form.
    """
    check_choice("form", form, COLORFULNESS_FORMS)
    values = []
    for frame in each_frame(frames):
        red, green, blue = (channel.astype(np.float32) for channel in cv2.split(frame))
        rg, yb = red - green, (red + green) / 2 - blue
        if form == "abs":
            rg, yb = np.abs(rg), np.abs(yb)
        (rg_mean, rg_deviation), (yb_mean, yb_deviation) = _mean_deviation(rg), _mean_deviation(yb)
        values.append(math.hypot(rg_deviation, yb_deviation) + 0.3 * math.hypot(rg_mean, yb_mean))
    return float(np.mean(values))


def cdc(videos: Iterable) -> float:
    """Return the Colour Distribution Consistency (Liu et al., TCVC): histograms' change in time; less is steadier.

    videos: a list of clips, each with 5 frames or more; a single array ``(T, H, W, 3)`` counts as one clip. The
    Jensen-Shannon divergence (natural logarithm, at most ln 2) of the 256-bin histograms of frames t and t + d is
    averaged over t, then over the channels, the videos and d = 1, 2, 4. The result is not multiplied by 100. Raises
    ValueError for a shorter clip or no clip.
    """
    if isinstance(videos, np.ndarray) and videos.ndim == 4:
        videos = [videos]
    values = []
    for number, video in enumerate(videos):
        name = f"videos[{number}]"
        histograms = np.array([_histograms(frame) for frame in each_frame(video, name)])  # (T, 3, 256)
        if len(histograms) <= max(CDC_GAPS):
            raise ValueError(f"{name} has {len(histograms)} frame(s); CDC needs at least {max(CDC_GAPS) + 1}.")
        values.append([_jensen_shannon(histograms[:-gap], histograms[gap:]).mean() for gap in CDC_GAPS])
    if not values:
        raise ValueError("videos is empty; CDC needs at least one clip.")
    return float(np.mean(values))


def mean_color_spread(frames) -> float:
    """Return the spread of the frames' mean colours, in units of CIELAB's a* and b*: 0 if all are equal.

    Each frame's mean a* and b* is a point; the result is the root mean square distance of the points from their centre.
    frames: a clip, or keyframes that should agree (§3.3). The place and truth of colours do not matter: gray frames
    agree perfectly. Raises ValueError for no frames or wrong ones.
    """
    means = np.array([rgb_to_lab(frame)[..., 1:].mean((0, 1)) for frame in each_frame(frames)])  # (T, 2)
    return float(np.sqrt(means.var(axis=0).sum()))


def flow_warp_error(frames, gray) -> float:
    """Return the mean squared RGB difference, in 0..1, of each frame and its predecessor warped along optical flow.

    frames: RGB clip ``(T, H, W, 3)``. gray: the true gray clip ``(T, H, W)``, or an iterable of its frames; DIS optical
    flow is computed on it, so that all methods are measured along the same motion. Only pixels that are visible in both
    frames count (forward and backward flow agree); pairs without any, such as cuts, are left out. Less is steadier. The
    mean is over pairs. Raises ValueError if sizes or lengths differ, for fewer than 2 frames, or if no pair can be
    compared.
    """
    values, previous = [], None
    for pair in frame_pairs(frames, gray, ("frames", "gray"), gray=True):
        if previous is not None:
            values.append(_warp_error(previous[0], pair[0], previous[1], pair[1]))
        previous = pair
    if not values:
        raise ValueError("gray holds 1 frame, too few: 2 are needed.")
    values = [value for value in values if value is not None]
    if not values:
        raise ValueError("flow_warp_error is undefined for this clip: no pixel is seen in two frames running.")
    return float(np.mean(values))


def swapped_channels(frames, gray) -> bool:
    """Return True if RGB frames seem to have red and blue exchanged, by comparison with the gray clip's lightness.

    frames: RGB clip; gray: the true gray clip, arrays or streams. Every method roughly keeps the input's luma or its
    L*. The result is True if neither is kept, and exchanging red and blue reduces the error of one of them to a
    quarter. A tint cannot do that, since red has three times the weight of blue in both. Gray frames give False. Raises
    ValueError if the clips differ in length or size.
    """
    gaps = [
        (_lightness_gaps(frame, wanted), _lightness_gaps(frame[..., ::-1], wanted))
        for frame, wanted in frame_pairs(frames, gray, ("frames", "gray"), gray=True)
    ]
    straight, swapped = np.mean(gaps, axis=0)  # (2,) each
    nearer = int(np.argmin(swapped))
    return bool(swapped[nearer] < straight[nearer] / 4 and straight.min() > 0.25)


def _lightness_gaps(frame: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """Return the mean absolute differences of a frame's luma and L* from a gray frame's, both on a scale of 100."""
    luma = np.abs(to_gray(frame).astype(np.int16) - gray).mean() / 2.55
    return np.array([luma, np.abs(rgb_to_lab(frame)[..., 0] - lightness_of_gray(gray)).mean()])


def _warp_error(previous: np.ndarray, frame: np.ndarray, previous_gray: np.ndarray, gray: np.ndarray) -> float | None:
    """Return the mean squared difference over pixels visible in both frames; None if there are none."""
    backward = optical_flow(gray, previous_gray)  # (H, W, 2)
    forward = optical_flow(previous_gray, gray)
    visible = _visible(backward, forward)
    if not visible.any():
        return None
    difference = frame.astype(np.float32) / 255 - warp(previous.astype(np.float32) / 255, backward)
    return float(np.square(difference)[visible].mean(dtype=np.float64))


def _visible(flow: np.ndarray, back_flow: np.ndarray) -> np.ndarray:
    """Mark pixels whose flow stays inside and returns within the bound of Sundaram et al. (2010): bool ``(H, W)``."""
    height, width = flow.shape[:2]
    x = np.arange(width)[None, :] + flow[..., 0]
    y = np.arange(height)[:, None] + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    returned = warp(back_flow, flow)
    gap = np.square(flow + returned).sum(axis=-1)
    bound = 0.01 * (np.square(flow).sum(axis=-1) + np.square(returned).sum(axis=-1)) + 0.5
    return inside & (gap <= bound)


def _decibels(mean_square: float, peak: float) -> float:
    return PSNR_CAP if mean_square == 0 else min(PSNR_CAP, 10 * math.log10(peak**2 / mean_square))


def _mean_deviation(values: np.ndarray) -> tuple[float, float]:
    """Return mean and population standard deviation, accumulated in float64."""
    mean, deviation = cv2.meanStdDev(values)
    return float(mean[0, 0]), float(deviation[0, 0])


def _histograms(frame: np.ndarray) -> np.ndarray:
    """Return the share of the pixels at each of 256 values, per channel: ``(3, 256)``."""
    counts = [np.bincount(channel.reshape(-1), minlength=256) for channel in cv2.split(frame)]
    return np.array(counts) / (frame.shape[0] * frame.shape[1])


def _jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return JS(P, Q) = KL(P | M)/2 + KL(Q | M)/2 over the last axis, with M the mean of both; 0 log 0 is 0."""
    middle = (p + q) / 2
    return (rel_entr(p, middle).sum(axis=-1) + rel_entr(q, middle).sum(axis=-1)) / 2
