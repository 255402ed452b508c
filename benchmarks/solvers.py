"""Quality of other solvers: PSNR and seconds by solver and number of steps, on clips whose colours are known.

    python benchmarks/solvers.py                                              # the installed clip bikes
    python benchmarks/solvers.py --data DATA --clips blackswan dog soapbox    # measuring clips of a data folder
    python benchmarks/solvers.py --strength 1                                 # from pure noise, as the paper

Every clip is coloured from its first frame as exemplar, without a prompt, with the same seed. PSNR is over all frames
but that one. "apart" is the PSNR, in dB, between a result and that of DDIM at the most steps.
``--json FILE`` keeps every figure, and a second run adds the missing ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gcgkit import metrics
from gcgkit.color import to_gray
from gcgkit.data import footage
from gcgkit.data.clips import CLIP, load_clip
from gcgkit.evaluation import provenance
from gcgkit.evaluation.methods import load_pipeline
from gcgkit.lessons.timing import clock, machine
from gcgkit.settings import SOLVERS
from gcgkit.utils import files

STEPS = (4, 8, 16, 32)


def clips(args: argparse.Namespace) -> Iterator[tuple[str, np.ndarray]]:
    """Return names and frames ``(T, H, W, 3)``: the installed clip, or named ones from a data folder."""
    if args.data is None:
        yield CLIP, load_clip(count=args.frames, stride=args.stride)
        return
    for name in args.clips or footage.MEASURING_CLIPS:
        folder = args.data / "DAVIS/JPEGImages/480p" / name
        yield name, footage.davis_clip(folder, args.frames * args.stride)[:: args.stride]


def measure(args: argparse.Namespace, known: dict) -> dict:
    """Measure ``{clip: {"solver steps": {psnr, apart, seconds}}}``; complete cases in ``known`` are kept."""
    pipe = load_pipeline(args.weights)
    for name, clip in clips(args):
        found, frames = known.setdefault(name, {}), {}
        cases = [(solver, steps) for steps in sorted(args.steps, reverse=True) for solver in SOLVERS]
        if all(f"{solver} {steps}" in found for solver, steps in cases):
            continue
        for solver, steps in cases:
            seconds, out = clock(
                lambda: pipe(
                    to_gray(clip), reference={0: clip[0]}, num_inference_steps=steps, solver=solver,  # noqa: B023
                    strength=args.strength, hint_weight=args.hint_weight, num_keyframes=args.keyframes,
                    generator=torch.Generator().manual_seed(0),
                )
            )  # fmt: skip
            frames[solver, steps] = out.frames
            found[f"{solver} {steps}"] = {
                "psnr": metrics.psnr_rgb(out.frames[1:], clip[1:]),
                "apart": metrics.psnr_rgb(out.frames[1:], frames[SOLVERS[0], max(args.steps)][1:]),
                "seconds": seconds,
            }
            figures = {key: round(value, 2) for key, value in found[f"{solver} {steps}"].items()}
            print(f"{name:12} {solver:6} {steps:3} steps", figures, flush=True)
            if args.json:
                about = {**machine(), "measured": provenance.now()}
                files.write_text(args.json, json.dumps({"machine": about, "clips": known}, indent=1) + "\n")
    return known


def table(found: dict) -> str:
    """Return the mean PSNR over the clips, a row for each number of steps and a column for each solver."""
    steps = sorted({int(case.split()[1]) for cases in found.values() for case in cases})
    lines = [f"PSNR in dB, mean of {', '.join(found)}", "steps  " + "".join(f"{solver:>8}" for solver in SOLVERS)]
    for count in steps:
        means = [np.mean([cases[f"{solver} {count}"]["psnr"] for cases in found.values()]) for solver in SOLVERS]
        lines.append(f"{count:5}  " + "".join(f"{mean:8.2f}" for mean in means))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="mini", help="bundled name, folder or hub id (mini)")
    parser.add_argument("--data", type=Path, help="folder of footage, laid out as gcgkit/data/footage.py says")
    parser.add_argument("--clips", nargs="*", help="of its measuring clips, only these")
    parser.add_argument("--frames", type=int, default=20, help="of each clip, from its first (20)")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th frame (1)")
    parser.add_argument("--keyframes", type=int, default=4, help="keyframes, the exemplar among them (4)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="denoising steps (4 8 16 32)")
    parser.add_argument("--strength", type=float, help="as the pipeline takes it (the profile's own)")
    parser.add_argument(
        "--hint-weight", type=float, default=0.0, help="ColorHint blended into each step, where solvers hardly show (0)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (as PyTorch has them)")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    known = json.loads(args.json.read_text(encoding="utf-8"))["clips"] if args.json and args.json.exists() else {}
    print(table(measure(args, known)))


if __name__ == "__main__":
    main()
