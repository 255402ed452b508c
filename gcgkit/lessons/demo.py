"""``make demo``: three real clips, made gray and coloured in up to four ways, with pictures, a video and numbers.

The clips install by name (``clips``). Sixteen frames of each are coloured from the first frame's own colours
(exemplar) and from nothing but the gray frames, and two of the clips from prompts. The numbers stand next to those of
plain gray and of flow propagation, which knows the same first frame. The README's picture is the demo's own:

    make demo && cp figures/demo/sheet.jpg figures/sheet.jpg
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .. import baselines, color, metrics, video
from ..data import clips
from ..data.clips import FRAMES, load_clip
from ..utils.commands import best_device
from ..utils.files import write_text
from . import plots


@dataclass(frozen=True)
class Scene:
    """A part of an installed clip, from frame ``first`` on, and the prompts, if any, that it is coloured from."""

    clip: str
    first: int
    shown: tuple[float, ...]  # places of the sheet's frames, 0 the first and 1 the last
    prompts: tuple[str, ...] = ()


SCENES = (
    Scene("cockatoo", 240, (0.2, 1), ("red bird", "blue bird")),  # indoors; the bird and the camera move
    Scene("city", 124, (0.2, 1), ("orange building", "green building")),  # at night; the camera pans
    # Vivid; the rabbit rises. It has no prompts: the bundled weights give a word's colour to rabbit and meadow alike.
    Scene("bigbuckbunny", 20, (0.2, 1)),
)
STRIDE = 2  # every second frame of a clip
STEPS = 16  # denoising steps: 32 look the same and take half as long again
WORDS = ("from words", "from other words")  # rows of the prompts


def measure(frames: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return PSNR (rgb, dB) without the given first frame, colourfulness, and CDC."""
    return {
        "psnr_rgb": round(metrics.psnr_rgb(frames[1:], truth[1:]), 2),
        "colorfulness": round(metrics.colorfulness(frames), 2),
        "cdc": round(metrics.cdc([frames]), 6),
    }


def side_by_side(rows: dict[str, np.ndarray], columns: int = 3) -> np.ndarray:
    """Join labelled clips of one size into one clip: {label: (T, H, W, 3)} -> (T, rows*H, columns*W, 3)."""
    labelled = []
    for label, frames in rows.items():
        frames = frames.copy()
        for frame in frames:
            # White letters with a dark rim stand out on anything. A thicker stroke would also be a longer text.
            for x, y in (*itertools.product((7, 8, 9), (19, 20, 21)), (8, 20)):
                shade = (255 if (x, y) == (8, 20) else 0,) * 3
                cv2.putText(frame, label, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, shade, 1, cv2.LINE_AA)
        labelled.append(frames)
    while len(labelled) % columns:
        labelled.append(np.zeros_like(labelled[0]))
    lines = [np.concatenate(labelled[i : i + columns], 2) for i in range(0, len(labelled), columns)]
    return np.concatenate(lines, 1)


def color_scene(pipe, scene: Scene, truth: np.ndarray, **options) -> dict[str, np.ndarray]:
    """Return ``{label: (T, H, W, 3)}``: gray, truth, and gray coloured with and without exemplar and from prompts."""
    import torch

    gray = color.to_gray(truth)
    ways = {"exemplar": {"reference": {0: truth[0]}}, "from nothing": {}}
    ways |= {label: {"prompt": prompt} for label, prompt in zip(WORDS, scene.prompts, strict=False)}
    rows = {"gray input": np.repeat(gray[..., None], 3, -1), "true colours": truth}
    for label, way in ways.items():
        print(f"Demo: {scene.clip}, {label} ...", flush=True)
        rows[label] = pipe(gray, generator=torch.Generator().manual_seed(0), **way, **options).frames
    return rows


