"""Two hosts that want a client of their own: the model hub (huggingface_hub) and Google Drive (gdown).

The promises of `download` hold here too: room is checked before the start, a broken transfer goes on where it stopped,
digests are compared, errors are one sentence.
"""

import fnmatch
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from .download import check_and_rename, unreachable
from .files import bytes_bar, file_sha256, require_space, size_text

# Weights under the names that the libraries look for; others in a repository (fp16, ema, one-file) are left there.
_WEIGHTS = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model)(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.(safetensors|bin)"
)
_SMALL = ("*.json", "*.txt")


def choose_files(
    names: Iterable[str], parts: Iterable[str], *, variant: str | None = None, pickle: bool = True
) -> list[str]:
    """The configuration and weights in ``parts`` (folders of a repository, "" for its root), safetensors where given.

    variant: such as "fp16": weights of that name where a part has them. pickle: take .bin where there is nothing else.
    """
    chosen = []
    for part in parts:
        inside = [name for name in sorted(names) if str(PurePosixPath(name).parent) == (part or ".")]
        weights = weight_files(inside, pickle, variant) or weight_files(inside, pickle)
        small = [name for name in inside if any(fnmatch.fnmatch(name, pattern) for pattern in _SMALL)]
        if not any(name.endswith(".bin") for name in weights):
            small = [name for name in small if ".bin.index." not in name]
        chosen += small + weights
    return chosen


def weight_files(names: list[str], pickle: bool = True, variant: str | None = None) -> list[str]:
    """The weight files among ``names`` that are of the variant (None: of no variant), safetensors before .bin."""
    found = [name for name in names if (m := _WEIGHTS.fullmatch(PurePosixPath(name).name)) and m["variant"] == variant]
    return [n for n in found if n.endswith(".safetensors")] or [n for n in found if pickle and n.endswith(".bin")]


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
    """Do the work of `fetch_pipeline`, with the errors of `one_sentence`."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    place = {key: options[key] for key in ("cache_dir", "token") if key in options}
    revision, fresh, offline = (options.get(key) for key in ("revision", "force_download", "local_files_only"))
    failing = partial(one_sentence, repo, revision or "main", cached_only=bool(offline))
    api, unreached = HfApi(token=options.get("token")), None
    if not offline:
        try:
            with failing():
                if reason := hub_unreachable():
                    raise ConnectionError(reason)
                found = api.model_info(repo, revision=revision, timeout=10)
        except ConnectionError as error:
            offline, unreached = True, error
            if fresh:
                raise
    try:
        with failing():
            index = hf_hub_download(
                repo, "model_index.json", revision=revision, force_download=bool(fresh), local_files_only=bool(offline),
                **place,
            )  # fmt: skip
        root, commit = Path(index).parent, Path(index).parent.name
        parts = [part for part in pipeline_parts(f"{repo} on the hub", Path(index), kind) if part not in options]
        lacking = [part for part in parts if not any(root.joinpath(part).glob("*"))]
        if offline and lacking:
            raise ConnectionError(
                f"{repo} lies in the hub's cache without its {lacking[0]}: load it once without local_files_only."
            )
    except ConnectionError as error:
        raise (unreached or error) from None
    if offline:
        return root
    with failing():
        if commit != found.sha:  # somebody has pushed since
            found = api.model_info(repo, revision=commit, timeout=10)
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


def pipeline_parts(what: str, index: Path, kind: str) -> list[str]:
    """Return the names of the parts that a model_index.json lists; ValueError for another pipeline's than ``kind``.

    what: names its repository or folder.
    """
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
        found = listed.get("_class_name")
    except (ValueError, AttributeError):
        raise ValueError(f"{what} holds a model_index.json that is no pipeline's index: save it again.") from None
    if found != kind:
        raise ValueError(
            f"{what} holds a {found}, not a {kind}: give another; paper.build_paper(base=...) makes one from Stable "
            "Diffusion."
        )
    lists = {name: value for name, value in listed.items() if isinstance(value, list) and name.isidentifier()}
    return [name for name, value in lists.items() if len(value) == 2 and value[1] is not None]


def hub_unreachable(endpoint: str | None = None) -> str | None:
    """Return in a few words why the hub, or a mirror, cannot be asked, None if it can.

    The hub's client tries again for a minute and more before it says so.
    """
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(endpoint or constants.ENDPOINT)


def require(source: str, remedy: str) -> None:
    """Raise FileNotFoundError for a hub id that neither the hub's cache nor the hub has.

    Call it before the imports that loading needs, which take seconds. Other sources pass unchecked. remedy: what to do
    without a network. Raises PermissionError for a closed repository, ValueError for a malformed id, and
    ConnectionError where the hub breaks off.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source) or Path(source).exists():
        return
    if Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=source, repo_type="model"), "snapshots").is_dir():
        return
    if reason := hub_unreachable():
        raise FileNotFoundError(f"{source} is not on this machine, and the hub cannot be reached ({reason}): {remedy}.")
    with one_sentence(source, "main"):
        HfApi().model_info(source, timeout=10)


