"""Training samples from prepared frames: a target, its gray, and a mask, frame or grid as reference (§3.4.2, §4.1).

    dataset = FrameDataset("prepared", load("paper").data)
    show_batch(collate([dataset[i] for i in range(8)])).savefig("batch.png")

``python -m gcgkit.training.show_batch prepared --config paper --out batch.png`` does the same. See ``prepare`` for
the prepared folders, and ``sampling`` for the drawing of samples.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from .. import color
from . import augment, captions, footage, prepare
from .color_words import remove_color_words
from .config import DataConfig
from .sampling import Draw, Positions, SampleStream

CLIP_JITTER, PHOTO_JITTER = 0.03, 0.5  # variation of the place of a scene's views, see augment.cut_views


@dataclass(frozen=True)
class Clip:
    """A prepared clip; a photograph is a clip of one frame. Captions are by frame number."""

    set: str
    name: str
    folder: Path
    suffix: str
    frames: int
    sha256: str
    captions: dict[int, str]

    @property
    def label(self) -> str:
        return f"{self.set}/{self.name}"

    def label_of(self, number: int) -> str:
        """Return the label of a frame, with its number; a photograph has one frame and no number."""
        return f"{self.label} {number}" if self.frames > 1 else self.label

    def read(self, number: int) -> np.ndarray:
        """Read one frame, RGB uint8 ``(H, W, 3)``."""
        return footage.read_image(self.folder / f"{number:05d}.{self.suffix}")

    def caption(self, number: int) -> str:
        """Return the caption of the nearest captioned frame; "" if the clip has none."""
        return captions.nearest_caption({self.name: self.captions}, self.name, number)


def read_clips(root: str | Path, sets: Sequence[str], exclude: Sequence[str] = ()) -> list[Clip]:
    """Return the clips of some prepared sets in order, without those named in ``exclude``.

    ``root`` holds the sets' folders. Raises FileNotFoundError for a missing set, and ValueError for an incomplete one
    or if no clip remains.
    """
    found = []
    for name in sets:
        folder = Path(root) / name
        manifest = prepare.read_manifest(folder)
        texts = captions.read_captions(folder / prepare.CAPTIONS)
        for entry in manifest["clips"]:
            if entry["clip"] not in exclude:
                place = folder / "frames" / entry["clip"]
                clip = Clip(
                    name, entry["clip"], place, manifest["format"], entry["frames"], entry["sha256"],
                    texts.get(entry["clip"], {}),
                )  # fmt: skip
                found.append(clip)
    if not found:
        raise ValueError(f"{root} has no clip to train on in {', '.join(sets)}: prepare some, or name other sets.")
    return found


def targets(clips: Sequence[Clip], data: DataConfig) -> list[int]:
    """Return the number of targets of each clip in an epoch."""
    return [data.targets_per_photo if c.frames == 1 else data.targets_per_clip or c.frames for c in clips]


@dataclass
class Sample:
    """One sample: pixels, uint8, or latents; n references, none under the mask.

    Attributes:
        target: ``(3, H, W)`` RGB, or latents ``(C, h, w)``.
        gray: ``(1, H, W)``, or latents ``(C, h, w)``.
        color, ref_gray: the references, ``(n, 3, H, W)`` and ``(n, 1, H, W)``, or latents ``(n, C, h, w)``.
        tokens: the references' image tokens ``(n, N, D)``; None with pixels.
        kind, caption, seed: see ``Draw``.
        labels: names of the pictures, target first.
        semantics, ref_semantics: of the gray frames, ``(S, h, w)`` and ``(n, S, h, w)``, beside latents for a copy that
            reads them; else None.
    """

    target: torch.Tensor
    gray: torch.Tensor
    color: torch.Tensor
    ref_gray: torch.Tensor
    tokens: torch.Tensor | None
    kind: str
    caption: str
    seed: int
    labels: tuple[str, ...]
    semantics: torch.Tensor | None = None
    ref_semantics: torch.Tensor | None = None


@dataclass
class References:
    """The b x n references of one kind in a batch, of the samples ``rows`` (b,); see ``Sample``."""

    kind: str
    rows: torch.Tensor
    color: torch.Tensor
    gray: torch.Tensor
    tokens: torch.Tensor | None
    semantics: torch.Tensor | None = None


@dataclass
class Batch:
    """B samples, with their references grouped by kind, since those have one size. Under the mask n is 0.

    ``target`` and ``gray`` as in ``Sample``, with a leading axis; ``encoded`` is true for latents.
    """

    target: torch.Tensor
    gray: torch.Tensor
    references: list[References]
    captions: list[str]
    seeds: list[int]
    labels: list[tuple[str, ...]]
    encoded: bool
    semantics: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    def pin_memory(self) -> Batch:
        """Copy to pinned memory, from which copies to a GPU are fast; data loaders call this."""
        return self._map(torch.Tensor.pin_memory)

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change) -> Batch:
        each = lambda tensor: None if tensor is None else change(tensor)  # noqa: E731
        references = [
            References(r.kind, *map(each, (r.rows, r.color, r.gray, r.tokens, r.semantics))) for r in self.references
        ]
        own = {name: each(getattr(self, name)) for name in ("target", "gray", "semantics")}
        return replace(self, references=references, **own)


OF_REFERENCES = ("color", "ref_gray", "tokens", "ref_semantics")  # of a sample, in the order of References


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples into a batch, in order, with their references grouped by kind."""

    def stack(name: str, some: Sequence[Sample] = samples) -> torch.Tensor | None:
        found = [getattr(sample, name) for sample in some]
        return None if found[0] is None else torch.stack(found)

    groups = []
    for kind in augment.KINDS:
        rows = [i for i, sample in enumerate(samples) if sample.kind == kind]
        if rows:
            parts = [stack(name, [samples[i] for i in rows]) for name in OF_REFERENCES]
            groups.append(References(kind, torch.tensor(rows), *parts))
    return Batch(
        target=stack("target"),
        gray=stack("gray"),
        semantics=stack("semantics"),
        references=groups,
        captions=[s.caption for s in samples],
        seeds=[s.seed for s in samples],
        labels=[s.labels for s in samples],
        encoded=samples[0].tokens is not None,
    )


