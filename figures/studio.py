"""Common code of all figures: clips, cached colourings, captions with their origin, saving.

A colouring is kept in ``OUT/cache`` under a digest of everything that decides it: weights, the library's code, frames,
settings and seed. A second run draws from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

import gcgkit
from gcgkit import color, metrics, video
from gcgkit.data import clips
from gcgkit.evaluation import ablations, methods
from gcgkit.lessons import demo, plots
from gcgkit.lessons import notebook as lesson
from gcgkit.paper import PAPER_BASE

HERE = Path(__file__).resolve().parent
DPI = 200
# The modules that decide a colouring: the pipeline's, and those that take frames and settings.
CODE = (
    "attention", "color", "control", "data.clips", "data.footage", "denoising", "encoders",
    "evaluation.ablations", "guidance", "keyframes", "lessons.demo", "pipeline", "profiles", "references", "semantics",
    "settings", "srg", "stages", "utils.checks", "utils.compilation", "utils.download", "utils.files", "utils.hub",
    "utils.pictures", "utils.solvers", "utils.weights", "vae", "video.__init__", "video.codecs",
)  # fmt: skip
WIDTH, LABELS = 12.0, 1.8  # inches of a figure, and of its column of labels
ZOOM = 3  # magnification of a detail
GREEN = "#00A651"  # the border of an exemplar, as in the paper
ORANGE = plots.COLORS[1]  # of a part that is enlarged


@dataclass(frozen=True)
class Shot:
    """Frames of an installed clip: every ``stride``-th from ``first`` on."""

    clip: str
    first: int
    frames: int
    stride: int

    def load(self) -> np.ndarray:
        """Load RGB ``(T, 256, 448, 3)``. Raises FileNotFoundError with the command that installs the clip."""
        return demo.load_clip(self.clip, self.first, self.frames, self.stride)

    @property
    def numbers(self) -> list[int]:
        """Return the frames' numbers in the clip."""
        return [self.first + i * self.stride for i in range(self.frames)]

    def __str__(self) -> str:
        return f"{self.clip}, frames {self.numbers[0]} to {self.numbers[-1]} ({clips.NAMES[self.clip].licence})"


SHOTS = {"street": Shot("bikes", 106, 8, 4), "rabbit": Shot("bigbuckbunny", 0, 8, 12)}
PROMPTS = {
    "street": ("orange and brown street",),
    "rabbit": ("green grass, blue sky", "orange and brown grass"),
}


