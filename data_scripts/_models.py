"""Models on the hub: what `weights.py` would fetch of one, and fetching it, with every large file's digest compared."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import _command  # noqa: F401  it puts gcgkit on the path

from gcgkit.utils import hub
from gcgkit.utils.files import file_sha256, require_space

MODELS = tomllib.loads(Path(__file__).with_name("models.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class HubFile:
    """A file of a model repository: path, bytes, SHA-256 (None for small files), and its local path if it is here."""

    name: str
    size: int
    sha256: str | None
    here: Path | None


def plan_model(
    repo: str, parts: Iterable[str], *, revision: str = "main", folder: Path | None = None, endpoint: str | None = None
) -> list[HubFile]:
    """List the files that `fetch_model` would bring, with their places where they are here. Errors as there."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    with hub.one_sentence(repo, revision):
        if reason := hub.hub_unreachable(endpoint):
            raise ConnectionError(reason)
        info = HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True)
    listed = {sibling.rfilename: sibling for sibling in info.siblings or []}
    for name in listed:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            raise ValueError(f"{repo} lists the file {name!r}, which leads out of the folder: nothing was fetched.")
    files = []
    for name in hub.choose_files(listed, parts):
        sibling = listed[name]
        lfs = sibling.lfs or {}
        digest = lfs.get("sha256") if isinstance(lfs, dict) else lfs.sha256
        found = folder / name if folder else try_to_load_from_cache(repo, name, revision=info.sha)
        here = Path(found) if isinstance(found, (str, Path)) and Path(found).is_file() else None
        if here is not None and here.stat().st_size != (sibling.size or 0):
            here = None
        files.append(HubFile(name, sibling.size or 0, digest, here))
    if not hub.weight_files([file.name for file in files]):
        raise ValueError(f"{repo} at revision {revision} holds no weights under the usual names: is the id right?")
    return files


def fetch_model(
    repo: str, parts: Iterable[str], *, revision: str = "main", folder: Path | None = None, endpoint: str | None = None
) -> Path:
    """Download the ``parts`` of a model repository into the hub's own cache, or into ``folder``; return the place.

    Afterwards ``from_pretrained(repo)`` loads from the cache without network, or ``from_pretrained(folder)`` from the
    folder. endpoint: a mirror of the hub. Large files are compared with the hub's SHA-256; a wrong one is removed.
    Errors as `hub.one_sentence`.
    """
    from huggingface_hub import constants, snapshot_download

    parts = list(parts)
    files = plan_model(repo, parts, revision=revision, folder=folder, endpoint=endpoint)
    missing = [file for file in files if file.here is None]
    place = folder or Path(constants.HF_HUB_CACHE)
    require_space(place, sum(file.size for file in missing), repo)
    names = [file.name for file in files]
    with hub.one_sentence(repo, revision):
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
