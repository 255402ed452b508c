"""Pretraining of the mini profile: the pyramid learns colours from the semantic encoder's features.

    python -m gcgkit.training.mini.semantics cache --data DIR --start DIR --cached DIR
    python -m gcgkit.training.mini.semantics train --cached DIR --out DIR [--steps N]

The encoder is frozen and costs most, so its features are cached once, with the chroma latents that they should predict.
The feature pyramid then learns in minutes on a CPU. ``cache`` also keeps the held-out photographs, which ``train``
measures at its end.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ...data import footage
from ...semantics import CHANNELS, FeaturePyramid, SemanticEncoder
from ...utils.commands import best_device
from ...vae import LUMA, LumaChromaAutoencoder
from ..loop import fit
from ..recipes import MINI

SEMANTIC_WIDTH = 64  # channels of the pyramid
SHAPES = {"wide": (192, 288), "square": (192, 192), "tall": (288, 192)}  # by the photograph's aspect
ARRAYS = ("chroma", *(f"feature{i}" for i in range(len(CHANNELS))))  # of each shape


def shape_of(image: np.ndarray) -> str:
    """Return the cached shape that keeps most of an image ``(H, W, 3)``."""
    aspect = image.shape[1] / image.shape[0]
    return "wide" if aspect > 1.2 else "tall" if aspect < 1 / 1.2 else "square"


@torch.no_grad()
def cache(data: Path, start: Path, out: Path, views: int = 2) -> None:
    """Write features and chroma latents of all photographs, ``views`` crops each, into ``out``, by shape."""
    encoder = SemanticEncoder.from_pretrained(start / "semantic_encoder").float().to(best_device()).eval()
    vae = LumaChromaAutoencoder.from_pretrained(start / "vae").float().to(best_device()).eval()
    for part in (encoder, vae):
        part.to(memory_format=torch.channels_last)
    for split, count in (("train", views), ("held", 1)):
        rng, kept = np.random.default_rng(11), {shape: [] for shape in SHAPES}
        paths = footage.photo_paths(data, held_out=split == "held")
        for path in tqdm(paths, desc=f"features, {split}", mininterval=10, disable=None):
            image = footage.read_image(path)
            shape = shape_of(image)
            for _ in range(count):
                kept[shape].append(_encode(encoder, vae, _crop(image, SHAPES[shape], rng, split == "train")))
        out.mkdir(parents=True, exist_ok=True)
        for shape, rows in kept.items():
            for index, name in enumerate(ARRAYS if rows else ()):
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
    rgb = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(encoder.device).float() / 127.5 - 1
    gray = (rgb * rgb.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    chroma = vae.encode(rgb).latent_dist.mode()[:, vae.config.luma_channels :]
    return [x[0].half().cpu().numpy() for x in (chroma, *encoder(gray))]


def load(out: Path, split: str) -> dict[str, list[np.ndarray]]:
    """Open cached arrays by shape, chroma first, memory-mapped."""
    return {
        shape: [np.load(out / f"{split}-{shape}-{name}.npy", mmap_mode="r") for name in ARRAYS]
        for shape in SHAPES
        if (out / f"{split}-{shape}-chroma.npy").is_file()
    }


def chroma_error(prediction: torch.Tensor, chroma: torch.Tensor) -> torch.Tensor:
    """Return the squared error with a little more weight on rare vivid colours, against brown results."""
    return ((prediction - chroma).square() * (1 + 0.5 * chroma.abs())).mean()


def train(cached: Path, out: Path, steps: int = 2000, batch: int = 16) -> None:
    """Train the pyramid on cached features; its folder gets ``pyramid.safetensors``."""
    torch.manual_seed(12)
    device, data, pyramid = best_device(), load(cached, "train"), FeaturePyramid(CHANNELS, SEMANTIC_WIDTH)
    shapes, sizes = list(data), np.array([len(arrays[0]) for arrays in data.values()], float)

    def loss(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        arrays = data[shapes[rng.choice(len(shapes), p=sizes / sizes.sum())]]
        rows = np.sort(rng.integers(len(arrays[0]), size=batch))
        chroma, *features = (torch.from_numpy(a[rows]).to(device).float() for a in arrays)
        if rng.random() < 0.5:
            chroma, features = chroma.flip(-1), [f.flip(-1) for f in features]
        prediction = pyramid(tuple(features))[:, :2].float()
        return {"loss": chroma_error(prediction, chroma), "gray": chroma_error(chroma * 0, chroma)}

    optimizer = replace(MINI.optimizer, learning_rate=1e-3, weight_decay=0.02, warmup=50, ema_decay=0.998)
    fit(out, {"join": pyramid}, loss, optimizer, steps=steps, precision="no", title="pyramid")
    save_file({k: v.contiguous() for k, v in pyramid.state_dict().items()}, out / "pyramid.safetensors")
    measure(cached, pyramid)


@torch.no_grad()
def measure(cached: Path, pyramid: FeaturePyramid) -> None:
    """Print the mean gain in decibels over gray on the held-out photographs, in the latents' chroma."""
    device, gains, vividness = best_device(), [], []
    for arrays in load(cached, "held").values():
        for i in range(len(arrays[0])):
            truth, *features = (torch.from_numpy(a[i : i + 1]).to(device).float() for a in arrays)
            prediction = pyramid(tuple(features))[:, :2].float()
            gains.append(float(10 * (truth.square().mean() / (prediction - truth).square().mean()).log10()))
            vividness.append(float(prediction.norm(dim=1).mean() / truth.norm(dim=1).mean()))
    better = np.mean(np.array(gains) > 0)
    print(
        f"{np.mean(gains):+.2f} dB over gray, better on {better:.0%} of {len(gains)}; "
        f"chroma {np.mean(vividness):.2f} of the truth's",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("stage", choices=("cache", "train"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--start", type=Path, help="folder with vae and semantic_encoder")
    parser.add_argument("--cached", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args(argv)
    if args.stage == "cache":
        cache(args.data, args.start, args.cached)
    else:
        train(args.cached, args.out, args.steps)


if __name__ == "__main__":
    main()
