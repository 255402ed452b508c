"""Quality of the weights: the figures of the model card, each from one call.

    python -m gcgkit.evaluation.model_card PART --data DIR [--weights mini] [--set tau=4] [--json FILE]

PART is ``vae``, ``exemplar``, ``gate``, ``memory`` or ``data``; ``automatic`` has the others. The data folder is the
one that ``footage`` describes. ``data`` counts its files; the other parts look only at its six measuring clips
(``memory`` at nothing).
"""

import argparse
import dataclasses
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from .. import baselines, encoders, metrics
from ..color import lab_to_rgb, merge_luminance, rgb_to_lab, to_gray
from ..data import footage, naming
from ..pipeline import GCGPipeline
from ..profiles import weights_digest
from ..settings import Settings
from ..utils.commands import read_options, run_reporting_errors
from ..utils.files import write_text
from . import provenance
from .methods import load_pipeline

WORDS = ("red", "orange", "yellow", "green", "blue", "purple")
SET = "option of the pipeline, in place of the profile's own, such as tau=4 or working_size=[256,448]; repeatable"


def vae_quality(pipe: GCGPipeline, data: str | Path, frames: int = 40) -> dict[str, float]:
    """Return PSNR (rgb, dB) of true colours after encoding and decoding, L* kept, per clip and in the mean."""
    result = {}
    for name, clip in footage.measuring_clips(data, frames):
        through = np.stack([encoders.decode(pipe.vae, encoders.encode(pipe.vae, frame)) for frame in clip])
        result[name] = metrics.psnr_rgb(merge_luminance(to_gray(clip), through), clip)
    return {**result, "mean": float(np.mean(list(result.values())))}


def exemplar_quality(
    pipe: GCGPipeline,
    data: str | Path,
    frames: int = 40,
    clips: Sequence[str] | None = None,
    seed: int = 0,
    **options,
) -> dict[str, dict[str, float]]:
    """Measure exemplar mode: give the first frame's colours, compare the others with the truth.

    Per measuring clip: PSNR (rgb, dB) of ours and, for scale, of plain gray, of the first frame's mean AB, of flow
    propagation and of the true AB on the gray frame's L*; colourfulness and CDC, each over the truth's; seconds.
    ``options`` go to the pipeline (``reference_mask=True`` shows what is left without guidance).
    """
    result = {}
    for name, clip in footage.measuring_clips(data, frames):
        if clips and name not in clips:
            continue
        gray, started = to_gray(clip), time.monotonic()
        generator = torch.Generator().manual_seed(seed)
        ours = pipe(gray, reference={0: clip[0]}, generator=generator, **options).frames
        seconds = time.monotonic() - started
        mean_ab = rgb_to_lab(clip[0])[..., 1:].mean((0, 1))
        psnr = lambda pred: metrics.psnr_rgb(pred[1:], clip[1:])  # noqa: B023, E731
        result[name] = {
            "ours": psnr(ours),
            "gray": psnr(np.repeat(gray[..., None], 3, -1)),
            "mean_ab": psnr(np.stack([tint(g, mean_ab) for g in gray])),
            "flow": psnr(baselines.propagate_by_flow(gray, clip[0])),
            "true_ab": psnr(merge_luminance(gray, clip)),
            "colorfulness_ratio": metrics.colorfulness(ours) / metrics.colorfulness(clip),
            "cdc": metrics.cdc([ours]),
            "cdc_truth": metrics.cdc([clip]),
            "seconds": seconds,
        }
        print(name, {k: round(v, 5 if k.startswith("cdc") else 2) for k, v in result[name].items()}, flush=True)
    keys = next(iter(result.values()), {})
    result["mean"] = {key: float(np.mean([r[key] for r in result.values()])) for key in keys}
    return result


