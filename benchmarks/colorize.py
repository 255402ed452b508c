"""Speed of colouring on this machine, the gain of each shortcut, and a comparison with common alternatives.

    python benchmarks/colorize.py shortcuts        # the bundled weights: each shortcut off, then all of them
    python benchmarks/colorize.py stages           # shares of the time: networks, colour conversion, files
    python benchmarks/colorize.py length           # seconds against frames, beside attention over all frames at once
    python benchmarks/colorize.py keyframes        # the first stage against m, and the same attention written plainly
    python benchmarks/colorize.py compile          # gain of compiling the networks, and its effect
    python benchmarks/colorize.py floor            # operations over this machine's peak, beside the time; cost

On a GPU, everything at Stable Diffusion 2.1's shapes with random weights, for speed does not depend on their values,
and ``controlnet``: our second stage next to diffusers' ``StableDiffusionControlNetPipeline`` at the same size, steps,
guidance scale, precision and batch. ``operations`` counts the arithmetic of both, on any machine.

    python benchmarks/colorize.py all --shapes sd21 --compile --json speed.json --plot speed.png

On any machine, to see that this runs:

    python benchmarks/colorize.py all --shapes toy --height 64 --width 64 --frames 4 --steps 2 --precision no

The cases of a part take turns after one to warm up; medians are compared. ``--json FILE`` keeps every run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from gcgkit import GCGPipeline
from gcgkit import stages as coloring
from gcgkit.evaluation import provenance
from gcgkit.lessons import flops
from gcgkit.lessons.random_networks import SHAPES, random_pipeline
from gcgkit.lessons.timing import clock, compare, line, machine, now, peak_memory
from gcgkit.settings import NO_SHORTCUTS, Shortcuts
from gcgkit.utils import compilation, files
from gcgkit.utils.commands import best_device
from gcgkit.utils.weights import OF_PRECISION

sys.path.insert(0, str(Path(__file__).resolve().parent))
import plot  # noqa: E402
from peers import ControlNetPeer, compile_both, with_plain_attention, without_compilation  # noqa: E402

PROMPT = "orange and brown street"
FASTER = "dpm++"  # the solver that goes with fewer steps in ``controlnet``
KEYS = 4  # keyframes that are given to the second stage: m and c of the paper, so that each frame has its full grid


def pipeline(args: argparse.Namespace) -> GCGPipeline:
    """Load the weights to measure, or make random ones of a size."""
    if args.shapes == "mini":
        from gcgkit.evaluation.methods import load_pipeline  # needs a video library, as random networks do not

        return load_pipeline(args.weights)
    return random_pipeline(args.shapes, OF_PRECISION[args.precision], args.height, args.width, best_device())


def footage(args: argparse.Namespace, frames: int) -> np.ndarray:
    """Return so many frames ``(T, H, W, 3)``: an installed clip, back and forth if it is short, or drifting noise."""
    if args.shapes == "mini":
        from gcgkit.data.clips import load_clip  # needs PyAV, which a rented GPU's image may lack

        clip = load_clip(count=frames, stride=1)
        return clip[back_and_forth(len(clip), frames)]
    noise = np.random.default_rng(0).integers(0, 256, (args.height, args.width, 3), np.uint8)
    return np.stack([np.roll(noise, t, axis=1) for t in range(frames)])


def back_and_forth(length: int, frames: int) -> np.ndarray:
    """Return numbers of ``frames`` frames of a clip of ``length``: on to its last, back to its first, and so on."""
    last = length - 1
    return last - np.abs(np.arange(frames) % max(1, 2 * last) - last)


def options(args: argparse.Namespace) -> dict:
    """Return the options that every colouring here shares."""
    generator = torch.Generator().manual_seed(0)
    return {"num_inference_steps": args.steps, "strength": args.strength, "generator": generator}


def second_stage(args: argparse.Namespace, pipe: GCGPipeline, **changes) -> Callable[[], np.ndarray]:
    """Return a function that colours ``--frames`` frames from ``KEYS`` further keyframes: ``(T, H, W, 3)``."""
    clip = footage(args, args.frames + KEYS)
    keys = {number: clip[number] for number in range(KEYS)}
    return lambda: pipe.color_remaining(clip, keys, prompt=PROMPT, **{**options(args), **changes}).frames


def backend(args: argparse.Namespace) -> str:
    """Return the compiler: one that fuses new kernels, or one that records the present kernels for replay."""
    return "cudagraphs" if args.replay else "inductor"


def largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    """Return the largest difference of two clips, in gray levels."""
    return int(np.abs(one.astype(int) - other).max())


def shortcuts(args: argparse.Namespace) -> dict:
    """Time a clip from its first frame and a prompt, with each shortcut off in turn and with all off."""
    pipe, clip = pipeline(args), footage(args, args.frames)
    choices = {"all on": Shortcuts(), **{f"without {n}": Shortcuts(**{n: False}) for n in vars(Shortcuts())}}
    choices["all off"] = NO_SHORTCUTS

    def work(choice: Shortcuts) -> Callable[[], np.ndarray]:
        return lambda: pipe(clip, prompt=PROMPT, reference={0: clip[0]}, shortcuts=choice, **options(args)).frames

    seconds, frames = compare({name: work(choice) for name, choice in choices.items()}, args.repeats)
    usual, found = statistics.median(seconds["all on"]), {}
    for name, times in seconds.items():
        difference, gain = largest_difference(frames[name], frames["all on"]), statistics.median(times) / usual
        found[name] = {"seconds": times, "gain": gain, "gray_levels": difference}
        print(line(name, times, args.frames, f"{gain:5.2f} times the time, {difference} gray levels apart"))
    return found


def stages(args: argparse.Namespace) -> dict:
    """Measure the share of each network, of colour conversion and of files in the time from film to film."""
    pipe, clip, prompt = pipeline(args), footage(args, args.frames), PROMPT if args.prompt else ""
    spent, began = defaultdict(float), {}

    def stop(name: str) -> None:
        spent[name] += now() - began[name]

    def timed(name: str, work: Callable) -> Callable:
        def run(*given, **named):
            began[name] = now()
            result = work(*given, **named)
            stop(name)
            return result

        return run

    parts = [
        ("guidance", pipe.control.guidance), ("UNet copy", pipe.control.unet_copy), ("UNet", pipe.unet),
        ("image encoder", pipe.image_encoder), ("text encoder", pipe.text_encoder),
    ]  # fmt: skip
    for name, module in pipe.vae.named_children():
        if name.endswith(("encoder", "decoder")):
            parts.append((f"autoencoder, {'decoding' if name.endswith('decoder') else 'encoding'}", module))
    for name, module in parts:
        module.register_forward_pre_hook(lambda *_, n=name: began.update({n: now()}))
        module.register_forward_hook(lambda *_, n=name: stop(n))

    from gcgkit import video  # needs PyAV, as in footage

    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "source.mp4"), Path(folder, "coloured.mp4")
        video.write(source, clip, 24)

        def work() -> None:
            frames = timed("video files", video.read)(source).frames
            out = pipe(frames, prompt=prompt, reference={0: clip[0]}, **options(args)).frames
            timed("video files", video.write)(output, out, 24)

        with patch.object(coloring, "merge_luminance", timed("colour conversion", coloring.merge_luminance)):
            work()
            spent.clear()
            total, _ = clock(work)
    found = {**spent, "the rest": total - sum(spent.values())}
    for name, seconds in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{name:28} {seconds:8.2f} s  {100 * seconds / total:5.1f} %")
    print(line("together", [total], args.frames))
    besides = sum(v for name, v in found.items() if not name.startswith(("UNet", "guidance", "autoencoder")))
    print(f"besides denoising (its guidance included) and the autoencoder: {100 * besides / total:.1f} %")
    return {"seconds": total, "parts": found, "besides": besides / total}


def length(args: argparse.Namespace) -> dict:
    """Measure seconds against frames, ours and with attention over all frames of a clip while these are few."""
    pipe = pipeline(args)
    lengths = args.lengths or [args.frames, 2 * args.frames, 4 * args.frames]
    found: dict[str, dict] = {"ours": {}, "all frames at once": {}}
    for frames in lengths:
        clip = footage(args, frames)
        cases = {"ours": lambda: pipe(clip, reference={0: clip[0]}, **options(args))}  # noqa: B023
        if frames <= args.at_once:
            cases["all frames at once"] = lambda: pipe.color_keyframes(
                clip, num_keyframes=len(clip), reference={0: clip[0]}, **options(args)  # noqa: B023
            )  # fmt: skip
        seconds, _ = compare(cases, args.repeats)
        for name, times in seconds.items():
            found[name][frames] = times
            print(line(f"{frames} frames, {name}", times, frames))
    first, last = lengths[0], lengths[-1]
    growth = statistics.median(found["ours"][last]) / statistics.median(found["ours"][first])
    print(f"{last} frames take {growth:.2f} times as long as {first}, {growth * first / last:.2f} of in proportion")
    return found


def keyframes(args: argparse.Namespace) -> dict:
    """Measure time and memory of stage one against m: fused joint attention, and the same with every logit built."""
    pipe, clip = pipeline(args), footage(args, max(args.keyframes))
    if args.replay:
        compilation.compile_networks(pipe, backend=backend(args))
    found: dict[str, dict] = {"ours": {}, "written plainly": {}}
    for count in args.keyframes:

        def work(plainly: bool, count: int = count) -> dict:
            with with_plain_attention() if plainly else nullcontext():
                return pipe.color_keyframes(clip[:count], num_keyframes=count, prompt=PROMPT, **options(args))

        cases = {"ours": lambda: work(False), "written plainly": lambda: work(True)}  # noqa: B023
        seconds, frames = compare(cases, args.repeats)
        difference = max(largest_difference(frames["ours"][n], frames["written plainly"][n]) for n in frames["ours"])
        for name, times in seconds.items():
            memory = peak_memory(cases[name])
            found[name][count] = {"seconds": times, "bytes": memory}
            print(line(f"m = {count}, {name}", times, count, f"{memory / 1e6:.0f} MB more"))
        gain = statistics.median(seconds["written plainly"]) / statistics.median(seconds["ours"])
        found["ours"][count] |= {"gain": gain, "gray_levels": difference}
        print(f"m = {count}: {gain:.2f} times as fast, {difference} gray levels apart")
    return found


def compiled(args: argparse.Namespace) -> dict:
    """Time the second stage with and without compiled networks, in turns, and the compilation itself."""
    pipe = pipeline(args)
    compilation.compile_networks(pipe, backend=backend(args))
    work = second_stage(args, pipe)
    first, _ = clock(work)
    seconds, frames = compare({"compiled": work, "as they are": without_compilation(work)}, args.repeats)
    for name, times in seconds.items():
        print(line(name, times, args.frames))
    gain = statistics.median(seconds["as they are"]) / statistics.median(seconds["compiled"])
    difference = largest_difference(frames["compiled"], frames["as they are"])
    took = first - statistics.median(seconds["compiled"])
    print(f"{gain:.2f} times as fast, {difference} gray levels apart; compiling took {took:.0f} s")
    return {"seconds": seconds, "gain": gain, "gray_levels": difference, "compiling": took}


def controlnet(args: argparse.Namespace) -> dict:
    """Time our second stage against diffusers' ControlNet pipeline, with a better solver, and side by side."""
    if args.shapes == "mini":
        raise SystemExit("controlnet needs --shapes sd21 or toy: the mini profile's autoencoder is not diffusers' own.")
    ours, clip = pipeline(args), footage(args, args.frames)
    peer = ControlNetPeer(ours, args.shapes)
    if args.compile or args.replay:
        compile_both(ours, peer, backend(args))
    cases, batches = {}, sorted(set(args.batches))
    for batch in batches:
        cases[f"diffusers, batch {batch}"] = lambda n=batch: peer.color(clip, PROMPT, args.steps, n)
        cases[f"ours, side by side {batch}"] = second_stage(args, ours, side_by_side=batch)
    for count in args.fewer_steps:
        fewer = {"solver": FASTER, "num_inference_steps": count}
        cases[f"ours, {FASTER}, {count} steps"] = second_stage(args, ours, side_by_side=batches[-1], **fewer)
    seconds, _ = compare(cases, args.repeats)
    for name, times in seconds.items():
        print(line(name, times, args.frames))
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    gains = speedups(middle, batches)
    for name, gain in gains.items():
        print(f"frames per second, {name}: {gain:.2f} times")
    taken = middle[f"ours, side by side {batches[-1]}"] / args.frames
    return {"seconds": seconds, "gains": gains, **against_peak(args, ours, taken)}


