"""Unpack zip and tar archives safely: no file outside the folder, no links, no bombs, no half-written file.

An archive is read completely before anything is written; one bad entry, and nothing is unpacked. Each file gets its
name when it is complete. At the end the folder gets a list of the unpacked files. By this list a second run knows that
there is nothing to do, even after the archive was deleted.
"""

from __future__ import annotations

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
from pathlib import Path, PurePosixPath

from .files import BLOCK, bytes_bar, require_space, size_text, write_error, write_text

MAX_RATIO = 100  # unpacked over packed bytes: photographs and video reach 1, text 10, bombs 1,000 and more
HARMLESS = 100 * 10**6  # bytes below which the ratio does not matter


@dataclass(frozen=True)
class Entry:
    """A file in an archive: its path there, with forward slashes, and its unpacked bytes."""

    name: str
    size: int


def contents(archive: str | Path) -> list[Entry]:
    """Return the files of a zip or tar archive, all checked.

    Raises ValueError, naming the archive, if it is cut off or of another format, or if it holds a path leading out of
    the folder, a path twice, a link or a device, an encrypted file, or far more than its own size promises.
    """
    archive = Path(archive)
    with _archive_errors(archive):
        entries = _zip_contents(archive) if zipfile.is_zipfile(archive) else _tar_contents(archive)
    if len({PurePosixPath(entry.name) for entry in entries}) < len(entries):
        raise ValueError(f"{archive} holds two files of the same path.")
    return entries


def check(archive: str | Path) -> None:
    """Raise ValueError as `contents` does, and for an archive without files."""
    if not contents(archive):
        raise ValueError(f"{archive} holds no files.")


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
    entries = contents(archive)
    chosen = {e.name: (choose(e.name) if choose else e.name) for e in entries}
    targets = {n: folder / _safe_path(target, archive) for n, target in chosen.items() if target is not None}
    if len(set(targets.values())) < len(targets):
        raise ValueError(f"{archive} holds two files that would get the same path.")
    if not targets:
        raise ValueError(f"{archive} holds none of the wanted files: is it the right archive?")
    sizes = {e.name: e.size for e in entries if e.name in targets}
    missing = {n for n, target in targets.items() if not (target.is_file() and target.stat().st_size == sizes[n])}
    require_space(folder, sum(sizes[n] for n in missing), f"what {archive.name} holds")
    inside = folder.resolve()
    with _archive_errors(archive), bytes_bar(sum(sizes.values()), f"unpacking {archive.name}") as bar:
        for entry, read in _zip_files(archive) if zipfile.is_zipfile(archive) else _tar_files(archive):
            if entry in targets:
                _write_file(targets[entry], inside, sizes[entry], read, bar)
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


def _zip_contents(archive: Path) -> list[Entry]:
    with zipfile.ZipFile(archive) as file:
        infos = file.infolist()
    packed = archive.stat().st_size
    if sum(info.compress_size for info in infos) > packed:
        raise ValueError(f"{archive} describes more than its own {size_text(packed)}: its entries overlap.")
    entries, total = [], 0
    for info in infos:
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{archive} holds a link or a device, {info.filename!r}, which is not unpacked.")
        if info.flag_bits & 1:
            raise ValueError(f"{archive} is encrypted ({info.filename!r}); a public data set is not.")
        _safe_path(info.filename, archive)
        total += info.file_size
        _check_bomb(total, packed, archive)
        if not info.is_dir():
            entries.append(Entry(info.filename, info.file_size))
    return entries


def _tar_contents(archive: Path) -> list[Entry]:
    entries, total, packed = [], 0, archive.stat().st_size
    with tarfile.open(archive) as file:
        for member in file:  # reading the whole file finds one that is cut off
            if not (member.isreg() or member.isdir()):
                raise ValueError(f"{archive} holds a link or a device, {member.name!r}, which is not unpacked.")
            _safe_path(member.name, archive)
            total += member.size
            _check_bomb(total, packed, archive)
            if member.isreg():
                entries.append(Entry(member.name, member.size))
        while file.fileobj.read(BLOCK):  # the end marker may come early; a gzip's checksum lies at the very end
            pass
    return entries


def _check_bomb(total: int, packed: int, archive: Path) -> None:
    if total > max(HARMLESS, MAX_RATIO * packed):
        raise ValueError(f"{archive} of {size_text(packed)} would unpack to {size_text(total)} or more: a zip bomb.")


def _safe_path(name: str, archive: Path) -> PurePosixPath:
    """Return a path that stays inside the folder on every system; raise ValueError for any other."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise ValueError(f"{archive} holds the path {name!r}, which leads out of the folder: nothing was unpacked.")
    return path


def _zip_files(archive: Path) -> Iterator[tuple[str, Callable]]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.is_dir():
                yield info.filename, lambda info=info: file.open(info)


def _tar_files(archive: Path) -> Iterator[tuple[str, Callable]]:
    with tarfile.open(archive) as file:
        for member in file:
            if member.isreg():
                yield member.name, lambda member=member: file.extractfile(member)


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


def _write_file(target: Path, inside: Path, size: int, read: Callable, bar) -> None:
    """Write one file under a temporary name and rename it, unless an earlier run has written it."""
    if target.is_file() and not target.is_symlink() and target.stat().st_size == size:
        bar.update(size)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(inside):
        raise ValueError(f"{target.parent} is a link that leads out of {inside}: remove it and run again.")
    aside = target.with_name(f".{target.name}.partial")
    try:
        with read() as source, aside.open("wb") as file:
            while block := source.read(BLOCK):
                file.write(block)
                bar.update(len(block))
        if aside.stat().st_size != size:
            raise EOFError(f"{target.name} has fewer bytes than announced")
        os.replace(aside, target)
    except OSError as error:
        raise write_error(error, target) from None
    finally:
        aside.unlink(missing_ok=True)


def _list_file(name: str, folder: Path) -> Path:
    return folder / f".{name}.extracted.json"