class SampleDataset(torch.utils.data.Dataset):
    """Base of the data sets: ``dataset[position]`` is any position of ``stream``, ``len`` the length of an epoch."""

    stream: SampleStream

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples of one epoch; without this method, Python would never stop counting positions."""
        return (self[position] for position in range(len(self)))


class FrameDataset(SampleDataset):
    """Samples as pixels, read and augmented on access: ``dataset[position]`` for any position from 0 on.

    ``len`` is the length of an epoch. root, data: see ``read_clips`` and ``DataConfig``. exclude: clips to leave out in
    addition to those that ``data`` names. Raises as ``read_clips`` does.
    """

    def __init__(self, root: str | Path, data: DataConfig, seed: int = 0, exclude: Sequence[str] = ()):
        self.clips, self.data = read_clips(root, data.sets, [*data.exclude, *exclude]), data
        views = [None if clip.frames == 1 else clip.frames for clip in self.clips]
        self.stream = SampleStream(views, targets(self.clips, data), data, seed)

    def __getitem__(self, position: int) -> Sample:
        draw = self.stream.draw(position)
        clip, source = self.clips[draw.clip], self.clips[draw.source]
        numbers = [(clip, draw.target), *((source, number) for number in draw.references)]
        rng = np.random.default_rng(draw.seed)
        if clip is source:
            views = read_views(clip, [number for _, number in numbers], self.data, rng)
        else:
            views = np.concatenate([read_views(c, [number], self.data, rng) for c, number in numbers])
        views = augment.augment_hsv(views, *draw.hsv)  # target and references alike
        text = clip.caption(draw.target)
        if self.data.captions == "own":
            text = augment.caption_scene(views, clip.name, rng)
        pixels = torch.from_numpy(views).permute(0, 3, 1, 2).contiguous()  # (1 + n, H, W, 3) -> (1 + n, 3, H, W)
        gray = torch.from_numpy(color.to_gray(views))[:, None]  # (1 + n, 1, H, W)
        return Sample(
            target=pixels[0], gray=gray[0], color=pixels[1:], ref_gray=gray[1:], tokens=None, kind=draw.kind,
            caption=caption_of(text, draw), seed=draw.seed,
            labels=tuple(c.label_of(number) for c, number in numbers),
        )  # fmt: skip


def caption_of(text: str, draw: Draw) -> str:
    """Return a sample's caption: unchanged, without its colour words, or empty."""
    if draw.drop:
        return ""
    return remove_color_words(text) if draw.strip else text


