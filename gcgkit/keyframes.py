"""Keyframes (section 3.3): the dissimilarity D of two frames, and the set of frames that maximises its sum (Eq. 6).

The paper calls D "a measure of dissimilarity" and says no more. Here it is the mean squared difference of small gray
frames unless another is named. The same D serves Eq. 10 (`gcgkit.srg`).
"""

import math
from collections.abc import Callable
from itertools import combinations

import cv2
import numpy as np

from .color import to_gray
from .utils.checks import check_choice, check_frames, is_whole, to_numpy

MEASURES = ("mse", "histogram", "ssim", "latent", "lpips")
METHODS = ("auto", "exact", "greedy", "uniform", "random")
SMALL_WIDTH = 64
AUTO_LIMIT = 5_000_000  # steps (`_search_steps`) up to which "auto" is exact: about 0.2 s
EXACT_LIMIT = 2_000_000_000  # steps up to which "exact" searches: a minute or two
_HISTOGRAM_BINS = 64
_SSIM_WINDOW = 7


def pairwise_dissimilarity(
    frames, measure: str = "mse", *, encoder: Callable | None = None, network: Callable | None = None
) -> np.ndarray:
    """Dissimilarity of every pair of `frames`: ``(T, T)`` float64, symmetric, zero diagonal, not negative (D of Eq. 6).

    frames: gray ``(T, H, W)`` or RGB ``(T, H, W, 3)`` uint8, or the result of `small_gray`. mse: mean squared
    difference of small gray frames in 0..1. histogram: half the absolute difference of their 64-bin histograms, 0..1.
    ssim: 1 - SSIM of them (7 x 7 window). latent: mean squared difference of `encoder(frames)`, ``(T, ...)``. lpips:
    `network(a_frames, b_frames)` returns ``(N,)`` distances of two equally long uint8 RGB clips.
    Raises ValueError for wrong frames, an unknown measure, or a missing encoder or network.
    """
    described = describe(frames, measure, encoder=encoder, network=network)
    count = len(described)
    distance = np.zeros((count, count))
    for index in range(count - 1):
        row = compare(described[index], described[index + 1 :], measure, network=network)
        distance[index, index + 1 :] = distance[index + 1 :, index] = row
    return distance


def small_gray(frames, width: int = SMALL_WIDTH) -> np.ndarray:
    """Small gray frames ``(T, h, w)`` float32 in 0..1, `width` pixels wide at most, averaged by area, aspect kept.

    frames: gray or RGB uint8 clip. A float clip, the result of an earlier call, is returned unchanged, so distances can
    be computed piece by piece from small frames that were kept. Raises ValueError for wrong frames.
    """
    if isinstance(frames, np.ndarray) and frames.dtype == np.float32:
        if frames.ndim != 3 or 0 in frames.shape or frames.shape[-1] > width:
            raise ValueError(f"float32 frames must come from small_gray, (T, h, w <= {width}), not {frames.shape}.")
        return frames
    frames = check_frames(frames)
    height, full_width = frames.shape[1:3]
    size = min(width, full_width), max(1, round(height * min(width, full_width) / full_width))
    grays = (to_gray(frame[None])[0].astype(np.float32) for frame in frames)
    return np.stack([cv2.resize(gray, size, interpolation=cv2.INTER_AREA) / 255 for gray in grays])


def describe(
    frames, measure: str = "mse", *, encoder: Callable | None = None, network: Callable | None = None
) -> np.ndarray:
    """Descriptors that a measure compares, ``(T, ...)``, one per frame: small gray, features, or (lpips) RGB frames.

    Raises ValueError for an unknown measure, a missing encoder or network, or features that are not one per frame.
    """
    check_choice("measure", measure, MEASURES)
    if measure == "lpips":
        if network is None:
            raise ValueError("measure 'lpips' needs network=, a callable (a_frames, b_frames) -> (N,) distances.")
        frames = check_frames(frames)
        return np.repeat(frames[..., None], 3, axis=-1) if frames.ndim == 3 else frames
    if measure == "latent":
        if encoder is None:
            raise ValueError("measure 'latent' needs encoder=, a callable that maps frames to features (T, ...).")
        features = to_numpy(encoder(frames))
        if features.ndim < 2 or len(features) != len(frames):
            raise ValueError(f"encoder returned shape {features.shape} for {len(frames)} frame(s), not (T, ...).")
        return features.reshape(len(features), -1)  # (T, D)
    return small_gray(frames)


