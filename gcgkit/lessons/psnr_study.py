"""A study of PSNR: the ways of computing it that give figures near 57 dB beside an LPIPS of 0.13 (Table 1, §4.3).

In the paper's table DeOldify has a PSNR of 57.67 and an LPIPS of 0.1346. A PSNR of 57 dB between RGB frames means a
root mean square error of a third of a level: no more than rounding, which LPIPS would not see. So the column holds
something else. `bookkeepings` takes the PSNR of one pair of clips in all the ways that papers and public codes do.

Measured with wrong colours (`baselines.global_transfer`) on the first six frames of DAVIS's blackswan, cows, dog,
drift-straight, horsejump-high and soapbox at 448x256:

    RGB                                                                         21 to 31 dB
    lightness L* against the true frames', the gray input's L* kept             37 to 47 dB
    lightness L* against the true frames', their own L* kept                    59 to 60 dB (8-bit L*: 54 to 55)
    lightness L* against the gray input that was given, its L* kept             58 to 60 dB
    luma against the true frames', the gray input's luma kept (as DeOldify)     85 dB to no difference at all
    faults: uint8 that wraps around, 29 to 34 dB; values of 0..1 under a peak of 255, 69 to 79 dB

So only the lightness of frames that keep their input's lightness has the column's values: near 57 where nothing but
rounding is left, in the forties where gray luma replaces L*, as in a method that recombines AB with the gray
input's L. The six methods' order fits: those that keep luminance are at 43 dB and more (DExemplar on LDV3 apart), those
that repaint or resize it at 32 to 39. The column then says how faithfully a method keeps its input's lightness, and
nothing of its colours. That is how it looks; the paper does not say, and nothing here was tuned to match it.
"""

import math

import cv2
import numpy as np

from ..color import to_gray
from ..metrics import lightness
from ..utils.checks import frame_pairs

PAPER_DB = 57.67  # DeOldify on LDV 3.0
BOOKKEEPINGS = {
    "rgb": "red, green and blue together, peak 255 (metrics.psnr_rgb)",
    "rgb_pooled": "red, green and blue, from the mean error of all frames, not the mean of their decibels",
    "luma_lab": "lightness L*, peak 100 (metrics.psnr_luma)",
    "luma_lab_8bit": "L* in OpenCV's 8-bit LAB, peak 255",
    "luma_gray": "luma by cv2.cvtColor, 8 bits, peak 255",
    "luma_input": "L* of the result against L* of the gray input, peak 100",
    "lab_8bit": "all three channels of OpenCV's 8-bit LAB, peak 255",
    "ab_8bit": "the two colour channels of OpenCV's 8-bit LAB, peak 255",
    "rgb_wrapped": "a fault: differences and squares in uint8, which wrap around",
    "rgb_unit_range": "a fault: values from 0 to 1 with a peak of 255",
}


def bookkeepings(pred, target) -> dict[str, float]:
    """Return the PSNR in dB of two RGB clips ``(T, H, W, 3)`` by each of `BOOKKEEPINGS`; inf for equal clips.

    Means over frames of decibels, except "rgb_pooled". Raises ValueError for clips that differ in size or length.
    """
    errors: dict[str, list[float]] = {name: [] for name in BOOKKEEPINGS if name != "rgb_pooled"}
    for a, b in frame_pairs(pred, target, ("pred", "target")):
        lab_a, lab_b = (cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2LAB) for x in (a, b))
        wrapped = a - b  # uint8, as the fault has it
        pairs = {
            "rgb": (a, b, 255.0),
            "luma_lab": (lightness(a), lightness(b), 100.0),
            "luma_lab_8bit": (lab_a[..., 0], lab_b[..., 0], 255.0),
            "luma_gray": (to_gray(a), to_gray(b), 255.0),
            "luma_input": (lightness(a), lightness(np.stack([to_gray(b)] * 3, axis=-1)), 100.0),
            "lab_8bit": (lab_a, lab_b, 255.0),
            "ab_8bit": (lab_a[..., 1:], lab_b[..., 1:], 255.0),
            "rgb_unit_range": (a / 255, b / 255, 255.0),
        }
        for name, (x, y, peak) in pairs.items():
            square = np.square(x.astype(np.float64) - y).mean()
            errors[name].append(square / peak**2)
        errors["rgb_wrapped"].append((wrapped * wrapped).mean() / 255**2)
    result = {name: float(np.mean([_decibels(e) for e in errors[name]])) for name in errors}
    result["rgb_pooled"] = _decibels(float(np.mean(errors["rgb"])))
    return {name: result[name] for name in BOOKKEEPINGS}


def nearest(values: dict[str, float], wanted: float = PAPER_DB) -> str:
    """Return the bookkeeping whose figure is nearest to a printed one."""
    return min(values, key=lambda name: abs(values[name] - wanted))


def _decibels(error: float) -> float:
    return math.inf if error == 0 else -10 * math.log10(error)
