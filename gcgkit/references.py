"""References of the two stages: exemplars and keyframes, earlier frames, their grid, and the record of use (§3.4.1).

Distances and selection (Eq. 6, 10) are in ``keyframes`` and ``srg``; this module holds the frames to choose from.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from . import color, keyframes, srg
from .encoders import Canvas, fit_canvas
from .settings import Settings
from .utils.checks import check_frame, is_whole

OUTSIDE = -1  # the frame number of an exemplar that is no frame of the clip
MAX_CANDIDATES = 256  # of a long clip, as many evenly spread frames stand for keyframe selection, whose cost is T^2
ASPECT_TOLERANCE = 0.02
LIGHTNESS_TOLERANCE = 0.5  # of 100: what rounding to 8 bits can do to L*, twice over


@dataclass(frozen=True)
class Reference:
    """One coloured frame, encoded once: g and z ``(1, C, h, w)``, image tokens ``(1, N, D)``, and D's descriptor.

    tokens: or their keys and values ``(1, N, W)``, as ``attention`` makes them (``Shortcuts.keys``). pictures: the
    gray and the coloured frame, where they are to be encoded again (``Shortcuts.references`` off). semantics: features
    of the gray frame ``(1, S, h, w)``, for a pipeline with a semantic encoder.
    """

    frame: int
    gray: torch.Tensor
    color: torch.Tensor
    tokens: torch.Tensor
    descriptor: np.ndarray
    pictures: tuple[np.ndarray, np.ndarray] | None = None
    semantics: torch.Tensor | None = None


Guides = tuple[list[Reference], list[Reference]]  # of one frame at one step: keyframes, and earlier frames


class ReferenceRun(NamedTuple):
    """For `steps` denoising steps in a row, the numbers of the keyframes and earlier frames that guided a frame."""

    steps: int
    keyframes: tuple[int, ...]
    past: tuple[int, ...]


class ReferencePool:
    """References of the remaining frames (Eq. 9): keyframes, and a window of the latest coloured frames besides them.

    measure, network: the dissimilarity D, see ``keyframes``. window: number of earlier frames kept
    (None for all); memory and time per frame are proportional to it.
    """

    def __init__(self, measure: str = "mse", window: int | None = 32, network: Callable | None = None):
        self.measure, self.network = measure, network
        self.keys: list[Reference] = []
        self.past: deque[Reference] = deque(maxlen=window)
        self.latest: tuple | None = None  # frames coloured last: arguments of ``Run.references``, if a later one comes

    def distances(self, descriptor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """D between a frame's descriptor and each keyframe's ``(K,)`` and each held earlier frame's ``(P,)``."""
        return self.distance(descriptor, self.keys), self.distance(descriptor, self.past)

    def distance(self, descriptor: np.ndarray, references: Iterable[Reference]) -> np.ndarray:
        """D between a frame's descriptor and each of N references: ``(N,)``."""
        others = [r.descriptor for r in references]
        if not others:
            return np.zeros(0)
        return keyframes.compare(descriptor, np.stack(others), self.measure, network=self.network)

    def choose(self, distances: tuple[np.ndarray, np.ndarray], t: float, settings: Settings) -> Guides:
        """Keyframes and earlier frames that minimise Eq. 10 at the rescaled timestep `t`, nearest first each.

        Without the sliding grid (Ours***) one keyframe guides: the nearest by D, or the first in time.
        """
        if settings.use_srg:
            keys, past = srg.select_references(*distances, t, settings.grid_size)
            return [self.keys[i] for i in keys], [self.past[i] for i in past]
        if settings.single_reference == "first":
            return [min(self.keys, key=lambda r: r.frame)], []
        return [self.keys[int(np.argmin(distances[0]))]], []


def join_references(
    references: list[Reference], count: int, weights: list[float] | None = None, shrink: bool = False
) -> tuple[torch.Tensor | None, ...]:
    """Reference grid of Eq. 9: g and z ``(1, C, rows*h, columns*w)``, image tokens ``(1, n*N, D)``, semantics, weights.

    One reference stays a single picture. Otherwise the grid is the squarest that holds `count` tiles, row by row, and
    the first reference fills the places that are left; with ``shrink`` it has one tile's size. Each reference's image
    tokens come once. The semantics are of g's size; None where the references have none. So are the weights, one
    channel, each reference's own in its tile; None where none are given or one reference has them all.
    """
    first = references[0]
    tokens = torch.cat([r.tokens for r in references], dim=1)
    if len(references) == 1:
        return first.gray, first.color, tokens, first.semantics, None
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)

    def grid(tiles: list[torch.Tensor]) -> torch.Tensor:
        return srg.make_grid(torch.cat(tiles), columns, rows=rows, shrink=shrink)[None]

    gray, color = grid([r.gray for r in references]), grid([r.color for r in references])
    semantics = None if first.semantics is None else grid([r.semantics for r in references])
    if weights is not None:
        weights = grid([torch.full_like(first.gray[:, :1], weight) for weight in weights])
    return gray, color, tokens, semantics, weights