def compare(one: np.ndarray, many: np.ndarray, measure: str = "mse", *, network: Callable | None = None) -> np.ndarray:
    """Dissimilarity of one description (of `describe`) to many: ``(...)`` and ``(N, ...)`` give ``(N,)`` float64.

    Raises ValueError where their sizes differ.
    """
    if one.shape != many.shape[1:]:
        raise ValueError(f"frames to compare differ in size: {one.shape} and {many.shape[1:]}, after scaling.")
    if len(many) == 0:
        return np.zeros(0)
    if measure == "lpips":
        distance = to_numpy(network(np.broadcast_to(one, many.shape).copy(), many)).reshape(-1)
        if len(distance) != len(many):
            raise ValueError(f"network returned {len(distance)} distances for {len(many)} pair(s) of frames.")
        return np.maximum(distance, 0.0)
    if measure == "histogram":
        return 0.5 * np.abs(_histograms(one[None]) - _histograms(many)).sum(axis=1)
    if measure == "ssim":
        return np.array([_one_minus_ssim(one, other) for other in many])
    difference = (one - many).reshape(len(many), -1)
    return np.square(difference, dtype=np.float64).mean(axis=1)


def select_keyframes(distance, count: int, method: str = "auto", *, generator=None) -> list[int]:
    """Choose `count` of T frames, including both ends, that maximise the sum of their dissimilarities (Eq. 6).

    distance: ``(T, T)``, symmetric. Returns sorted frame numbers; all frames if `count` >= T.
    Methods: "exact" tries every set; "greedy" adds the best frame, then exchanges frames as long as the sum grows;
    "auto" is exact if that takes about 0.2 s at most (4 of 2,000 frames, 6 of 90), else greedy; "uniform" spreads
    them evenly; "random" is the paper's U, drawn from `generator` (an int seed, a NumPy or a torch generator).
    Ties go to the lower numbers; if all frames are equally far apart, the result is the evenly spread set.
    With count = 1 the sum is empty: the frame nearest to all others is taken ("uniform": the middle; "random": any).
    Raises ValueError for a bad matrix, a count below 1, an unknown method, or an exact search that is too large.
    """
    distance = _check_distance(distance)
    if not is_whole(count) or count < 1:
        raise ValueError(f"count must be a whole number of at least 1, not {count!r}.")
    check_choice("method", method, METHODS)
    total, count = len(distance), int(count)
    if count >= total:
        return list(range(total))
    if method == "random":
        return _random(total, count, generator)
    off_diagonal = distance[~np.eye(total, dtype=bool)]
    if method == "uniform" or off_diagonal.min() == off_diagonal.max():
        return _uniform(total, count)
    if count == 1:
        return [int(np.argmin(distance.sum(axis=1)))]
    steps = _search_steps(total, count)
    if method == "greedy" or (method == "auto" and steps > AUTO_LIMIT):
        return _greedy(distance, count)
    if steps > EXACT_LIMIT:
        raise ValueError(f"an exact search for {count} of {total} frames would take too long; use method='auto'.")
    return _exact(distance, count)


def dispersion(distance, chosen) -> float:
    """Return the sum that Eq. 6 maximises: the dissimilarity of all pairs of `chosen` frames, each pair once.

    distance: ``(T, T)``, symmetric; chosen: frame numbers 0..T-1, each once. Raises ValueError for anything else.
    """
    distance = _check_distance(distance)
    numbers = [int(number) for number in chosen]
    if len(set(numbers)) < len(numbers) or not all(0 <= number < len(distance) for number in numbers):
        raise ValueError(f"chosen must be different frame numbers from 0 to {len(distance) - 1}, not {numbers}.")
    return float(np.triu(distance[np.ix_(numbers, numbers)], 1).sum())


def _search_steps(total: int, count: int) -> int:
    """Return the cost of `_exact`: one step for each set, and 200 for each prefix of its Python loop."""
    return math.comb(total - 2, count - 2) + 200 * math.comb(total - 2, max(count - 4, 0))


