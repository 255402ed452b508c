"""Downloads against a local server that behaves and misbehaves, and archives made by hand."""

import hashlib
import io
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from pathlib import Path

import pytest
from files_server import serving
from hypothesis import given
from hypothesis import strategies as st

from gcgkit.utils import archives, download
from gcgkit.utils import files as disk

ROOT = Path(__file__).resolve().parents[2]
DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
HUGE = 10**18  # bytes; no disk has them


@pytest.fixture(scope="module")
def running():
    with serving() as server:
        yield server


@pytest.fixture
def server(running):
    running.forget()
    return running


def fetch(source, path, **options):
    return download.fetch(source, path, **{"pause": 0.0, "timeout": 5.0, **options})


def names(folder: Path) -> set[str]:
    """Files of a folder but for locks."""
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")} if folder.exists() else set()


# --- fetch ------------------------------------------------------------------------------------------------------------


def test_a_whole_file_and_its_record(server, tmp_path):
    url = server.add("/a.bin", DATA)
    path = fetch(url, tmp_path / "deep/er/a.bin")
    assert path == tmp_path / "deep/er/a.bin" and path.read_bytes() == DATA
    assert names(path.parent) == {"a.bin", "SHA256SUMS"}
    assert (path.parent / "SHA256SUMS").read_text() == f"{SHA}  a.bin\n"
    assert server.sent["/a.bin"] == len(DATA)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_the_record_is_what_sha256sum_reads(server, tmp_path):
    for name in ("a.bin", "b.bin"):
        fetch(server.add("/" + name, DATA + name.encode()), tmp_path / name)
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count("OK") == 2


def test_a_second_call_fetches_nothing(server, tmp_path):
    url = server.add("/a.bin", DATA)
    fetch(url, tmp_path / "a.bin", sha256=SHA, size=len(DATA))
    server.asked.clear()
    assert fetch(url, tmp_path / "a.bin", sha256=SHA, size=len(DATA)).read_bytes() == DATA
    assert server.asked == []
    assert names(tmp_path) == {"a.bin"}  # a known digest needs no record


def test_cut_at_37_percent_goes_on_in_the_same_call(server, tmp_path):
    url = server.add("/a.bin", DATA, cuts=[0.37])
    assert fetch(url, tmp_path / "a.bin", sha256=SHA).read_bytes() == DATA
    assert server.sent["/a.bin"] == len(DATA)  # each byte once
    assert [r for _, _, r in server.asked] == [None, f"bytes={int(0.37 * len(DATA))}-"]


