"""Two hosts that want a client of their own: the model hub (huggingface_hub) and Google Drive (gdown).

The promises of `download` hold here too: room is checked before the start, a broken transfer goes on where it stopped,
digests are compared, errors are one sentence.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .download import check_and_rename
from .files import bytes_bar, file_sha256, require_space, size_text

# Weights under the names that the libraries look for; others in a repository (fp16, ema, one-file) are left there.
_WEIGHTS = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model)(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.(safetensors|bin)"
)
_SMALL = ("*.json", "*.txt")


@dataclass(frozen=True)
class HubFile:
    """A file of a model repository: path, bytes, SHA-256 (None for small files), and its local path if it is here."""

    name: str
    size: int
    sha256: str | None
    here: Path | None


def choose_files(
    names: Iterable[str], parts: Iterable[str], *, variant: str | None = None, pickle: bool = True
) -> list[str]:
    """The configuration and weights in ``parts`` (folders of a repository, "" for its root), safetensors where given.

    variant: such as "fp16": weights of that name where a part has them. pickle: take .bin where there is nothing else.
    """
    chosen = []
    names = sorted(names)
    for part in parts:
        inside = [name for name in names if str(PurePosixPath(name).parent) == (part or ".")]
        weights = _weights(inside, pickle, variant) or _weights(inside, pickle)
        small = [name for name in inside if any(fnmatch.fnmatch(name, pattern) for pattern in _SMALL)]
        if not any(name.endswith(".bin") for name in weights):
            small = [name for name in small if ".bin.index." not in name]
        chosen += small + weights
    return chosen


def _weights(names: list[str], pickle: bool, variant: str | None = None) -> list[str]:
    """The weight files among ``names`` that are of the variant (None: of no variant), safetensors before .bin."""
    found = [name for name in names if (m := _WEIGHTS.fullmatch(PurePosixPath(name).name)) and m["variant"] == variant]
    return [n for n in found if n.endswith(".safetensors")] or [n for n in found if pickle and n.endswith(".bin")]


def plan_model(
    repo: str, parts: Iterable[str], *, revision: str = "main", folder: Path | None = None, endpoint: str | None = None
) -> list[HubFile]:
    """List the files that `fetch_model` would bring, with their places where they are here. Errors as there."""
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
    if not _weights([file.name for file in files], pickle=True):
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


def fetch_pipeline(repo: str, kind: str, *, variant: str | None = None, **options) -> Path:
    """Bring a saved pipeline from the hub into its cache and return its folder there.

    Reads model_index.json first: a repository whose pipeline is not of the class ``kind`` is refused before its weights
    come. Takes all files from one commit, and no parts that the caller brings. Without network, the cache is used.
    options: the keywords of ``from_pretrained``, among them revision, cache_dir, token, local_files_only,
    force_download and use_safetensors.
    Raises ValueError for another pipeline's repository or a malformed id, FileNotFoundError for one that cannot be had.
    """
    if options.get("local_files_only") and options.get("force_download"):
        raise ValueError("local_files_only and force_download exclude each other: give only one.")
    try:
        return _fetch_snapshot(repo, kind, variant, options)
    except (ConnectionError, PermissionError) as error:
        raise FileNotFoundError(str(error)) from error


def _fetch_snapshot(repo: str, kind: str, variant: str | None, options: dict) -> Path:
    """Do the work of `fetch_pipeline`, with the errors of `fetch_model`."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    place = {key: options[key] for key in ("cache_dir", "token") if key in options}
    revision, fresh, offline = (options.get(key) for key in ("revision", "force_download", "local_files_only"))
    failing = _one_sentence(repo, revision or "main", cached_only=bool(offline))
    api, unreachable = HfApi(token=options.get("token")), None
    if not offline:
        try:
            with failing:
                found = api.model_info(repo, revision=revision, timeout=30)
        except ConnectionError as error:
            offline, unreachable = True, error
            if fresh:
                raise
    try:
        with failing:
            index = hf_hub_download(
                repo, "model_index.json", revision=revision, force_download=bool(fresh), local_files_only=bool(offline),
                **place,
            )  # fmt: skip
        root, commit = Path(index).parent, Path(index).parent.name
        parts = [part for part in _pipeline_parts(repo, Path(index), kind) if part not in options]
        if offline:
            return _complete(repo, root, parts)
    except ConnectionError as error:
        raise (unreachable or error) from None
    with failing:
        if commit != found.sha:  # somebody has pushed since
            found = api.model_info(repo, revision=commit, timeout=30)
        listed = [sibling.rfilename for sibling in found.siblings or []]
        names = choose_files(listed, parts, variant=variant, pickle=options.get("use_safetensors") is not True)
        if names:
            snapshot_download(repo, revision=commit, allow_patterns=names, force_download=bool(fresh), **place)
    if missing := [name for name in names if not root.joinpath(name).is_file()]:  # the network broke off
        raise ConnectionError(
            f"{repo} cannot be fetched from the hub now ({missing[0]} is missing): check the network and run the same "
            "again."
        )
    return root


