"""The clips that methods are measured on (§4.2), read frame by frame, so that none has to fit in memory.

`open_set` takes what there is: a prepared folder (`data.prepare`), a data folder or DAVIS folder in DAVIS's own layout,
a folder of videos or of image folders, or "installed", the clips that come with packages (`data.clips`). Frames are
stretched to 448x256 as the paper does; a limit and a choice of clips are kept with the results, so that nobody takes a
part for the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from .. import video
from ..data import clips as installed_clips
from ..data import prepare
from ..data.footage import SIZE, stretch
from ..utils.checks import check_frame

INSTALLED = "installed"
_HOLD = 256 * 2**20  # bytes of a clip that are kept in memory while it is measured; a longer one is read again


class Frames:
    """RGB frames ``(H, W, 3)`` that can be read more than once: a folder or video, fitted, from `first` on."""

    def __init__(self, path: str | Path, size: tuple[int, int] | None = None, limit: int | None = None, first: int = 0):
        self.path, self.size, self.limit, self.first = Path(path), size, limit, first
        self._held: np.ndarray | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._held is not None:
            return iter(self._held)
        fitted = (stretch(frame, self.size) for frame in video.iterate(self.path, 0, self.limit))
        return islice(fitted, self.first, None)

    def keep_in_memory(self) -> Frames:
        """Keep the frames in memory from now on if they are few enough; return the object itself."""
        kept, total = [], 0
        for frame in self:
            kept.append(frame)
            total += frame.nbytes
            if total > _HOLD:
                return self
        self._held = np.stack(kept) if kept else None
        return self

    def from_frame(self, first: int) -> Frames:
        """Return the same frames without those before `first`."""
        rest = Frames(self.path, self.size, self.limit, first)
        if self._held is not None and self.first == 0 and len(self._held) > first:
            rest._held = self._held[first:]
        return rest


@dataclass
class EvalSet:
    """Clips by name, all of one size ``(height, width)``, and a note on omitted parts."""

    name: str
    paths: dict[str, Path]
    size: tuple[int, int] | None = SIZE
    limit: int | None = None
    chosen: bool = False
    _digests: dict[str, tuple[str, int]] = field(default_factory=dict, repr=False)

    @property
    def clips(self) -> list[str]:
        """Return the names of the clips, in order."""
        return list(self.paths)

    def frames(self, clip: str) -> Frames:
        """Return the true frames of a clip. Raises ValueError for an unknown name."""
        if clip not in self.paths:
            raise ValueError(f"{self.name} has no clip called {clip!r}; it has {', '.join(self.paths)}.")
        return Frames(self.paths[clip], self.size, self.limit)

    def digest(self, clip: str) -> tuple[str, int]:
        """Return the SHA-256 of a clip's fitted frames and their number; computed once."""
        if clip not in self._digests:
            self._digests[clip] = digest(self.frames(clip))
        return self._digests[clip]

    def describe(self) -> dict:
        """Describe the set for a result: name, size, and omitted parts."""
        size = list(self.size) if self.size else None
        return {"name": self.name, "size": size, "limit": self.limit, "clips": len(self.paths), "chosen": self.chosen}


def open_set(
    source: str | Path,
    name: str | None = None,
    *,
    split: str | None = None,
    clips: Sequence[str] | None = None,
    limit: int | None = None,
    size: tuple[int, int] | None = SIZE,
) -> EvalSet:
    """Find the clips under `source`; the module's text lists the possible sources.

    name: what tables call the set, the folder's name by default. split: a list of ``ImageSets/2017``, for DAVIS.
    clips: only these. limit: only the first frames of each. size: (height, width) to stretch to, None to keep each
    clip's own. Raises ValueError or FileNotFoundError for a source without clips, an unknown clip or a wrong limit.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 frame, not {limit}.")
    root = Path(source)
    if str(source) == INSTALLED:
        paths = {key: installed_clips.find(key) for key in installed_clips.NAMES}
    elif (root / prepare.MANIFEST).is_file():
        manifest = prepare.read_manifest(root)
        paths = {clip["clip"]: root / "frames" / clip["clip"] for clip in manifest["clips"]}
    elif davis := prepare.davis_folder(root):
        root = davis
        paths = {found.clip: found.path for found in prepare.davis_sources(davis, split)}
    else:
        paths = {found.clip: found.path for found in prepare.folder_sources(root)}
    if split is not None and not (root / "ImageSets").is_dir():
        raise ValueError(f"{source} has no ImageSets: split='{split}' is for DAVIS's own layout.")
    if clips is not None:
        if unknown := [clip for clip in clips if clip not in paths]:
            raise ValueError(f"{source} has no clip called {unknown[0]!r}; it has {', '.join(paths)}.")
    chosen = clips is not None and len(set(clips)) < len(paths)
    if chosen:
        paths = {clip: path for clip, path in paths.items() if clip in clips}
    title = name or (f"{root.name}-{split}" if split else root.name)
    if not title or set(title) & set('/\\:*?"<>|'):
        raise ValueError(f"name must be fit for a folder, not {title!r}.")
    return EvalSet(title, paths, size, limit, chosen)


def digest(frames: Iterable[np.ndarray]) -> tuple[str, int]:
    """Return the SHA-256 over sizes and values of RGB frames, and their number. Raises ValueError if there is none."""
    total, count = hashlib.sha256(), 0
    for frame in frames:
        frame = check_frame(frame, f"frames[{count}]", color=True)
        total.update(repr(frame.shape).encode())
        total.update(np.ascontiguousarray(frame).data)
        count += 1
    if count == 0:
        raise ValueError("frames holds no frames.")
    return total.hexdigest(), count
