"""Quality of automatic colouring, of words, and of joint keyframes: figures of the model card (§3.3, §4.3).

    python -m gcgkit.evaluation.automatic photos --photos DIR [--count 48] [--sheet FILE] [--json FILE] [--weights mini]
    python -m gcgkit.evaluation.automatic words --data DIR
    python -m gcgkit.evaluation.automatic keyframes --data DIR

``photos`` takes any folder of photographs; with ``--data`` it takes the held-out ones of a data folder as ``footage``
describes it. ``words`` and ``keyframes`` look at the six measuring clips and their object masks.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm.auto import tqdm

from .. import metrics
from ..color import rgb_to_lab, to_gray
from ..data import footage
from ..pipeline import GCGPipeline
from ..utils.commands import run_reporting_errors
from .methods import load_pipeline
from .model_card import WORDS, color_first, part_parser, pipeline_options, report, spread, toward

THINGS = {
    "blackswan": "swan", "cows": "cow", "dog": "dog", "drift-straight": "car", "horsejump-high": "horse",
    "soapbox": "car",
}  # fmt: skip
FLAT = 4.0  # gray levels per pixel: where the gray picture changes less, colour has no edge to follow
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_OWN = {"words": ("prompt",), "keyframes": ("num_keyframes", "noise")}  # options that a part sets itself


def list_photos(folder: str | Path, count: int | None = None) -> list[Path]:
    """List the photographs of a folder and those below it, evenly spread; FileNotFoundError if there is none."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no photographs ({', '.join(SUFFIXES)}): give another folder.")
    return spread(paths, count)


def blotchiness(frame: np.ndarray, gray: np.ndarray) -> float:
    """Return the mean gradient of AB, per pixel, in flat parts of the gray picture: RGB ``(H, W, 3)``, gray uint8.

    Colour that changes where nothing else does is a blotch. NaN for a picture that is flat nowhere.
    """
    smooth = cv2.GaussianBlur(gray.astype(np.float32), (0, 0), 2)
    flat = np.hypot(*np.gradient(smooth)) < FLAT
    ab = cv2.GaussianBlur(rgb_to_lab(frame)[..., 1:].astype(np.float32), (0, 0), 2)
    rows, columns = np.gradient(ab, axis=(0, 1))
    change = np.sqrt((rows**2 + columns**2).sum(-1))  # (H, W)
    return float(change[flat].mean()) if flat.any() else float("nan")


def photo_quality(
    pipe: GCGPipeline, paths: Sequence[Path], seed: int = 0, perceptual: bool = True, **options
) -> tuple[dict, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Colour photographs without words or references and return figures, and (gray, coloured, true) RGB of each.

    Per photograph and in the mean: PSNR (rgb, dB) of ours and of gray; colourfulness and blotches, both over the
    truth's as a ratio of means; with ``perceptual`` ST-LPIPS of both.
    """
    rows, pictures = [], []
    for path in tqdm(paths, desc="photographs", disable=None):
        truth = footage.read_image(path)[None]
        gray = to_gray(truth)
        plain = np.repeat(gray[..., None], 3, -1)
        ours = pipe(gray, generator=torch.Generator().manual_seed(seed), **options).frames
        row = {
            "file": path.name,
            "psnr": metrics.psnr_rgb(ours, truth),
            "psnr_gray": metrics.psnr_rgb(plain, truth),
            "colorfulness": metrics.colorfulness(ours),
            "colorfulness_truth": metrics.colorfulness(truth),
            "blotches": blotchiness(ours[0], gray[0]),
            "blotches_truth": blotchiness(truth[0], gray[0]),
        }
        if perceptual:
            row |= {"st_lpips": metrics.st_lpips(ours, truth), "st_lpips_gray": metrics.st_lpips(plain, truth)}
        rows.append(row)
        pictures.append((plain[0], ours[0], truth[0]))
    mean = {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0] if key != "file"}
    gains = np.array([row["psnr"] - row["psnr_gray"] for row in rows])
    summary = {
        "photographs": len(rows),
        "psnr_gain": float(gains.mean()),
        "better_than_gray": float((gains > 0).mean()),
        "colorfulness_ratio": mean["colorfulness"] / mean["colorfulness_truth"],
        "blotches_ratio": mean["blotches"] / mean["blotches_truth"],
        **mean,
    }
    return {"summary": summary, "photographs": rows}, pictures


def contact_sheet(pictures: Sequence[tuple[np.ndarray, ...]], columns: int = 4, width: int = 150) -> np.ndarray:
    """Arrange sets of pictures side by side in rows, each scaled to a width: uint8 RGB."""
    tiles = []
    for several in pictures:
        height = max(8, round(width * several[0].shape[0] / several[0].shape[1]))
        row = [cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in several]
        tiles.append(np.concatenate(row, 1))
    tallest = max(tile.shape[0] for tile in tiles)
    tiles = [
        cv2.copyMakeBorder(t, 2, tallest - t.shape[0] + 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for t in tiles
    ]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    return np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])


def object_masks(data: str | Path, name: str, size: tuple[int, int], frames: int = 1) -> np.ndarray:
    """Read the object masks of a DAVIS clip's first frames: bool ``(T, H, W)``."""
    paths = sorted((Path(data) / "DAVIS/Annotations/480p" / name).glob("*.png"))[:frames]
    if not paths:
        raise FileNotFoundError(f"{data} holds no masks of {name}: put DAVIS/Annotations/480p/{name} there.")
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths]
    return np.stack([cv2.resize(m, size[::-1], interpolation=cv2.INTER_NEAREST) > 0 for m in masks])


