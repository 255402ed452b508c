"""Scenes made when they are needed, no two alike: photographs under a moving camera, parts of clips (§3.4.2).

A cache holds some thousand scenes, which a small network has soon seen often. The colour attention needs more variety
than that for footage that it never saw, and a scene costs less to make than to learn from. Any two views of a scene
share their colours, so each is a target for all others.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from ... import encoders
from ...data import augment, footage

VIEWS = 6


class FreshScenes(torch.utils.data.Dataset):
    """``count`` scenes of views that share colours, uint8 ``(V, H, W, 3)`` RGB. ``(seed, i)`` determines scene i.

    Half of them are photographs, cropped and rotated differently for each view; half are frames of a part of a clip.
    data: a folder as ``footage`` describes it. Raises ValueError if it has neither photographs nor clips for training.
    """

    def __init__(self, data: str | Path, count: int, size: tuple[int, int] = footage.SIZE, seed: int = 0):
        self.photos, self.clips = footage.photo_paths(data), [clip for _, clip in footage.training_clips(data)]
        self.count, self.size, self.seed = count, size, seed
        if not self.photos and not self.clips:
            raise ValueError(f"{data} holds neither photographs nor clips for training: see gcgkit/data/footage.py.")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, index))
        if self.clips and (not self.photos or rng.random() < 0.5):
            clip = self.clips[rng.integers(len(self.clips))]
            views, motion = augment.clip_scene(clip, VIEWS, self.size, rng), 0.25  # filmed scenes already move
        else:
            photo = self.photos[rng.integers(len(self.photos))]
            views, motion = augment.photo_scene(photo, VIEWS, self.size, rng), 1.0
        views = augment.augment_hsv(views, *augment.random_hsv(rng, natural=bool(rng.random() < 0.6)))
        return np.stack([camera_view(view, motion, rng) for view in views])


def camera_view(view: np.ndarray, motion: float, rng: np.random.Generator) -> np.ndarray:
    """Move the camera over a view ``(H, W, 3)``: rotate, enlarge, shear and shift it in proportion to ``motion``."""
    height, width = view.shape[:2]
    matrix = cv2.getRotationMatrix2D(
        (width / 2, height / 2), motion * rng.normal(0, 8), float(np.exp(motion * abs(rng.normal(0, 0.15))))
    )  # (2, 3), of a turn in degrees
    matrix[:, :2] += motion * rng.normal(0, 0.05, (2, 2))
    matrix[:, 2] += motion * rng.normal(0, 0.04, 2) * (width, height)
    return cv2.warpAffine(view, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def scene_batches(
    scenes: FreshScenes, batch: int, first: int = 0, workers: int | None = None
) -> Iterator[torch.Tensor]:
    """Yield batches ``(batch, V, H, W, 3)`` of scenes in order, from batch ``first`` on, made by ``workers`` processes.

    Their default number is that of the cores less two; 0 uses none.
    """
    workers = max(1, (os.cpu_count() or 1) - 2) if workers is None else workers
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(scenes, range(first * batch, len(scenes))),
        batch_size=batch, num_workers=workers, worker_init_fn=_one_thread, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip
    return iter(loader)


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)  # workers are as many as cores


@torch.no_grad()
def encode_scenes(vae, scenes: torch.Tensor) -> torch.Tensor:
    """Encode scenes ``(S, V, H, W, 3)`` uint8 into latents ``(S, V, C, h, w)``."""
    pixels = scenes.to(vae.device, non_blocking=True).flatten(0, 1).permute(0, 3, 1, 2)  # (S*V, 3, H, W)
    return encoders.encode_pixels(vae, pixels).unflatten(0, scenes.shape[:2])


def pair_views(latents: torch.Tensor, kind: str, luma: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Pair every view of S scenes ``(S, V, C, h, w)``, as a target, with other views of its scene as the reference.

    Returns ``target`` and ``gray`` ``(S*V, C, h, w)``, ``ref_gray`` and ``ref_color``, as large or, for the kind
    "grid", of four views and twice as high and wide. Gray latents are the colour ones with their first ``luma``
    channels only, because the autoencoder's luma channels see only luma.
    """
    scenes, views = latents.shape[:2]
    chosen = other_views(scenes, views, 4 if kind == "grid" else 1, generator=generator)
    tiles = latents[torch.arange(scenes)[:, None, None], chosen.to(latents.device)]  # (S, V, tiles, C, h, w)
    color = augment.join_references(tiles.flatten(0, 1))  # (S*V, C, h', w')
    gray, ref_gray = latents.flatten(0, 1).clone(), color.clone()
    gray[:, luma:] = 0
    ref_gray[:, luma:] = 0
    return {"target": latents.flatten(0, 1), "gray": gray, "ref_gray": ref_gray, "ref_color": color}


def other_views(
    scenes: int, views: int, count: int, *, device: str = "cpu", generator: torch.Generator | None = None
) -> torch.Tensor:
    """Choose for every view of S scenes ``count`` different ones of the V - 1 others: numbers ``(S, V, count)``."""
    order = torch.rand(scenes, views, views - 1, device=device, generator=generator).argsort(-1)[..., :count]
    own = torch.arange(views, device=device).view(1, -1, 1)
    return (own + 1 + order) % views
