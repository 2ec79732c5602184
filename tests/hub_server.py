"""A loopback server that speaks the Hub's HTTP protocol, as far as publishing and downloading need it.

The API listens on 127.0.0.1; large files are redirected to a "CDN", the same server under the name ``localhost``, so
that a client sees two hosts, as with the real one. Everything is in memory. Point huggingface_hub to it with
``HF_ENDPOINT``, and set ``HF_HUB_DISABLE_XET=1``: Xet is another protocol.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".onnx", ".bin", ".pt", ".pth")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class RefusalError(Exception):
    """An HTTP error with the headers by which huggingface_hub tells errors apart."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Commit:
    files: dict[str, bytes]
    parent: str | None = None
    title: str = ""


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, files: dict[str, bytes], branch: str = "main", title: str = "") -> str:
        parent = self.branches.get(branch)
        content = [{path: sha256(data) for path, data in files.items()}, parent, title, len(self.commits)]
        commit = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[commit] = Commit(files, parent, title)
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str:
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]].files


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    host: str
    authorization: str | None


class HubServer:
    """The server, as a context manager.

    Attributes:
        url: what ``HF_ENDPOINT`` must be.
        token: the one valid token; it may write to the organisation ``org`` only.
        repositories: by name, to look into and to tamper with.
        requests: all that came in, in order.
        tampered: paths whose last byte is changed on the way, the size kept.
        truncated: paths of which only half is sent, on every attempt.
        failures: regular expression of "METHOD path" to the HTTP status that answers it.
    """

    token = "hf_only_for_tests"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.tampered: set[str] = set()
        self.truncated: set[str] = set()
        self.failures: dict[str, int] = {}
        self.lock = threading.RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create(self, repo_id: str, files: dict[str, bytes] | None = None, **options: bool) -> Repository:
        repository = self.repositories[repo_id] = Repository(**options)
        repository.add({".gitattributes": b"*.onnx filter=lfs\n", **(files or {})}, title="initial commit")
        return repository

    def requested(self, pattern: str) -> list[Request]:
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