@dataclass
class Studio:
    """A profile, a seed and a folder, with the colourings made so far.

    profile: as `lessons.notebook.load_pipeline` takes it. shots, steps: smaller ones for a trial. frames_of:
    ``{method: folder}`` of other systems' frames, ``<clip>/00000.png`` for each frame of a shot, which join figures 3
    and 4. variants: ``{label: weights}`` of trained variants, which join figure 5.
    """

    profile: str = "mini"
    out: Path = HERE / "out"
    seed: int = 0
    steps: int = 32
    shots: Mapping[str, Shot] = field(default_factory=lambda: dict(SHOTS))
    frames_of: Mapping[str, Path] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    _pipes: dict = field(default_factory=dict, repr=False)
    _truth: dict = field(default_factory=dict, repr=False)

    def pipe(self, weights: str | None = None):
        """Return the pipeline of the profile, or of other weights, loaded at first use; the last one is kept."""
        name = weights or self.profile
        if name not in self._pipes:
            self._pipes.clear()
            self._pipes[name] = lesson.load_pipeline(name)
        return self._pipes[name]

    def truth(self, shot: str) -> np.ndarray:
        """Return the true frames of a shot, RGB ``(T, H, W, 3)``."""
        if shot not in self._truth:
            self._truth[shot] = self.shots[shot].load()
        return self._truth[shot]

    def gray(self, shot: str) -> np.ndarray:
        """Return the gray frames of a shot, ``(T, H, W)``."""
        return color.to_gray(self.truth(shot))

    def from_words(self, shot: str, prompt: str) -> np.ndarray:
        """Colour a shot from only a prompt: ``(T, H, W, 3)``."""

        def make() -> np.ndarray:
            import torch

            generator = torch.Generator().manual_seed(self.seed)
            return self.pipe()(
                self.gray(shot), prompt=prompt, num_inference_steps=self.steps, generator=generator
            ).frames

        return self.cached({"shot": str(self.shots[shot]), "prompt": prompt}, make)

    def from_first(
        self, shot: str, setting: ablations.Setting | None = None, weights: str | None = None
    ) -> np.ndarray:
        """Colour a shot from its true first frame, optionally under a setting and with other weights."""
        setting = setting or ablations.Setting(ablations.DEFAULT, "")
        what = {"shot": str(self.shots[shot]), "options": setting.options, "gate": setting.gate}

        def make() -> np.ndarray:
            pipe = self.pipe(weights)
            return ablations.color_with(
                pipe, self.truth(shot), setting, self.seed, num_inference_steps=self.steps
            ).frames

        return self.cached(what, make, weights)

    def systems(self, shot: str) -> dict[str, np.ndarray]:
        """Return the frames of other systems for this shot, by name. Raises ValueError for a wrong number of them."""
        found, about = {}, self.shots[shot]
        for name, folder in self.frames_of.items():
            place = Path(folder) / about.clip
            if place.is_dir():
                frames = video.read(place, audio=False).frames
                if len(frames) != about.frames or frames.shape[1:] != self.truth(shot).shape[1:]:
                    wanted = f"{about.frames} frames of 448x256, those of {about}"
                    raise ValueError(f"{place} holds {len(frames)} of {frames.shape[2]}x{frames.shape[1]}: {wanted}.")
                found[name] = frames
        return found

    def psnr(self, frames: np.ndarray, shot: str) -> float:
        """Return PSNR (rgb, dB) of the frames after the first, which is given in exemplar mode."""
        return metrics.psnr_rgb([plots.as_rgb(frame) for frame in frames[1:]], self.truth(shot)[1:])

    def cached(self, what: dict, make: Callable[[], np.ndarray], weights: str | None = None) -> np.ndarray:
        """Return an array from the cache, or make it now and store it."""
        digest = weights_of(weights or self.profile)
        key = {"code": code_digest(), "weights": digest, "seed": self.seed, "steps": self.steps, **what}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        path = self.out / "cache" / f"{name}.npz"
        if path.is_file():
            with np.load(path) as file:
                return file["array"]
        array = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{name}.{os.getpid()}.npz")
        np.savez_compressed(partial, array=array)
        os.replace(partial, path)
        return array

    def caption(self, text: str, *shots: str) -> str:
        """Return a caption with the picture's origin: profile, weights, clips, seed, steps, commit."""
        shown = "; ".join(str(self.shots[shot]) for shot in shots)
        return (
            f"{text} Profile {Path(self.profile).name} (weights {weights_of(self.profile)[:12]}); {shown}; "
            f"seed {self.seed}; {self.steps} steps; gcgkit {commit()}."
        )

    def save(self, picture: plots.Picture, name: str) -> list[Path]:
        """Write a picture as PNG and PDF; each gets its name only when it is complete."""
        self.out.mkdir(parents=True, exist_ok=True)
        paths = []
        for kind, about in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
            path = self.out / f"{name}.{kind}"
            partial = path.with_name(f".{name}.{os.getpid()}.{kind}")
            picture.figure.savefig(partial, dpi=DPI, facecolor="white", metadata=about)
            os.replace(partial, path)
            paths.append(path)
        return paths


def grid(rows: Mapping[str, list[np.ndarray]], titles: list[str], caption: str) -> tuple[plots.Picture, np.ndarray]:
    """Draw labelled rows of frames of one size under titled columns; return the picture and its axes, (rows, columns).

    A line break in a label is kept.
    """
    height, width = rows[next(iter(rows))][0].shape[:2]
    tile = (WIDTH - LABELS) / len(titles)
    picture = plots.Picture(len(rows) * (tile * height / width + 0.06) + 0.4, caption, width=WIDTH)
    shares = [LABELS / tile, *[1.0] * len(titles)]
    panels = picture.subplots(len(rows), len(titles) + 1, squeeze=False, width_ratios=shares)
    picture.get_layout_engine().set(w_pad=0.02, h_pad=0.05, wspace=0.01, hspace=0.01)
    for (label, line), (left, *cells) in zip(rows.items(), panels, strict=True):
        left.axis("off")
        text = "\n".join(textwrap.fill(part, 22) for part in label.split("\n"))
        left.text(0.98, 0.5, text, transform=left.transAxes, ha="right", va="center", fontsize=10)
        for axes, frame in zip(cells, line, strict=True):
            axes.imshow(plots.as_rgb(frame))
            axes.set(xticks=[], yticks=[])
    for axes, title in zip(panels[0, 1:], titles, strict=True):
        axes.set_title(title, fontsize=10)
    return picture, panels[:, 1:]