def test_cut_at_37_percent_goes_on_in_the_next_call(server, tmp_path):
    url = server.add("/a.bin", DATA, cuts=[0.37])
    with pytest.raises(ConnectionError, match=r"broke off at 37 % of 300\.0 kB: .*; run again to continue"):
        fetch(url, tmp_path / "a.bin", attempts=1)
    assert "a.bin" not in names(tmp_path)
    fetch(url, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == DATA and server.sent["/a.bin"] == len(DATA)
    assert names(tmp_path) == {"a.bin", "SHA256SUMS"}


@given(st.lists(st.floats(0, 0.99), max_size=4).map(sorted))
def test_cut_anywhere_any_number_of_times(running, tmp_path_factory, cuts):
    running.sent.clear()
    url = running.add("/cut.bin", DATA, cuts=list(cuts))
    path = tmp_path_factory.mktemp("cut") / "cut.bin"
    assert fetch(url, path, sha256=SHA).read_bytes() == DATA
    assert running.sent["/cut.bin"] == len(DATA)


def test_server_without_range_starts_over(server, tmp_path):
    url = server.add("/a.bin", DATA, cuts=[0.37], ranges=False)
    assert fetch(url, tmp_path / "a.bin", sha256=SHA).read_bytes() == DATA
    assert server.sent["/a.bin"] == int(0.37 * len(DATA)) + len(DATA)


def test_server_without_range_that_always_breaks_is_given_up(server, tmp_path):
    url = server.add("/a.bin", DATA, cuts=[0.37] * 99, ranges=False)
    with pytest.raises(ConnectionError, match="broke off"):
        fetch(url, tmp_path / "a.bin", attempts=3)
    assert len(server.asked) == 3 and "a.bin" not in names(tmp_path)


def test_file_that_changes_on_the_server_is_not_spliced(server, tmp_path):
    url = server.add("/a.bin", b"x" * len(DATA), cuts=[0.37])
    with pytest.raises(ConnectionError):
        fetch(url, tmp_path / "a.bin", attempts=1)
    server.add("/a.bin", DATA, etag='"2"')
    assert fetch(url, tmp_path / "a.bin").read_bytes() == DATA


def test_file_that_shrank_on_a_server_without_etags(server, tmp_path):
    url = server.add("/a.bin", b"x" * len(DATA), cuts=[0.9], etag=None)
    with pytest.raises(ConnectionError):
        fetch(url, tmp_path / "a.bin", attempts=1)
    server.add("/a.bin", DATA[:1000], etag=None)  # the range asked for is not there any more
    assert fetch(url, tmp_path / "a.bin").read_bytes() == DATA[:1000]
    server.add("/b.bin", b"x" * len(DATA), cuts=[0.5], etag=None)
    with pytest.raises(ConnectionError):
        fetch(server.address + "/b.bin", tmp_path / "b.bin", attempts=1)
    server.add("/b.bin", DATA + b"!", etag=None)  # the range is there, in a file of another size
    assert fetch(server.address + "/b.bin", tmp_path / "b.bin").read_bytes() == DATA + b"!"


def test_another_mirror_gives_the_rest_where_the_digest_is_known(server, tmp_path):
    with pytest.raises(ConnectionError):
        fetch(server.add("/one/a.bin", DATA, cuts=[0.37]), tmp_path / "a.bin", sha256=SHA, attempts=1)
    fetch(server.add("/two/a.bin", DATA, etag='"other"'), tmp_path / "a.bin", sha256=SHA)
    assert sum(server.sent.values()) == len(DATA)


def test_another_address_starts_over_where_nothing_is_known(server, tmp_path):
    with pytest.raises(ConnectionError):
        fetch(server.add("/one/a.bin", b"x" * len(DATA), cuts=[0.37]), tmp_path / "a.bin", attempts=1)
    assert fetch(server.add("/two/a.bin", DATA), tmp_path / "a.bin").read_bytes() == DATA


def test_complete_partial_file_of_a_killed_run(server, tmp_path):
    """Killed between the last byte and the renaming: the server has nothing left to give (416)."""
    url = server.add("/a.bin", DATA, cuts=[0.9999999])
    with pytest.raises(ConnectionError):
        fetch(url, tmp_path / "a.bin", attempts=1)
    with (tmp_path / "a.bin.partial").open("ab") as partial:
        partial.write(DATA[int(len(DATA) * 0.9999999) :])
    sent = server.sent["/a.bin"]
    assert fetch(url, tmp_path / "a.bin").read_bytes() == DATA and server.sent["/a.bin"] == sent


def test_killed_process_goes_on(server, tmp_path):
    """SIGKILL while bytes arrive: what was written is kept and not fetched again."""
    url = server.add("/a.bin", DATA, announce=2 * len(DATA))
    call = f"download.fetch({url!r}, {str(tmp_path / 'a.bin')!r}, timeout=60, attempts=99)"
    code = f"from gcgkit.utils import download; {call}"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    partial = tmp_path / "a.bin.partial"
    while child.poll() is None and not (partial.exists() and partial.stat().st_size > 0):
        pass
    child.kill()
    child.wait()
    kept = partial.stat().st_size
    assert kept > 0 and "a.bin" not in names(tmp_path)
    (tmp_path / "a.bin.partial.json").write_text(f'{{"url": "{url}", "total": {len(DATA)}, "validator": "\\"1\\""}}')
    server.add("/a.bin", DATA)
    server.sent.clear()
    assert fetch(url, tmp_path / "a.bin").read_bytes() == DATA
    assert server.sent["/a.bin"] == len(DATA) - kept


def test_wrong_digest_leaves_nothing(server, tmp_path):
    url = server.add("/a.bin", DATA)
    with pytest.raises(ValueError, match=r"a\.bin has SHA-256 \w+…, not the published 0{12}….*removed\.$"):
        fetch(url, tmp_path / "a.bin", sha256="0" * 64)
    assert names(tmp_path) == set()


def test_first_digits_of_a_digest_count(server, tmp_path):
    url = server.add("/a.bin", DATA)
    fetch(url, tmp_path / "a.bin", sha256=SHA[:8].upper())
    with pytest.raises(ValueError, match="not the published"):
        fetch(url, tmp_path / "b.bin", sha256="00000000")
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits"):
        fetch(url, tmp_path / "c.bin", sha256="xyz")


def test_recorded_digest_is_compared_when_a_file_comes_again(server, tmp_path):
    url = server.add("/a.bin", DATA)
    fetch(url, tmp_path / "a.bin").unlink()
    server.add("/a.bin", DATA[::-1])
    with pytest.raises(ValueError, match="not the recorded in .*SHA256SUMS"):
        fetch(url, tmp_path / "a.bin")
    assert names(tmp_path) == {"SHA256SUMS"}


def test_file_damaged_since_is_noticed(server, tmp_path):
    url = server.add("/a.bin", DATA)
    path = fetch(url, tmp_path / "a.bin")
    path.write_bytes(DATA[:-1] + b"?")
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(url, path)
    with pytest.raises(ValueError, match="holds 300000 bytes instead of 5"):
        fetch(url, path, size=5)


def test_another_size_is_refused_before_it_is_fetched(server, tmp_path):
    url = server.add("/a.bin", DATA)
    with pytest.raises(ValueError, match="holds 300000 bytes instead of 7: it is another file"):
        fetch(url, tmp_path / "a.bin", size=7)
    assert names(tmp_path) == set()


def test_too_small_a_disk_is_told_before_it_starts(server, tmp_path):
    url = server.add("/a.bin", DATA, announce=HUGE)
    with pytest.raises(OSError, match=r"needs 1000000\.0 TB on the disk of .* free: make room") as error:
        fetch(url, tmp_path / "a.bin")
    assert "\n" not in str(error.value) and names(tmp_path) == set()


def test_room_for_what_comes_out_counts_too(server, tmp_path):
    url = server.add("/a.bin", DATA)
    with pytest.raises(OSError, match="needs"):
        fetch(url, tmp_path / "a.bin", room=HUGE / len(DATA))
    assert names(tmp_path) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes")
def test_disk_that_fills_on_the_way(server, tmp_path):
    """A limit on the size of files stands for a disk that fills up; then there is room and the file goes on."""
    url = server.add("/a.bin", DATA)
    code = textwrap.dedent(f"""
        import resource, signal
        from gcgkit.utils import download
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            download.fetch({url!r}, {str(tmp_path / "a.bin")!r})
        except OSError as error:
            print(error)
    """)
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert child.stdout.strip() == f"The disk of {tmp_path} is full: make room and run again to continue."
    assert "a.bin" not in names(tmp_path) and (tmp_path / "a.bin.partial").stat().st_size == 100_000
    server.sent.clear()
    assert fetch(url, tmp_path / "a.bin").read_bytes() == DATA
    assert server.sent["/a.bin"] == len(DATA) - 100_000


def test_gzip_encoding_is_not_undone(server, tmp_path):
    """Servers that call a .tgz a gzip-encoded tar must not make the client unpack it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        _add(file, "a.txt", b"text")
    url = server.add("/a.tgz", packed.getvalue(), headers={"Content-Encoding": "x-gzip"})
    assert fetch(url, tmp_path / "a.tgz").read_bytes() == packed.getvalue()


def test_answer_without_length(server, tmp_path):
    url = server.add("/a.bin", DATA, chunked=True)
    assert fetch(url, tmp_path / "a.bin").read_bytes() == DATA
    url = server.add("/b.bin", DATA, chunked=True, cuts=[0.37], ranges=False)
    assert fetch(url, tmp_path / "b.bin").read_bytes() == DATA  # the missing end marker tells that it broke


def test_busy_server_is_asked_again_and_others_are_not(server, tmp_path):
    url = server.add("/a.bin", DATA, statuses=[503, 429])
    assert fetch(url, tmp_path / "a.bin").read_bytes() == DATA
    for status, kind, words in (
        (404, FileNotFoundError, "is not available"),
        (403, PermissionError, "is not public"),
        (418, ConnectionError, "server answers 418"),
    ):
        server.asked.clear()
        with pytest.raises(kind, match=words):
            fetch(server.add("/b.bin", DATA, statuses=[status] * 9), tmp_path / "b.bin")
        assert len(server.asked) == 1
    with pytest.raises(ConnectionError, match="cannot be reached: the server answers 503"):
        fetch(server.add("/b.bin", DATA, statuses=[503] * 9), tmp_path / "b.bin", attempts=2)
    assert names(tmp_path) == {"a.bin", "SHA256SUMS"}


def test_no_server_at_all(tmp_path):
    with pytest.raises(ConnectionError, match="cannot be reached: connection refused") as error:
        fetch("http://127.0.0.1:9/a.bin", tmp_path / "a.bin", attempts=2)
    assert "\n" not in str(error.value) and names(tmp_path) == set()


def test_without_a_network_it_gives_up_within_seconds(tmp_path):
    """With the tries and pauses that commands have."""
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="check the network, or try a mirror"):
        download.fetch("http://127.0.0.1:9/a.bin", tmp_path / "a.bin")
    assert time.monotonic() - began < 4


def test_a_server_that_cannot_be_reached(monkeypatch):
    """Refused, silent, behind a proxy, and with a name that is looked up for long; each is told in time."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.bin"
        assert download.unreachable(url) == "connection refused"  # bound, but nobody listens
        listening.listen(0)
        assert download.unreachable(url) is None
        for waiting in (first, second):  # no room is left for another connection
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        assert download.unreachable(url, 0.2) == "no answer in time"
    with serving() as server:
        for name in ("http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, server.address)
            assert download.unreachable("http://nowhere.invalid/a.bin") is None  # a proxy may know the way
            monkeypatch.delenv(name)
    monkeypatch.setenv("ALL_PROXY", server.address)
    assert download.unreachable("http://nowhere.invalid/a.bin") == "connection refused"
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    assert download.unreachable("http://nowhere.invalid/a.bin") == "the host is unknown or there is no network"
    monkeypatch.delenv("ALL_PROXY")
    assert download.unreachable("http://nowhere.invalid/a.bin") == "the host is unknown or there is no network"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(2) or [])
    began = time.monotonic()
    assert download.unreachable("http://nowhere.invalid/a.bin", 0.2) == "no answer in time"
    assert time.monotonic() - began < 1


def test_a_silent_address_leaves_time_for_the_next(monkeypatch):
    """As on a machine whose way for IPv6 is a black hole."""
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second, serving() as server:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for waiting in (first, second):  # no room is left for another connection
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        port = int(server.address.rsplit(":", 1)[1])
        addresses = silent.getsockname(), ("127.0.0.1", port)
        places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: places)
        monkeypatch.setattr(download, "getproxies", dict)
        assert download.unreachable("http://two.invalid/a.bin", 1.0) is None
        places.reverse()
        assert download.unreachable("http://two.invalid/a.bin", 1.0) is None
        del places[0]
        assert download.unreachable("http://two.invalid/a.bin", 1.0) == "no answer in time"