def _pipeline_parts(repo: str, index: Path, kind: str) -> list[str]:
    """Names of the parts that a repository's model_index.json lists; ValueError for another pipeline's."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
        found = listed.get("_class_name")
    except (ValueError, AttributeError):
        raise ValueError(f"The model_index.json of {repo} is no pipeline's index: give another id.") from None
    if found != kind:
        raise ValueError(
            f"{repo} on the hub holds a {found}, not a {kind}: give another id; paper.build_paper(base=...) makes one "
            "from Stable Diffusion."
        )
    lists = {name: value for name, value in listed.items() if isinstance(value, list) and name.isidentifier()}
    return [name for name, value in lists.items() if len(value) == 2 and value[1] is not None]


def _complete(repo: str, root: Path, parts: Iterable[str]) -> Path:
    """The cached folder ``root`` if every part has files in it; ConnectionError otherwise."""
    missing = [part for part in parts if not any(root.joinpath(part).glob("*"))]
    if missing:
        raise ConnectionError(
            f"{repo} lies in the hub's cache without its {missing[0]}: load it once without local_files_only."
        )
    return root


class _one_sentence:
    """Turn an error of the hub's client into one sentence of the kinds that `fetch_model` names."""

    def __init__(self, repo: str, revision: str, *, cached_only: bool = False):
        self.repo, self.revision, self.cached_only = repo, revision, cached_only

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if not isinstance(error, Exception):
            return
        from huggingface_hub import constants, errors

        if type(error) is ValueError and error.__cause__ is not None:  # so with force_download
            error = error.__cause__
        answers = [getattr(e, "response", None) for e in (error, error.__cause__)]
        status = next((answer.status_code for answer in answers if answer is not None), None)
        if isinstance(error, errors.GatedRepoError):
            raise PermissionError(
                f"{self.repo} asks for its terms to be accepted on the hub first: accept them there, then log in here "
                "with 'hf auth login'."
            ) from None
        if isinstance(error, errors.RevisionNotFoundError):
            raise FileNotFoundError(f"{self.repo} has no revision {self.revision!r} on the hub.") from None
        if isinstance(error, errors.RepositoryNotFoundError):
            raise FileNotFoundError(
                f"{self.repo} is not on the hub, or is private: check the name, or log in with 'hf auth login'."
            ) from None
        if isinstance(error, errors.HFValidationError):
            raise ValueError(f"{self.repo!r} is no id of a model (owner/name).") from None
        if status in (401, 403):
            raise PermissionError(
                f"The hub does not give {self.repo} to this token ({status}): log in again with 'hf auth login'."
            ) from None
        if isinstance(error, errors.EntryNotFoundError) and status == 404:
            name = str(error.response.url).rsplit("/", 1)[-1]
            raise ValueError(f"{self.repo} on the hub holds no {name}: give the id of another model.") from None
        if self.cached_only:
            raise ConnectionError(
                f"{self.repo} is not in the hub's cache on this machine: load it once without local_files_only."
            ) from None
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError(f"{self.repo} cannot be fetched while HF_HUB_OFFLINE is set: unset it.") from None
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise ConnectionError(
                f"{self.repo} cannot be fetched from the hub now: check the network and run the same again."
            ) from None
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
