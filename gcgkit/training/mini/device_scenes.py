"""Scenes for the mini weights, made on the training device: photographs and clips seen by a moving camera (§3.4.2).

Decoded pictures lie in the device's memory as bytes. A batch is a matter of some matrix arithmetic there: a crop per
view, the same change of colours for all views of a scene, a caption that says what was done. So no step sees the same
batch twice, and a fast GPU does not wait for a slow reader.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from ...data import naming
from ...vae import LUMA

SIDE = 384  # pixels: no photograph is longer on either side
MASK = 48  # a photograph's mask has this many cells on a side, whatever its shape
CONFIDENT = 0.2  # masks below are not taken for the object's


@dataclass
class Batch:
    """``S`` scenes of ``V`` views: ``rgb`` (S, V, 3, H, W) in [-1, 1], captions, and which kept their colours.

    ``mask`` (S, V, 1, H, W) in [0, 1] covers the object, in the scenes where it is ``known`` (S,).
    """

    rgb: torch.Tensor
    captions: list[str]
    natural: torch.Tensor
    mask: torch.Tensor
    known: torch.Tensor


@dataclass
class Subject:
    """Contents of a photograph or clip: nouns, and colour words of the object, its surroundings and the whole.

    ``known`` is true where a mask covers the object.
    """

    things: list[str]
    words: tuple[str | None, str | None, list[str]]
    known: bool


class Scenes:
    """Photographs and clips in a device's memory.

    Args:
        pack: as ``pack.load_pack`` returns it: photographs, clips, masks and what they show.
        device: where they lie.
        split: "train" or "held" photographs; clips are for training only.
    """

    def __init__(self, pack: dict, device: str, split: str = "train"):
        photos = [p for p in pack["photos"] if p["split"] == split]
        clips = pack["clips"] if split == "train" else []
        self.device = device
        pixels = np.zeros((len(photos), SIDE, SIDE, 3), np.uint8)
        masks = np.zeros((len(photos), MASK, MASK), np.uint8)
        for i, photo in enumerate(photos):
            image = photo["image"][:SIDE, :SIDE]
            pixels[i, : image.shape[0], : image.shape[1]] = image
            masks[i] = cv2.resize(photo["mask"], (MASK, MASK), interpolation=cv2.INTER_AREA)
        self.photos = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
        self.photo_masks = torch.from_numpy(masks)[:, None].to(device)  # (N, 1, 48, 48)
        self.sizes = np.array([p["image"].shape[:2] for p in photos])  # (N, 2)
        trusted = [p["mask"] if p["confidence"] > CONFIDENT else None for p in photos]
        self.subjects = [_subject(p["things"], p["image"], mask) for p, mask in zip(photos, trusted, strict=True)]
        firsts = [None if c["masks"] is None else c["masks"][0] for c in clips]
        self.clip_subjects = [_subject(c["things"], c["images"][0], m) for c, m in zip(clips, firsts, strict=True)]
        if clips:
            self.first = np.cumsum([0] + [len(c["images"]) for c in clips])
            frames = np.concatenate([c["images"] for c in clips])
            self.frames = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().to(device)  # (M, 3, 256, 448)
            blank = lambda c: np.zeros((len(c["images"]), 32, 56), np.uint8)  # noqa: E731
            clip_masks = np.concatenate([blank(c) if c["masks"] is None else c["masks"] for c in clips])
            self.clip_masks = torch.from_numpy(clip_masks)[:, None].to(device)

    @torch.no_grad()
    def draw(
        self,
        scenes: int,
        views: int,
        size: tuple[int, int],
        rng: np.random.Generator,
        *,
        clips: float = 0.5,
        recolor: float = 0.0,
        regrade: float = 0.0,
        tint: float = 0.0,
        drop_text: float = 0.2,
        strip_colors: float = 0.0,
    ) -> Batch:
        """Draw a batch of fresh scenes of one size (height, width).

        clips: share of scenes that are stretches of clips. recolor: of scenes whose hues are turned by any angle, with
        captions that name no colour. regrade: of scenes with hues a little off and any saturation, as film stock and
        earlier frames have them; captions name no colour there either. tint: of scenes whose object, or whole picture
        where no mask tells which it is, is given a colour that the caption names. drop_text, strip_colors: of natural
        scenes whose caption is empty, and of those whose caption names no colour.
        """
        with torch.autocast(torch.device(self.device).type, enabled=False):  # pixels are counted in whole numbers
            subjects, rgb, mask = self._film(scenes, views, size, rng, clips)
            texts, turns, gains, colors, natural = [], [], [], [], []
            for subject in subjects:
                thing = str(rng.choice(subject.things)) if subject.things else ""
                way = rng.random()
                turn, gain, color = rng.uniform(-3, 3), rng.uniform(0.95, 1.25), None
                if way < recolor:
                    turn, gain = rng.uniform(0, 360), rng.uniform(0.8, 2.0)
                    texts.append(thing if rng.random() < 0.5 else "")
                elif way < recolor + regrade:
                    turn, gain = rng.normal(0, 12), np.exp(rng.uniform(np.log(0.3), np.log(1.6)))
                    texts.append(thing if rng.random() < 0.5 else "")
                elif way < recolor + regrade + tint:
                    color = (str(rng.choice(list(naming.WORD_RGB))), subject.known)
                    texts.append(_tinted_caption(color[0], thing, subject, rng))
                elif rng.random() < drop_text:
                    texts.append("")
                elif rng.random() < strip_colors:
                    texts.append(thing)
                else:
                    texts.append(_natural_caption(thing, subject.words, rng))
                turns.append(turn), gains.append(gain), colors.append(color)
                natural.append(way >= recolor + regrade + tint)
            rgb = self._recolor(rgb, mask, views, turns, gains, colors, rng)
        rgb = rgb.unflatten(0, (scenes, views)) * 2 - 1
        natural = torch.tensor(natural, device=self.device)
        known = torch.tensor([subject.known for subject in subjects], device=self.device)
        return Batch(rgb, texts, natural, mask.unflatten(0, (scenes, views)), known)

    def _film(
        self, scenes: int, views: int, size: tuple[int, int], rng: np.random.Generator, clips: float
    ) -> tuple[list[Subject], torch.Tensor, torch.Tensor]:
        """Choose scenes and take views of them: what each shows, ``(S*V, 3, H, W)`` and masks ``(S*V, 1, H, W)``."""
        of_clips = round(scenes * clips) if self.clip_subjects else 0
        motion = rng.choice([0.1, 1.0], p=[0.5, 0.5])  # neighbours hardly differ
        subjects, taken = [], []
        if scenes - of_clips:
            chosen = rng.integers(len(self.subjects), size=scenes - of_clips)
            subjects += [self.subjects[i] for i in chosen]
            numbers, shapes = np.repeat(chosen, views), self.sizes[chosen]
            taken.append(self._views(self.photos, self.photo_masks, numbers, shapes, size, rng, motion))
        if of_clips:
            chosen = rng.integers(len(self.clip_subjects), size=of_clips)
            subjects += [self.clip_subjects[i] for i in chosen]
            numbers = np.concatenate([self._stretch(int(i), views, rng) for i in chosen])
            shapes = np.tile([[256, 448]], (of_clips, 1))
            taken.append(self._views(self.frames, self.clip_masks, numbers, shapes, size, rng, 0.25 * motion))
        rgb, mask = (torch.cat(parts) for parts in zip(*taken, strict=True))
        return subjects, rgb, mask

    def _views(
        self, pictures: torch.Tensor, masks: torch.Tensor, numbers: np.ndarray, shapes: np.ndarray,
        size: tuple[int, int], rng: np.random.Generator, motion: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Take views of the stored pictures ``numbers`` (S*V,), of scenes that are ``shapes`` (S, 2) large."""
        views = len(numbers) // len(shapes)
        coords = self._cameras(shapes, views, size, rng, motion)
        index = torch.from_numpy(numbers).to(self.device)
        shape = torch.from_numpy(np.repeat(shapes, views, 0)).to(self.device)
        return _sample(pictures[index], coords, shape), _sample_mask(masks[index], coords, shape)

    def _stretch(self, clip: int, views: int, rng: np.random.Generator) -> np.ndarray:
        """Draw frame numbers of one clip: neighbours, near ones, or any of it."""
        total = int(self.first[clip + 1] - self.first[clip])
        reach = int(rng.choice([6, 6, 16, total]))
        length = min(total, int(rng.integers(5, reach + 1)))
        start = int(rng.integers(total - length + 1))
        picks = rng.choice(length, views, replace=length < views)
        return self.first[clip] + start + rng.permutation(picks)

    def _cameras(
        self, shapes: np.ndarray, views: int, size: tuple[int, int], rng: np.random.Generator, motion: float
    ) -> torch.Tensor:
        """Draw a camera for each view and return the picture position (x, y) of each pixel: ``(S*V, H, W, 2)``.

        Views of a scene share a crop of it, each as a camera that moved a little sees it.
        """
        count, (height, width) = len(shapes), size
        cover = np.minimum(shapes[:, 0] / height, shapes[:, 1] / width)  # source pixels per pixel, at most
        zoom = 1 - 0.45 * rng.random(count) ** 2
        per_pixel = np.repeat(cover * zoom, views)
        slack = shapes - np.stack([height * cover * zoom, width * cover * zoom], 1)  # (S, 2)
        middle = shapes / 2 + (rng.random((count, 2)) - 0.5) * slack
        middle = np.repeat(middle, views, 0)
        total, single = count * views, views == 1
        moving = 0.0 if single else motion
        angle = np.radians(rng.normal(0, 7, total) * moving)
        grow = np.exp(-np.abs(rng.normal(0, 0.12, total)) * moving)
        turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], 1).reshape(-1, 2, 2)
        turn = turn + rng.normal(0, 0.04, (total, 2, 2)) * moving
        matrix = turn * (per_pixel * grow)[:, None, None]
        middle = middle + rng.normal(0, 0.06, (total, 2)) * moving * np.repeat(shapes, views, 0)
        mirror = np.repeat(np.where(rng.random(count) < 0.5, -1.0, 1.0), views)
        if moving >= 1.0:
            mirror = mirror * np.where(rng.random(total) < 0.1, -1.0, 1.0)
        matrix[:, :, 0] *= mirror[:, None]
        matrix = torch.from_numpy(matrix.astype(np.float32)).to(self.device)
        center = torch.from_numpy(middle[:, ::-1].astype(np.float32).copy()).to(self.device)  # (x, y)
        ys = torch.arange(height, device=self.device) + 0.5 - height / 2
        xs = torch.arange(width, device=self.device) + 0.5 - width / 2
        plane = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)  # (H, W, 2)
        return torch.einsum("nij,hwj->nhwi", matrix, plane) + center[:, None, None]

    def _recolor(self, rgb, mask, views, turns, gains, colors, rng) -> torch.Tensor:
        """Turn and scale the chroma of each scene's views. If a colour is named, give the object that colour."""
        repeat = lambda x: torch.tensor(x, device=self.device).float().repeat_interleave(views, 0)  # noqa: E731
        weights = rgb.new_tensor(LUMA).view(1, 3, 1, 1)
        luma = (rgb * weights).sum(1, keepdim=True)
        chroma = torch.cat([rgb[:, :1] - luma, rgb[:, 2:] - luma], 1)  # R - Y, B - Y
        angle, gain = repeat(np.radians(turns)), repeat(gains).view(-1, 1, 1, 1)
        # Hues turn in the plane of (R - Y) / 1.4 and (B - Y) / 1.8, where they are about evenly spread.
        scale = rgb.new_tensor([1.402, 1.772]).view(1, 2, 1, 1)
        plane = chroma / scale
        cosine, sine = angle.cos().view(-1, 1, 1, 1), angle.sin().view(-1, 1, 1, 1)
        plane = torch.cat([plane[:, :1] * cosine - plane[:, 1:] * sine, plane[:, :1] * sine + plane[:, 1:] * cosine], 1)
        plane = plane * gain
        if any(color is not None for color in colors):
            wanted, base, shares, whole = [], [], [], []
            for color in colors:
                word, known = color or ("red", False)
                r, g, b = np.array(naming.WORD_RGB[word]) / 255 + rng.normal(0, 0.04, 3)
                y = LUMA[0] * r + LUMA[1] * g + LUMA[2] * b
                direction = np.array([(r - y) / 1.402, (b - y) / 1.772])
                strength = 0.5 if word == "brown" else 1.0
                wanted.append(direction / np.linalg.norm(direction))
                base.append(rng.uniform(0.06, 0.3) * strength)
                shares.append(0.0 if color is None else 1.0)
                whole.append(0.0 if color is None or known else 1.0)
            direction = repeat(np.array(wanted)).view(-1, 2, 1, 1)
            room = (4 * luma * (1 - luma)).clamp(0, 1)  # near black and white there is no room for colour
            size = repeat(base).view(-1, 1, 1, 1) * room + 0.6 * plane.norm(dim=1, keepdim=True)
            tinted = direction * size + 0.15 * plane
            share = torch.maximum(mask, repeat(whole).view(-1, 1, 1, 1)) * repeat(shares).view(-1, 1, 1, 1)
            plane = plane + (tinted - plane) * share
        chroma = plane * scale
        red, blue = luma + chroma[:, :1], luma + chroma[:, 1:]
        green = (luma - LUMA[0] * red - LUMA[2] * blue) / LUMA[1]
        return torch.cat([red, green, blue], 1).clamp(0, 1)