def run_lengths(steps: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[ReferenceRun]:
    """Shorten the record over denoising steps: equal neighbours become one ``ReferenceRun``."""
    return [ReferenceRun(len(list(equal)), *used) for used, equal in groupby(steps)]


def candidates(num_frames: int, limit: int = MAX_CANDIDATES) -> np.ndarray:
    """Frames among which keyframes are sought: all, or `limit` evenly spread ones with the first and the last."""
    return np.unique(np.linspace(0, num_frames - 1, min(num_frames, limit)).round().astype(int))


def include_exemplars(chosen: list[int], distance: np.ndarray, fixed: list[int]) -> list[int]:
    """Put the exemplars among the keyframes: each takes the place of the chosen frame most like it.

    All are indices into the distance matrix ``(N, N)``; the number of keyframes stays, unless the exemplars are more.
    """
    chosen = list(chosen)
    for index in [i for i in fixed if i not in chosen]:
        free = [k for k in chosen if k not in fixed]
        if free:
            chosen.remove(min(free, key=lambda k: distance[index, k]))
        chosen.append(index)
    return sorted(chosen)


def choose_keyframes(
    given: dict[int, np.ndarray], gray: np.ndarray, settings: Settings, encode: Callable, seed: int
) -> list[int]:
    """Keyframes of a clip ``(T, H, W)`` by Eq. 6, the given ones among them.

    encode: gives latents ``(1, C, h, w)`` of a frame, for a dissimilarity of latents. seed: of random ones.
    """
    if settings.num_keyframes >= len(gray):
        return list(range(len(gray)))
    among = np.union1d(candidates(len(gray)), list(given)).astype(int)
    if settings.dissimilarity in ("latent", "lpips"):
        frames = gray[among]
    else:  # made small one by one, so that no second full-size clip is held
        frames = np.concatenate([keyframes.small_gray(gray[i : i + 1]) for i in among])
    encoder = lambda frames: torch.cat([encode(frame) for frame in frames])  # noqa: E731
    distance = keyframes.pairwise_dissimilarity(
        frames, settings.dissimilarity, encoder=encoder, network=settings.network
    )
    fixed = np.searchsorted(among, sorted(given)).tolist()
    count = max(settings.num_keyframes, len(fixed))
    chosen = keyframes.select_keyframes(distance, count, settings.keyframe_method, generator=seed)
    return among[include_exemplars(chosen, distance, fixed)].tolist()


def frames_in_a_row(given: dict[int, np.ndarray], count: int, total: int) -> list[int]:
    """Return consecutive keyframes, as §4.4 literally says: after the exemplar, or before it at the clip's end."""
    start = min(min(given) + 1 if given else 0, max(0, total - count))
    return list(range(start, min(total, start + count)))


def check_exemplars(
    reference, num_frames: int | None, frame_size: tuple[int, int], name: str = "reference"
) -> dict[int, np.ndarray]:
    """Exemplars as ``{frame number: RGB of the clip's frame size}``; one that is no frame of the clip has ``OUTSIDE``.

    reference: None, an RGB frame ``(h, w, 3)`` uint8 of any size, or ``{index: RGB frame}``. An outside exemplar is
    scaled with its aspect kept and padded by mirroring; one with an index must have the clip's aspect within 2 %.
    num_frames: the clip's length, None while it is unknown. Raises ValueError for anything else.
    """
    if reference is None:
        return {}
    if not isinstance(reference, dict):
        exemplar = check_frame(reference, "reference", color=True)
        inner = fit_canvas(exemplar.shape[:2], frame_size, 1).inner
        return {OUTSIDE: Canvas(exemplar.shape[:2], inner, frame_size).place(exemplar)}
    exemplars = {}
    for index, frame in reference.items():
        if not is_whole(index):
            raise ValueError(f"{name} has the key {index!r}: keys are frame numbers, whole and from 0 on.")
        if index < 0 or (num_frames is not None and index >= num_frames):
            last = "the last frame" if num_frames is None else num_frames - 1
            raise ValueError(f"{name} has the frame number {index}, outside the clip: give one from 0 to {last}.")
        exemplars[int(index)] = fit_exemplar(frame, frame_size, f"{name}[{index}]")
    return dict(sorted(exemplars.items()))


def fit_exemplar(frame, frame_size: tuple[int, int], name: str) -> np.ndarray:
    """Coloured frame at the clip's size (height, width); ValueError where its aspect differs by more than 2 %."""
    frame = check_frame(frame, name, color=True)
    height, width = frame_size
    aspect = (frame.shape[1] / frame.shape[0]) / (width / height)
    if not 1 - ASPECT_TOLERANCE <= aspect <= 1 + ASPECT_TOLERANCE:
        raise ValueError(
            f"{name} is {frame.shape[1]}x{frame.shape[0]} and the clip {width}x{height}: crop it to the clip's aspect."
        )
    return color.resize(frame, height, width)


def on_luminance(gray: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """AB of a coloured frame ``(H, W, 3)`` on the L* of the gray one ``(H, W)`` (§3.4.2).

    A frame with this L* already, wherever it was not clipped, stays as it is, as keyframes of the first stage must.
    """
    inside = ((frame > 0) & (frame < 255)).all(axis=-1)
    difference = np.abs(color.rgb_to_lab(frame)[..., 0] - color.lightness_of_gray(gray))[inside]
    if difference.size and difference.max() < LIGHTNESS_TOLERANCE:
        return frame
    return color.merge_luminance(gray, frame)
