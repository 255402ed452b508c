"""Two hosts that want a client of their own: the model hub (huggingface_hub) and Google Drive (gdown).

What `download` promises holds here too: room is checked before the start, a broken transfer goes on where it stopped,
digests are compared, errors are one sentence.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .download import check_and_rename
from .files import bytes_bar, file_sha256, require_space, size_text

# Weights under the names that the libraries look for; others in a repository (fp16, ema, one-file) are left there.
_WEIGHTS = re.compile(r"(model|pytorch_model|diffusion_pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)")
_SMALL = ("*.json", "*.txt")


@dataclass(frozen=True)
class HubFile:
    """A file of a model repository: path, bytes, SHA-256 (None for small files), and its local path if it is here."""

    name: str
    size: int
    sha256: str | None
    here: Path | None


def choose_files(names: Iterable[str], parts: Iterable[str]) -> list[str]:
    """The configuration and weights in ``parts`` (folders of a repository, "" for its root), safetensors where given.

    Raises ValueError for a path that leads out of a folder.
    """
    chosen = []
    names = sorted(names)
    for part in parts:
        inside = [name for name in names if str(PurePosixPath(name).parent) == (part or ".")]
        weights = [name for name in inside if _WEIGHTS.fullmatch(PurePosixPath(name).name)]
        safe = [name for name in weights if name.endswith(".safetensors")]
        small = [n for n in inside if any(fnmatch.fnmatch(n, s) for s in _SMALL) and not n.endswith(".bin.index.json")]
        chosen += small + (safe or weights)
    return chosen


def plan_model(
    repo: str, parts: Iterable[str], *, revision: str = "main", folder: Path | None = None, endpoint: str | None = None
) -> list[HubFile]:
    """What `fetch_model` would bring, and what of it is here already. Errors as there."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    with _one_sentence(repo, revision):
        info = HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True)
    listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
    for name in listed:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            raise ValueError(f"{repo} lists the file {name!r}, which leads out of the folder: nothing was fetched.")
    files = []
    for name in choose_files(listed, parts):
        sibling = listed[name]
        lfs = sibling.lfs or {}
        digest = lfs.get("sha256") if isinstance(lfs, dict) else lfs.sha256
        found = folder / name if folder else try_to_load_from_cache(repo, name, revision=info.sha)
        here = Path(found) if isinstance(found, (str, Path)) and Path(found).is_file() else None
        if here is not None and here.stat().st_size != (sibling.size or 0):
            here = None
        files.append(HubFile(name, sibling.size or 0, digest, here))
    if not any(_WEIGHTS.fullmatch(PurePosixPath(file.name).name) for file in files):
        raise ValueError(f"{repo} at revision {revision} holds no weights under the usual names: is the id right?")
    return files


def fetch_model(
    repo: str, parts: Iterable[str], *, revision: str = "main", folder: Path | None = None, endpoint: str | None = None
) -> Path:
    """Download the ``parts`` of a model repository into the hub's own cache, or into ``folder``; return the place.

    Afterwards ``from_pretrained(repo)`` loads from the cache without network, or ``from_pretrained(folder)`` from the
    folder. endpoint: a mirror of the hub. Large files are compared with the hub's SHA-256; a wrong one is removed.
    Raises FileNotFoundError for an unknown repository or revision, PermissionError for a closed one, ConnectionError
    without network, ValueError for a wrong file, OSError for a full disk.
    """
    from huggingface_hub import constants, snapshot_download

    parts = list(parts)
    files = plan_model(repo, parts, revision=revision, folder=folder, endpoint=endpoint)
    missing = [file for file in files if file.here is None]
    place = folder or Path(constants.HF_HUB_CACHE)
    require_space(place, sum(file.size for file in missing), repo)
    names = [file.name for file in files]
    with _one_sentence(repo, revision):
        root = snapshot_download(
            repo, revision=revision, allow_patterns=names, local_dir=folder, endpoint=endpoint, max_workers=2
        )
    for file in missing:
        _check_model_file(repo, Path(root) / file.name, file)
    return Path(root)


def _check_model_file(repo: str, path: Path, file: HubFile) -> None:
    """Compare a new file with the hub's size and digest; remove a wrong one, and the target of the cache's link."""
    wrong = None
    if not path.is_file() or path.stat().st_size != file.size:
        wrong = f"{repo}: {file.name} did not arrive with its {file.size} bytes"
    elif file.sha256 is not None and (found := file_sha256(path)) != file.sha256:
        wrong = f"{repo}: {file.name} has SHA-256 {found[:12]}…, not the hub's {file.sha256[:12]}…"
    if wrong is not None:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise ValueError(f"{wrong}: it was removed, run the same again or try another --url.")


