"""Sources of the data sets (``catalog.toml``: addresses, sizes, digests, terms), to fetch and unpack.

All files go under one data folder, in the layout that `footage` and `prepare` read::

    downloads/                 the archives, with SHA256SUMS
    DAVIS/                     as in its archives: JPEGImages/480p/<clip>/00000.jpg, ImageSets/2017/*.txt
    LDV/001.mkv ...            the numbers 001 to 365
    photos/{bsds,imagenet}/    *.jpg

Sizes and digests come from public sources that agree with each other. Where a digest is None, it is recorded when the
file first arrives.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..utils import archives, download, hub
from ..utils.files import free_space, read_table, require_space, size_text

DOWNLOADS = "downloads"
KNOWN = "known"  # for sha256=: the digest in this module


@dataclass(frozen=True)
class Archive:
    """A data set's archive, and ``folder``, the place of its files.

    size: its exact bytes. about: its approximate size, if the server packs it for each download. keep: a pattern of the
    wanted files' whole paths in the archive, all by default; ``name`` says, from its groups, what they are called.
    """

    title: str
    url: str
    file: str
    terms: str
    size: int | None = None
    sha256: str | None = None
    folder: str = "."
    about: int | None = None
    keep: str = "(.*)"
    name: str = r"\1"

    def choose(self, path: str) -> str | None:
        """Return the name that a file of the archive gets, None for one that is not wanted (`archives.extract`)."""
        found = re.fullmatch(self.keep, path, re.DOTALL)
        return found and found.expand(self.name)


@dataclass(frozen=True)
class Split:
    """A part of a data set as the paper uses it: clips, frames if known, and its use (§4.2)."""

    title: str
    clips: int
    frames: int | None = None
    used: str = "training"


_LISTED = read_table(__package__, "catalog.toml")
ARCHIVES = {name: Archive(**about) for name, about in _LISTED["archives"].items()}
SPLITS = {name: Split(**about) for name, about in _LISTED["splits"].items()}


def get_archive(
    archive: Archive,
    root: str | Path,
    *,
    url: str | None = None,
    sha256: str | None = KNOWN,
    keep: bool = True,
    say: Callable[[str], None] = print,
    **options,
) -> list[Path]:
    """Fetch an archive, unpack the selected files under ``root``, and return them; do nothing if this was done.

    url: a mirror, a local archive, or a Google Drive address. sha256: the digest to expect, by default the known one;
    None accepts any. keep=False deletes a fetched archive afterwards. options: for `download.fetch`.
    Errors as `download.fetch`, `hub.fetch_drive` and `archives.extract`.
    """
    root, target, source = Path(root), Path(root) / archive.folder, url or archive.url
    done = archives.extracted(archive.file, target)
    if done is not None:
        say(f"{archive.title}: {len(done)} files are in {target} already.")
        return done
    size, sha256 = (archive.size, archive.sha256) if sha256 == KNOWN else (None, sha256)
    path, room = root / DOWNLOADS / archive.file, 1.1  # photographs and videos unpack to about the same size
    if archive.about and not path.exists():  # the server gives no size
        require_space(root, (1 + room) * archive.about, source)
    drive = hub.drive_id(source)
    if drive and drive[1]:
        files = _from_drive_folder(source, root / DOWNLOADS / Path(archive.file).stem, target, archive)
        say(f"{archive.title}: {len(files)} files are in {target} now. Terms: {archive.terms}.")
        return files
    if drive:
        path = hub.fetch_drive(source, path, room=room, sha256=sha256, check=archives.contents)
    else:
        path = download.fetch(source, path, size=size, sha256=sha256, room=room, check=archives.contents, **options)
    files = archives.extract(path, target, choose=archive.choose, name=archive.file)
    if not keep and path.parent == root / DOWNLOADS:
        path.unlink()
    say(f"{archive.title}: {len(files)} files are in {target} now. Terms: {archive.terms}.")
    return files


def describe(archive: Archive, root: str | Path, url: str | None = None) -> str:
    """Return one line on the work of `get_archive`: source, size, target and free space."""
    root, source = Path(root), url or archive.url
    if archives.extracted(archive.file, root / archive.folder) is not None:
        return f"{archive.title}: is in {root / archive.folder} already, nothing would be fetched."
    size, amount = (archive.size if url is None else None), "a size that is known only after the start"
    if size is None and not hub.drive_id(source):
        try:
            size = download.remote_size(source)
        except ConnectionError:
            amount = "a size that is unknown, as the server cannot be reached"
    if size is not None:
        amount = size_text(size)
    elif archive.about:
        amount = f"about {size_text(archive.about)}"
    way = "use" if download.local_path(source) is not None else "fetch"
    return (
        f"{archive.title}: would {way} {source} ({amount}) and unpack it to {root / archive.folder}, "
        f"where {size_text(free_space(root))} are free. Terms: {archive.terms}."
    )


def _from_drive_folder(url: str, fetched: Path, target: Path, archive: Archive) -> list[Path]:
    """Fetch a Google Drive folder in place of an archive; return the selected files, also from archives in it."""
    files = []
    target.mkdir(parents=True, exist_ok=True)
    for path in hub.fetch_drive_folder(url, fetched):
        name = archive.choose(path.name)
        if path.suffix.lower() in (".zip", ".tgz", ".tar", ".gz"):
            files += archives.extract(path, target, choose=archive.choose)
        elif name is not None:
            if not (target / name).exists():
                # Copy, do not move: without the original, the next run fetches it again.
                shutil.copyfile(path, target / f".{name}.partial")
                os.replace(target / f".{name}.partial", target / name)
            files.append(target / name)
    if not files:
        raise ValueError(f"{url} holds none of the wanted files: is it the right folder?")
    return files