def speedups(middle: dict[str, float], batches: list[int]) -> dict[str, float]:
    """Return the gains in frames per second, from medians of ``controlnet``'s cases over the same frames."""
    largest, faster = batches[-1], [name for name in middle if FASTER in name]
    theirs = {batch: middle[f"diffusers, batch {batch}"] for batch in batches}
    own = {batch: middle[f"ours, side by side {batch}"] for batch in batches}
    gains = {f"ours over diffusers, batch {batch}": theirs[batch] / own[batch] for batch in batches}
    gains |= {f"{name} over diffusers, batch {largest}": theirs[largest] / middle[name] for name in faster}
    if 1 in batches:
        gains[f"ours side by side {largest} over frame by frame"] = own[1] / own[largest]
    return gains


def operations(args: argparse.Namespace) -> dict:
    """Count the operations of a step and a frame, ours and diffusers' ControlNet pipeline's, on any machine."""
    if args.shapes == "mini":
        raise SystemExit("operations needs --shapes sd21 or toy, whose networks diffusers' pipeline can share.")
    ours = random_pipeline(args.shapes, OF_PRECISION[args.precision], args.height, args.width, "meta")
    single = flops.operations(ours, args.height, args.width)
    peer = ControlNetPeer(ours, args.shapes).operations(args.height, args.width)
    peers_frame, found = peer * args.steps + single["autoencoder, decoding"], {}
    for name, keys in (("", True), (" without keys", False)):
        frame = flops.per_frame(single, args.steps, keys=keys)
        found[f"a step{name}"] = [(frame["UNet"] + frame["UNet copy"]) / args.steps, peer]
        found[f"a frame{name}"] = [sum(frame.values()), peers_frame]
    for name, (own, other) in found.items():
        print(f"{name:20} {own / 1e12:8.4f} TFLOP; diffusers' {other / 1e12:8.4f}, {other / own:.2f} times as many")
    return found