def test_content_that_is_refused_leaves_nothing(server, tmp_path):
    url = server.add("/a.zip", b"<html>Please log in</html>")
    with pytest.raises(ValueError, match=r"a\.zip is not a complete zip or tar archive.*It came from .*; removed\.$"):
        fetch(url, tmp_path / "a.zip", check=archives.contents)
    assert names(tmp_path) == set()


def test_local_files_are_used_where_they_lie(tmp_path):
    here = tmp_path / "my file.bin"
    here.write_bytes(DATA)
    for source in (here, str(here), here.as_uri()):
        assert fetch(source, tmp_path / "other/a.bin", sha256=SHA) == here
    assert names(tmp_path) == {"my file.bin"}
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(here, tmp_path / "a.bin", sha256="1" * 64)
    with pytest.raises(FileNotFoundError, match="neither an http"):
        fetch(tmp_path / "absent.bin", tmp_path / "a.bin")


def test_two_at_once(server, tmp_path):
    from filelock import FileLock

    url = server.add("/a.bin", DATA)
    with FileLock(tmp_path / ".a.bin.lock"), pytest.raises(OSError, match="being downloaded by another process"):
        fetch(url, tmp_path / "a.bin")
    assert fetch(url, tmp_path / "a.bin").exists()


def test_remote_size(server, tmp_path):
    assert download.remote_size(server.add("/a.bin", DATA)) == len(DATA)
    assert server.sent["/a.bin"] == 0
    assert download.remote_size(server.add("/b.bin", DATA, statuses=[405])) == len(DATA)  # HEAD refused
    assert download.remote_size(server.add("/c.bin", DATA, chunked=True)) is None
    (tmp_path / "d.bin").write_bytes(b"12345")
    assert download.remote_size(str(tmp_path / "d.bin")) == 5
    with pytest.raises(FileNotFoundError):
        download.remote_size(server.address + "/absent")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (832_766_765, "832.8 MB"), (45e9, "45.0 GB"), (2e15, "2000.0 TB")],
)
def test_sizes_for_people(count, text):
    assert disk.size_text(count) == text