def data_counts(data: str | Path) -> dict:
    """Count what the footage rule gives: photographs for training by source, held-out ones, and training clips.

    Raises ValueError for a folder with neither photographs nor clips.
    """
    root = Path(data)
    sources = Counter(path.relative_to(root / "photos").parts[0] for path in footage.photo_paths(root))
    davis, others = ([*root.glob(pattern)] for pattern in ("DAVIS/JPEGImages/480p/*", "clips/*.mp4"))
    held_out = footage.photo_paths(root, held_out=True)
    if not (sources or held_out or davis or others):
        raise ValueError(
            f"{root} holds neither photographs nor clips: put photos/**/*.jpg, DAVIS/JPEGImages/480p/<clip>/*.jpg or "
            "clips/*.mp4 there."
        )
    return {
        "photographs": sum(sources.values()),
        "by_source": dict(sorted(sources.items())),
        "held_out": len(held_out),
        "davis_clips": [path.name for path in sorted(davis) if path.name not in footage.MEASURING_CLIPS],
        "other_clips": [path.stem for path in sorted(others)],
    }


def silence(unet: torch.nn.Module) -> None:
    """Let a UNet predict zeros from now on, to measure what share of a result it has."""
    unet.register_forward_hook(lambda module, given, output: type(output)(sample=torch.zeros_like(output.sample)))


def tint(gray: np.ndarray, ab: np.ndarray) -> np.ndarray:
    """Give a gray frame (H, W) one AB everywhere: (H, W, 3)."""
    lab = rgb_to_lab(np.repeat(gray[..., None], 3, -1))
    lab[..., 1:] = ab
    return np.clip(np.rint(lab_to_rgb(lab) * 255), 0, 255).astype(np.uint8)


