"""A small model hub: repositories with commits behind the addresses that huggingface_hub asks, for reading and pushing.

It answers as the hub does: large files through a redirect with X-Linked-Etag, errors with X-Error-Code, pushes in the
steps create, validate-yaml, preupload, LFS batch, upload, commit. Xet storage is left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")


@dataclass
class Repository:
    """Commits (id to files) and the names that point at them; ``token``: the one that may read, None for everybody."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Add a commit with these files alone and let ``ref`` point at it."""
        digest = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[digest], self.refs[ref] = dict(files), digest
        return digest


class HubServer:
    """``repositories`` by id; ``asked``: (method, path) of every request; ``sent``: (repository, file) of bodies."""

    def __init__(self):
        self.lock = threading.Lock()
        self.address = ""
        self.reset()

    def reset(self) -> None:
        """Become the empty hub that answers at once."""
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.sent: list[tuple[str, str]] = []
        self.objects: dict[str, bytes] = {}  # LFS files by SHA-256
        self.delay = 0.0  # seconds before each large file
        self.broken = False  # answer 503 to everything
        self.before = lambda path: None  # called with the path of each request

    def add(self, repo: str, files: dict[str, bytes], **options) -> Repository:
        """Make a repository with one commit on main."""
        self.repositories[repo] = Repository(**options)
        self.repositories[repo].commit(files)
        return self.repositories[repo]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict:
    """A file as the hub's tree lists it."""
    entry = {"type": "file", "path": name, "size": len(data), "oid": _git_id(data)}
    return entry | ({"lfs": {"oid": _sha256(data), "size": len(data), "pointerSize": 130}} if _large(name) else {})


def _large(name: str) -> bool:
    return name.endswith(LARGE)


class _Refused(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args):
        pass

    def _handle(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.asked.append((self.command, path))
            self.hub.before(path)
        try:
            if self.hub.broken:
                raise _Refused(503)
            for pattern, answer in _ROUTES:
                method, address = pattern.split(" ", 1)
                if self.command in method.split("|") and (found := re.fullmatch(address, path)):
                    return answer(self, body, **found.groupdict())
            raise _Refused(404)
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code} if refused.code else {}
            self._send(b"", refused.status, **headers, **({"X-Error-Message": str(refused)} if str(refused) else {}))

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _send(self, data: bytes | dict | list, status: int = 200, **headers: str) -> None:
        if not isinstance(data, bytes):
            data, headers = json.dumps(data).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(data)
            except OSError:
                pass

    def _files(self, repo: str, revision: str, content: bool = False) -> tuple[str, dict[str, bytes]]:
        """Commit and files of a revision, or the hub's refusal; a gate closes the content, not the listing."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token.startswith("wrong"):
            raise _Refused(401, message="Invalid credentials in Authorization header")
        found = self.hub.repositories.get(repo)
        if found is None or (found.token not in (None, token) and not found.gated):
            raise _Refused(401 if not token else 404, "RepoNotFound", "Repository not found")
        if content and found.gated and token != found.token:
            raise _Refused(403 if token else 401, "GatedRepo", "Access to this model is restricted")
        commit = found.refs.get(revision, revision)
        if commit not in found.commits:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, found.commits[commit]

    # --- reading

    def info(self, _, repo: str, revision: str = "main"):
        commit, files = self._files(repo, revision)
        self._send({"id": repo, "modelId": repo, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

    def tree(self, _, repo: str, revision: str):
        _, files = self._files(repo, revision)
        self._send([_entry(name, data) for name, data in files.items()])

    def resolve(self, _, repo: str, revision: str, name: str):
        commit, files = self._files(repo, revision, content=True)
        if name not in files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        data, headers = files[name], {"X-Repo-Commit": commit}
        if not _large(name):
            self._count(repo, name)
            return self._send(data, ETag=f'"{_git_id(data)}"', **headers)
        digest = _sha256(data)
        self.hub.objects[digest] = data
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        place = f"{self.hub.address}/cdn/{repo}/{digest}/{name}".replace("127.0.0.1", "localhost")  # another host
        self._send(b"", 302, Location=place, ETag=f'"{digest}"', **linked, **headers)

    def cdn(self, _, repo: str, digest: str, name: str):
        time.sleep(self.hub.delay)
        data, start = self.hub.objects[digest], 0
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start = int(found[1])
        self._count(repo, name)
        extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self._send(data[start:], 206 if start else 200, ETag=f'"{digest}"', **extra)

    def _count(self, repo: str, name: str) -> None:
        if self.command == "GET":
            with self.hub.lock:
                self.hub.sent.append((repo, name))

    # --- writing

    def create(self, body: bytes):
        self._check_writer()
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        address = {"url": f"{self.hub.address}/{repo}", "name": repo}
        if repo in self.hub.repositories:
            return self._send({"error": "You already created this model repo", **address}, 409)
        self.hub.add(repo, {".gitattributes": b""})
        self._send(address)

    def validate(self, _):
        self._send({"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str):
        self._check_writer()
        _, files = self._files(repo, revision)
        listed = [file["path"] for file in json.loads(body)["files"]]
        modes = [{"path": n, "uploadMode": "lfs" if _large(n) else "regular", "shouldIgnore": False} for n in listed]
        for mode in modes:
            if mode["path"] in files:
                data = files[mode["path"]]
                mode["oid"] = _sha256(data) if _large(mode["path"]) else _git_id(data)
        self._send({"files": modes})

    def batch(self, body: bytes, repo: str):
        self._check_writer()
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.objects:
                item["actions"] = {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}"}}
        self._send({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, digest: str):
        if _sha256(body) != digest:
            raise _Refused(400)
        self.hub.objects[digest] = body
        self._send(b"")

    def commit(self, body: bytes, repo: str, revision: str):
        self._check_writer()
        files = dict(self._files(repo, revision)[1])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        digest = self.hub.repositories[repo].commit(files, revision)
        place = f"{self.hub.address}/{repo}/commit/{digest}"
        self._send({"success": True, "commitOid": digest, "commitUrl": place})

    def _check_writer(self) -> None:
        if not (self.headers.get("Authorization") or "").startswith("Bearer writer"):
            raise _Refused(401, message="Invalid username or password.")


_REPO, _REVISION = r"(?P<repo>[\w.-]+/[\w.-]+)", r"(?P<revision>[^/]+)"
_ROUTES = (
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate),
    (f"POST /api/models/{_REPO}/preupload/{_REVISION}", _Handler.preupload),
    (f"POST /api/models/{_REPO}/commit/{_REVISION}", _Handler.commit),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(?P<digest>\w+)", _Handler.upload),
    (f"GET /api/models/{_REPO}", _Handler.info),
    (f"GET /api/models/{_REPO}/revision/{_REVISION}", _Handler.info),
    (f"GET /api/models/{_REPO}/tree/{_REVISION}", _Handler.tree),
    (rf"GET|HEAD /cdn/{_REPO}/(?P<digest>\w+)/(?P<name>.+)", _Handler.cdn),
    (f"GET|HEAD /{_REPO}/resolve/{_REVISION}/(?P<name>.+)", _Handler.resolve),
)


@contextmanager
def serving():
    """Run a `HubServer` on a free local port."""
    hub = HubServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    http.daemon_threads = True
    hub.address = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        http.shutdown()
        http.server_close()