def floor(args: argparse.Namespace) -> dict:
    """Return a second-stage frame's operations, the time that they need at this device's peak, and the time taken."""
    pipe = pipeline(args)
    if args.compile or args.replay:
        compilation.compile_networks(pipe, backend=backend(args))
    seconds, _ = compare({"": second_stage(args, pipe, side_by_side=max(args.batches))}, args.repeats)
    return against_peak(args, pipe, statistics.median(seconds[""]) / args.frames)


def against_peak(args: argparse.Namespace, pipe: GCGPipeline, taken: float) -> dict:
    """Return a second-stage frame's operations beside its ``taken`` seconds, and the cost of a minute of film."""
    size = (args.height, args.width) if args.shapes != "mini" else (pipe.config.height, pipe.config.width)
    strength = pipe.config.strength if args.strength is None else args.strength
    by_stage = flops.per_frame(flops.operations(pipe, *size), max(1, round(strength * args.steps)))
    peaks = flops.peaks(pipe.unet.dtype)
    peak = max(peaks.values())
    for name, count in peaks.items():
        print(f"peak, {name:22} {count / 1e12:9.4f} TFLOP/s")
    for name, count in {**by_stage, "together": sum(by_stage.values())}.items():
        print(f"{name:28} {count / 1e12:9.4f} TFLOP a frame, {count / peak:9.4f} s at the peak")
    share = sum(by_stage.values()) / peak / taken
    print(f"taken {taken:.4f} s a frame: {100 * share:.1f} % of the peak")
    print(f"a minute of film at {flops.FPS} frames/s: {taken * flops.FPS * 60:.0f} s here")
    costs = {}
    if torch.cuda.is_available():
        costs = flops.cost(taken, flops.sheet_peak(torch.cuda.get_device_name()) or peak)
    for name, figures in costs.items():
        print(f"  extrapolated to {name:9} {figures['seconds']:8.0f} s, {figures['dollars']:.3f} dollars")
    return {
        "operations": by_stage,
        "peaks": peaks,
        "seconds_per_frame": taken,
        "share_of_peak": share,
        "cost": costs,
    }