def two_clips(maker: Studio, rows: Mapping[str, Mapping[str, np.ndarray]], shown: int, text: str):
    """Draw rows ``{label: {shot: frames}}``, ``shown`` frames of each shot in one line, as `grid`; return columns too.

    Returns the picture, its axes, and for each column its shot and the frame's place in the shot. A row that lacks a
    shot is left out.
    """
    columns = [(shot, i) for shot, about in maker.shots.items() for i in spread(about.frames, shown)]
    titles = [f"{maker.shots[shot].clip} {maker.shots[shot].numbers[i]}" for shot, i in columns]
    lines = {
        label: [own[shot][i] for shot, i in columns] for label, own in rows.items() if len(own) == len(maker.shots)
    }
    picture, axes = grid(lines, titles, maker.caption(text, *maker.shots))
    return picture, axes, columns


def spread(count: int, shown: int) -> list[int]:
    """Return ``shown`` evenly spread positions of ``count``, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(shown, count)).round().astype(int)).tolist()


def largest_difference(clips_by_name: Mapping[str, np.ndarray], frame: int) -> tuple[int, int, int, int]:
    """Return left, top, width, height of the part of a frame (a ZOOM-th of each side) in which clips differ most."""
    frames = np.stack([clip[frame].astype(np.float32) for clip in clips_by_name.values()])  # (N, H, W, 3)
    height, width = frames.shape[1] // ZOOM, frames.shape[2] // ZOOM
    deviation = cv2.boxFilter(frames.std(0).mean(-1), -1, (width, height), anchor=(0, 0), normalize=True)
    inside = deviation[: frames.shape[1] - height + 1, : frames.shape[2] - width + 1]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(left), int(top), width, height


def draw_with_detail(
    rows: Mapping[str, np.ndarray], picks: list[int], numbers: list[int], box: tuple[int, int, int, int], caption: str
) -> plots.Picture:
    """Draw some frames of each clip, and the part ``box`` of the last one enlarged in a column of its own."""
    from matplotlib.patches import Rectangle

    left, top, width, height = box
    lines = {}
    for label, clip in rows.items():
        detail = np.ascontiguousarray(clip[picks[-1]][top : top + height, left : left + width])
        size = clip[0].shape[1::-1]
        lines[label] = [*(clip[i] for i in picks), cv2.resize(detail, size, interpolation=cv2.INTER_CUBIC)]
    titles = [*(f"frame {number}" for number in numbers), f"part of frame {numbers[-1]}"]
    picture, axes = grid(lines, titles, caption)
    for *_, whole, part in axes:
        whole.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=ORANGE, linewidth=1.5))
        frame_border(part, ORANGE)
    return picture


def frame_border(axes, colour: str = GREEN) -> None:
    """Draw a border around a panel, as the paper marks exemplars."""
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=3)


def weights_of(profile: str) -> str:
    """Return the digest of a profile's weights, or for the paper's the names of their hub parts."""
    if profile == "paper":
        return f"hub:{PAPER_BASE}, untrained copy"
    return methods.weights_digest(profile)


def code_digest() -> str:
    """Return the SHA-256 over the library's modules that determine a colouring together with the weights."""
    total = hashlib.sha256()
    for name in CODE:
        total.update(name.encode() + (Path(gcgkit.__file__).parent / f"{name.replace('.', '/')}.py").read_bytes())
    return total.hexdigest()


def commit() -> str:
    """Return ``git describe`` of this file's repository, or else the package's version."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return gcgkit.__version__
    return f"{gcgkit.__version__} at {done.stdout.strip()}" if done.returncode == 0 else gcgkit.__version__