class _one_sentence:
    """Turn what the hub's client raises into one sentence of the kinds that `fetch_model` names."""

    def __init__(self, repo: str, revision: str):
        self.repo, self.revision = repo, revision

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if not isinstance(error, Exception):
            return
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            raise PermissionError(f"{self.repo} asks for its terms to be accepted on the hub first.") from None
        if isinstance(error, errors.RevisionNotFoundError):
            raise FileNotFoundError(f"{self.repo} has no revision {self.revision!r} on the hub.") from None
        if isinstance(error, errors.RepositoryNotFoundError):
            raise FileNotFoundError(f"{self.repo} is not on the hub, or not for everybody: give another id.") from None
        if isinstance(error, errors.HFValidationError):
            raise ValueError(f"{self.repo!r} is no id of a model (owner/name).") from None
        if type(error).__name__ in ("OfflineModeIsEnabled", "LocalEntryNotFoundError") and "HF_HUB_OFFLINE" in str(
            error
        ):
            raise ConnectionError(f"{self.repo} cannot be fetched while HF_HUB_OFFLINE is set: unset it.") from None
        if isinstance(error, OSError) and error.errno is not None and type(error) is OSError:
            raise OSError(f"{self.repo} cannot be written: {error.strerror}.") from None
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConnectionError(f"{self.repo} cannot be fetched from the hub ({text}): run the same again.") from None


# --- Google Drive -----------------------------------------------------------------------------------------------------


def drive_id(url: str) -> tuple[str, bool] | None:
    """Return the id in a Google Drive address, and True for a folder's id; None for any other address."""
    found = re.match(r"https?://(?:drive|docs)\.google\.com/.*?(folders/|file/d/|[?&]id=)([\w-]{20,})", url)
    return (found[2], found[1] == "folders/") if found else None


def fetch_drive(
    url: str, path: Path, *, room: float = 0.0, sha256: str | None = None, check: Callable[[Path], None] | None = None
) -> Path:
    """Download a file from Google Drive to ``path``; room, sha256 and check as for `download.fetch`.

    Raises FileNotFoundError with the command to run if gdown is not installed. Raises ConnectionError where Drive gives
    nothing (a dead link, or too many downloads that day) or breaks off; the next run continues from there.
    Raises ValueError and OSError as `download.fetch`.
    """
    path = Path(path)
    if path.exists():
        if check is not None:
            check(path)
        return path
    gdown = _gdown()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.drive")  # gdown's own partial file has this name and eight more letters
    found = drive_id(url)
    address = f"https://drive.google.com/uc?id={found[0]}" if found else url
    with bytes_bar(None, path.name) as bar, _drive_sentence(gdown, url):
        gdown.download(address, str(aside), quiet=True, resume=True, retries=3, progress=_watch(bar, path, room))
    check_and_rename(aside, path, url, file_sha256(aside), sha256=sha256, check=check)
    return path


def fetch_drive_folder(url: str, folder: Path) -> list[Path]:
    """Download the files of a Google Drive folder into ``folder``; keep those there. Errors as `fetch_drive`."""
    gdown = _gdown()
    folder.mkdir(parents=True, exist_ok=True)
    with _drive_sentence(gdown, url):
        return [Path(p) for p in gdown.download_folder(url, output=str(folder), quiet=True, resume=True, retries=3)]


def _gdown():
    try:
        import gdown
    except ImportError:
        raise FileNotFoundError(
            "Google Drive needs the package gdown, which is not installed: run pip install 'gdown>=6.5'."
        ) from None
    return gdown


def _watch(bar, path: Path, room: float) -> Callable[[int, int | None], None]:
    """Return gdown's progress callback: it moves the bar, and checks the disk as soon as the size is known."""

    def progress(done: int, total: int | None) -> None:
        if total is not None and bar.total != total:
            require_space(path.parent, total - done + room * total, f"{path.name} ({size_text(total)})")
            bar.total = total
        bar.update(done - bar.n)

    return progress


class _drive_sentence:
    def __init__(self, gdown, url: str):
        self.gdown, self.url = gdown, url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        import requests

        if isinstance(error, self.gdown.exceptions.FileURLRetrievalError):
            raise ConnectionError(
                f"{self.url} gives no file: the link is dead, or too many people have downloaded it today; try again "
                "tomorrow, or a mirror with --url."
            ) from None
        if isinstance(error, (self.gdown.exceptions.DownloadError, requests.RequestException)):
            text = " ".join(str(error).split())[:120]
            raise ConnectionError(f"{self.url} broke off ({text}): run again to continue.") from None