def _sample(pictures: torch.Tensor, coords: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Sample views ``(N, 3, H, W)`` in [0, 1] of stored pictures ``(N, 3, h, w)`` uint8, mirrored beyond their edges.

    coords: positions (x, y) ``(N, H, W, 2)``. shape: height and width ``(N, 2)`` of what each picture fills, at most
    (h, w).
    """
    size = shape.flip(1).view(-1, 1, 1, 2).float()  # (width, height), as coords are (x, y)
    stored = size.new_tensor([pictures.shape[3], pictures.shape[2]])
    grid = 2 * _mirrored(coords, size) / stored - 1
    return F.grid_sample(pictures.float() / 255, grid, align_corners=False)


def _sample_mask(masks: torch.Tensor, coords: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Sample views of masks ``(N, 1, h, w)`` uint8, which cover their pictures: ``(N, 1, H, W)`` in [0, 1]."""
    size = shape.flip(1).view(-1, 1, 1, 2).float()
    grid = 2 * _mirrored(coords, size) / size - 1
    found = F.grid_sample(masks.float() / 255, grid, align_corners=False, padding_mode="border")
    return ((found - 0.3) / 0.4).clamp(0, 1)  # masks are soft; an object is all of it


def _mirrored(x: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Mirror pixel coordinates at the edges into 0.5 .. size - 0.5."""
    reach = (size - 1).clamp(min=1)
    x = (x - 0.5).abs() % (2 * reach)
    return 0.5 + reach - (reach - x).abs()


def _subject(things: list[str], image: np.ndarray, mask: np.ndarray | None) -> Subject:
    """Return what a picture ``(H, W, 3)`` shows; the words of its parts are None without a dominant colour."""
    small = cv2.resize(image, (MASK, MASK), interpolation=cv2.INTER_AREA)
    main = naming.main_colors(small)
    if mask is None:
        return Subject(things, (None, None, main), known=False)
    inside = cv2.resize(mask, (MASK, MASK), interpolation=cv2.INTER_AREA) > 127
    named, found = naming.name_colors(small), []
    for region in (inside, ~inside):
        shares = np.bincount(named[region], minlength=len(naming.COLOR_WORDS)) / max(1, region.sum())
        best = int(shares.argmax())
        found.append(naming.COLOR_WORDS[best] if shares[best] > 0.35 else None)
    return Subject(things, (found[0], found[1], main), known=True)


def _natural_caption(thing: str, words, rng: np.random.Generator) -> str:
    """Describe a picture's content and colours in the style of the paper's Figure 1, in one of several forms."""
    inner, outer, main = words
    thing = thing or "picture"
    if rng.random() < 0.25:
        return thing if rng.random() < 0.5 else f"a photo of a {thing}"
    forms = []
    if inner:
        forms += [f"{inner} {thing}"] * 2
        if outer:
            forms += [f"{inner} {thing}, {outer} background"] * 3
    if outer:
        forms.append(f"{thing}, {outer} background")
    if main:
        joined = " and ".join(main)
        forms += [f"{joined} {thing}" if not inner else f"{thing}, {joined}", joined]
    return str(rng.choice(forms)) if forms else thing


def _tinted_caption(word: str, thing: str, subject: Subject, rng: np.random.Generator) -> str:
    """Describe a scene that was given a colour, in its object or as a whole."""
    if not subject.known:
        return word  # a colour word with a noun belongs to that thing alone
    thing, outer = thing or "object", subject.words[1]
    if outer and rng.random() < 0.4:
        return f"{word} {thing}, {outer} background"
    return f"{word} {thing}" if rng.random() < 0.7 else f"a photo of a {word} {thing}"