@contextmanager
def one_sentence(repo: str, revision: str, *, cached_only: bool = False) -> Iterator[None]:
    """Turn an error of the hub's client into one sentence.

    FileNotFoundError for an unknown repository or revision, PermissionError for a closed one, ConnectionError without
    network, ValueError for a wrong id or file, OSError for a full disk. cached_only: the network was not wanted.
    """
    try:
        yield
    except Exception as error:
        raise _translated(error, repo, revision, cached_only) from None


def _translated(error: Exception, repo: str, revision: str, cached_only: bool) -> Exception:
    from huggingface_hub import constants, errors

    if type(error) is ValueError and error.__cause__ is not None:  # so with force_download
        error = error.__cause__
    answers = [getattr(e, "response", None) for e in (error, error.__cause__)]
    answer = next((answer for answer in answers if answer is not None), None)
    status = getattr(answer, "status_code", None)
    is_a = partial(isinstance, error)
    name = str(getattr(answer, "url", "")).rsplit("/", 1)[-1]
    text = " ".join(str(error).split())[:160] or type(error).__name__
    for applies, kind, sentence in (  # the first that applies
        (is_a(errors.GatedRepoError), PermissionError,
         f"{repo} asks for its terms to be accepted on the hub first: accept them there, then log in here with "
         "'hf auth login'."),
        (is_a(errors.RevisionNotFoundError), FileNotFoundError, f"{repo} has no revision {revision!r} on the hub."),
        (is_a(errors.RepositoryNotFoundError), FileNotFoundError,
         f"{repo} is not on the hub, or is private: check the name, or log in with 'hf auth login'."),
        (is_a(errors.HFValidationError), ValueError, f"{repo!r} is no id of a model (owner/name)."),
        (status in (401, 403), PermissionError,
         f"The hub does not give {repo} to this token ({status}): log in again with 'hf auth login'."),
        (is_a(errors.EntryNotFoundError) and status == 404, ValueError,
         f"{repo} on the hub holds no {name}: give the id of another model."),
        (cached_only, ConnectionError,
         f"{repo} is not in the hub's cache on this machine: load it once without local_files_only."),
        (constants.HF_HUB_OFFLINE, ConnectionError,
         f"{repo} cannot be fetched while HF_HUB_OFFLINE is set: unset it."),
        (is_a(errors.LocalEntryNotFoundError), ConnectionError,
         f"{repo} cannot be fetched from the hub now: check the network and run the same again."),
        (type(error) is OSError and error.errno is not None, OSError,
         f"{repo} cannot be written: {getattr(error, 'strerror', '')}."),
        (True, ConnectionError,
         f"{repo} cannot be fetched from the hub ({text}): check the network and run the same again."),
    ):  # fmt: skip
        if applies:
            return kind(sentence)


# --- Google Drive -----------------------------------------------------------------------------------------------------


def drive_id(url: str) -> tuple[str, bool] | None:
    """Return the id in a Google Drive address, and True for a folder's id; None for any other address."""
    found = re.match(r"https?://(?:drive|docs)\.google\.com/.*?(folders/|file/d/|[?&]id=)([\w-]{20,})", url)
    return (found[2], found[1] == "folders/") if found else None


def fetch_drive(
    url: str, path: Path, *, room: float = 0.0, sha256: str | None = None, check: Callable[[Path], object] | None = None
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
    gdown = _gdown(url)
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
    gdown = _gdown(url)
    folder.mkdir(parents=True, exist_ok=True)
    with _drive_sentence(gdown, url):
        return [Path(p) for p in gdown.download_folder(url, output=str(folder), quiet=True, resume=True, retries=3)]


def _gdown(url: str):
    try:
        import gdown
    except ImportError:
        raise FileNotFoundError(
            "Google Drive needs the package gdown, which is not installed: run pip install 'gdown>=6.5'."
        ) from None
    if reason := unreachable(url):
        raise ConnectionError(f"{url} cannot be reached: {reason}; check the network, or try a mirror with --url.")
    return gdown


def _watch(bar, path: Path, room: float) -> Callable[[int, int | None], None]:
    """Return gdown's progress callback: it moves the bar, and checks the disk as soon as the size is known."""

    def progress(done: int, total: int | None) -> None:
        if total is not None and bar.total != total:
            require_space(path.parent, total - done + room * total, f"{path.name} ({size_text(total)})")
            bar.total = total
        bar.update(done - bar.n)

    return progress


@contextmanager
def _drive_sentence(gdown, url: str) -> Iterator[None]:
    import requests

    try:
        yield
    except gdown.exceptions.FileURLRetrievalError:
        raise ConnectionError(
            f"{url} gives no file: the link is dead, or too many people have downloaded it today; try again tomorrow, "
            "or a mirror with --url."
        ) from None
    except (gdown.exceptions.DownloadError, requests.RequestException) as error:
        text = " ".join(str(error).split())[:120]
        raise ConnectionError(f"{url} broke off ({text}): run again to continue.") from None
