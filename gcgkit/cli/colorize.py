"""The command ``gcgkit colorize``; ``accelerate launch -m gcgkit.cli colorize ...`` shares the work among processes.

torch and the rest load when they are needed, so ``--help`` is quick.
"""

import argparse
import gc
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from ..utils.commands import best_device, parse_size, quiet_libraries
from .common import SCREEN

ABOUT = "Colour films. Stopped at any moment, the same command goes on where it was."
USAGE = "gcgkit colorize IN [IN ...] OUT [options]"
EPILOG = "--help-all lists more options"
CODECS = ("h264", "hevc", "vp9", "av1")
CARDS = ("8gb", "12gb", "16gb", "24gb")


def add_options(parser: argparse.ArgumentParser, everything: bool = False) -> None:
    """Add the command's options; rarely needed ones show only with ``everything``."""
    whole, number = at_least(1), at_least(0, float)
    add = parser.add_argument

    def rare(*names, **options):
        about = options.pop("help")
        add(*names, help=about if everything else argparse.SUPPRESS, **options)

    add("input", metavar="IN", type=Path, nargs="+", help="film, folder of images, or folder of films")
    add("output", metavar="OUT", type=Path, help="film to write, or folder for images or films")
    add("--prompt", metavar="TEXT", help="what to see, such as 'green trees, red car'")
    add("--negative-prompt", metavar="TEXT", help="what not to see")
    about = "colours to follow; with N= it is frame N; repeatable"
    add("--reference", metavar="[N=]IMAGE", type=_reference, action="append", default=[], help=about)
    about = "colour N keyframes a shot, then stop to be looked at"
    add("--preview", metavar="N", type=whole, help=about)
    add("--shots", metavar="CSV", type=Path, help="list of shots to use instead of cuts found")
    add("--profile", metavar="NAME", help="weights: a bundled name, folder or hub id (mini)")
    add("--weights", dest="profile", metavar="NAME", help=argparse.SUPPRESS)  # by another name
    add("--keyframes", dest="num_keyframes", metavar="N", type=whole, help="keyframes of each shot, coloured first (4)")
    add("--steps", dest="num_inference_steps", metavar="N", type=whole, help="denoising steps (32)")
    add("--card", metavar="SIZE", choices=CARDS, help=f"settings for a GPU of {', '.join(CARDS)}")
    add("--device", metavar="NAME", type=_device, default="auto", help="auto, cpu, cuda or cuda:1 (auto)")
    add("--lossless", action="store_true", help="keep every pixel value, in a far larger file")
    add("--force", action="store_true", help="replace OUT if it exists")
    about = "auto copies or encodes it, copy, encode, none (auto)"
    rare(
        "--cut-threshold",
        metavar="X",
        type=at_least(1, float),
        help="gray levels that make a cut; more, fewer cuts (15)",
    )
    rare("--sound", metavar="HOW", choices=("auto", "copy", "encode", "none"), default="auto", help=about)
    rare("--codec", metavar="NAME", choices=CODECS, help=f"of OUT: {', '.join(CODECS)} (vp9 in .webm, else h264)")
    rare("--crf", metavar="N", type=at_least(0), help="quality of OUT: 0 is best (16 for h264)")
    rare("--pix-fmt", dest="pixels", metavar="NAME", help="pixel format of OUT, such as yuv444p (yuv420p)")
    rare("--size", metavar="WxH", type=_size, help="the model works at; larger is finer and slower (the profile's own)")
    rare("--guidance-scale", metavar="X", type=number, help="weight of the prompt (the profile's own)")
    rare("--seed", metavar="N", type=at_least(0), help="same seed, same colours (0)")
    rare("--chunk", metavar="N", type=whole, help="a longer shot has keyframes every N frames (64)")
    about = "even out old film's brightness; OUT shows it evened"
    rare("--deflicker", action="store_true", default=None, help=about)
    about = "IN is tinted: take its lightness by the tint"
    rare("--tinted", action="store_true", default=None, help=about)
    rare("--job", metavar="DIR", type=Path, help="where finished frames are kept (OUT.job)")
    rare("--compile", action="store_true", help="compile the networks first: for long films on a GPU")
    rare("--only-shots", metavar="LIST", type=_numbers, help="only these shots, such as 1,4-6")
    rare("--restart", action="store_true", help="forget what the job's folder holds, colour anew")
    rare("--clean", action="store_true", help="remove the job's folder once OUT is written")
    if not everything:
        add("--help-all", action=HelpAll)