# --- archives ---------------------------------------------------------------------------------------------------------


def _zip(path: Path, files: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def _add(file: tarfile.TarFile, name: str, data: bytes = b"", **attributes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    file.addfile(info, io.BytesIO(data))


def _tar(path: Path, files: dict[str, bytes], mode="w:gz") -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in files.items():
            _add(file, name, data)
    return path


FILES = {"a/b.jpg": DATA[:5000], "a/c/d.txt": b"text", "e.bin": b""}
MAKERS = {
    "zip": lambda path, files: _zip(path, files),
    "tgz": lambda path, files: _tar(path, files),
    "tar": lambda path, files: _tar(path, files, "w"),
    "txz": lambda path, files: _tar(path, files, "w:xz"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_unpacks_what_was_packed(tmp_path, kind):
    archive = MAKERS[kind](tmp_path / f"x.{kind}", FILES)
    assert archives.contents(archive) == {n: len(d) for n, d in FILES.items()}
    paths = archives.extract(archive, tmp_path / "out")
    assert {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in paths} == FILES
    assert archives.extracted(archive.name, tmp_path / "out") == paths
    archive.unlink()
    assert archives.extracted(archive.name, tmp_path / "out") == paths  # known even without the archive
    paths[0].unlink()
    assert archives.extracted(archive.name, tmp_path / "out") is None


@pytest.mark.parametrize("kind", MAKERS)
def test_a_checked_archive_is_read_once_more_and_a_changed_one_anew(tmp_path, monkeypatch, kind):
    """A download is checked under its temporary name, then gets its own and is unpacked."""
    opened, partial = [], MAKERS[kind](tmp_path / f"x.{kind}.partial", FILES)
    for module, name in ((zipfile, "ZipFile"), (tarfile, "open")):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path, own=own: opened.append(path) or own(path))
    fetched = fetch(partial, tmp_path / "unused", check=archives.contents)
    archive = fetched.rename(tmp_path / f"x.{kind}")
    archives.extract(archive, tmp_path / "out")
    assert len(opened) == 2
    monkeypatch.undo()
    archive.unlink()
    changed = MAKERS[kind](archive, {"other.txt": b"changed"})
    assert archives.contents(changed) == {"other.txt": 7}


def test_chooses_and_renames(tmp_path):
    archive = _zip(tmp_path / "x.zip", FILES)
    paths = archives.extract(archive, tmp_path / "out", choose=lambda n: n.replace("a/", "z/") if "a/" in n else None)
    assert [p.relative_to(tmp_path / "out").as_posix() for p in paths] == ["z/b.jpg", "z/c/d.txt"]
    with pytest.raises(ValueError, match="none of the wanted files"):
        archives.extract(archive, tmp_path / "other", choose=lambda name: None)
    with pytest.raises(ValueError, match="two files that would get the same path"):
        archives.extract(archive, tmp_path / "other", choose=lambda name: "one")
    with pytest.raises(ValueError, match="leads out of the folder"):
        archives.extract(archive, tmp_path / "other", choose=lambda name: "../" + name)
    assert not (tmp_path / "other").exists()


EVIL_NAMES = ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "a/..", "\\evil"]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", EVIL_NAMES)
def test_paths_that_lead_out_refuse_the_whole_archive(tmp_path, kind, name):
    folder = tmp_path / "deep" / "out"
    archive = MAKERS[kind](tmp_path / "x.archive", {"good.txt": b"good", name: b"evil"})
    with pytest.raises(ValueError, match="leads out of the folder: nothing was unpacked"):
        archives.extract(archive, folder)
    assert not list(tmp_path.rglob("*evil*")) and not folder.exists()


@pytest.mark.parametrize(
    "attributes",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.SYMTYPE, "linkname": "good.txt"},
        {"type": tarfile.LNKTYPE, "linkname": "good.txt"},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3},
    ],
)
def test_links_and_devices_in_tars_are_refused(tmp_path, attributes):
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        _add(file, "good.txt", b"good")
        _add(file, "link", **attributes)
    with pytest.raises(ValueError, match="holds a link or a device, 'link'"):
        archives.extract(tmp_path / "x.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_in_zips_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="holds a link or a device"):
        archives.extract(tmp_path / "x.zip", tmp_path / "out")


def test_links_in_the_folder_are_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link that leads out"):
        archives.extract(_zip(tmp_path / "x.zip", FILES), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_bombs_are_refused_before_anything_is_written(tmp_path):
    zeros = bytes(120_000_000)  # a thousand times smaller when packed
    for kind in ("zip", "tgz"):
        bomb = MAKERS[kind](tmp_path / f"bomb.{kind}", {"zeros": zeros})
        assert bomb.stat().st_size < 1_000_000
        with pytest.raises(ValueError, match="zip bomb"):
            archives.extract(bomb, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_overlapping_entries_are_refused(tmp_path):
    """Two directory entries that share one body, the trick of the zip bombs without nesting."""
    archive = _zip(tmp_path / "x.zip", {"a": DATA, "b": b""}, zipfile.ZIP_STORED)
    with zipfile.ZipFile(archive) as file:
        first, second = file.infolist()
    data = bytearray(archive.read_bytes())
    directory = data.rindex(b"PK\x01\x02")  # of the second: takes the first's sizes and offset
    for at, value in ((16, first.CRC), (20, first.compress_size), (24, first.file_size), (42, first.header_offset)):
        data[directory + at : directory + at + 4] = value.to_bytes(4, "little")
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="describes more than its own|Overlapped"):
        archives.extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_archives_are_refused(tmp_path, kind, share):
    archive = MAKERS[kind](tmp_path / f"x.{kind}", {"a.bin": DATA[:100_000], "b.bin": DATA[100_000:]})
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"is not a complete zip or tar archive; it may be cut off") as error:
        archives.extract(archive, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_damaged_entry_appears_under_no_name(tmp_path):
    archive = _zip(tmp_path / "x.zip", {"a.bin": DATA, "b.bin": b"fine"}, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[1000] ^= 255
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="not a complete zip or tar archive"):
        archives.extract(archive, tmp_path / "out")
    assert not [p for p in (tmp_path / "out").iterdir() if p.is_file()]


def test_disk_too_small_for_the_contents(tmp_path):
    """An archive that promises more than is free, behind a hole that makes the promise look honest."""
    free = disk.free_space(tmp_path)
    with (tmp_path / "x.zip").open("wb") as raw:
        raw.seek(free // 50)  # a hole takes no room on the disk
        with zipfile.ZipFile(raw, "w") as file:
            file.writestr("a.bin", b"1234")
            file.filelist[0].file_size = free + free // 2
    with pytest.raises(OSError, match=r"what x\.zip holds needs .* free: make room"):
        archives.extract(tmp_path / "x.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_encrypted_and_doubled_entries_are_refused(tmp_path):
    archive = _zip(tmp_path / "x.zip", {"a": b"1"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="encrypted"):
        archives.contents(archive)
    with tarfile.open(tmp_path / "y.tar", "w") as file:
        _add(file, "a", b"1")
        _add(file, "./a", b"2")
    with pytest.raises(ValueError, match="two files of the same path"):
        archives.contents(tmp_path / "y.tar")
    with pytest.raises(ValueError, match="holds no files"):
        archives.contents(_zip(tmp_path / "z.zip", {}))


def test_unpacking_that_was_cut_off_goes_on(tmp_path):
    archive = _zip(tmp_path / "x.zip", FILES)
    archives.extract(archive, tmp_path / "out")
    kept, lost = tmp_path / "out/a/b.jpg", tmp_path / "out/a/c/d.txt"
    lost.unlink()
    os.utime(kept, (1, 1))
    archives.extract(archive, tmp_path / "out")
    assert lost.read_bytes() == b"text" and kept.stat().st_mtime == 1  # not written again


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,6}(/[a-z]{1,6}){0,2}\.[a-z]{3}", fullmatch=True), st.binary(max_size=200), min_size=1,
        max_size=6,
    ),
    st.sampled_from(sorted(MAKERS)),
)  # fmt: skip
def test_any_names_and_contents_survive(tmp_path_factory, files, kind):
    folder = tmp_path_factory.mktemp("any")
    archives.extract(MAKERS[kind](folder / "x", files), folder / "out")
    found = {p.relative_to(folder / "out").as_posix(): p.read_bytes() for p in (folder / "out").rglob("*.???")}
    assert found == files
