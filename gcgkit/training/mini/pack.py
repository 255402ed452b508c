"""A training pack for the mini weights: photographs and clips with their contents and masks (see data_scripts).

``data_scripts/mini_pack.py`` makes one of a data folder as ``footage`` describes it: small WebP pictures in one file,
soft masks of the object in each photograph in another, and an index. It is small, for a machine with limited time.
"""

import json
import os
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np

LONG = 384  # pixels of a photograph's long side, at most


def load_pack(folder: str | Path) -> dict:
    """Decode a pack: {"photos": [...], "clips": [...]}, the index's entries with pixels added.

    Photos get "image" (H, W, 3) RGB uint8 and "mask" (h, w) uint8; clips get "images" (T, 256, 448, 3) and "masks"
    (T, 32, 56) uint8 or None. Threads do it, as OpenCV decodes without holding Python's lock: nothing is copied between
    processes, and a process that already uses CUDA is not forked.
    """
    folder = Path(folder)
    index = json.loads((folder / "index.json").read_text())
    images, masks = (np.fromfile(folder / name, np.uint8) for name in ("images.bin", "masks.bin"))

    def image(offset: int, length: int) -> np.ndarray:
        return cv2.cvtColor(cv2.imdecode(images[offset : offset + length], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    def mask(offset: int, length: int) -> np.ndarray:
        return cv2.imdecode(masks[offset : offset + length], cv2.IMREAD_GRAYSCALE)

    def photo(entry: dict) -> dict:
        return {
            **entry,
            "image": image(entry["offset"], entry["length"]),
            "mask": mask(entry["mask_offset"], entry["mask_length"]),
        }

    with ThreadPool(os.cpu_count()) as pool:
        photos = pool.map(photo, index["photos"], chunksize=16)
        clips = []
        for clip in index["clips"]:
            frames = pool.map(lambda f: image(f["offset"], f["length"]), clip["frames"])
            drawn = pool.map(lambda f: mask(f["offset"], f["length"]), clip["masks"])
            clips.append({**clip, "images": np.stack(frames), "masks": np.stack(drawn) if drawn else None})
    return {"photos": photos, "clips": clips}


def read_originals(pack: dict, data: Path) -> None:
    """Replace a pack's small photographs by the originals, at most 256 by 384 pixels."""
    folder = Path(data) / "photos"

    def read(photo: dict) -> None:
        image = cv2.imread(str(folder / photo["source"] / photo["file"]), cv2.IMREAD_COLOR)
        scale = min(1.0, 256 / min(image.shape[:2]), LONG / max(image.shape[:2]))
        size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
        photo["image"] = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)

    with ThreadPool(os.cpu_count()) as pool:
        pool.map(read, pack["photos"], chunksize=16)