def gate_quality(pipe: GCGPipeline, data: str | Path) -> dict[str, float]:
    """Return the mean of the trained gate for masked, matching and unrelated references, over 30 pairs of frames."""
    clips = list(footage.measuring_clips(data, 40))
    sums = {"masked": [], "matching": [], "wrong": []}
    rng = np.random.default_rng(0)
    for i in range(30):
        clip, other = clips[i % len(clips)][1], clips[(i + 1 + i // len(clips)) % len(clips)][1]
        if other is clip:
            other = clips[(i + 1) % len(clips)][1]
        frame, ref = rng.choice(len(clip), 2, replace=False)
        code = lambda image: encoders.encode(pipe.vae, image)  # noqa: E731
        with torch.no_grad():
            g = code(to_gray(clip[frame]))
            seen = encoders.semantics(pipe, to_gray(clip[frame]))
            sums["masked"].append(pipe.control.hint(g, g * 0, g * 0, seen).gate.mean())
            for kind, source in (("matching", clip[ref]), ("wrong", other[ref % len(other)])):
                gray = to_gray(source)
                given = code(gray), code(source), seen, encoders.semantics(pipe, gray)
                sums[kind].append(pipe.control.hint(g, *given).gate.mean())
    return {kind: float(torch.stack(values).mean()) for kind, values in sums.items()}


def memory_quality(weights: str) -> dict[str, float]:
    """Return peak memory in MB for clips of two lengths, each in a process of its own, and the ratio.

    ``peak_N`` is the process's peak resident size, ``beyond_frames_N`` the same less the input and output frames.
    """
    result, counts = {}, (40, 400)
    for count in counts:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak = pool.submit(_peak_memory, weights, count).result()
        frames = count * footage.SIZE[0] * footage.SIZE[1] * (1 + 3) / 1e6  # gray in, RGB out
        result |= {f"peak_{count}": peak, f"beyond_frames_{count}": peak - frames}
    few, many = (result[f"beyond_frames_{count}"] for count in counts)
    return {**result, "ratio": many / few}


def _peak_memory(weights: str, count: int) -> float:
    """Return this process's peak resident size in MB after colouring ``count`` frames of a moving pattern."""
    x, y = np.arange(footage.SIZE[1]), np.arange(footage.SIZE[0])[:, None]
    gray = np.stack([np.uint8(127 + 60 * np.sin(x / 30 + t / 9) + 60 * np.cos(y / 20)) for t in range(count)])
    # Two steps: memory does not depend on their number.
    load_pipeline(weights, "cpu")(gray, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    return provenance.peak_memory("cpu")["process"]  # not on Windows


def color_first(pipe: GCGPipeline, gray: np.ndarray, prompt: str, seed: int, **options) -> np.ndarray:
    """Colour a clip ``(T, H, W)`` from words and return its first frame, RGB ``(H, W, 3)``."""
    return pipe(gray, prompt=prompt, generator=torch.Generator().manual_seed(seed), **options).frames[0]


def toward(shift: np.ndarray, word: str) -> float:
    """Return the cosine between a shift of AB ``(2,)`` and the AB of a colour's word."""
    hue = rgb_to_lab(np.uint8([[naming.WORD_RGB[word]]]))[0, 0, 1:]
    return float(shift @ hue / (np.linalg.norm(shift) * np.linalg.norm(hue) + 1e-9))


def spread(items: Sequence, count: int | None) -> list:
    """Return ``count`` evenly spread items; all for None or if there are no more."""
    if count is None or count >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def part_parser(about: str, parts: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser with the options that figures of the weights share; the part, if there are any, comes first."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if parts:
        parser.add_argument("part", choices=parts)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--weights", default="mini", help="bundled name, folder or hub id")
    parser.add_argument("--steps", type=int, help="denoising steps (32)")
    parser.add_argument("--set", metavar="K=V", dest="options", action="append", default=[], help=SET)
    parser.add_argument("--json", type=Path, help="write the result here too")
    return parser


def check_settings(options: dict) -> Settings:
    """Return the settings with these options; ValueError for those that do not exist, too, unlike `Settings.of`."""
    try:
        return Settings.of(**options)
    except TypeError as error:
        raise ValueError(str(error)) from None


def pipeline_options(args: argparse.Namespace, own: Sequence[str] = ()) -> dict:
    """Return the pipeline's options that a command of `part_parser` was given.

    own: options that the part sets itself. Raises ValueError for these and for options that the pipeline refuses.
    """
    options = {"num_inference_steps": 32 if args.steps is None else args.steps, **read_options(args.options)}
    for name in own:
        if name in options:
            raise ValueError(f"{args.part} sets {name} itself: leave out --set {name}.")
    check_settings(options)
    return options


def report(result: dict, path: Path | None, **settings) -> None:
    """Print figures, or the summary of many, and write all of them as JSON to a path, with their settings.

    Beside them stand the digest of the weights that ``settings`` name, package versions, machine and time.
    """
    print(json.dumps(result.get("summary", result), indent=1))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"settings": settings, "provenance": provenance.collect("cpu")}
        if "weights" in settings:
            about["weights"] = weights_digest(settings["weights"])
        write_text(path, json.dumps({**about, **result}, indent=1, default=str) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = part_parser(__doc__, ("vae", "exemplar", "gate", "memory", "data"))
    parser.add_argument("--clips", nargs="*", help="exemplar: only these measuring clips")
    parser.add_argument("--frames", type=int, help="exemplar and vae: frames of each clip (40)")
    parser.add_argument("--without-unet", action="store_true", help="exemplar: with zeros for all the UNet says")
    args = parser.parse_args(argv)
    return run_reporting_errors(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    given = {"--set": args.options, "--steps": args.steps, "--clips": args.clips, "--without-unet": args.without_unet}
    if args.part != "vae":
        given["--frames"] = args.frames
    unused = [flag for flag, value in given.items() if value not in (None, [], False)]
    if unused and args.part != "exemplar":
        raise ValueError(f"{args.part} does not use {' and '.join(unused)}: leave it out.")
    args.frames = 40 if args.frames is None else args.frames
    options = {"num_keyframes": 4, **pipeline_options(args)}
    pipe = None if args.part in ("memory", "data") else load_pipeline(args.weights, "cpu")
    settings = {"part": args.part, "weights": args.weights}
    if args.part == "vae":
        result = vae_quality(pipe, args.data, args.frames)
        settings["frames"] = args.frames
    elif args.part == "exemplar":
        if args.without_unet:
            silence(pipe.unet)
        settings |= {"frames": args.frames, "without_unet": args.without_unet}
        completed = dataclasses.asdict(check_settings(options).completed(pipe))
        settings |= {name: value for name, value in completed.items() if not (callable(value) or name == "shortcuts")}
        result = exemplar_quality(pipe, args.data, args.frames, args.clips, **options)
    elif args.part == "gate":
        result = gate_quality(pipe, args.data)
    elif args.part == "data":
        result = data_counts(args.data)
        del settings["weights"]  # none were looked at
    else:
        result = memory_quality(args.weights)
    report(result, args.json, **settings)


if __name__ == "__main__":
    sys.exit(main())
