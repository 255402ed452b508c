"""Resumable, checked downloads: a file gets its name only when it is complete and correct.

A file grows as ``NAME.partial`` beside its final place; ``NAME.partial.json`` records its source, and the next run
continues from there. A SHA-256 digest that nobody published is written to ``SHA256SUMS`` in the same folder after the
first success (in the format of ``sha256sum -c``) and compared from then on.

Each error is one sentence: FileNotFoundError and PermissionError for a file that the server lacks or refuses,
ConnectionError for a connection that fails, ValueError for a wrong size, digest or content, OSError for a full disk.
"""

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass, url2pathname

from .files import bytes_bar, file_sha256, require_space, size_text, write_error, write_text

LEDGER = "SHA256SUMS"
_READ = 1 << 16  # bytes asked of the network at once; a broken read loses at most these
_BUSY = {408, 425, 429, 500, 502, 503, 504}  # answers after which another try may succeed


class _Broken(Exception):
    """A transfer ended early; another try may continue where it stopped."""


def fetch(
    source: str | Path,
    path: str | Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    room: float = 0.0,
    check: Callable[[Path], object] | None = None,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Download a file from an http(s) address to ``path`` and return its place; use a local source in place.

    source: address, ``file://`` address or local path. size: bytes, and sha256: digest (64 hexadecimal digits, or the
    first 8 or more), where known. room: disk space to keep for the file's content, as a multiple of the file's size.
    check: raises ValueError for content that cannot be used. attempts: tries in a row without progress before giving
    up, with ``pause`` seconds after the first and twice as many after each next. A server that cannot be reached at the
    start gets none. timeout: seconds of silence.
    An existing file is checked and never fetched again. Errors: see the module.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{8,64}", sha256 := sha256.lower()):
        raise ValueError(f"sha256 must be 8 to 64 hexadecimal digits, not {sha256!r}.")
    path, here = Path(path), local_path(source)
    if here is not None or path.exists():
        found = here or path
        _verify(found, size, sha256 or _ledger(found.parent).get(found.name), check)
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    from filelock import FileLock, Timeout

    try:
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=0):
            if not path.exists():  # another process may have finished it before the lock was free
                _download(str(source), path, size, sha256, room, check, attempts, pause, timeout)
    except Timeout:
        raise OSError(f"{path} is being downloaded by another process: wait for it to end.") from None
    return path


def remote_size(url: str, timeout: float = 30.0) -> int | None:
    """Return the size in bytes of the file at an address, None if the server does not say. Errors as `fetch`."""
    if (here := local_path(url)) is not None:
        return here.stat().st_size
    import requests

    if reason := unreachable(url):
        raise ConnectionError(_broken_message(url, 0, None, reason))
    with _request_errors(url), requests.head(url, headers=_PLAIN, timeout=timeout, allow_redirects=True) as answer:
        if answer.status_code in (403, 405, 501):  # some servers only answer GET
            with requests.get(url, headers=_PLAIN | {"Range": "bytes=0-0"}, stream=True, timeout=timeout) as answer:
                _check_status(url, answer.status_code)
                return _total(answer.headers, 0 if answer.status_code == 206 else None)
        _check_status(url, answer.status_code)
        return _total(answer.headers, None)


def local_path(source: str | Path) -> Path | None:
    """Return the local file or folder that a source names, None for an http(s) address.

    Raises FileNotFoundError for anything else.
    """
    parts = urlsplit(str(source))
    if parts.scheme in ("http", "https"):
        return None
    path = Path(url2pathname(unquote(parts.path))) if parts.scheme == "file" else Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{source} is neither an http(s) address nor a file that exists.")
    return path


