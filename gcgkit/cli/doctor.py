"""The command ``gcgkit doctor``: a report on this machine, with advice on what is missing."""

import argparse
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import gcgkit

ABOUT = "Say what this machine has and can do, and what to do about what is missing."
# Common codecs of films, by FFmpeg's names of the decoders.
READ_CODECS = ("h264", "hevc", "vp9", "av1", "mpeg2video", "mpeg4", "mjpeg", "prores", "ffv1")
LITTLE_ROOM = 10e9  # bytes: the finished frames of some minutes of a film at 1080p


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add no options: this command has none of its own."""


def run(args: argparse.Namespace) -> None:
    """Print a report on this machine, and one sentence of advice for each missing thing."""
    advice: list[str] = []
    print(f"What this machine has\n  {'Python':13} {platform.python_version()}\n  {'gcgkit':13} {gcgkit.__version__}")
    for name, check in CHECKS.items():
        try:
            found = check(advice)
        except Exception as error:  # this command exists for broken installations
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
        return f"{torch.cuda.get_device_name()}, {total:.1f} GB, {free:.1f} GB of it free{_card(total)}"
    if shutil.which("nvidia-smi"):
        advice.append("The GPU's driver and this torch do not go together: install a torch for your CUDA version.")
        return "there is one from NVIDIA, but torch cannot use it: colouring runs on the CPU"
    advice.append("Without a GPU the mini model does well; for one as large as Stable Diffusion use an NVIDIA GPU.")
    return "none that CUDA can use: colouring runs on the CPU"


def _card(gigabytes: float) -> str:
    """Return the named settings for a GPU of so many GB (10^9 bytes; an "8 GB" card reports about 8.4)."""
    from gcgkit.films.memory_ladder import CARDS

    fitting = [name for name in CARDS if int(name.removesuffix("gb")) <= gigabytes * 1.02]
    return f"; --card {fitting[-1]} suits it" if fitting else "; --device cpu suits it better"


def _computer(advice: list[str]) -> str:
    import psutil  # accelerate brings it

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    return f"{cores} CPU cores, {memory.total / 1e9:.1f} GB of memory, {memory.available / 1e9:.1f} GB of it free"


def _disk(advice: list[str]) -> str:
    from gcgkit.utils.files import free_space, size_text

    free = free_space(Path())
    if free < LITTLE_ROOM:
        advice.append(f"This folder's disk has {size_text(free)} free: colorize keeps its frames elsewhere with --job.")
    return f"{size_text(free)} free where you are"


def _weights(advice: list[str]) -> str:
    from gcgkit import profiles

    found = profiles.available()
    if "mini" not in found:  # the ablation variants are extras
        advice.append("The mini weights are missing: install gcgkit again, from its whole repository.")
    return ", ".join(found) or "none found"


def _clips(advice: list[str]) -> str:
    from gcgkit.data import clips

    found = []
    for name in clips.NAMES:
        try:
            clips.find(name)
            found.append(name)
        except FileNotFoundError as error:
            advice.append(str(error))
    return ", ".join(found) or "none found"


def _h264(advice: list[str]) -> str:
    import numpy as np

    from gcgkit import video

    with tempfile.TemporaryDirectory() as folder:
        video.write(Path(folder) / "test.mp4", np.zeros((2, 32, 32, 3), np.uint8), 25)
    return "can be written"


def _codecs(advice: list[str], mode: str) -> str:
    """Return the codecs that FFmpeg reads ("r") or writes ("w") here, and advise on the missing ones."""
    import av

    from gcgkit.video.codecs import ENCODERS

    wanted = {name: name for name in READ_CODECS} if mode == "r" else ENCODERS
    have, lack = [], []
    for name, codec in wanted.items():
        try:
            av.Codec(codec, mode)
            have.append(name)
        except ValueError:  # PyAV's UnknownCodecError is one
            lack.append(name)
    if lack:
        done = "read" if mode == "r" else "written"
        advice.append(f"Films in {', '.join(lack)} cannot be {done}: install PyAV's own wheel (pip install av).")
    return ", ".join(have)


CHECKS: dict[str, Callable[[list[str]], str]] = {
    **{name: lambda advice, name=name: metadata.version(name) for name in ("torch", "diffusers", "transformers")},
    **{"GPU": _gpu, "Computer": _computer, "Disk": _disk, "Weights": _weights, "Clips": _clips, "H.264 video": _h264},
    **{"Reads": partial(_codecs, mode="r"), "Writes": partial(_codecs, mode="w")},
}
