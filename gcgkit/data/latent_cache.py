"""A cache of clips encoded before training: latents and image tokens of a few augmented variants of each clip.

To encode the target and up to four references of every sample, in colour and gray, and their image tokens, takes
several times as long as the training step. The cache therefore holds a few variants of each clip, each with its own HSV
parameters. Target and references of a sample come from one variant, so their colours agree. A variant has a few frames
of its clip, or crops of its photograph. Each clip has one file, written when it is complete. A killed run can therefore
continue, and several processes can share the work.

The folder's name is a digest of all inputs of its content. Runs with the same inputs share it.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from .. import color, encoders
from ..utils.files import require_space
from . import augment
from .config import DataConfig
from .dataset import Clip, Sample, SampleDataset, caption_of, read_views, targets
from .sampling import Draw, SampleStream

FORMAT = 2  # of the files; another number gives another folder
CHUNK = 8  # frames encoded at a time


def variants(clip: Clip, data: DataConfig) -> tuple[int, int]:
    """Return the number of a clip's variants, and of the first ones that keep their own colours (at least one)."""
    count = (data.cache_photo_variants if clip.frames == 1 else 0) or data.cache_variants
    return count, max(1, round(count * (1 - data.recolor)))


def cache_folder(root: str | Path, clips: Sequence[Clip], data: DataConfig, pipe, condition: str) -> Path:
    """Return the folder ``latents-...`` under ``root`` for these clips, settings and encoders."""
    content = {
        "format": FORMAT,
        "clips": [[clip.set, clip.name, clip.sha256] for clip in clips],
        "size": [data.height, data.width],
        "variants": sorted({variants(clip, data) for clip in clips}),
        "views": [data.cache_views, data.cache_seed],
        "drawn": [data.crops, data.window],
        "encoders": [_digest(pipe.vae), "" if condition == "none" else _digest(pipe.image_encoder)],
        "scaling": [pipe.vae.config.scaling_factor, getattr(pipe.vae.config, "shift_factor", None)],
        "condition": condition,
    }
    if _reads_semantics(pipe):
        content["semantics"] = [_digest(pipe.semantic_encoder), _digest(pipe.control.pyramid)]
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return Path(root) / f"latents-{name}"


def missing(folder: Path, clips: Sequence[Clip]) -> list[Clip]:
    """Return the clips that are not in the cache yet."""
    return [clip for clip in clips if not _file(folder, clip).is_file()]


def build_cache(
    folder: Path,
    clips: Sequence[Clip],
    data: DataConfig,
    pipe,
    condition: str,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Encode the missing clips whose number is ``rank`` modulo ``world``.

    pipe: its ``vae``, ``image_encoder`` and ``feature_extractor`` are used, on ``device``, and what makes its semantic
    features. Raises OSError before the start if the disk is too small.
    """
    todo = missing(folder, clips)
    _check_space(folder, todo, data, pipe, condition)
    numbers = {clip.label: number for number, clip in enumerate(clips)}
    mine = [clip for clip in todo if numbers[clip.label] % world == rank]
    for clip in tqdm(mine, desc="Encoding clips", unit="clip", disable=None if rank == 0 else True):
        encoded, texts = encode_clip(clip, data, pipe, condition, device)
        path = _file(folder, clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        save_file(encoded, partial, {"captions": json.dumps(texts)})
        os.replace(partial, path)


@torch.no_grad()
def encode_clip(
    clip: Clip, data: DataConfig, pipe, condition: str, device
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Encode a clip's variants; return them with a caption of its own colours for each.

    The variants are ``color``, ``gray`` (K, V, C, h, w), ``tokens`` (K, V, N, D), float16, and ``frames`` (K, V); for a
    copy that reads semantic features also ``semantics`` (K, V, S, h, w).
    """
    names = ["color", "gray", "tokens"] + ["semantics"] * _reads_semantics(pipe)
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in (*names, "frames")}
    texts = []
    for frames, views, text in scenes(clip, data):
        texts.append(text)
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for start in range(0, len(views), CHUNK):
            some = views[start : start + CHUNK]
            lightness = color.to_gray(some)  # (n, H, W)
            gray = np.repeat(lightness[..., None], 3, axis=3)  # (n, H, W) -> (n, H, W, 3)
            if "semantics" in names:
                parts["semantics"].append(encoders.semantics(pipe, lightness).cpu().half())
            for name, pixels in (("color", some), ("gray", gray)):
                pixels = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)  # (n, H, W, 3) -> (n, 3, H, W)
                parts[name].append(encoders.encode_pixels(pipe.vae, pixels).cpu().half())
            parts["tokens"].append(encode_tokens(pipe, some, condition, device).cpu().half())
        for name, chunks in parts.items():
            rows[name].append(torch.cat(chunks))
        rows["frames"].append(torch.tensor(frames, dtype=torch.int32))
    encoded = {name: torch.stack(variants).contiguous() for name, variants in rows.items()}
    for name in names:
        if not encoded[name].isfinite().all():
            raise ValueError(f"{clip.label} does not fit float16 once encoded: train with run.frozen_dtype=float32.")
    return encoded, texts


def encode_tokens(pipe, frames: np.ndarray, condition: str, device) -> torch.Tensor:
    """Return the image tokens ``(n, N, D)`` of RGB frames ``(n, H, W, 3)``."""
    return encoders.image_tokens(pipe.image_encoder, pipe.feature_extractor, list(frames), condition, device)