def measure_scene(rows: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return the numbers of each way of colouring, of flow propagation, and of the truth, which has no PSNR."""
    truth = rows["true colours"]
    numbers = {label: measure(frames, truth) for label, frames in rows.items() if label != "true colours"}
    numbers["flow propagation"] = measure(baselines.propagate_by_flow(color.to_gray(truth), truth[0]), truth)
    numbers["true colours"] = {key: x for key, x in measure(truth, truth).items() if key != "psnr_rgb"}
    return numbers


def contact_sheet(
    coloured: Mapping[Scene, Mapping[str, np.ndarray]], numbers: Mapping[str, dict], title: str, path: Path
) -> None:
    """Write a JPEG at ``path``: a row for each way of colouring, with its numbers, and frames of each clip in it.

    A clip that was not coloured in a way has empty cells there.
    """
    labels = dict.fromkeys(label for ways in coloured.values() for label in ways)
    rows, names = {label: [] for label in labels}, []
    for scene, ways in coloured.items():
        picks = [round(place * (len(ways["true colours"]) - 1)) for place in scene.shown]
        names += [f"frame {scene.first + STRIDE * pick}" for pick in picks]
        for label, row in rows.items():
            row.extend(ways[label][picks] if label in ways else [None] * len(picks))
    decibels = {
        label: [f"{each[label]['psnr_rgb']:.1f}" for each in numbers.values() if "psnr_rgb" in each.get(label, ())]
        for label in rows
    }
    labels = {label: f"{label}\n{', '.join(found)} dB" if found else label for label, found in decibels.items()}
    picture = plots.frames(
        {labels[label]: frames for label, frames in rows.items()}, range(len(names)), caption=title, numbers=names
    )
    partial = path.with_suffix(".partial.jpg")
    picture.savefig(partial, dpi=140, pil_kwargs={"quality": 80, "subsampling": 0, "optimize": True})
    os.replace(partial, path)


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Print a message and, at the end of the block, the time that it took."""
    print(f"Demo: {name} ...", flush=True)
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)
    print(f"Demo: {name} took {seconds[name]:.1f} s", flush=True)


def run(out: Path, weights: str = "mini", steps: int = STEPS, frames: int = FRAMES) -> dict:
    """Colour each clip in up to four ways and write ``demo.mp4``, ``sheet.jpg`` and ``numbers.json`` into ``out``."""
    seconds: dict[str, float] = {}
    with stage("loading the model and the clips", seconds):
        from ..pipeline import GCGPipeline

        pipe = GCGPipeline.from_pretrained(weights).to(best_device())
        truths = {scene: load_clip(scene.clip, scene.first, frames, STRIDE) for scene in SCENES}
    coloured = {}
    for scene, truth in truths.items():
        with stage(f"colouring {scene.clip}", seconds):
            coloured[scene] = color_scene(pipe, scene, truth, num_inference_steps=steps)
    with stage("measuring, pictures and video", seconds):
        numbers = {scene.clip: measure_scene(rows) for scene, rows in coloured.items()}
        out.mkdir(parents=True, exist_ok=True)
        films = []
        for scene, rows in coloured.items():
            quoted = dict(zip(WORDS, (f'"{prompt}"' for prompt in scene.prompts), strict=False))
            films.append(side_by_side({quoted.get(label, label): clip for label, clip in rows.items()}))
        video.write(out / "demo.mp4", np.concatenate(films), 25 / STRIDE)
        about = []
        for scene in SCENES:
            licence = clips.NAMES[scene.clip].licence.split(";")[0]
            words = f", words {' and '.join(map(repr, scene.prompts))}" if scene.prompts else ""
            about.append(f"{scene.clip} ({licence}){words}")
        title = f"{'; '.join(about)}. PSNR of each clip. Weights: {weights}, {steps} steps."
        contact_sheet(coloured, numbers, title, out / "sheet.jpg")
    result = {"frames": frames, "weights": weights, "numbers": numbers, "seconds": seconds}
    write_text(out / "numbers.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Colour three real clips in up to four ways each.")
    parser.add_argument("--out", type=Path, default=Path("figures/demo"), help="folder for pictures and video")
    parser.add_argument("--weights", default="mini", help="bundled name, folder or hub id")
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames of each clip to colour")
    args = parser.parse_args()
    if args.frames < 5:
        parser.error("--frames must be 5 or more, which the colour distribution consistency needs")
    result = run(args.out, args.weights, args.steps, args.frames)
    for clip, numbers in result["numbers"].items():
        print(f"\n{clip:34}PSNR dB   colourful      CDC")
        for label, note in numbers.items():
            psnr = f"{note['psnr_rgb']:7.2f}" if "psnr_rgb" in note else "      -"
            print(f"{label:34}{psnr}   {note['colorfulness']:9.2f}  {note['cdc']:.6f}")
    print(f"\nThe pictures: {args.out / 'sheet.jpg'}\nThe video:    {args.out / 'demo.mp4'}")
    print(f"The numbers:  {args.out / 'numbers.json'}")


if __name__ == "__main__":
    main()