PARTS = {
    "shortcuts": shortcuts, "stages": stages, "length": length, "keyframes": keyframes, "compile": compiled,
    "floor": floor, "operations": operations, "controlnet": controlnet,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("part", choices=[*PARTS, "all"])
    add("--shapes", choices=["mini", *SHAPES], default="mini", help="--weights, or random ones of these shapes (mini)")
    add("--weights", default="mini", help="bundled name, folder or hub id (mini)")
    add("--frames", type=int, default=8, help="frames to colour (8)")
    add("--steps", type=int, default=32, help="denoising steps (32)")
    add("--strength", type=float, help="as the pipeline takes it (the profile's own)")
    add("--repeats", type=int, default=3, help="turns measured, after one to warm up (3)")
    add("--threads", type=int, help="CPU threads (as PyTorch has them)")
    add("--json", type=Path, help="write the figures here too")
    add("--plot", type=Path, help="draw length and keyframes as this PNG, with the part all")
    add("--prompt", action="store_true", help="stages: with a prompt, so with both halves of guidance")
    add("--lengths", type=int, nargs="+", help="length: frames of the clips (--frames, twice, four times)")
    add("--at-once", type=int, default=16, help="length: most frames to attend to all at once (16)")
    add("--keyframes", type=int, nargs="+", default=(1, 2, 4, 8), help="keyframes: m (1 2 4 8)")
    add("--replay", action="store_true", help="replay networks as they are as CUDA graphs, in the place of --compile")
    add("--fewer-steps", type=int, nargs="+", default=(16, 8), help=f"controlnet: steps of {FASTER} (16 8)")
    add("--batches", type=int, nargs="+", default=(1, 8), help="controlnet: frames at once; floor: the most (1 8)")
    add("--compile", action="store_true", help="controlnet, floor, all: compile the networks of both")
    add("--height", type=int, default=256, help="of frames, for random weights (256)")
    add("--width", type=int, default=448, help="of frames, for random weights (448)")
    add("--precision", choices=OF_PRECISION, default="bf16", help="of random weights (bf16)")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    left_out = {"controlnet", "operations"} if args.shapes == "mini" else set()
    left_out |= set() if args.compile or args.replay else {"compile"}
    names = [name for name in PARTS if name not in left_out] if args.part == "all" else [args.part]
    found = {**machine(), "measured": provenance.now(), "shapes": args.shapes, "steps": args.steps}
    found |= {"frames": args.frames, "figures": {}, "highest_bytes": {}}
    for name in names:
        print(f"--- {name}", flush=True)
        torch.compiler.reset()  # of so many shapes of one network, and no more, are compiled forms kept
        found["figures"][name] = PARTS[name](args)
        if torch.cuda.is_available():
            found["highest_bytes"][name] = torch.cuda.max_memory_allocated()
            print(f"highest memory of the GPU: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
            torch.cuda.reset_peak_memory_stats()
        if args.json:
            files.write_text(args.json, json.dumps(found, indent=1) + "\n")
    if args.plot and {"length", "keyframes"} <= set(names):
        of = f"{found['device']}, {found['threads']} threads, torch {found['torch']}, {args.steps} steps, {args.shapes}"
        plot.draw(found["figures"], of, args.plot)


if __name__ == "__main__":
    main()
