"""Unpack zip and tar archives safely: no file outside the folder, no links, no bombs, no half-written file.

An archive is read whole before anything is written; one bad entry, and nothing is unpacked. Each file gets its
name when it is complete. At the end the folder gets a list of the unpacked files. By this list a second run knows that
there is nothing to do, even after the archive was deleted.
"""

import json
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from .files import BLOCK, bytes_bar, require_space, size_text, write_error, write_text

MAX_RATIO = 100  # unpacked over packed bytes: photographs and video reach 1, text 10, bombs 1,000 and more
HARMLESS = 100 * 10**6  # bytes below which the ratio does not matter
# Contents of archives that were read whole, by file and time of change: a download is checked, and then unpacked.
_known: dict[tuple[int, ...], dict[str, int]] = {}


@dataclass(frozen=True)
class Entry:
    """A file in an archive: its path there, with forward slashes, its unpacked bytes, and a function that opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def contents(archive: str | Path) -> dict[str, int]:
    """Check a zip or tar archive whole, and return the unpacked bytes of each of its files by its path there.

    An archive that did not change is not read again, also under another name.
    Raises ValueError, naming the archive, if it is cut off, of another format or empty, or if it holds a path leading
    out of the folder, a path twice, a link or a device, an encrypted file, or far more than its own size promises.
    """
    archive = Path(archive)
    about = archive.stat()
    key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
    if key in _known:
        return dict(_known[key])
    with _archive_errors(archive):
        files = [(entry.name, entry.size) for entry in _entries(archive)]
    if not files:
        raise ValueError(f"{archive} holds no files.")
    if len({PurePosixPath(name) for name, _ in files}) < len(files):
        raise ValueError(f"{archive} holds two files of the same path.")
    _known[key] = dict(files)
    return dict(files)


def extract(
    archive: str | Path,
    folder: str | Path,
    *,
    choose: Callable[[str], str | None] | None = None,
    name: str | None = None,
) -> list[Path]:
    """Unpack an archive into a folder and return the files' paths, in order of the archive.

    choose: returns the path in the folder for a path in the archive, None to leave a file out; by default all files
    keep their paths. name: the name to give to `extracted` later, by default the archive's file name. Files that an
    earlier run unpacked are kept. Raises ValueError as `contents` does, and for two files with one path; raises OSError
    for a full disk.
    """
    archive, folder = Path(archive), Path(folder)
    sizes = contents(archive)
    chosen = {n: choose(n) if choose else n for n in sizes}
    targets = {n: folder / _safe_path(target, archive) for n, target in chosen.items() if target is not None}
    if len(set(targets.values())) < len(targets):
        raise ValueError(f"{archive} holds two files that would get the same path.")
    if not targets:
        raise ValueError(f"{archive} holds none of the wanted files: is it the right archive?")
    sizes = {n: sizes[n] for n in targets}
    here = {n for n, target in targets.items() if target.is_file() and target.stat().st_size == sizes[n]}
    require_space(folder, sum(sizes[n] for n in targets.keys() - here), f"what {archive.name} holds")
    inside = folder.resolve()
    with _archive_errors(archive), bytes_bar(sum(sizes.values()), f"unpacking {archive.name}") as bar:
        for entry in _entries(archive):
            if entry.name in targets:
                _write_file(targets[entry.name], inside, entry, bar)
    done = {target.relative_to(folder).as_posix(): sizes[entry] for entry, target in targets.items()}
    write_text(_list_file(name or archive.name, folder), json.dumps({"archive": archive.name, "files": done}))
    return list(targets.values())


def extracted(name: str, folder: str | Path) -> list[Path] | None:
    """Return the files that `extract` unpacked from the archive called ``name``, None unless all are there."""
    folder = Path(folder)
    try:
        files = json.loads(_list_file(name, folder).read_text(encoding="utf-8"))["files"]
        return [folder / f for f in files] if all((folder / f).stat().st_size == files[f] for f in files) else None
    except (OSError, ValueError, KeyError):
        return None


# --- reading ----------------------------------------------------------------------------------------------------------


def _entries(archive: Path) -> Iterator[Entry]:
    """Yield the files of an archive, checked; each opens until the next one is asked for."""
    packed, total, is_zip = archive.stat().st_size, 0, zipfile.is_zipfile(archive)
    with zipfile.ZipFile(archive) if is_zip else tarfile.open(archive) as file:
        if is_zip and sum(info.compress_size for info in file.infolist()) > packed:
            raise ValueError(f"{archive} describes more than its own {size_text(packed)}: its entries overlap.")
        for member in file.infolist() if is_zip else file:
            if is_zip:
                name, size, is_folder = member.filename, member.file_size, member.is_dir()
                plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            else:
                name, size, is_folder = member.name, member.size, member.isdir()
                plain = member.isreg() or is_folder
            if not plain:
                raise ValueError(f"{archive} holds a link or a device, {name!r}, which is not unpacked.")
            if is_zip and member.flag_bits & 1:
                raise ValueError(f"{archive} is encrypted ({name!r}); a public data set is not.")
            _safe_path(name, archive)
            total += size
            if total > max(HARMLESS, MAX_RATIO * packed):
                sizes = f"{archive} of {size_text(packed)} would unpack to {size_text(total)}"
                raise ValueError(f"{sizes} or more: a zip bomb.")
            if not is_folder:
                yield Entry(name, size, partial(file.open if is_zip else file.extractfile, member))
        # Reading a tar whole finds one that is cut off: the end marker may come early, a gzip's checksum lies behind.
        while not is_zip and file.fileobj.read(BLOCK):
            pass


def _safe_path(name: str, archive: Path) -> PurePosixPath:
    """Return a path that stays inside the folder on every system; raise ValueError for any other."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise ValueError(f"{archive} holds the path {name!r}, which leads out of the folder: nothing was unpacked.")
    return path


@contextmanager
def _archive_errors(archive: Path):
    """Turn the errors of zipfile and tarfile for broken archives into one ValueError."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{archive} is not a complete zip or tar archive; it may be cut off ({text}).") from None
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{archive} cannot be unpacked here: {error}.") from None


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_file(target: Path, inside: Path, entry: Entry, bar) -> None:
    """Write one file under a temporary name and rename it, unless an earlier run has written it."""
    if target.is_file() and not target.is_symlink() and target.stat().st_size == entry.size:
        bar.update(entry.size)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(inside):
        raise ValueError(f"{target.parent} is a link that leads out of {inside}: remove it and run again.")
    aside = target.with_name(f".{target.name}.partial")
    try:
        with entry.open() as source, aside.open("wb") as file:
            while block := source.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if aside.stat().st_size != entry.size:
            raise EOFError(f"{target.name} has fewer bytes than announced")
        os.replace(aside, target)
    except OSError as error:
        raise write_error(error, target) from None
    finally:
        aside.unlink(missing_ok=True)


def _list_file(name: str, folder: Path) -> Path:
    return folder / f".{name}.extracted.json"