def read_views(clip: Clip, numbers: Sequence[int], data: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """Read frames of a clip, or crops of a photograph, at the training size: ``(n, height, width, 3)``."""
    size = (data.height, data.width)
    if clip.frames == 1:
        photo = clip.read(0)[None]
        return augment.cut_views(_at_least(photo, size), len(numbers), size, rng, PHOTO_JITTER)
    frames = np.stack([clip.read(number) for number in numbers])
    if data.crops:
        return augment.cut_views(_at_least(frames, size), len(frames), size, rng, CLIP_JITTER)
    return np.stack([footage.stretch(frame, size) for frame in frames])


def _at_least(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale frames up if they are smaller than ``size``."""
    if frames.shape[1] >= size[0] and frames.shape[2] >= size[1]:
        return frames
    return np.stack([footage.cover(frame, size) for frame in frames])


def loader(dataset, positions: Positions, workers: int = 0, pin: bool = False) -> torch.utils.data.DataLoader:
    """Return a data loader of the batches at these positions, with ``workers`` processes."""
    return torch.utils.data.DataLoader(
        dataset, batch_sampler=positions, collate_fn=collate, num_workers=workers, pin_memory=pin,
        worker_init_fn=_one_thread,
    )  # fmt: skip


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


def show_batch(batch: Batch, limit: int = 8):
    """Draw a batch of pixels: one row per sample, with target, gray, references and caption.

    Returns a matplotlib figure. Raises ValueError for a batch of latents.
    """
    from matplotlib import pyplot

    if batch.encoded:
        raise ValueError("show_batch needs pixels, and this batch holds latents from the cache: use a FrameDataset.")
    count = min(limit, len(batch))
    found = {int(row): (group, i) for group in batch.references for i, row in enumerate(group.rows)}
    columns = 2 + max([group.color.shape[1] for group, _ in found.values()] + [1])
    width = 8.4 / columns  # of a picture in inches; the text beside it stays legible
    height = 0.85 * width * batch.target.shape[2] / batch.target.shape[3] + 0.3  # of a row, its title included
    figure, axes = pyplot.subplots(count, columns, figsize=(8.4, height * count), squeeze=False)
    for row in range(count):
        group, i = found[row]
        images = [batch.target[row], batch.gray[row], *group.color[i]]
        titles = [batch.labels[row][0], "its gray", *batch.labels[row][1:]]
        for column, axis in enumerate(axes[row]):
            axis.set_xticks([]), axis.set_yticks([])
            if column >= len(images):
                axis.set_axis_off()
                continue
            image = images[column].permute(1, 2, 0).cpu().numpy()  # (3 or 1, H, W) -> (H, W, 3 or 1)
            axis.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
            axis.set_title(titles[column].rpartition("/")[2][-18:], fontsize=9)  # without its set
        caption = textwrap.fill(batch.captions[row] or "no caption", 15, max_lines=3, placeholder=" …")
        axes[row, 0].set_ylabel(f"{group.kind}\n{caption}", fontsize=9, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.4)
    pyplot.close(figure)  # otherwise a notebook shows it twice
    return figure
