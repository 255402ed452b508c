"""Make a compact training pack of photographs and clips, for ``gcgkit.training.mini.pack.load_pack``.

    python data_scripts/mini_pack.py --data DIR --out DIR [--limit 50]

Masks come from class activation maps of EfficientNet-Lite0, cut out by GrabCut and a guided filter; ``confidence`` says
how far to trust each as "the object". They are cached beside the output, so that encoding can be repeated cheaply.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch
from mini_nouns import SCENES, Nouns
from PIL import Image
from torchvision.models._meta import _IMAGENET_CATEGORIES

from gcgkit.data.footage import SIZE, davis_clip, photo_paths, video_clip
from gcgkit.metrics import networks
from gcgkit.training.mini.pack import LONG

SHORT = 184  # pixels of a stored photograph's short side, at most
PHOTO_BYTES, CLIP_BYTES = 26_400_000, 8_600_000  # with masks and index at most 37 MB
KEEP_AT_MOST = {"ccp": 180, "houses": 160, "voc_bernie": 440}  # thinned to fit
HELD = 96
GRAY = 4.0  # photographs of a lower mean chroma (Lab) are dropped
CLIP_FRAMES = 40
NO_OBJECT = {"selfexsr", "stunning", "bsds", "houses"}
IMAGENET_LIKE = {"imagenet", "imagenette224", "imagewoof320", "nips17_ssa"}
TRUST = {  # added to the map's own evidence, by source and coarsest noun
    ("ccp", "clothes"): 0.9,
    ("grocery", "fruit"): 0.5,  # shelves of many, of which the map marks some
    ("grocery", "vegetable"): 0.5,
    ("pacs_photo", "person"): 0.2,  # faces: the map marks ties and collars
}
CLIP_THINGS = {
    "bmx-trees": ["bicycle", "bike"],
    "breakdance": ["dancer", "person"],
    "car-shadow": ["car"],
    "drift-chicane": ["car"],
    "goat": ["goat"],
    "motocross-jump": ["motorcycle", "motorbike"],
    "parkour": ["person"],
    "scooter-black": ["scooter", "motorbike"],
    "cotracker_apple": ["apple", "fruit"],
    "cotracker_cat": ["cat"],
    "sam2_02_cups": ["cup"],
    "sam2_03_blocks": ["block", "toy"],
    "tokenflow_wolf": ["wolf"],
    "tokenflow_woman-running": ["woman", "person"],
    "torchcodec_nasa_13013": ["man", "person"],
    "tuneavideo_car-turn": ["jeep", "car"],
    "tuneavideo_man-skiing": ["man", "person"],
    "tuneavideo_man-surfing": ["man", "person"],
    "tuneavideo_rabbit-watermelon": ["rabbit"],
}


# --- Masks


class ObjectFinder:
    """Soft masks of a class of objects: class activation maps of EfficientNet-Lite0, cut out along edges."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.network = networks.load("fd_efficientnet", "cpu").to(memory_format=torch.channels_last)
        weight = self.network._fc.weight.detach().numpy()  # (1000, 1280)
        self.weight = weight - weight.mean(axis=0)

    def __call__(self, image: np.ndarray, classes: list[int], siblings) -> dict:
        """Return the mask (H/2, W/2) in 0..1 of an RGB image, its class among `classes` (all if empty), and measures.

        siblings: a function from classes to those that count as the same coarse thing.
        """
        features, logits = self._features(image, 352)
        odds = np.exp(logits - logits.max())
        odds /= odds.sum()
        candidates = classes or [int(odds.argmax())]
        share = odds[candidates] / max(odds[candidates].sum(), 1e-12)
        weight = (share[:, None] * self.weight[candidates]).sum(axis=0)  # (1280,)
        size = (image.shape[1] // 2, image.shape[0] // 2)
        cam = _unit(cv2.resize(features @ weight, size, interpolation=cv2.INTER_CUBIC))
        half = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        mask, agreement = _cut_out(half, cam)
        inside = mask > 0.5
        contrast = float(cam[inside].mean() - cam[~inside].mean()) if 0 < inside.mean() < 1 else 0.0
        return {
            "mask": (mask * 255).round().astype(np.uint8),
            "class": int(candidates[int(share.argmax())]),
            "odds": float(odds[siblings(candidates)].sum()),
            "area": float(inside.mean()),
            "contrast": contrast,
            "agreement": agreement,
        }

    def _features(self, image: np.ndarray, short: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the last feature map (h, w, 1280) and logits of an image scaled to sides of multiples of 32."""
        scale = short / min(image.shape[:2])
        height, width = (min(2 * short, max(32, round(side * scale / 32) * 32)) for side in image.shape[:2])
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        picture = (cv2.resize(image, (width, height), interpolation=way).astype(np.float32) - 127) / 128
        batch = torch.from_numpy(picture).permute(2, 0, 1)[None]
        with torch.inference_mode():
            maps = self.network.extract_features(batch)  # (1, 1280, h, w)
            logits = self.network._fc(maps.mean(dim=(2, 3)))[0].numpy()
            features = maps[0].permute(1, 2, 0).contiguous().numpy()
        return features, logits


def _unit(cam: np.ndarray) -> np.ndarray:
    low, high = np.percentile(cam, (5, 99))
    return np.clip((cam - max(low, 0)) / max(high - max(low, 0), 1e-6), 0, 1)


def guided_filter(guide: np.ndarray, values: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Smooth `values` along the edges of `guide` by the guided filter of He et al. (2013), all (H, W) float32."""

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(x, -1, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_values = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_guide * mean_values) / (mean(guide * guide) - mean_guide**2 + epsilon)
    return mean(slope) * guide + mean(mean_values - slope * mean_guide)


def _cut_out(image: np.ndarray, cam: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a mask in 0..1 of the marked part along the image's edges, and the IoU of GrabCut and the map."""
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    cam = cam.astype(np.float32)
    smooth = np.clip(guided_filter(guide, cam, 6, 1e-3), 0, 1)
    likely = cam > 0.35
    labels = np.where(likely, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cam > 0.8] = cv2.GC_FGD
    labels[cam < 0.08] = cv2.GC_BGD
    if not (labels == cv2.GC_BGD).any():
        labels[cam <= np.percentile(cam, 10)] = cv2.GC_BGD
    if not (labels == cv2.GC_FGD).any():
        return smooth, 0.0
    try:
        cv2.grabCut(
            image[..., ::-1].copy(), labels, None, np.zeros((1, 65)), np.zeros((1, 65)), 2, cv2.GC_INIT_WITH_MASK
        )
    except cv2.error:
        return smooth, 0.0
    cut = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
    agreement = float((cut & likely).sum() / max(1, (cut | likely).sum()))
    cut = cv2.medianBlur(cut.astype(np.uint8) * 255, 5).astype(np.float32) / 255
    trusted = min(1.0, agreement / 0.4)  # if they disagree, use the map itself
    sharp = np.clip((smooth - 0.2) / 0.4, 0, 1)
    mask = trusted * (0.75 * cut + 0.25 * sharp) + (1 - trusted) * sharp
    return np.clip(guided_filter(guide, mask.astype(np.float32), 3, 1e-3), 0, 1), agreement


def confidence(source: str, things: list[str], found: dict, known: bool, scene: bool) -> float:
    """Return the trust in a mask as "the object", 0..1."""

    def ramp(x: float, low: float, high: float) -> float:
        return min(1.0, max(0.0, (x - low) / (high - low)))

    if source in NO_OBJECT or not things:
        return 0.0
    area = ramp(found["area"], 0.03, 0.06) * ramp(-found["area"], -0.75, -0.62)
    odds = ramp(found["odds"], 0.003, 0.1)  # odds are low at this size of picture, larger than the training's
    if not known:
        odds *= 0.5  # the class is the network's guess, or a stand-in
    shape = ramp(found["agreement"], 0.25, 0.55) * ramp(found["contrast"], 0.22, 0.42)
    least = 0.35 if known and source not in IMAGENET_LIKE else 0.15  # a hint by hand says that it is there
    trust = TRUST.get((source, things[-1]), 1.0) * (0.3 if scene else 1.0)
    return round(area * (least + (1 - least) * odds) * shape**0.5 * trust, 3)


# --- Photographs and clips


def read_rgb(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def shrink(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    scale = min(1, SHORT / min(height, width), LONG / max(height, width))
    if scale == 1:
        return image
    return cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


def chroma(image: np.ndarray) -> float:
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return float(np.hypot(lab[..., 1], lab[..., 2]).mean())


def has_sky(image: np.ndarray) -> bool:
    """Return True if the top of a picture of a wide scene is bright, smooth and blue or white."""
    small = cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[:10]
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edges = np.abs(cv2.Laplacian(gray, cv2.CV_32F))[:10]
    sky = (edges < 12) & (((lab[..., 0] > 35) & (lab[..., 2] < -6)) | ((lab[..., 0] > 80) & (lab[..., 2] < 8)))
    return bool(sky.mean() > 0.6)


def webp(image: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=quality, method=6)
    return buffer.getvalue()


def png(mask: np.ndarray) -> bytes:
    mask = ((mask.astype(np.uint16) + 8) // 17 * 17).astype(np.uint8)  # 16 levels halve the file
    return cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()


def small_mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    size = tuple(max(12, round(side / 8)) for side in shape[1::-1])
    return cv2.resize(mask, size, interpolation=cv2.INTER_AREA)


def photo_list(data: Path) -> list[tuple[Path, str]]:
    """Return a thinned list of photographs with their split."""
    train, held_out = photo_paths(data), photo_paths(data, held_out=True)
    by_source: dict[str, list[Path]] = {}
    for path in train:
        by_source.setdefault(path.parent.name, []).append(path)
    chosen = []
    for source, paths in by_source.items():
        keep = np.linspace(0, len(paths) - 1, min(len(paths), KEEP_AT_MOST.get(source, len(paths)))).round().astype(int)
        chosen += [(paths[i], "train") for i in keep]
    return chosen + [(held_out[i], "held") for i in np.linspace(0, len(held_out) - 1, HELD).round().astype(int)]


class Hints:
    """Nouns and candidate classes of each photograph."""

    def __init__(self, data: Path) -> None:
        self.nouns = Nouns(_IMAGENET_CATEGORIES)
        self.hints = {}
        for table in data.glob("photos/*/captions.tsv"):
            for line in table.read_text().splitlines():
                file, _, hint = line.partition("\t")
                self.hints[table.parent.name, file] = hint.strip()
        for path in sorted(data.glob("photos/imagenet/*.jpg")):
            number, _, name = path.stem.partition("_")
            indices = self.nouns.by_name.get(name.replace("_", " ").lower(), [])
            if not indices:
                print("no class", path.name)
                continue
            # Numbers rise with the classes: of two of one name, animals (numbers up to n026) come first.
            self.hints["imagenet", path.name] = indices[0] if number < "n02666" else indices[-1]

    def of(self, path: Path) -> tuple[list[str] | None, list[int]]:
        hint = self.hints.get((path.parent.name, path.name), "")
        if isinstance(hint, int):
            return None, [hint]
        return self.nouns.read(path.parent.name, hint)


def read_cache(path: Path) -> dict:
    """Masks and measures by photograph, as ``write_cache`` wrote them; none for a missing file."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as data:
        measures = json.loads(str(data["measures"]))
        return {name: {**entry, "mask": data[f"mask{i}"]} for i, (name, entry) in enumerate(measures.items())}


def write_cache(path: Path, found: dict) -> None:
    """Write masks and measures by photograph into one ``.npz`` file."""
    measures = {name: {k: v for k, v in entry.items() if k != "mask"} for name, entry in found.items()}
    masks = {f"mask{i}": entry["mask"] for i, entry in enumerate(found.values())}
    np.savez_compressed(path, measures=np.array(json.dumps(measures)), **masks)


def find_masks(photos: list[tuple[Path, str]], hints: Hints, cache: Path) -> dict:
    """Find the mask and measures of each photograph with an object, by path."""
    found = read_cache(cache)
    finder, start, fresh = ObjectFinder(), time.time(), 0
    for path, _ in photos:
        if str(path) in found or path.parent.name in NO_OBJECT:
            continue
        found[str(path)] = finder(shrink(read_rgb(path)), hints.of(path)[1], hints.nouns.siblings)
        fresh += 1
        if fresh % 300 == 0:
            write_cache(cache, found)
            print(f"masks {fresh}, {(time.time() - start) / fresh:.3f} s each", flush=True)
    write_cache(cache, found)
    print(f"masks of {fresh} more photographs in {time.time() - start:.0f} s")
    return found


class Writer:
    """A file written piece by piece that records the place of each piece."""

    def __init__(self) -> None:
        self.parts, self.size = [], 0

    def add(self, data: bytes) -> tuple[int, int]:
        self.parts.append(data)
        self.size += len(data)
        return self.size - len(data), len(data)


def pick_quality(sample: list[np.ndarray], count: int, wanted: int, limit: int) -> int:
    """Return the highest quality up to `wanted` at which `count` pictures like the sample fit into `limit` bytes."""
    for quality in range(wanted, 30, -2):
        mean = np.mean([len(webp(image, quality)) for image in sample])
        if mean * count < 0.99 * limit:
            return quality
    return 30


def pack_photos(photos, hints: Hints, found: dict, quality: int, images: Writer, masks: Writer) -> list[dict]:
    entries = []
    for path, split in photos:
        source, image = path.parent.name, shrink(read_rgb(path))
        if chroma(image) < GRAY:
            continue
        things, classes = hints.of(path)
        seen = found.get(str(path))
        if things is None:
            things = hints.nouns.of_class(seen["class"]) if classes else []
        scene = source in IMAGENET_LIKE and seen is not None and hints.nouns.names[seen["class"]] in SCENES
        if (source in NO_OBJECT - {"bsds"} and "room" not in things or things[-1:] == ["landscape"]) and has_sky(image):
            things = [*things, "sky"][-3:]
        mask = seen["mask"] if seen else np.zeros((12, 12), np.uint8)
        mask = small_mask(mask, image.shape)
        offset, length = images.add(webp(image, quality))
        mask_offset, mask_length = masks.add(png(mask))
        entries.append(
            {
                "source": source,
                "file": path.name,
                "offset": offset,
                "length": length,
                "height": image.shape[0],
                "width": image.shape[1],
                "things": things,
                "mask_offset": mask_offset,
                "mask_length": mask_length,
                "confidence": confidence(source, things, seen, bool(classes), scene) if seen else 0.0,
                "split": split,
            }
        )
    return entries


def pack_clips(data: Path, quality: int, images: Writer, masks: Writer) -> list[dict]:
    """Pack 40 frames of each training clip at one stride of 1 to 3, from the middle, with DAVIS's masks."""
    chosen = {}
    for name in CLIP_THINGS:
        folder = data / "DAVIS/JPEGImages/480p" / name
        clip = davis_clip(folder) if folder.is_dir() else video_clip(data / "clips" / f"{name}.mp4", limit=10_000)
        stride = max(1, min(3, (len(clip) - 1) // (CLIP_FRAMES - 1)))
        start = max(0, len(clip) - stride * (CLIP_FRAMES - 1) - 1) // 2
        at = list(range(start, len(clip), stride))[:CLIP_FRAMES]
        chosen[name] = (at, clip[at])
    sample = [frame for _, frames in chosen.values() for frame in frames[::8]]
    quality = pick_quality(sample, sum(len(at) for at, _ in chosen.values()), quality, CLIP_BYTES)
    print(f"clips at quality {quality}")
    clips = []
    for name, (at, frames) in chosen.items():
        drawn = sorted((data / "DAVIS/Annotations/480p" / name).glob("*.png"))
        frame_spots = [images.add(webp(frame, quality)) for frame in frames]
        mask_spots = []
        if drawn:
            for i in at:
                mask = (cv2.imread(str(drawn[i]), cv2.IMREAD_GRAYSCALE) > 0).astype(np.uint8) * 255
                mask_spots.append(
                    masks.add(png(cv2.resize(mask, (SIZE[1] // 8, SIZE[0] // 8), interpolation=cv2.INTER_AREA)))
                )
        spots = [[{"offset": o, "length": n} for o, n in s] for s in (frame_spots, mask_spots)]
        clips.append({"name": name, "things": CLIP_THINGS[name], "frames": spots[0], "masks": spots[1]})
    return clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="only so many photographs, evenly spread")
    parser.add_argument("--quality", type=int, default=76)
    parser.add_argument("--clip-quality", type=int, default=75)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    start = time.time()
    options.out.mkdir(parents=True, exist_ok=True)
    photos = photo_list(options.data)
    if options.limit:
        photos = [photos[i] for i in np.linspace(0, len(photos) - 1, options.limit).astype(int)]
    hints = Hints(options.data)
    found = find_masks(photos, hints, options.out.parent / "masks.npz")
    sample = [image for path, _ in photos[::15] if chroma(image := shrink(read_rgb(path))) >= GRAY]
    quality = pick_quality(sample, len(photos) * len(sample) // len(photos[::15]), options.quality, PHOTO_BYTES)
    for lower in range(quality, 30, -2):
        images, masks = Writer(), Writer()
        entries = pack_photos(photos, hints, found, lower, images, masks)
        print(
            f"{len(entries)} photographs at quality {lower}: {images.size / 1e6:.2f} MB, {time.time() - start:.0f} s",
            flush=True,
        )
        if images.size <= PHOTO_BYTES:
            break
    before = images.size
    clips = [] if options.limit else pack_clips(options.data, options.clip_quality, images, masks)
    if images.size - before > CLIP_BYTES:
        sys.exit(f"clips take {(images.size - before) / 1e6:.2f} MB: lower --clip-quality")
    print(
        f"{len(clips)} clips: {(images.size - before) / 1e6:.2f} MB (at most {CLIP_BYTES / 1e6:.0f}), "
        f"masks {masks.size / 1e6:.2f} MB"
    )
    (options.out / "images.bin").write_bytes(b"".join(images.parts))
    (options.out / "masks.bin").write_bytes(b"".join(masks.parts))
    index = json.dumps({"photos": entries, "clips": clips}, separators=(",", ":"))
    (options.out / "index.json").write_text(index)
    counts = Counter(e["source"] for e in entries)
    sure = Counter(e["source"] for e in entries if e["confidence"] > 0.5)
    for source, count in sorted(counts.items()):
        print(f"{source:14} {count:5}  confident {sure[source] / count:.2f}")
    total = sum(f.stat().st_size for f in options.out.iterdir())
    print(f"total {total / 1e6:.2f} MB, index {len(index) / 1e6:.2f} MB, {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
