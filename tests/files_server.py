"""A small HTTP server that gives files as good and as bad servers do, and counts what it sent."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Served:
    """One file and how it is given: ``cuts`` are the shares of the file at which the first answers break off."""

    data: bytes
    cuts: list[float] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"1"'
    announce: int | None = None  # another Content-Length than the file's
    statuses: list[int] = field(default_factory=list)  # what the first requests are answered
    chunked: bool = False  # no Content-Length at all
    headers: dict[str, str] = field(default_factory=dict)


class FilesServer:
    """``files`` by path; ``sent``: body bytes by path; ``asked``: (method, path, Range) of every request."""

    def __init__(self):
        self.files: dict[str, Served] = {}
        self.sent: Counter[str] = Counter()
        self.asked: list[tuple[str, str, str | None]] = []
        self.lock = threading.Lock()
        self.address = ""

    def forget(self) -> None:
        """Start anew: nothing is served, and what is still on its way to an earlier client is not counted."""
        with self.lock:
            self.files, self.sent, self.asked = {}, Counter(), []

    def add(self, path: str, data: bytes, **options) -> str:
        """Serve a file and return its address."""
        self.files[path] = Served(data, **options)
        return self.address + path

    def add_model(self, repo: str, files: dict[str, bytes], digests: dict[str, str], sizes=None, **options) -> None:
        """Serve a model repository as the hub does: its listing, and its files with their digests."""
        commit = "c" * 40
        sizes = sizes or {}
        siblings = [
            {"rfilename": name, "size": sizes.get(name, len(data))}
            | ({"lfs": {"sha256": digests[name], "size": len(data), "pointerSize": 130}} if name in digests else {})
            for name, data in files.items()
        ]
        info = json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()
        tree = json.dumps(
            [
                {"type": "file", "path": s["rfilename"], "size": s["size"], "oid": "0" * 40}
                | ({"lfs": {"oid": s["lfs"]["sha256"], "size": s["size"], "pointerSize": 130}} if "lfs" in s else {})
                for s in siblings
            ]
        ).encode()
        for revision in ("main", commit):
            self.add(f"/api/models/{repo}/revision/{revision}", info)
            self.add(f"/api/models/{repo}/tree/{revision}", tree)
        for name, data in files.items():
            extra = options if name in digests else {}
            tag = digests.get(name, f"{abs(hash(name)):040x}"[:40])
            served = Served(data, etag=f'"{tag}"', headers={"X-Repo-Commit": commit}, **extra)
            for revision in ("main", commit):
                self.files[f"/{repo}/resolve/{revision}/{name}"] = served


@contextmanager
def serving():
    """Run a `FilesServer` on a free local port."""
    server = FilesServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            path, wanted = urlsplit(self.path).path, self.headers.get("Range")
            with server.lock:
                sent = server.sent  # of the test that asked: it may be over when the block goes out
                server.asked.append((self.command, path, wanted))
                served = server.files.get(path)
                status = 404 if served is None else (served.statuses.pop(0) if served.statuses else 200)
                cut = served.cuts.pop(0) if served and body and status == 200 and served.cuts else None
            if status != 200:
                self.send_response(status)
                if path.startswith("/api/models/"):
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            total = len(served.data)
            start = 0
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
            fresh = self.headers.get("If-Range") in (None, served.etag)
            if found and served.ranges and fresh:
                start = int(found[1])
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            partial = bool(found and served.ranges and fresh)
            stop = min(total, int(found[2]) + 1) if partial and found[2] else total
            self.send_response(206 if partial else 200)
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
            if served.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                length = served.announce if served.announce is not None else stop - start
                self.send_header("Content-Length", str(length))
            if served.etag:
                self.send_header("ETag", served.etag)
            if served.ranges:
                self.send_header("Accept-Ranges", "bytes")
            for name, value in served.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if not body:
                return
            end = stop if cut is None else max(start, min(stop, int(total * cut)))
            block = served.data[start:end]
            with server.lock:  # counted first: the client may be done, and ask, before this thread goes on
                sent[path] += len(block)
            try:
                if served.chunked:
                    self.wfile.write(f"{len(block):x}\r\n".encode() + block + b"\r\n")
                    self.wfile.write(b"0\r\n\r\n" if cut is None else b"")
                else:
                    self.wfile.write(block)
                self.wfile.flush()
            except OSError:
                pass
            short = served.announce is not None and served.announce != stop - start
            if cut is not None or short:
                self.close_connection = True

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.address = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