def run(args: argparse.Namespace) -> None:
    """Colour as the options say. Wrong input is refused before the model loads.

    Raises ValueError, FileNotFoundError and OSError with one sentence each.
    """
    from ..films import batch
    from ..films.job import Options

    pairs = batch.films(args.input, args.output)
    me, dtype = batch.worker(args.device), None
    if args.card:
        from ..films.memory_ladder import CARDS as settings

        dtype = settings[args.card].dtype
        if dtype != "float32" and best_device(me.device) == "cpu":
            raise ValueError(f"--card {args.card} is for GPUs, and there is none here: leave it out.")
    names = [field.name for field in fields(Options) if field.name not in ("dtype", "references")]
    values = {name: getattr(args, name) for name in names}
    options = Options(**values, dtype=dtype, references=tuple(args.reference))
    batch.colorize(pairs, options, _Loader(me.device, args.card, args.debug, args.compile), me)


class _Loader:
    """A ``films.load.Loader`` that is imported, with diffusers, only before the first frame is coloured."""

    def __init__(self, device: str | None, card: str | None, debug: bool, compiled: bool):
        self.device, self.card, self.debug, self.compiled = device, card, debug, compiled
        self.say, self._loader = print, None

    def __call__(self, profile: str, dtype: str):
        if self._loader is None:
            gc.disable()  # torch and diffusers make a million objects: the collector would go through them many times
            try:
                from ..films.load import Loader
            finally:
                gc.freeze()  # with unfreeze, this makes them old objects, which the collector seldom looks at
                gc.unfreeze()
                gc.enable()
            quiet_libraries(self.debug)
            self._loader = Loader(self.device, self.card, lambda text: self.say(text), self.compiled)
        return self._loader(profile, dtype)


def _reference(text: str) -> tuple[int | None, Path]:
    """Parse FRAME=IMAGE, or IMAGE without a frame."""
    match = re.fullmatch(r"(\d{1,12})=(.+)", text)
    return (int(match[1]), Path(match[2])) if match else (None, Path(text))


def _device(text: str) -> str | None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:NUMBER, not {text!r}")
    return None if text == "auto" else text


def _size(text: str) -> str:
    """Parse a size into the form that the job stores."""
    height, width = parse_size(text)
    return f"{width}x{height}"


def _numbers(text: str) -> frozenset[int]:
    """Parse ``1,4-6`` into {1, 4, 5, 6}."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part)
        if not match or not 1 <= int(match[1]) <= int(match[2] or match[1]):
            raise argparse.ArgumentTypeError(f"must be numbers of shots from 1 on, such as 1,4-6, not {text!r}")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def at_least(lowest: int, kind: type = int) -> Callable[[str], float]:
    """Return a parser of numbers from ``lowest`` on."""

    def number(text: str) -> float:
        value = kind(text)
        if not lowest <= value < 2**63:
            raise argparse.ArgumentTypeError(f"must be a number from {lowest} on, not {text}")
        return value

    return number


class HelpAll(argparse.Action):
    """Print the help with all options for ``--help-all``."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=argparse.SUPPRESS)

    def __call__(self, parser, namespace, values, option_string=None):
        full = argparse.ArgumentParser(prog=parser.prog, usage=USAGE, description=ABOUT, **SCREEN)
        add_options(full, everything=True)
        full.add_argument("--debug", action="store_true", help="show the full traceback of an error")
        full.print_help()
        sys.exit(0)
