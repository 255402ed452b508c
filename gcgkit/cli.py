"""The command ``gcgkit``: colour a video, and say what this machine can do.

torch and the rest load when a command needs them (``gcgkit.video`` loads when first used), so ``--help`` is quick.
Exit codes: 0 done, 1 an error told in one sentence, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

import gcgkit
from gcgkit import evaluate_cli, train_cli


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments, ``sys.argv``'s by default, and return its exit code."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        return 0
    except KeyboardInterrupt:
        message, code = "interrupted; nothing was written.", 130
    except Exception as error:
        if args.debug:
            raise
        message, code = str(error), 1
        if type(error).__name__ == "OutOfMemoryError":
            message = "the GPU has too little memory for this; try fewer --keyframes, or --device cpu."
        elif not isinstance(error, (ValueError, OSError)):  # neither bad input nor a system that refuses
            message = f"unexpected {type(error).__name__}: {error} (--debug shows where)"
    print("gcgkit:", " ".join(message.split()), file=sys.stderr)
    return code


def colorize(args: argparse.Namespace) -> None:
    """Colour a video file or a folder of images as a stream, with its frame rate and sound.

    What can be refused is refused before the model loads. Raises ValueError and FileNotFoundError as the library does.
    """
    started = time.monotonic()
    information = gcgkit.video.probe(args.input)
    _check_output(args.input, args.output, args.force)
    gcgkit.profiles.resolve(args.profile)
    # Matroska files, for one, do not tell: counting decodes them once more, a small part of the work.
    count = information.num_frames or sum(1 for _ in gcgkit.video.iterate(args.input))
    reference = _read_references(args.reference, count)
    sound = gcgkit.video.read_audio(args.input, 0.0, count / information.fps) if information.has_audio else None
    if information.has_audio and sound is None:
        print(f"The sound of {args.input} cannot be decoded and is left out.")
    frames = _colored(args, gcgkit.video.iterate(args.input), count, reference)
    gcgkit.video.write(args.output, frames, information.fps, sound, lossless=args.lossless)
    seconds = time.monotonic() - started
    print(f"Coloured {count} frame(s) in {seconds:.1f} s, {seconds / count:.2f} s each: {args.output}")


def _check_output(source: Path, output: Path, force: bool) -> None:
    """Refuse a place that cannot take the result, or that holds something already."""
    suffixes = gcgkit.video.VIDEO_SUFFIXES
    parent = next(p for p in output.absolute().parents if p.exists())  # missing folders are made
    for wrong, reason in (
        (output.suffix.lower() not in suffixes, f"must end in one of {', '.join(suffixes)}"),
        (output.is_dir(), "is a folder; give the name of a video file"),
        (output.exists() and output.samefile(source), "is the input itself; give another name"),
        (output.exists() and not force, "exists already; give another name, or --force to replace it"),
        (not (parent.is_dir() and os.access(parent, os.W_OK)), f"cannot be written: {parent} is no place to write to"),
    ):
        if wrong:
            raise ValueError(f"{output} {reason}.")


def _read_references(given: list[tuple[int | None, Path]], count: int):
    """The pipeline's ``reference``: None, one RGB frame ``(h, w, 3)``, or ``{frame number: RGB frame}``."""
    images, suffixes = {}, gcgkit.video.IMAGE_SUFFIXES
    for number, path in given:
        if images and (None in (number, *images) or number in images):
            raise ValueError("--reference takes one IMAGE, or FRAME=IMAGE once for each frame.")
        if not path.is_file() or path.suffix.lower() not in suffixes:
            raise FileNotFoundError(f"--reference {path} is not an image file: {', '.join(suffixes)}.")
        if number is not None and number >= count:
            raise ValueError(f"--reference {number}={path}: the last of the {count} frames is number {count - 1}.")
        images[number] = gcgkit.video.read(path, audio=False).frames[0]
    return images[None] if None in images else images or None


def _colored(args: argparse.Namespace, frames: Iterator, count: int, reference) -> Iterator:
    """Load the pipeline and yield the coloured frames ``(H, W, 3)``, with a progress bar on a terminal."""
    import torch
    from tqdm import tqdm

    cuda = torch.cuda.is_available()
    if args.device == "cuda" and not cuda:
        raise ValueError("--device cuda: no GPU can be used here; gcgkit doctor tells more, --device cpu does without.")

    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        if not args.debug:
            library.utils.logging.set_verbosity_error()

    pipe = gcgkit.GCGPipeline.from_pretrained(args.profile).to("cuda" if cuda and args.device != "cpu" else "cpu")
    generator = torch.Generator().manual_seed(args.seed)  # on the CPU: the same noise on every device
    options = {name: getattr(args, name) for name in OPTIONS}
    with tqdm(total=count, desc="Colouring", unit="frame", disable=None) as bar:

        def show_step(pipe, step, timestep, state) -> dict:
            bar.set_postfix_str(f"{'keyframes, ' * (state['stage'] == 'keyframes')}step {step + 1}")
            return {}

        for frame in pipe.stream(frames, args.chunk, reference, generator, callback_on_step_end=show_step, **options):
            yield frame
            bar.update()


def doctor(args: argparse.Namespace) -> None:
    """Print what this machine has and can do, and one sentence of advice for each thing that is missing."""
    advice: list[str] = []
    print(f"What this machine has\n  {'Python':13} {platform.python_version()}\n  {'gcgkit':13} {gcgkit.__version__}")
    for name, check in CHECKS.items():
        try:
            found = check(advice)
        except Exception as error:  # broken installations are what this command is for
            found = "does not work"
            advice.append(f"{name} does not work ({error}): install gcgkit again, with all that it requires.")
        print(f"  {name:13} {found}")
    print("\nWhat to do" if advice else "\nNothing is missing.")
    for sentence in advice:
        print("  - " + " ".join(sentence.split()))


