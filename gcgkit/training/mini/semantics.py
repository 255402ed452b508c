"""Pretraining of the mini profile: the pyramid learns colours from the semantic encoder's features.

    python -m gcgkit.training.mini.semantics cache --data DIR --out DIR
    python -m gcgkit.training.mini.semantics train --out DIR [--steps N]

The encoder is frozen and costs most, so its features are cached once, with the chroma latents that they should predict.
The feature pyramid then learns in minutes on a CPU. ``cache`` also keeps the held-out photographs, which ``train``
measures at its end: decibels over gray, in the latents' chroma.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm.auto import tqdm

from ...data import footage
from ...semantics import CHANNELS, FeaturePyramid, SemanticEncoder
from ...vae import LUMA, LumaChromaAutoencoder
from ..loop import fit
from ..recipes import MINI
from .encoders import device

SHAPES = {"wide": (192, 288), "square": (192, 192), "tall": (288, 192)}  # by the photograph's aspect


def shape_of(image: np.ndarray) -> str:
    """Return the cached shape that keeps most of an image ``(H, W, 3)``."""
    aspect = image.shape[1] / image.shape[0]
    return "wide" if aspect > 1.2 else "tall" if aspect < 1 / 1.2 else "square"


@torch.no_grad()
def cache(data: Path, start: Path, out: Path, views: int = 2, limit: int | None = None) -> None:
    """Write features and chroma latents of all photographs, ``views`` crops each, into ``out``, by shape."""
    encoder = SemanticEncoder.from_pretrained(start / "semantic_encoder").float().to(device()).eval()
    vae = LumaChromaAutoencoder.from_pretrained(start / "vae").float().to(device()).eval()
    for part in (encoder, vae):
        part.to(memory_format=torch.channels_last)
    for split, count in (("train", views), ("held", 1)):
        rng, kept = np.random.default_rng(11), {shape: [] for shape in SHAPES}
        paths = footage.photo_paths(data, held_out=split == "held")[:limit]
        for path in tqdm(paths, desc=f"features, {split}", mininterval=10, disable=None):
            image = footage.read_image(path)
            shape = shape_of(image)
            for _ in range(count):
                kept[shape].append(_encode(encoder, vae, _crop(image, SHAPES[shape], rng, split == "train")))
        out.mkdir(parents=True, exist_ok=True)
        for shape, rows in kept.items():
            for index, name in enumerate(("chroma", *(f"feature{i}" for i in range(len(CHANNELS))))):
                if rows:
                    np.save(out / f"{split}-{shape}-{name}.npy", np.stack([row[index] for row in rows]))


def _crop(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator, moved: bool) -> np.ndarray:
    """Crop a picture of this size that covers most of the image; ``moved`` ones are nearer and half are mirrored."""
    if not moved:
        return footage.cover(image, size)
    zoom = 1 - 0.35 * rng.random() ** 2
    height, width = round(image.shape[0] * zoom), round(image.shape[1] * zoom)
    top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(image.shape, (height, width), strict=False))
    crop = footage.cover(image[top : top + height, left : left + width], size, at=rng.random())
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _encode(encoder, vae, image: np.ndarray) -> list[np.ndarray]:
    """Encode one picture into chroma latents (2, h, w) and features, in half precision."""
    rgb = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device()).float() / 127.5 - 1
    gray = (rgb * rgb.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    chroma = vae.encode(rgb).latent_dist.mode()[:, vae.config.luma_channels :]
    return [x[0].half().cpu().numpy() for x in (chroma, *encoder(gray))]


def load(out: Path, split: str) -> dict[str, list[np.ndarray]]:
    """Open cached arrays by shape, chroma first, memory-mapped."""
    names = ("chroma", *(f"feature{i}" for i in range(len(CHANNELS))))
    return {
        shape: [np.load(out / f"{split}-{shape}-{name}.npy", mmap_mode="r") for name in names]
        for shape in SHAPES
        if (out / f"{split}-{shape}-chroma.npy").is_file()
    }


def chroma_error(prediction: torch.Tensor, chroma: torch.Tensor) -> torch.Tensor:
    """Return the squared error with a little more weight on rare vivid colours, against brown results."""
    return ((prediction - chroma).square() * (1 + 0.5 * chroma.abs())).mean()


class FlatJoin(nn.Module):
    """The alternative join of features that was tried: all scaled to the finest, three layers."""

    def __init__(self, channels: tuple[int, ...], width: int, hidden: int = 128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(sum(channels), hidden, 1), nn.GroupNorm(8, hidden), nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1), nn.GroupNorm(8, hidden), nn.SiLU(), nn.Conv2d(hidden, width, 1),
        )  # fmt: skip

    def forward(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        size = features[0].shape[-2:]
        scaled = [F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in features]
        return self.layers(torch.cat(scaled, 1))


WAYS = {"pyramid": FeaturePyramid, "flat": FlatJoin}


def train(cached: Path, out: Path, steps: int = 2000, batch: int = 16, width: int = 64, way: str = "pyramid") -> None:
    """Train the pyramid on cached features; its folder gets ``pyramid.safetensors``."""
    from safetensors.torch import save_file

    torch.manual_seed(12)
    data, join = load(cached, "train"), WAYS[way](CHANNELS, width)
    shapes, sizes = list(data), np.array([len(arrays[0]) for arrays in data.values()], float)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        arrays = data[shapes[rng.choice(len(shapes), p=sizes / sizes.sum())]]
        rows = np.sort(rng.integers(len(arrays[0]), size=batch))
        chroma, *features = (torch.from_numpy(a[rows]).to(device()).float() for a in arrays)
        if rng.random() < 0.5:
            chroma, features = chroma.flip(-1), [f.flip(-1) for f in features]
        prediction = join(tuple(features))[:, :2].float()
        return {"loss": chroma_error(prediction, chroma), "gray": chroma_error(chroma * 0, chroma)}

    optimizer = replace(MINI.optimizer, learning_rate=1e-3, weight_decay=0.02, warmup=50, ema_decay=0.998)
    fit(out, {"join": join}, loss, optimizer, steps=steps, precision="no", title=way)
    save_file({k: v.contiguous() for k, v in join.state_dict().items()}, out / f"{way}.safetensors")
    measure(cached, join)


@torch.no_grad()
def measure(cached: Path, join: nn.Module, gains: tuple[float, ...] = (1.0, 1.2, 1.4)) -> None:
    """Print the mean gain in decibels over gray on the held-out photographs, for several factors on the chroma."""
    join.eval()
    results = {gain: [] for gain in gains}
    vivid = []
    for chroma, *features in load(cached, "held").values():
        for i in range(len(chroma)):
            truth, *found = (torch.from_numpy(a[i : i + 1]).to(device()).float() for a in (chroma, *features))
            prediction = join(tuple(found))[:, :2].float()
            vivid.append(float(prediction.norm(dim=1).mean() / truth.norm(dim=1).mean()))
            for gain in gains:
                error = (gain * prediction - truth).square().mean()
                results[gain].append(float(10 * (truth.square().mean() / error).log10()))
    for gain, values in results.items():
        values = np.array(values)
        print(f"times {gain}: {values.mean():+.2f} dB over gray, better on {(values > 0).mean():.0%} of {len(values)}")
    print(f"chroma {np.mean(vivid):.2f} of the truth's", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("stage", choices=("cache", "train"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--start", type=Path, help="folder with vae and semantic_encoder")
    parser.add_argument("--cached", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--way", choices=tuple(WAYS), default="pyramid")
    parser.add_argument("--limit", type=int)
    args = parser.parse_args(argv)
    if args.stage == "cache":
        cache(args.data, args.start, args.cached, limit=args.limit)
    else:
        train(args.cached, args.out, args.steps, way=args.way)


if __name__ == "__main__":
    main()