def _exact(distance: np.ndarray, count: int) -> list[int]:
    """Try every set with both ends: a loop over all but the last two inner frames, one matrix for these two."""
    total = len(distance)
    ends = [0, total - 1]
    if count == 2:
        return ends
    if count == 3:
        return [0, 1 + int(np.argmax(distance[ends, 1:-1].sum(axis=0))), total - 1]
    best_sum, best = -np.inf, []
    upper = np.triu(np.ones((total, total), dtype=bool), 1)
    for prefix in combinations(range(1, total - 1), count - 4):
        start = prefix[-1] + 1 if prefix else 1  # the last two come after the prefix, so that each set is met once
        if total - 1 - start < 2:
            continue
        chosen = [*ends, *prefix]
        gain = distance[chosen, start:-1].sum(axis=0)
        pair = gain[:, None] + gain[None, :] + distance[start:-1, start:-1]
        pair = np.where(upper[: len(gain), : len(gain)], pair, -np.inf)
        position = int(np.argmax(pair))
        value = pair.flat[position] + distance[np.ix_(chosen, chosen)].sum() / 2
        if value > best_sum:
            best_sum = value
            best = [*chosen, start + position // len(gain), start + position % len(gain)]
    return sorted(best)


def _greedy(distance: np.ndarray, count: int) -> list[int]:
    """Add the frame with the largest gain, again and again; then make the best exchange while that raises the sum."""
    total = len(distance)
    chosen = [0, total - 1]
    gain = distance[chosen].sum(axis=0)  # (T,): what each frame adds to the sum
    while len(chosen) < count:
        open_gain = gain.copy()
        open_gain[chosen] = -np.inf
        chosen.append(int(np.argmax(open_gain)))
        gain += distance[chosen[-1]]
    tolerance = 1e-12 * max(1.0, float(np.abs(distance).max()) * count)
    while count > 2:
        inner = np.array(chosen[2:])
        change = gain[None, :] - distance[inner] - gain[inner][:, None]  # (m-2, T): out of the set, into the set
        change[:, chosen] = -np.inf
        out, into = np.unravel_index(np.argmax(change), change.shape)
        if change[out, into] <= tolerance:
            break
        gain += distance[into] - distance[inner[out]]
        chosen[2 + int(out)] = int(into)
    return sorted(chosen)


def _uniform(total: int, count: int) -> list[int]:
    """Return evenly spread frames with both ends, in whole numbers so that no two round to the same frame."""
    if count == 1:
        return [total // 2]
    return [(2 * k * (total - 1) + count - 1) // (2 * (count - 1)) for k in range(count)]


def _random(total: int, count: int, generator) -> list[int]:
    if hasattr(generator, "initial_seed"):  # a torch.Generator; torch is imported only for it
        import torch

        generator = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    rng = np.random.default_rng(generator)
    if count == 1:
        return [int(rng.integers(total))]
    inner = rng.choice(np.arange(1, total - 1), size=count - 2, replace=False)
    return sorted([0, total - 1, *inner.tolist()])


def _check_distance(distance) -> np.ndarray:
    distance = to_numpy(distance)
    if distance.ndim != 2 or distance.shape[0] != distance.shape[1] or len(distance) == 0:
        raise ValueError(f"distance must be a square matrix (T, T), not of shape {distance.shape}.")
    if not np.isfinite(distance).all():
        raise ValueError("distance holds values that are not finite; each must be a number.")
    if not np.allclose(distance, distance.T):
        raise ValueError("distance must be symmetric; average it with its transpose first.")
    return distance


def _histograms(small: np.ndarray) -> np.ndarray:
    """Normalised gray histograms ``(T, 64)`` of small frames ``(T, h, w)``."""
    bins = np.minimum((small * _HISTOGRAM_BINS).astype(np.int64), _HISTOGRAM_BINS - 1).reshape(len(small), -1)
    counts = np.stack([np.bincount(row, minlength=_HISTOGRAM_BINS) for row in bins])
    return counts / bins.shape[1]


def _one_minus_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """1 - mean SSIM of two frames ``(h, w)`` in 0..1 (Wang et al. 2004): uniform window, inner pixels only."""
    from skimage.metrics import structural_similarity  # here, because no other measure needs it

    side = min(_SSIM_WINDOW, *a.shape)
    side -= 1 - side % 2  # odd
    a, b = a.astype(np.float64), b.astype(np.float64)
    ssim = structural_similarity(a, b, win_size=side, data_range=1, use_sample_covariance=side > 1)
    return max(0.0, 1.0 - float(ssim))