def scenes(clip: Clip, data: DataConfig) -> Iterator[tuple[list[int], np.ndarray, str]]:
    """Yield each variant's frame numbers, augmented views ``(V, height, width, 3)`` and caption of their colours."""
    count, natural = variants(clip, data)
    for variant in range(count):
        words = f"{data.cache_seed}/{clip.label}/{variant}"  # independent of the other clips
        rng = np.random.default_rng(np.frombuffer(hashlib.sha256(words.encode()).digest(), np.uint32))
        if clip.frames == 1:
            frames = [0] * data.cache_views
        else:
            length = min(clip.frames, data.window or clip.frames)
            start = int(rng.integers(clip.frames - length + 1))
            frames = np.sort(start + rng.choice(length, min(length, data.cache_views), replace=False)).tolist()
        hsv = augment.random_hsv(rng, natural=variant < natural)
        views = augment.augment_hsv(read_views(clip, frames, data, rng), *hsv)
        yield frames, views, augment.caption_scene(views, clip.name, rng)


class LatentDataset(SampleDataset):
    """Samples as latents, from a cache: ``dataset[position]``, as with ``FrameDataset``."""

    def __init__(self, folder: Path, clips: Sequence[Clip], data: DataConfig, seed: int = 0):
        self.folder, self.clips, self.data = folder, list(clips), data
        views = []
        if lacking := missing(folder, self.clips):
            raise FileNotFoundError(f"{_file(folder, lacking[0])} is missing: the cache is incomplete.")
        for clip in self.clips:
            with safe_open(_file(folder, clip), "pt") as file:
                views.append(file.get_slice("frames").get_shape()[1])
        # all views of a variant already lie within the window
        self.stream = SampleStream(views, targets(clips, data), dataclasses.replace(data, window=0), seed)

    def variant(self, draw: Draw, clip: int) -> int:
        """Draw the number of a sample's variant of a clip, among those with or without new colours as in ``draw``."""
        total, natural = variants(self.clips[clip], self.data)
        first, count = (natural, total - natural) if draw.recolored else (0, natural)
        return first + int(np.random.default_rng(draw.seed).integers(count)) if count else 0

    def __getitem__(self, position: int) -> Sample:
        draw = self.stream.draw(position)
        variant, source_variant = (self.variant(draw, clip) for clip in (draw.clip, draw.source))
        with safe_open(_file(self.folder, self.clips[draw.clip]), "pt") as file:
            seen = ["semantics"] * ("semantics" in file.keys())
            target, gray, *semantics = (file.get_slice(n)[variant, draw.target] for n in ["color", "gray", *seen])
            frames = file.get_slice("frames")[variant]
            own = json.loads(file.metadata()["captions"])[variant]
        with safe_open(_file(self.folder, self.clips[draw.source]), "pt") as file:
            ref_color, ref_gray, tokens, *ref_semantics = (
                _views(file.get_slice(name), source_variant, draw.references)
                for name in ("color", "gray", "tokens", *seen)
            )
            source_frames = file.get_slice("frames")[source_variant]
        clip, source = self.clips[draw.clip], self.clips[draw.source]
        text = own if self.data.captions == "own" else clip.caption(int(frames[draw.target]))
        shown = [(clip, frames[draw.target]), *((source, source_frames[view]) for view in draw.references)]
        return Sample(
            target=target, gray=gray, color=ref_color, ref_gray=ref_gray, tokens=tokens, kind=draw.kind,
            semantics=semantics[0] if seen else None, ref_semantics=ref_semantics[0] if seen else None,
            caption=caption_of(text, draw), seed=draw.seed,
            labels=tuple(c.label_of(int(number)) for c, number in shown),
        )  # fmt: skip


def _views(part, variant: int, views: Sequence[int]) -> torch.Tensor:
    """Read some views of a variant from a slice ``(K, V, ...)`` of a cache file, and nothing else: ``(n, ...)``."""
    found = [part[variant, view] for view in views]
    return torch.stack(found) if found else torch.zeros(0, *part.get_shape()[2:], dtype=torch.float16)


def _file(folder: Path, clip: Clip) -> Path:
    return folder / clip.set / f"{clip.name}.safetensors"


def _reads_semantics(pipe) -> bool:
    """Return whether a pipeline's copy reads semantic features."""
    return pipe.semantic_encoder is not None and pipe.control.pyramid is not None


def _digest(module: torch.nn.Module) -> str:
    """Return the SHA-256 over a network's weights and their names."""
    digest = hashlib.sha256()
    for name, weights in sorted(module.state_dict().items()):
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}".encode())
        digest.update(weights.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_space(folder: Path, clips: Sequence[Clip], data: DataConfig, pipe, condition: str) -> None:
    """Raise OSError if the cache does not fit on the disk."""
    height, width = encoders.latent_size(pipe.vae, (data.height, data.width))
    latents = 2 * pipe.unet.config.in_channels * height * width  # colour and gray
    encoder = pipe.image_encoder.config
    count = (encoder.image_size // encoder.patch_size) ** 2 if condition == "patch" else 1
    semantics = pipe.control.config.semantic_width * height * width if _reads_semantics(pipe) else 0
    per_view = 2 * (latents + count * encoder.projection_dim + semantics)  # bytes
    views = lambda clip: data.cache_views if clip.frames == 1 else min(clip.frames, data.cache_views)  # noqa: E731
    needed = sum(views(clip) * variants(clip, data)[0] for clip in clips) * per_view
    remedy = "choose another place with --cache, or lower data.cache_variants or data.cache_views"
    require_space(folder, needed, "the latent cache", remedy)
