"""Colour errors on old film: clean clips, the same clips aged, and aged with their flicker removed (§3.4.2, §4.3).

    python -m gcgkit.evaluation.aged --data DIR [--frames 40] [--wear flicker=0.2] [--weights mini] [--json FILE]

The six measuring clips of a data folder, as ``footage`` describes it, are aged by ``data.aging``. The first frame's
colours are given, the other frames are measured. Result and truth both have the lightness of the film that was
coloured, so that only their AB differ; the truth's AB are those of the clean clip, moved by the film's gate weave.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

from .. import metrics
from ..color import merge_luminance, rgb_to_lab, to_gray
from ..data import footage
from ..data.aging import Wear, age
from ..pipeline import GCGPipeline
from ..utils.commands import read_options, run_reporting_errors
from ..video import flicker
from .methods import load_pipeline
from .model_card import part_parser, pipeline_options, report


def films(clip: np.ndarray, wear: Wear, seed: int = 0) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, gray film ``(T, H, W)`` and true colours ``(T, H, W, 3)`` of a clip: clean, aged, deflickered."""
    yield "clean", to_gray(clip), clip
    gray, moved = age(clip, wear, seed)
    yield "aged", gray, moved
    yield "deflickered", flicker.remove(gray), moved


def color_error(frames: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the PSNR (rgb, dB) and the mean distance of AB of two clips ``(T, H, W, 3)``, and the first's CDC."""
    pairs = zip(frames, truth, strict=True)
    distances = [np.linalg.norm((rgb_to_lab(a) - rgb_to_lab(b))[..., 1:], axis=-1).mean() for a, b in pairs]
    return {"psnr": metrics.psnr_rgb(frames, truth), "ab": float(np.mean(distances)), "cdc": metrics.cdc([frames])}


def aged_quality(
    pipe: GCGPipeline, data: str | Path, frames: int = 40, wear: Wear | None = None, seed: int = 0, **options
) -> dict:
    """Colour each measuring clip as each film, and return ``color_error`` of ours and of gray, and means over clips.

    The exemplar is the first frame's true AB on the film's lightness, and is not measured. ``options`` go to the
    pipeline. Raises ValueError without clips or with fewer than 6 frames.
    """
    if frames < 6:
        raise ValueError(f"--frames must be 6 or more, not {frames}: the exemplar, and 5 to measure.")
    cases = []
    for name, clip in footage.measuring_clips(data, frames):
        for kind, gray, colors in films(clip, wear or Wear(), seed):
            truth = merge_luminance(gray, colors)
            generator = torch.Generator().manual_seed(seed)
            ours = pipe(gray, reference={0: truth[0]}, generator=generator, **options).frames
            plain = color_error(np.repeat(gray[1:, ..., None], 3, -1), truth[1:])
            case = color_error(ours[1:], truth[1:]) | {f"{key}_gray": plain[key] for key in ("psnr", "ab")}
            case["cdc_truth"] = metrics.cdc([truth[1:]])
            cases.append({"clip": name, "film": kind, **case})
            print(name, kind, {key: round(value, 4) for key, value in case.items()}, flush=True)
    kinds, keys = dict.fromkeys(case["film"] for case in cases), list(cases[0])[2:]
    mean = {k: {key: float(np.mean([c[key] for c in cases if c["film"] == k])) for key in keys} for k in kinds}
    return {"summary": mean, "cases": cases}


def main(argv: list[str] | None = None) -> int:
    parser = part_parser(__doc__)
    parser.add_argument("--frames", type=int, default=40, help="of each clip, from its first (40)")
    parser.add_argument("--wear", metavar="K=V", action="append", default=[], help="a value of aging.Wear; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    return run_reporting_errors(lambda: _run(args))


def _read_wear(pairs: list[str]) -> Wear:
    given, kinds = read_options(pairs), {field.name: type(field.default) for field in fields(Wear)}
    for name, value in given.items():
        if name not in kinds or type(value) not in (int, kinds[name]):
            known = ", ".join(kinds)
            raise ValueError(f"--wear takes a number for {known} (a whole one for scratches), not {name}={value}.")
    return Wear(**given)


def _run(args: argparse.Namespace) -> None:
    wear = _read_wear(args.wear)
    settings = {"num_keyframes": 4, **pipeline_options(args)}
    result = aged_quality(load_pipeline(args.weights, "cpu"), args.data, args.frames, wear, args.seed, **settings)
    given = {"weights": args.weights, "frames": args.frames, "seed": args.seed, "wear": asdict(wear)}
    report(result, args.json, **settings, **given)


if __name__ == "__main__":
    sys.exit(main())
