"""Disk space, digests, and small files that never appear half-written."""

import errno
import hashlib
import os
import shutil
import tomllib
from functools import lru_cache
from importlib import resources
from pathlib import Path

from tqdm.auto import tqdm

BLOCK = 1 << 20  # bytes read or written at once
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def require_space(folder: str | Path, needed: float, what: str, remedy: str = "choose another --out") -> None:
    """Raise OSError unless the disk of ``folder`` has ``needed`` bytes free for ``what``; the folder may not exist.

    remedy: what to do other than to make room.
    """
    free = free_space(folder)
    if needed > free:
        raise OSError(
            f"{what} needs {size_text(needed)} on the disk of {folder}, which has {size_text(free)} free: make room or "
            f"{remedy}."
        )


def free_space(folder: str | Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    folder = Path(folder).absolute()
    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free


def write_error(error: OSError, path: str | Path) -> OSError:
    """Return an OSError that says in one sentence why writing to ``path`` failed."""
    if error.errno in _FULL:
        return OSError(f"The disk of {Path(path).parent} is full: make room and run again to continue.")
    return OSError(f"{path} cannot be written ({error.strerror or error}).")


def size_text(count: float) -> str:
    """Return a number of bytes in decimal units: ``832766765`` -> ``832.8 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def file_sha256(path: str | Path, progress: bool = True) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits; show a progress bar for a large file."""
    path, digest = Path(path), hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file, bytes_bar(size, f"checking {path.name}", progress and size > 100 * BLOCK) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, computed again when it changes."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _sha256(path: Path, size: int, changed: int) -> str:
    return file_sha256(path, progress=False)


def folder_sha256(folder: Path, suffixes: tuple[str, ...]) -> str:
    """Return the SHA-256 over the names and digests of a folder's files with these suffixes."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in suffixes):
        total.update(f"{file.relative_to(folder).as_posix()} {known_sha256(file)}\n".encode())
    return total.hexdigest()


def write_text(path: str | Path, text: str) -> None:
    """Write a small text file under a temporary name, then rename it."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def read_table(package: str, name: str) -> dict[str, dict]:
    """Read a TOML file that lies in a package of this library."""
    return tomllib.loads(resources.files(package).joinpath(name).read_text(encoding="utf-8"))


def short_name(name: str, longest: int = 150) -> str:
    """Return a name that leaves room for what is added to it: a longer one is cut and gets a digest of the whole."""
    data = os.fsencode(name)
    if len(data) <= longest:
        return name
    return f"{data[: longest - 10].decode(errors='ignore')}-{hashlib.sha256(data).hexdigest()[:8]}"


def behind_link(path: str | Path) -> Path:
    """Return the path that a link points to, and any other path as it is: writing to a link keeps the link."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def partial_path(path: Path) -> Path:
    """Return this process's name beside a file or folder for as long as it is being written."""
    return path.with_name(f".{short_name(path.stem)}.partial-{os.getpid()}{path.suffix}")


def bytes_bar(total: int | None, title: str, wanted: bool = True) -> tqdm:
    """Return a progress bar over bytes; it shows on terminals only."""
    return tqdm(total=total, desc=title, unit="B", unit_scale=True, mininterval=0.5, disable=None if wanted else True)