def word_quality(
    pipe: GCGPipeline, data: str | Path, words: Sequence[str] = WORDS, seed: int = 0, **options
) -> tuple[dict, list[tuple[np.ndarray, ...]]]:
    """Colour test clips' first frames with "COLOUR THING" and measure the change of the thing and of the rest.

    ``moved``: share of cases in which the mean AB within the mask moves towards the word's hue.
    ``inside_over_outside``: how far the mean AB moves within the mask, over outside of it, both in the mean over cases.
    """
    cases, pictures = [], []
    for name, clip in footage.measuring_clips(data, 1):
        gray, mask = to_gray(clip), object_masks(data, name, clip.shape[1:3])[0]
        row = [color_first(pipe, gray, "", seed, **options)]
        before = rgb_to_lab(row[0])[..., 1:]
        for word in words:
            row.append(color_first(pipe, gray, f"{word} {THINGS[name]}", seed, **options))
            shift = rgb_to_lab(row[-1])[..., 1:] - before
            inside, outside = shift[mask].mean(0), shift[~mask].mean(0)
            lengths = {"inside": float(np.linalg.norm(inside)), "outside": float(np.linalg.norm(outside))}
            cases.append({"clip": name, "word": word, "cosine": toward(inside, word), **lengths})
        pictures.append(tuple(row))
    mean = lambda key: float(np.mean([case[key] for case in cases]))  # noqa: E731
    summary = {
        "cases": len(cases),
        "moved": float(np.mean([case["cosine"] > 0 for case in cases])),
        "inside": mean("inside"),
        "outside": mean("outside"),
        "inside_over_outside": mean("inside") / mean("outside"),
    }
    return {"summary": summary, "cases": cases}, pictures


def keyframe_quality(
    pipe: GCGPipeline,
    data: str | Path,
    frames: int = 40,
    keyframes: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    **options,
) -> dict:
    """Compare the colours of keyframes coloured without references, jointly (Eq. 8) and one by one.

    ``spread`` is of each keyframe's mean AB (``metrics.mean_color_spread``), ``object_spread`` of the mean AB within
    the object's mask; for shared and for separate starting noise. ``truth``: that of the same
    frames' true colours.
    """
    rows = []
    for name, clip in footage.measuring_clips(data, frames):
        gray, masks = to_gray(clip), object_masks(data, name, clip.shape[1:3], frames)
        for noise in ("shared", "independent"):
            for seed in seeds:
                make = lambda: torch.Generator().manual_seed(seed)  # noqa: B023, E731
                together = pipe.color_keyframes(gray, num_keyframes=keyframes, generator=make(), noise=noise, **options)
                separate = {
                    i: pipe.color_keyframes(
                        gray[i : i + 1],
                        num_keyframes=1,
                        generator=torch.Generator().manual_seed(seed + (1000 * i if noise == "independent" else 0)),
                        **options,
                    )[0]
                    for i in together
                }
                row = {"clip": name, "noise": noise, "seed": seed}
                truth = {i: clip[i] for i in together}
                for way, colored in (("together", together), ("alone", separate), ("truth", truth)):
                    row[f"spread_{way}"] = metrics.mean_color_spread(np.stack(list(colored.values())))
                    inside = [rgb_to_lab(f)[..., 1:][masks[i]].mean(0) for i, f in colored.items() if masks[i].any()]
                    row[f"object_spread_{way}"] = float(np.linalg.norm(np.std(inside, axis=0)))
                rows.append(row)
    summary = {}
    for noise in ("shared", "independent"):
        for kind in ("spread", "object_spread"):
            chosen, ways = [r for r in rows if r["noise"] == noise], ("together", "alone", "truth")
            mean = {way: np.mean([r[f"{kind}_{way}"] for r in chosen]) for way in ways}
            mean["ratio"] = mean["together"] / mean["alone"]
            summary[f"{kind}_{noise}"] = {way: float(value) for way, value in mean.items()}
    return {"summary": summary, "cases": rows}


def main(argv: list[str] | None = None) -> int:
    parser = part_parser(__doc__, ("photos", "words", "keyframes"))
    parser.add_argument("--photos", type=Path, help="photos: any folder of photographs")
    parser.add_argument("--count", type=int, default=48, help="photos: how many, evenly spread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-perceptual", action="store_true", help="photos: without ST-LPIPS")
    parser.add_argument("--sheet", type=Path, help="photos, words: write a sheet of the pictures here, 24 at most")
    args = parser.parse_args(argv)
    return run_reporting_errors(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    options, pictures = pipeline_options(args, _OWN.get(args.part, ())), []
    pipe = load_pipeline(args.weights, "cpu")
    if args.part == "photos":
        if args.photos:
            paths = list_photos(args.photos, args.count)
        else:
            paths = spread(footage.photo_paths(args.data, held_out=True), args.count)
        result, pictures = photo_quality(pipe, paths, args.seed, not args.no_perceptual, **options)
    elif args.part == "words":
        result, pictures = word_quality(pipe, args.data, seed=args.seed, **options)
    else:
        result = keyframe_quality(pipe, args.data, **options)
    if args.sheet and pictures:
        sheet = contact_sheet(spread(pictures, 24), columns=4 if args.part == "photos" else 1)
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(args.sheet), sheet[..., ::-1])
    report(result, args.json, **options, weights=args.weights, seed=args.seed)


if __name__ == "__main__":
    sys.exit(main())