def unreachable(url: str, seconds: float = 4.0) -> str | None:
    """Return in a few words why no connection to an address's server can be made, None if one can.

    Behind a proxy, the proxy is tried. Clients try again for a minute and more before they give up.
    """
    server, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(server.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(server.hostname or ""):
        server = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    found: list[str | None] = []
    # In a thread, because the look-up of a name takes as long as it likes.
    (thread := Thread(target=lambda: found.append(_connect(server, seconds)), daemon=True)).start()
    thread.join(seconds)
    return found[0] if found else "no answer in time"


def _connect(server: SplitResult, seconds: float) -> str | None:
    """Try a server's addresses in turn and return as `unreachable`; a silent one leaves time for the others."""
    reason = "no answer in time"
    try:
        port = server.port or {"http": 80, "https": 443}.get(server.scheme, 1080)  # the last is SOCKS
        places = socket.getaddrinfo(server.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return _reason(error)
    except ValueError:  # no address at all: the client says so
        return None
    for family, kind, protocol, _, address in places:
        try:
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(seconds / (len(places) + 1))
                connection.connect(address)
                return None
        except OSError as error:
            reason = _reason(error)
    return reason


# --- one file ---------------------------------------------------------------------------------------------------------


def _download(url, path, size, sha256, room, check, attempts, pause, timeout) -> None:
    """Fetch into the partial file until it is complete, check it, and give it its name."""
    import requests

    partial, state = path.with_name(path.name + ".partial"), path.with_name(path.name + ".partial.json")
    exact = sha256 is not None and len(sha256) == 64
    best, failures = -1, 0
    if reason := unreachable(url):
        raise ConnectionError(_broken_message(url, _size(partial), _read_state(state).get("total"), reason))
    with requests.Session() as session, bytes_bar(size, path.name) as bar:
        while True:
            try:
                digest = _transfer(session, url, partial, state, size, room, timeout, exact, bar)
                break
            except _Broken as error:
                reached = _size(partial)
                failures = 1 if reached > best else failures + 1
                best = max(best, reached)
                if failures >= attempts:
                    total = _read_state(state).get("total")
                    raise ConnectionError(_broken_message(url, reached, total, str(error))) from None
                time.sleep(pause * 2 ** (failures - 1))
    try:
        check_and_rename(partial, path, url, digest.hexdigest(), size=size, sha256=sha256, check=check)
    finally:
        state.unlink(missing_ok=True)


def check_and_rename(
    aside: Path, path: Path, origin: str, digest: str, *, size: int | None = None, sha256: str | None = None,
    check: Callable[[Path], object] | None = None,
) -> None:  # fmt: skip
    """Check a complete file with SHA-256 ``digest`` and rename it to ``path``; remove it if it is wrong.

    The digest is recorded unless ``sha256`` is known in full. Raises ValueError as `fetch` does.
    """
    try:
        if size is not None and aside.stat().st_size != size:
            raise ValueError(f"{path.name} arrived with {aside.stat().st_size} bytes instead of {size}.")
        _compare(path.name, digest, sha256, "published")
        _compare(path.name, digest, _ledger(path.parent).get(path.name), f"recorded in {path.parent / LEDGER}")
        if check is not None:
            check(aside)
    except ValueError as error:  # complete and wrong: nothing to continue from
        aside.unlink()
        raise ValueError(f"{str(error).replace(str(aside), path.name)} It came from {origin}; removed.") from None
    os.replace(aside, path)
    if sha256 is None or len(sha256) < 64:
        _record(path, digest)


def _transfer(session, url, partial, state, size, room, timeout, exact, bar):
    """Make one request; return the SHA-256 object of the complete file, or raise _Broken if it stays incomplete."""
    known = _read_state(state)
    same = known.get("url") == url
    # Another mirror may give the rest if the complete file will be checked; its ETag means nothing here.
    have = _size(partial) if same or exact else 0
    headers = dict(_PLAIN)
    if have:
        headers["Range"] = f"bytes={have}-"
        if same and known.get("validator"):
            headers["If-Range"] = known["validator"]
    with _request_errors(url, retry=True):
        answer = session.get(url, headers=headers, stream=True, timeout=timeout)
    with answer:
        if answer.status_code == 416:  # no bytes follow: the file is complete, or has changed meanwhile
            if known.get("total") == have and _total(answer.headers, 0) in (have, None):
                return _hash_start(partial, bar)
            partial.unlink()
            raise _Broken("the file has changed")
        _check_status(url, answer.status_code, retry=True)
        resumed = answer.status_code == 206
        if resumed and not _continues(answer.headers, have, known.get("total")):
            partial.unlink()
            raise _Broken("the file has changed")
        have = have if resumed else 0
        total = _total(answer.headers, have if resumed else None)
        if size is not None and total is not None and total != size:
            raise ValueError(f"{url} holds {total} bytes instead of {size}: it is another file, or a damaged mirror.")
        total = size if total is None else total
        if total is not None:
            require_space(partial.parent, total - have + room * total, f"{url} ({size_text(total)})")
        write_text(state, json.dumps({"url": url, "total": total, "validator": _validator(answer.headers)}))
        bar.total = total
        bar.reset(total)
        digest = _hash_start(partial, bar) if resumed else hashlib.sha256()
        written = _append(answer, partial, resumed, digest, bar, url)
    if total is not None and have + written < total:
        raise _Broken("the connection ended early")
    return digest


def _append(answer, partial: Path, resumed: bool, digest, bar, url: str) -> int:
    """Write the answer's bytes as they come and return their number.

    The bytes stay undecoded, because some servers call a .tgz a gzip-encoded .tar.
    """
    written, blocks = 0, answer.raw.stream(_READ, decode_content=False)
    try:
        with partial.open("ab" if resumed else "wb", buffering=0) as file:  # a kill loses nothing
            try:
                for block in _from_network(blocks):
                    rest = memoryview(block)
                    while rest:
                        rest = rest[file.write(rest) :]
                    digest.update(block)
                    bar.update(len(block))
                    written += len(block)
            finally:
                os.fsync(file.fileno())
    except OSError as error:
        raise write_error(error, partial) from None
    return written


def _from_network(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the blocks; raise _Broken where the connection ends."""
    import requests
    import urllib3

    try:
        yield from blocks
    except (urllib3.exceptions.HTTPError, requests.RequestException, OSError) as error:
        raise _Broken(_reason(error)) from None


def _hash_start(partial: Path, bar):
    """Return the SHA-256 object of the bytes that are already here, and show them on the bar."""
    with partial.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    bar.initial = bar.n = partial.stat().st_size
    bar.refresh()
    return digest


# --- what servers say -------------------------------------------------------------------------------------------------

_PLAIN = {"Accept-Encoding": "identity", "User-Agent": "gcgkit"}


def _total(headers, start: int | None) -> int | None:
    """Return the size of the complete file: ``Content-Range``'s total, or ``Content-Length`` if it starts at 0."""
    ranged = re.fullmatch(r"bytes\s+(?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", "").strip())
    if ranged and start is not None:
        return int(ranged[1])
    length = headers.get("Content-Length", "")
    return int(length) + (start or 0) if length.isdecimal() and start in (None, 0) else None


def _continues(headers, have: int, total: int | None) -> bool:
    """Return True if an answer 206 starts where the partial file ends, in a file of the same size."""
    ranged = re.fullmatch(r"bytes\s+(\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    return bool(ranged) and int(ranged[1]) == have and (total is None or ranged[2] in ("*", str(total)))


def _validator(headers) -> str | None:
    """Return the value for If-Range: a strong ETag, else the date of the last change."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _check_status(url: str, status: int, retry: bool = False) -> None:
    if status in (200, 206):
        return
    if status in _BUSY and retry:
        raise _Broken(f"the server answers {status}")
    if status in (404, 410):
        raise FileNotFoundError(f"{url} is not available (the server answers {status}): try a mirror with --url.")
    if status in (401, 403):
        raise PermissionError(f"{url} is not public (the server answers {status}): try --url.")
    raise ConnectionError(f"{url} cannot be fetched: the server answers {status}.")


@contextmanager
def _request_errors(url: str, retry: bool = False) -> Iterator[None]:
    """Turn errors of requests before the first byte into one sentence, or into _Broken where tries are left."""
    import requests

    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects) as error:
        raise ValueError(f"{url} is not an address that can be fetched ({_reason(error)}).") from None
    except requests.RequestException as error:
        if retry:
            raise _Broken(_reason(error)) from None
        raise ConnectionError(_broken_message(url, 0, None, _reason(error))) from None


_REASONS = {
    "timed out": "no answer in time", "timeout": "no answer in time",
    "name or service": "the host is unknown or there is no network",
    "resolution": "the host is unknown or there is no network",
    "unreachable": "the host is unknown or there is no network",
    "refused": "connection refused", "certificate": "the certificate is not trusted", "ssl": "no secure connection",
}  # fmt: skip


def _reason(error: BaseException) -> str:
    """Return a few words on a failed connection; the libraries' own messages are nested objects."""
    text = f"{type(error).__name__} {error}".lower()
    return next((words for sign, words in _REASONS.items() if sign in text), "the connection ended early")


def _broken_message(url: str, reached: int, total: int | None, reason: str) -> str:
    if not reached:
        return f"{url} cannot be reached: {reason}; check the network, or try a mirror with --url."
    share = f" at {100 * reached / total:.0f} % of {size_text(total)}" if total else f" after {size_text(reached)}"
    return f"{url} broke off{share}: {reason}; run again to continue."


# --- checks and records -----------------------------------------------------------------------------------------------


def _verify(path: Path, size: int | None, sha256: str | None, check) -> None:
    if path.is_dir():
        return  # a local folder in place of an archive: its reader checks it
    if size is not None and path.stat().st_size != size:
        raise ValueError(f"{path} holds {path.stat().st_size} bytes instead of {size}: delete it and run again.")
    if sha256 is not None:
        _compare(str(path), file_sha256(path), sha256, "expected")
    if check is not None:
        check(path)


def _compare(name: str, found: str, wanted: str | None, origin: str) -> None:
    if wanted is not None and not found.startswith(wanted):
        raise ValueError(
            f"{name} has SHA-256 {found[:12]}…, not the {origin} {wanted[:12]}…: it is damaged or another version."
        )


def _ledger(folder: Path) -> dict[str, str]:
    """Return the digests that a folder's SHA256SUMS has, by the files' names."""
    path = folder / LEDGER
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    parts = (line.split(maxsplit=1) for line in lines)
    return {name.strip().lstrip("*"): digest for digest, name in (found for found in parts if len(found) == 2)}


def _record(path: Path, digest: str) -> None:
    known = {**_ledger(path.parent), path.name: digest}
    write_text(path.parent / LEDGER, "".join(f"{found}  {name}\n" for name, found in known.items()))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_state(state: Path) -> dict:
    try:
        return json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