def _gpu(advice: list[str]) -> str:
    import torch

    if torch.cuda.is_available():
        free, total = (size / 1e9 for size in torch.cuda.mem_get_info())
        return f"{torch.cuda.get_device_name()}, {total:.1f} GB, {free:.1f} GB of it free"
    if shutil.which("nvidia-smi"):
        advice.append("The GPU's driver and this torch do not go together: install a torch for your CUDA version.")
        return "there is one from NVIDIA, but torch cannot use it: colouring runs on the CPU"
    advice.append("Without a GPU the mini model does well; for one as large as Stable Diffusion use an NVIDIA GPU.")
    return "none that CUDA can use: colouring runs on the CPU"


def _computer(advice: list[str]) -> str:
    import psutil  # accelerate brings it

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    return f"{cores} CPU cores, {memory.total / 1e9:.1f} GB of memory, {memory.available / 1e9:.1f} GB of it free"


def _weights(advice: list[str]) -> str:
    found = gcgkit.profiles.available()
    if "mini" not in found:  # the ablation variants are extras
        advice.append("The mini weights are missing: install gcgkit again, from its whole repository.")
    return ", ".join(found) or "none found"


def _clips(advice: list[str]) -> str:
    found = []
    for name in gcgkit.clips.NAMES:
        try:
            gcgkit.clips.find(name)
            found.append(name)
        except FileNotFoundError as error:
            advice.append(str(error))
    return ", ".join(found) or "none found"


def _h264(advice: list[str]) -> str:
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        gcgkit.video.write(Path(folder) / "test.mp4", np.zeros((2, 32, 32, 3), np.uint8), 25)
    return "can be written"


CHECKS: dict[str, Callable[[list[str]], str]] = {
    **{name: lambda advice, name=name: metadata.version(name) for name in ("torch", "diffusers", "transformers")},
    **{"GPU": _gpu, "Computer": _computer, "Weights": _weights, "Clips": _clips, "H.264 video": _h264},
}
OPTIONS = ("prompt", "negative_prompt", "num_keyframes", "num_inference_steps", "guidance_scale")  # of the pipeline


def _parser() -> argparse.ArgumentParser:
    screen = partial(argparse.HelpFormatter, max_help_position=27, width=80)  # an option a line
    shared = {"formatter_class": screen, "allow_abbrev": False}
    about = "Video colorization with gated colour-guided diffusion."
    parser = argparse.ArgumentParser(prog="gcgkit", description=about, **shared)
    parser.add_argument("--version", action="version", version=f"gcgkit {gcgkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    about, usage = "Colour a video, from a prompt, references, or neither.", "gcgkit colorize IN OUT [options]"
    command = commands.add_parser("colorize", help="colour a video", usage=usage, description=about, **shared)
    command.set_defaults(run=colorize)
    add, whole, number = command.add_argument, _at_least(1), _at_least(0, float)
    add("input", metavar="IN", type=Path, help="video or folder of images; colours are not used")
    add("output", metavar="OUT", type=Path, help="video to write: .mp4, .m4v, .mov or .mkv")
    add("--prompt", metavar="TEXT", default="", help="what to see, such as 'green trees, red car'")
    add("--negative-prompt", metavar="TEXT", default="", help="what not to see")
    about = "colours to follow; with N= it is frame N; repeatable"
    add("--reference", metavar="[N=]IMAGE", type=_reference, action="append", default=[], help=about)
    add("--profile", metavar="NAME", default="mini", help="bundled name, folder or hub id (mini)")
    add("--keyframes", dest="num_keyframes", metavar="N", type=whole, default=4, help="keyframes of each chunk (4)")
    add("--steps", dest="num_inference_steps", metavar="N", type=whole, default=32, help="denoising steps (32)")
    add("--guidance-scale", metavar="X", type=number, help="weight of the prompt (the profile's own)")
    add("--seed", metavar="N", type=_at_least(0), default=0, help="same seed, same colours (0)")
    add("--device", metavar="NAME", choices=("auto", "cpu", "cuda"), default="auto", help="auto, cpu or cuda (auto)")
    add("--chunk", metavar="N", type=whole, default=64, help="frames held at a time (64)")
    add("--lossless", action="store_true", help="keep every pixel value, in a far larger file")
    add("--force", action="store_true", help="replace OUT if it exists")
    about = "Say what this machine has and can do, and what to do about what is missing."
    checkup = commands.add_parser("doctor", help="say what this machine can do", description=about, **shared)
    checkup.set_defaults(run=doctor)
    trainer = commands.add_parser("train", help="train, or go on with a run", description=train_cli.ABOUT, **shared)
    trainer.set_defaults(run=train_cli.run)
    train_cli.add_options(trainer)
    about = {"usage": evaluate_cli.USAGE, "description": evaluate_cli.ABOUT, "epilog": evaluate_cli.EPILOG}
    evaluator = commands.add_parser("evaluate", help="measure methods, write Table 1", **about, **shared)
    evaluator.set_defaults(run=evaluate_cli.run)
    evaluate_cli.add_options(evaluator)
    for each in (command, checkup, trainer, evaluator):
        each.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser


def _reference(text: str) -> tuple[int | None, Path]:
    """FRAME=IMAGE, or IMAGE without a frame."""
    match = re.fullmatch(r"(\d+)=(.+)", text)
    return (int(match[1]), Path(match[2])) if match else (None, Path(text))


def _at_least(lowest: int, kind: type = int) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not lowest <= value < 2**63:
            raise argparse.ArgumentTypeError(f"must be a number from {lowest} on, not {text}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
