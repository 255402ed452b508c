"""Real colour clips that install by name, for the demo and the notebooks.

Two packages contain them, see ``clips.toml``. Neither is imported, since one is unmaintained and the other is a gallery
of programs; only their installed files are read. `make setup` installs both (requirements-clips.txt).
"""

from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from .. import video
from ..utils.files import read_table
from . import footage


@dataclass(frozen=True)
class Clip:
    """A clip inside an installed package: its place, content and terms."""

    package: str
    version: str
    path: str
    description: str
    licence: str

    @property
    def install_command(self) -> str:
        """The command that installs the clip's package without its dependencies."""
        return f"pip install --no-deps {self.package}=={self.version}"


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
    try:
        carrier = distribution(clip.package)
    except PackageNotFoundError:
        raise FileNotFoundError(
            f"The clip {name!r} comes with the package {clip.package}, which is not installed: "
            f"run {clip.install_command}"
        ) from None
    for path in _candidates(carrier, clip):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"The clip {name!r} is not in the installed {clip.package} {carrier.version}: "
        f"run {clip.install_command} --force-reinstall"
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
