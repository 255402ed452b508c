"""Training samples for the guidance: a target frame and its reference, a mask, one frame or a grid (§4.1).

Frames are encoded once, into a cache of *scenes*. A scene is a few views that share their colours: frames of one clip,
or overlapping crops of one photograph, all under the same HSV augmentation. Any view of a scene can be the reference
of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from .. import srg
from . import footage, naming
from .color_words import remove_color_words

THUMBNAIL = 64  # side in pixels of the image encoder's input


@dataclass
class Scenes:
    """``N`` scenes of ``V`` views.

    Attributes:
        latents: (N, V, C, h, w) float16, scaled for the UNet.
        gray: the same frames' gray latents, (N, V, C, h, w) float16.
        thumbnails: (N, V, 64, 64, 3) uint8 RGB, whole frames resized.
        captions: one text per scene.
        natural: (N,) bool, true if a scene kept its own colours.
    """

    latents: torch.Tensor
    gray: torch.Tensor
    thumbnails: torch.Tensor
    captions: list[str]
    natural: torch.Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def save(self, path) -> None:
        torch.save(vars(self), path)

    @classmethod
    def load(cls, path) -> Scenes:
        return cls(**torch.load(path, weights_only=True))


def augment_hsv(frames: np.ndarray, hue: float, saturation: float, value: float = 1.0) -> np.ndarray:
    """Turn hues by ``hue`` degrees and multiply saturation and value, alike in all frames: (T, H, W, 3) uint8 RGB."""
    out = np.empty_like(frames)
    for i, frame in enumerate(frames):
        h, s, v = cv2.split(cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2HSV))
        hsv = cv2.merge([(h + hue) % 360, np.clip(s * saturation, 0, 1), np.clip(v * value, 0, 1)])
        out[i] = np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)
    return out


def random_hsv(rng: np.random.Generator, natural: bool) -> tuple[float, float, float]:
    """Draw parameters for ``augment_hsv``: slight for a natural scene, else any hue and a strong saturation."""
    if natural:
        return rng.uniform(-4, 4), rng.uniform(0.9, 1.25), rng.uniform(0.9, 1.1)
    return rng.uniform(0, 360), rng.uniform(0.8, 2.0), rng.uniform(0.85, 1.1)


def cut_views(
    frames: np.ndarray, count: int, size: tuple[int, int], rng: np.random.Generator, jitter: float
) -> np.ndarray:
    """Cut ``count`` crops from ``frames`` (T, H, W, 3) and scale them to ``size``; their places vary by ``jitter``."""
    height, width = size
    zoom = rng.uniform(height / frames.shape[1], 1.0)
    mirror = rng.random() < 0.5
    middle, views = rng.random(2), []
    for i in range(count):
        frame = frames[i % len(frames)]
        share = min(1.0, max(height / frames.shape[1], zoom * (1 + jitter * rng.uniform(-0.3, 0.3))))
        rows, columns = round(frames.shape[1] * share), round(frames.shape[2] * share)
        place = np.clip(middle + jitter * rng.uniform(-0.5, 0.5, 2), 0, 1)
        top, left = round((frames.shape[1] - rows) * place[0]), round((frames.shape[2] - columns) * place[1])
        view = cv2.resize(frame[top : top + rows, left : left + columns], (width, height), interpolation=cv2.INTER_AREA)
        # Views of a photograph must differ, or matching them teaches nothing about motion.
        flip = mirror != (jitter > 0 and rng.random() < 0.15)
        views.append(view[:, ::-1] if flip else view)
    return np.stack(views)


def photo_scene(path, views: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Cut overlapping crops from one photograph: (views, h, w, 3)."""
    # The photograph must be larger than the views; otherwise all views at full size are the same picture.
    larger = tuple(max(least, side * 4 // 3) for least, side in zip(footage.SIZE, size, strict=True))
    photo = footage.cover(footage.read_image(path), larger, at=rng.random())
    return cut_views(photo[None], views, size, rng, jitter=0.5)


def clip_scene(clip: np.ndarray, views: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Choose frames from a random stretch of 10 to 80 frames of a clip, in order of time: (views, h, w, 3)."""
    length = min(len(clip), int(rng.integers(10, 81)))
    start = int(rng.integers(len(clip) - length + 1))
    chosen = clip[np.sort(start + rng.permutation(length)[:views])]
    return cut_views(chosen, views, size, rng, jitter=0.03)


def caption_scene(views: np.ndarray, name: str, rng: np.random.Generator) -> str:
    """Return a caption of a scene, from its first view."""
    return naming.caption(views[0], naming.thing_of(name), rng)


@dataclass
class Mixture:
    """Shares of the kinds of reference (§4.1), and of changed captions.

    ``mask``, ``single``, ``grid`` and ``unrelated`` add up to 1. ``unrelated`` takes a reference from another scene.
    The paper does not have it; it teaches the gate to recognise a wrong reference. ``strip_colors`` is the share of
    masked samples whose caption loses its colour words (1 in the paper). ``drop_text`` is the share of samples without
    a caption, needed for guidance on text.
    """

    mask: float = 0.2
    single: float = 0.4
    grid: float = 0.4
    unrelated: float = 0.0
    strip_colors: float = 1.0
    drop_text: float = 0.1


KINDS = ("mask", "single", "grid", "unrelated")


def draw_batch(scenes: Scenes, kind: str, batch: int, mixture: Mixture, generator: torch.Generator) -> dict:
    """Draw a batch with one kind of reference, so that all its references have one size.

    Returns ``target``, ``gray`` (B, C, h, w), ``ref_gray``, ``ref_color`` (B, C, h', w'), ``thumbnails``
    (B, tiles, 64, 64, 3) (zeros under the mask, where ``masked`` is true) and ``captions``, a list of B texts.
    """
    draw = lambda high, n=batch: torch.randint(high, (n,), generator=generator)  # noqa: E731
    views = scenes.latents.shape[1]
    which, target = draw(len(scenes)), draw(views)
    texts = [scenes.captions[i] for i in which]
    chance = torch.rand(batch, 2, generator=generator)
    for i in range(batch):
        if kind == "mask" and chance[i, 0] < mixture.strip_colors:
            texts[i] = remove_color_words(texts[i])
            if not scenes.natural[which[i]]:  # nothing gives the new colours away: only noise could be learned
                which[i] = _natural(scenes, generator)
                texts[i] = remove_color_words(scenes.captions[which[i]])
        if chance[i, 1] < mixture.drop_text:
            texts[i] = ""
    sample = {"target": scenes.latents[which, target].float(), "gray": scenes.gray[which, target].float()}
    tiles = 4 if kind == "grid" else 1
    # any view except the target's own
    ref = (target[:, None] + 1 + torch.stack([draw(views - 1) for _ in range(tiles)], 1)) % views  # (B, tiles)
    source = draw(len(scenes)) if kind == "unrelated" else which
    ref_color, ref_gray = scenes.latents[source[:, None], ref].float(), scenes.gray[source[:, None], ref].float()
    sample["ref_color"], sample["ref_gray"] = join_references(ref_color), join_references(ref_gray)
    sample["thumbnails"] = scenes.thumbnails[source[:, None], ref]  # (B, tiles, 64, 64, 3)
    sample["masked"] = kind == "mask"
    if kind == "mask":
        for name in ("ref_color", "ref_gray", "thumbnails"):
            sample[name] = torch.zeros_like(sample[name])
    sample["captions"] = texts
    return sample


def _natural(scenes: Scenes, generator: torch.Generator) -> int:
    candidates = scenes.natural.nonzero().flatten()
    return int(candidates[torch.randint(len(candidates), (1,), generator=generator)])


def join_references(tiles: torch.Tensor, shrink: bool = False) -> torch.Tensor:
    """Join the one or four references ``(B, n, C, h, w)`` of each sample into one picture: ``(B, C, h', w')``.

    shrink: average the four by area, so that the picture has the size ``(h, w)`` of one.
    """
    if tiles.shape[1] == 1:
        return tiles[:, 0]
    by_tile = tiles.transpose(0, 1).flatten(1, 2)  # (4, B*C, h, w)
    return srg.make_grid(by_tile, shrink=shrink).unflatten(0, (tiles.shape[0], tiles.shape[2]))


def draw_kind(mixture: Mixture, generator: torch.Generator) -> str:
    """Draw a kind of reference with the mixture's probabilities."""
    weights = torch.tensor([mixture.mask, mixture.single, mixture.grid, mixture.unrelated])
    return KINDS[int(torch.multinomial(weights, 1, generator=generator))]