class Handler(BaseHTTPRequestHandler):
    """Routes requests to methods; each answers, or raises :class:`RefusalError`."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query, self.content = parse_qs(url.query), self._read_content()
        with self.hub.lock:
            self.hub.requests.append(
                Request(self.command, url.path, self.headers["Host"], self.headers.get("Authorization"))
            )
            try:
                self._route(url.path)
            except RefusalError as refusal:
                headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
                self._answer({"error": refusal.message}, refusal.status, {k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815, http.server's names

    def _route(self, path: str) -> None:
        for pattern, status in self.hub.failures.items():
            if re.search(pattern, f"{self.command} {path}"):
                raise RefusalError(status, "injected failure")
        for methods, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                getattr(self, name)(**{k: v and unquote(v) for k, v in match.groupdict().items()})
                return
        raise RefusalError(404, f"no route for {self.command} {path}")

    def _read_content(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self._send(body, status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, body: bytes, status: int, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        if sent is not None:
            self.close_connection = True

    # Who may do what

    def _is_known(self) -> bool:
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {self.hub.token}"):
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return authorization is not None

    def _repository(self, repo: str, write: bool = False) -> Repository:
        known, repository = self._is_known(), self.hub.repositories.get(repo)
        if repository is None or (repository.private and not known):
            raise RefusalError(404 if known else 401, "Repository not found", "RepoNotFound")
        if repository.gated:
            raise RefusalError(403, "Access to this model is restricted", "GatedRepo")
        if write:
            self._check_writer(repo, known)
        return repository

    def _check_writer(self, repo: str, known: bool) -> None:
        if not known:
            raise RefusalError(401, "Invalid username or password.")
        if not repo.startswith("org/"):
            raise RefusalError(403, "You don't have the rights to write under this namespace")

    # Reading

    def show(self, repo: str, revision: str | None = None) -> None:
        repository = self._repository(repo)
        commit = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[commit].files)]
        self._answer({"id": repo, "sha": commit, "private": repository.private, "tags": [], "siblings": siblings})

    def tree(self, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        files = repository.commits[repository.resolve(revision)].files
        self._answer([_entry(path, content) for path, content in sorted(files.items())])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        repository = self._repository(repo)
        commit = repository.resolve(revision)
        content = repository.commits[commit].files.get(path)
        if content is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_blob_id(content)}"'}
        if not is_lfs(path):
            self._serve(path, content, headers)
            return
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha256(content)}"'}
        location = f"http://localhost:{self.hub.port}/cdn/{repo}/{commit}/{path}"
        self._answer(None, 302, {**headers, **linked, "Location": location})

    def cdn(self, repo: str, revision: str, path: str) -> None:
        content = self.hub.repositories[repo].commits[revision].files[path]
        self._serve(path, content, {"ETag": f'"{sha256(content)}"'})

    def _serve(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        if path in self.hub.tampered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        status, asked = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        self._send(content, status, headers, sent=len(content) // 2 if path in self.hub.truncated else None)

    # Writing

    def create_repository(self) -> None:
        asked = json.loads(self.content)
        repo = f"{asked['organization']}/{asked['name']}"
        self._check_writer(repo, self._is_known())
        url = {"url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.repositories:
            self._answer({"error": "You already created this model repo", **url}, 409)
            return
        self.hub.create(repo, private=asked.get("visibility") == "private")
        self._answer(url)

    def create_branch(self, repo: str, branch: str) -> None:
        repository = self._repository(repo, write=True)
        if branch in repository.branches:
            raise RefusalError(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self._answer({})

    def validate_card(self) -> None:
        self._answer({"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        repository = self._repository(repo, write=True)
        there = repository.commits[repository.resolve(revision)].files
        files = []
        for asked in json.loads(self.content)["files"]:
            path, lfs = asked["path"], is_lfs(asked["path"])
            oid = None if path not in there else sha256(there[path]) if lfs else git_blob_id(there[path])
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": files})

    def lfs_batch(self, repo: str) -> None:
        self._repository(repo, write=True)
        objects = []
        for asked in json.loads(self.content)["objects"]:
            url = f"{self.hub.url}/lfs/{asked['oid']}"
            actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
            objects.append({**asked, **({} if asked["oid"] in self.hub.uploads else {"actions": actions})})
        self._answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if sha256(self.content) != oid:
            raise RefusalError(400, "sha256 mismatch")
        self.hub.uploads[oid] = self.content
        self._answer()

    def lfs_verify(self, oid: str) -> None:
        if len(self.hub.uploads.get(oid, b"")) != json.loads(self.content)["size"]:
            raise RefusalError(404, "object not found")
        self._answer({})

    def commit(self, repo: str, revision: str) -> None:
        repository = self._repository(repo, write=True)
        header, *operations = [json.loads(line) for line in self.content.splitlines()]
        tip = repository.resolve(revision)
        if header["value"].get("parentCommit") not in (None, tip):
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[tip].files)
        _apply(operations, files, self.hub.uploads)
        commit = repository.add(files, revision, header["value"]["summary"])
        self._answer({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_blob_id(content)}
    if is_lfs(path):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def _apply(operations: Iterable[dict[str, Any]], files: dict[str, bytes], uploads: dict[str, bytes]) -> None:
    for operation in operations:
        kind, value = operation["key"], operation["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            if value["oid"] not in uploads:
                raise RefusalError(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = uploads[value["oid"]]
        elif kind == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise RefusalError(400, f"unknown operation {kind}")


REPO = r"(?P<repo>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    (("POST",), "/api/repos/create", "create_repository"),
    (("POST",), "/api/validate-yaml", "validate_card"),
    (("GET",), f"/api/models/{REPO}/tree/{REVISION}", "tree"),
    (("POST",), f"/api/models/{REPO}/branch/(?P<branch>[^/]+)", "create_branch"),
    (("POST",), f"/api/models/{REPO}/preupload/{REVISION}", "preupload"),
    (("POST",), f"/api/models/{REPO}/commit/{REVISION}", "commit"),
    (("GET",), f"/api/models/{REPO}(/revision/{REVISION})?", "show"),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    (("POST",), "/lfs/(?P<oid>[0-9a-f]{64})/verify", "lfs_verify"),
    (("GET", "HEAD"), f"/cdn/{REPO}/{REVISION}/(?P<path>.+)", "cdn"),
    (("GET", "HEAD"), f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
]
