"""How fast clips are coloured here, what each shortcut gains, and how that compares with diffusers frame by frame.

    python benchmarks/colorize.py shortcuts        # the bundled weights: each shortcut off, then all of them
    python benchmarks/colorize.py stages           # where the time goes: autoencoder, guidance, copy, UNet, the rest
    python benchmarks/colorize.py length           # seconds against frames
    python benchmarks/colorize.py controlnet       # Stable Diffusion 2.1's shapes with random weights: wants a GPU
    python benchmarks/colorize.py controlnet --shapes toy --height 64 --width 64 --frames 4 --steps 2 --precision no

``controlnet`` puts our second stage, frame by frame and ``--batch`` stretches side by side, next to diffusers'
``StableDiffusionControlNetPipeline`` at the same size, steps, guidance scale, precision and batch, in one run. The
cases of a part take turns; medians are compared. ``--json FILE`` keeps every run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

from gcgkit import GCGPipeline, demo, disk
from gcgkit.control import GuidedControlNet
from gcgkit.shortcuts import NONE, Shortcuts

sys.path.insert(0, str(Path(__file__).resolve().parent))
from train_step import OF_PRECISION, SHAPES, build  # noqa: E402

PROMPT = "orange and brown street"


def clock(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds that some work takes, the device's included, and its result."""
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def compare(cases: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Seconds of each case, ``repeats`` times in turns after one turn to warm up, and each one's last result."""
    seconds, results = defaultdict(list), {}
    for turn in range(repeats + 1):
        for name, work in cases.items():
            spent, results[name] = clock(work)
            if turn:
                seconds[name].append(spent)
    return dict(seconds), results


def line(name: str, seconds: list[float], frames: int, more: str = "") -> str:
    """One case for the screen: median and range, and frames per second."""
    middle = statistics.median(seconds)
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    return f"{name:24} {middle:8.2f} s ({spread})  {frames / middle:7.3f} frames/s  {more}".rstrip()


def shortcuts(args: argparse.Namespace) -> dict:
    """Colouring the demo's clip from its first frame and a prompt, with shortcuts off one by one and all at once."""
    pipe, clip = load(args), demo.load_clip(count=args.frames, stride=1)
    choices = {"all on": Shortcuts(), **{f"without {n}": Shortcuts(**{n: False}) for n in vars(Shortcuts())}}
    choices["all off"] = NONE

    def work(choice: Shortcuts) -> Callable[[], np.ndarray]:
        return lambda: pipe(
            clip, prompt=PROMPT, reference={0: clip[0]}, num_inference_steps=args.steps, shortcuts=choice,
            strength=args.strength, generator=torch.Generator().manual_seed(0),
        ).frames  # fmt: skip

    seconds, frames = compare({name: work(choice) for name, choice in choices.items()}, args.repeats)
    usual, found = statistics.median(seconds["all on"]), {}
    for name, times in seconds.items():
        difference = int(np.abs(frames[name].astype(int) - frames["all on"]).max())
        gain = statistics.median(times) / usual
        found[name] = {"seconds": times, "gain": gain, "gray_levels": difference}
        print(line(name, times, args.frames, f"{gain:5.2f} times the time, {difference} gray levels apart"))
    return found


def stages(args: argparse.Namespace) -> dict:
    """Share of each network in the time of colouring the demo's clip, as it is and without a prompt."""
    pipe, clip = load(args), demo.load_clip(count=args.frames, stride=1)
    parts = {
        "autoencoder, encoding": pipe.vae.encoder, "autoencoder, decoding": pipe.vae.decoder,
        "guidance": pipe.control.guidance, "UNet copy": pipe.control.unet_copy, "UNet": pipe.unet,
        "image encoder": pipe.image_encoder, "text encoder": pipe.text_encoder,
    }  # fmt: skip
    spent, began = defaultdict(float), {}

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    for name, module in parts.items():
        module.register_forward_pre_hook(lambda *_, n=name: began.update({n: now()}))
        module.register_forward_hook(lambda *_, n=name: spent.update({n: spent[n] + now() - began[n]}))
    work = lambda: pipe(  # noqa: E731
        clip, prompt=PROMPT, reference={0: clip[0]}, num_inference_steps=args.steps, strength=args.strength,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    work()
    spent.clear()
    total, _ = clock(work)
    found = {**spent, "the rest": total - sum(spent.values())}
    for name, seconds in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{name:24} {seconds:8.2f} s  {100 * seconds / total:5.1f} %")
    print(line("together", [total], args.frames))
    return {"seconds": total, "parts": found}


def length(args: argparse.Namespace) -> dict:
    """Seconds for the demo's clip at a length, and at twice and four times it."""
    pipe, found = load(args), {}
    for frames in (args.frames, 2 * args.frames, 4 * args.frames):
        clip = demo.load_clip(count=frames, stride=1)
        options = {"reference": {0: clip[0]}, "num_inference_steps": args.steps, "strength": args.strength}
        seconds, _ = compare({"": lambda: pipe(clip, **options)}, args.repeats)  # noqa: B023
        found[frames] = seconds[""]
        print(line(f"{frames} frames", seconds[""], frames))
    return found


def controlnet(args: argparse.Namespace) -> dict:
    """Our second stage against diffusers' ControlNet pipeline; random weights, as speed does not depend on them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes, dtype = SHAPES[args.shapes], OF_PRECISION[args.precision]
    parts = build(shapes, device)
    width = parts["image_encoder"].config.projection_dim
    levels = (16, 32, 96, 256) if args.shapes == "sd21" else (8, 8, 8, 8)
    peer = StableDiffusionControlNetPipeline(
        **{name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")},
        controlnet=ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=levels),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(device, dtype)  # fmt: skip
    control = GuidedControlNet.from_unet(parts["unet"], image_tokens_dim=width, **shapes["guidance"])
    ours = GCGPipeline(**parts, control=control, height=args.height, width=args.width, guidance_scale=9.0)
    ours.to(device, dtype)
    for pipe in (peer, ours):
        pipe.set_progress_bar_config(disable=True)
        if device.type == "cuda":
            pipe.unet.to(memory_format=torch.channels_last)
    if args.compile:
        parts["unet"].compile()
        peer.controlnet.compile()
        ours.control.unet_copy.compile()
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (args.frames + 1, args.height, args.width, 3), np.uint8)
    pictures = torch.from_numpy(clip[1:]).permute(0, 3, 1, 2).float() / 255  # (T, H, W, 3) -> (T, 3, H, W)

    def theirs(batch: int) -> None:
        for part in pictures.split(batch):
            peer(
                [PROMPT] * len(part), image=part, height=args.height, width=args.width, guidance_scale=9.0,
                num_inference_steps=args.steps, output_type="np",
            )  # fmt: skip

    def own(stretches: int) -> None:
        ours.color_remaining(
            clip, {0: clip[0]}, prompt=PROMPT, num_inference_steps=args.steps, side_by_side=stretches,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    cases = {}
    for batch in dict.fromkeys((1, args.batch)):
        cases[f"diffusers, batch {batch}"] = lambda n=batch: theirs(n)
        cases[f"ours, side by side {batch}"] = lambda n=batch: own(n)
    seconds, _ = compare(cases, args.repeats)
    for name, times in seconds.items():
        print(line(name, times, args.frames))
    ratio = {
        batch: statistics.median(seconds[f"diffusers, batch {batch}"])
        / statistics.median(seconds[f"ours, side by side {batch}"])
        for batch in dict.fromkeys((1, args.batch))
    }
    print("ours over theirs, frames per second: " + ", ".join(f"batch {b}: {r:.2f}" for b, r in ratio.items()))
    return {"seconds": seconds, "ratio": ratio}


PARTS = {"shortcuts": shortcuts, "stages": stages, "length": length, "controlnet": controlnet}


def load(args: argparse.Namespace) -> GCGPipeline:
    """The pipeline to measure, quiet, on the best device here."""
    pipe = GCGPipeline.from_pretrained(args.weights).to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--weights", default="mini", help="bundled name, folder or hub id (mini)")
    parser.add_argument("--frames", type=int, default=8, help="frames to colour (8)")
    parser.add_argument("--steps", type=int, default=32, help="denoising steps (32)")
    parser.add_argument("--strength", type=float, help="as the pipeline takes it (the profile's own)")
    parser.add_argument("--repeats", type=int, default=3, help="turns measured, after one to warm up (3)")
    parser.add_argument("--threads", type=int, help="CPU threads (as PyTorch has them)")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    group = parser.add_argument_group("controlnet")
    group.add_argument("--shapes", choices=SHAPES, default="sd21")
    group.add_argument("--height", type=int, default=256)
    group.add_argument("--width", type=int, default=448)
    group.add_argument("--batch", type=int, default=8, help="frames at once, besides one by one (8)")
    group.add_argument("--precision", choices=OF_PRECISION, default="bf16")
    group.add_argument("--compile", action="store_true", help="torch.compile the networks of both")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    found = {"part": args.part, "torch": torch.__version__, "threads": torch.get_num_threads(), "steps": args.steps}
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    found["figures"] = PARTS[args.part](args)
    if args.json:
        disk.write_text(args.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
