"""``make demo``: a real clip, made gray and coloured three ways, with pictures, a video and honest numbers.

The clip installs by name (``clips``). Sixteen frames are coloured from the first frame's own colours (exemplar), and
from two prompts. The numbers stand next to those of plain gray and of flow propagation, which knows the same first
frame.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from .. import baselines, color, metrics, video
from ..data import clips
from ..data.clips import CLIP, FRAMES, STRIDE, load_clip
from ..utils.commands import best_device
from ..utils.files import write_text
from . import plots

PROMPTS = ("orange and brown street", "gray and blue street")


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
            for shade, width in ((0, 3), (255, 1)):  # white letters with a dark rim stand out on anything
                cv2.putText(frame, label, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (shade,) * 3, width, cv2.LINE_AA)
        labelled.append(frames)
    while len(labelled) % columns:
        labelled.append(np.zeros_like(labelled[0]))
    lines = [np.concatenate(labelled[i : i + columns], 2) for i in range(0, len(labelled), columns)]
    return np.concatenate(lines, 1)


def contact_sheet(rows: dict[str, np.ndarray], numbers: dict[str, dict], title: str, path: Path) -> None:
    """Write a PNG at ``path`` with frames of each way of colouring, one row each, and its numbers."""
    decibels = {label: f"\n{numbers[label]['psnr_rgb']:.1f} dB" if label in numbers else "" for label in rows}
    picture = plots.frames({label + decibels[label]: frames for label, frames in rows.items()}, caption=title)
    partial = path.with_suffix(".partial.png")
    picture.savefig(partial, dpi=160)
    os.replace(partial, path)


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Print a message and, at the end of the block, the time that it took."""
    print(f"Demo: {name} ...", flush=True)
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 1)
    print(f"Demo: {name} took {seconds[name]:.1f} s", flush=True)


def run(out: Path, weights: str = "mini", steps: int = 32, frames: int = FRAMES) -> dict:
    """Colour the clip three ways and write ``demo.mp4``, ``sheet.png`` and ``numbers.json`` into ``out``."""
    seconds: dict[str, float] = {}
    with stage("loading the model and the clip", seconds):
        import torch

        from ..pipeline import GCGPipeline

        pipe = GCGPipeline.from_pretrained(weights).to(best_device())
        truth = load_clip(count=frames)
        gray = color.to_gray(truth)
        shown_gray = np.repeat(gray[..., None], 3, -1)
    rows = {"gray input": shown_gray, "true colours": truth}
    options = {"num_inference_steps": steps}
    with stage("colouring from the first frame (exemplar)", seconds):
        generator = torch.Generator().manual_seed(0)
        rows["exemplar: frame 0"] = pipe(gray, reference={0: truth[0]}, generator=generator, **options).frames
    for prompt in PROMPTS:
        with stage(f'colouring from the prompt "{prompt}"', seconds):
            generator = torch.Generator().manual_seed(0)
            rows[f'"{prompt}"'] = pipe(gray, prompt=prompt, generator=generator, **options).frames
    with stage("measuring, pictures and video", seconds):
        numbers = {label: measure(clip, truth) for label, clip in rows.items() if label != "true colours"}
        numbers["flow propagation"] = measure(baselines.propagate_by_flow(gray, truth[0]), truth)
        numbers["true colours"] = {
            "colorfulness": round(metrics.colorfulness(truth), 2), "cdc": round(metrics.cdc([truth]), 6)
        }  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        video.write(out / "demo.mp4", side_by_side(rows), 25 / STRIDE)
        carrier = clips.NAMES[CLIP]
        title = f"{CLIP} ({carrier.licence}), weights: {weights}, {steps} steps"
        noted = {label: note for label, note in numbers.items() if "psnr_rgb" in note}
        contact_sheet(rows, noted, title, out / "sheet.png")
    result = {"clip": CLIP, "frames": frames, "weights": weights, "numbers": numbers, "seconds": seconds}
    write_text(out / "numbers.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Colour a real clip three ways.")
    parser.add_argument("--out", type=Path, default=Path("figures/demo"), help="folder for pictures and video")
    parser.add_argument("--weights", default="mini", help="bundled name, folder or hub id")
    parser.add_argument("--steps", type=int, default=32, help="denoising steps")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames to colour")
    args = parser.parse_args()
    if args.frames < 5:
        parser.error("--frames must be 5 or more, which the colour distribution consistency needs")
    result = run(args.out, args.weights, args.steps, args.frames)
    print(f"\n{'':34}PSNR dB   colourful      CDC")
    for label, note in result["numbers"].items():
        psnr = f"{note['psnr_rgb']:7.2f}" if "psnr_rgb" in note else "      -"
        print(f"{label[:33]:34}{psnr}   {note['colorfulness']:9.2f}  {note['cdc']:.6f}")
    print(f"\nThe pictures: {args.out / 'sheet.png'}\nThe video:    {args.out / 'demo.mp4'}")
    print(f"The numbers:  {args.out / 'numbers.json'}")


if __name__ == "__main__":
    main()
