"""A loopback server that speaks the Hub's HTTP protocol, as far as publishing, listing and downloading need it.

The API listens on 127.0.0.1; large files are redirected to a "CDN", the same server under the name ``localhost``, so
that a client sees two hosts, as with the real one. Everything is in memory. Point huggingface_hub to it with
``HF_ENDPOINT``, and set ``HF_HUB_DISABLE_XET=1``: Xet is another protocol. :meth:`HubServer.inject` makes it fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterable
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import yaml
from hub_state import Fault, RefusalError, Repository, Request, entry_of, git_blob_id, is_lfs, sha256
from hub_wire import Wire


class HubServer:
    """The server, as a context manager.

    Attributes:
        url: what ``HF_ENDPOINT`` must be.
        token: the one valid token; it may write to the organisation ``org`` only, and open pull requests anywhere.
        repositories: by name, to look into and to tamper with.
        uploads: large files by SHA-256.
        replaced: content that is sent instead of that of a path, while all that is said of it stays.
        requests: all that came in, in order.
        page: entries of a list that one answer holds.
        part: bytes of one part of an upload; a file of more comes in parts.
    """

    token = "hf_only_for_tests"

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.life = 0
        self.reset()
        handler = type("BoundHandler", (Handler,), {"hub": self, "routes": ROUTES})
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

    def reset(self) -> None:
        """Forget everything, requests that are being answered included."""
        with self.lock:
            self.life += 1
            self._forget()

    def _forget(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.replaced: dict[str, bytes] = {}
        self.page, self.part = 1000, 1 << 30

    def create(self, repo_id: str, files: dict[str, bytes] | None = None, **options: Any) -> Repository:
        repository = self.repositories[repo_id] = Repository(**options)
        repository.add({".gitattributes": b"*.onnx filter=lfs\n", **(files or {})}, title="initial commit")
        return repository

    def inject(self, pattern: str, **what: Any) -> None:
        self.faults.append(Fault(pattern, **what))

    def next_fault(self, request: str) -> Fault:
        for fault in self.faults:
            if re.search(fault.pattern, request) and fault.times != 0:
                fault.times = fault.times and fault.times - 1
                return fault
        return Fault("")

    def requested(self, pattern: str) -> list[Request]:
        return [request for request in self.requests if re.search(pattern, f"{request.method} {request.path}")]


class Handler(Wire):
    """Answers requests by methods that :data:`ROUTES` names."""

    # Who may do what

    def _is_known(self) -> bool:
        authorization = self.headers.get("Authorization")
        if authorization not in (None, f"Bearer {self.hub.token}"):
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return authorization is not None

    def _repository(self, repo: str, write: bool = False) -> Repository:
        pull_request = "create_pr" in self.query
        known, repository = self._is_known(), self.hub.repositories.get(repo)
        if repository is None or (repository.private and not known):
            raise RefusalError(404 if known else 401, "Repository not found", "RepoNotFound")
        if repository.gated:
            raise RefusalError(403, "Access to this model is restricted", "GatedRepo")
        if write:
            self._check_writer("org/" if pull_request else repo, known)
        return repository

    def _check_writer(self, repo: str, known: bool) -> None:
        if not known:
            raise RefusalError(401, "Invalid username or password.")
        if not repo.startswith("org/"):
            raise RefusalError(403, "You don't have the rights to write under this namespace")

    # Reading

    def who_am_i(self) -> None:
        if not self._is_known():
            raise RefusalError(401, "Invalid username or password.")
        self._answer({"type": "user", "name": "tester", "orgs": [{"type": "org", "name": "org"}]})

    def list_models(self) -> None:
        known = self._is_known()
        (author,), tags = self.query.get("author", [""]), set(self.query.get("filter", []))
        found = [
            self._model(name, repository, repository.branches["main"])
            for name, repository in sorted(self.hub.repositories.items())
            if name.startswith(f"{author}/") and (known or not repository.private)
        ]
        self._answer_page([model for model in found if tags <= set(model["tags"])])

    def show(self, repo: str, revision: str | None = None) -> None:
        repository = self._repository(repo)
        self._answer(self._model(repo, repository, repository.resolve(revision or "main")))

    def _model(self, repo: str, repository: Repository, commit: str) -> dict[str, Any]:
        files = repository.commits[commit].files
        header = re.match(rb"---\n(.*?)\n---", files.get("README.md", b""), re.DOTALL)
        tags = (yaml.safe_load(header[1]) if header else {}).get("tags", [])
        siblings = [{"rfilename": path} for path in sorted(files)]
        return {"id": repo, "sha": commit, "private": repository.private, "tags": tags, "siblings": siblings}

    def tree(self, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        files = repository.commits[repository.resolve(revision)].files
        self._answer_page([entry_of(path, content) for path, content in sorted(files.items())])

    def _answer_page(self, entries: list[dict[str, Any]]) -> None:
        start = int(self.query.get("cursor", ["0"])[0])
        end = start + self.hub.page
        query = urlencode({**self.query, "cursor": end}, doseq=True)
        following = f'<{self.hub.url}{urlsplit(self.path).path}?{query}>; rel="next"'
        self._answer(entries[start:end], headers={"Link": following} if end < len(entries) else {})

    def paths_info(self, repo: str, revision: str) -> None:
        repository = self._repository(repo)
        files = repository.commits[repository.resolve(revision)].files
        asked = parse_qs(self.content.decode())["paths"]
        self._answer([entry_of(path, files[path]) for path in asked if path in files])

    def refs(self, repo: str) -> None:
        repository = self._repository(repo)
        self._answer(
            {
                "branches": _refs("refs/heads/", repository.branches),
                "tags": _refs("refs/tags/", repository.tags),
                "converts": [],
            }
        )

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
        content = self.hub.replaced.get(path, content)
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        status, asked = 200, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        self._send(content, status, headers)

    # Writing

    def create_repository(self) -> None:
        asked = json.loads(self.content)
        repo = f"{asked['organization']}/{asked['name']}"
        self._check_writer(repo, self._is_known())
        url = {"url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.repositories:
            self._answer({"error": "You already created this model repo", **url}, 409)
            return
        self.hub.create(repo, private=asked.get("visibility") == "private", sdk=asked.get("sdk"))
        self._answer(url)

    def create_branch(self, repo: str, branch: str) -> None:
        repository = self._repository(repo, write=True)
        if branch in repository.branches:
            raise RefusalError(409, "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self._answer({})

    def create_tag(self, repo: str, revision: str) -> None:
        repository = self._repository(repo, write=True)
        name = json.loads(self.content)["tag"]
        if name in repository.tags:
            raise RefusalError(409, "Tag reference exists already")
        repository.tags[name] = repository.resolve(revision)
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
        asked = json.loads(self.content)
        self._repository(repo, write="ref" in asked)  # for a pull request no branch is named, nor a right needed
        objects = [self._upload_of(o["oid"], o["size"], asked["transfers"]) for o in asked["objects"]]
        multipart = any("chunk_size" in o.get("actions", {}).get("upload", {}).get("header", {}) for o in objects)
        self._answer({"transfer": "multipart" if multipart else "basic", "objects": objects})

    def _upload_of(self, oid: str, size: int, transfers: list[str]) -> dict[str, Any]:
        if oid in self.hub.uploads:
            return {"oid": oid, "size": size}
        url = f"{self.hub.url}/lfs/{oid}"
        upload: dict[str, Any] = {"href": url}
        if size > self.hub.part and "multipart" in transfers:
            parts = {f"{n:05}": f"{url}/part/{n}" for n in range(1, -(-size // self.hub.part) + 1)}
            upload = {"href": f"{url}/complete", "header": {"chunk_size": str(self.hub.part), **parts}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{url}/verify"}}}

    def lfs_upload(self, oid: str) -> None:
        self._store(oid, self.content)
        self._answer()

    def lfs_upload_part(self, oid: str, number: str) -> None:
        self.hub.parts[oid, int(number)] = self.content
        self._answer(headers={"ETag": f'"{hashlib.md5(self.content).hexdigest()}"'})

    def lfs_complete(self, oid: str) -> None:
        parts = [self.hub.parts[oid, part["partNumber"]] for part in json.loads(self.content)["parts"]]
        self._store(oid, b"".join(parts))
        self._answer({})

    def _store(self, oid: str, content: bytes) -> None:
        if sha256(content) != oid:
            raise RefusalError(400, "sha256 mismatch")
        self.hub.uploads[oid] = content

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
        commit = repository.record(files, tip, header["value"]["summary"])
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"}
        if "create_pr" in self.query:
            number = len(repository.pull_requests) + 1
            repository.pull_requests[f"refs/pr/{number}"] = commit
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{number}"
        else:
            repository.branches[revision] = commit
        self._answer(answer)


def _refs(prefix: str, commits: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": prefix + name, "targetCommit": commit} for name, commit in commits.items()]


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


KIND = r"(?:models|spaces)"
REPO = r"(?P<repo>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = (
    (("GET",), "/api/whoami-v2", "who_am_i"),
    (("GET",), "/api/models", "list_models"),
    (("POST",), "/api/repos/create", "create_repository"),
    (("POST",), "/api/validate-yaml", "validate_card"),
    (("GET",), f"/api/{KIND}/{REPO}/tree/{REVISION}", "tree"),
    (("POST",), f"/api/{KIND}/{REPO}/paths-info/{REVISION}", "paths_info"),
    (("GET",), f"/api/{KIND}/{REPO}/refs", "refs"),
    (("POST",), f"/api/{KIND}/{REPO}/tag/{REVISION}", "create_tag"),
    (("POST",), f"/api/{KIND}/{REPO}/branch/(?P<branch>[^/]+)", "create_branch"),
    (("POST",), f"/api/{KIND}/{REPO}/preupload/{REVISION}", "preupload"),
    (("POST",), f"/api/{KIND}/{REPO}/commit/{REVISION}", "commit"),
    (("GET",), f"/api/{KIND}/{REPO}(/revision/{REVISION})?", "show"),
    (("POST",), rf"(?:/spaces)?/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})/part/(?P<number>\d+)", "lfs_upload_part"),
    (("POST",), "/lfs/(?P<oid>[0-9a-f]{64})/complete", "lfs_complete"),
    (("POST",), "/lfs/(?P<oid>[0-9a-f]{64})/verify", "lfs_verify"),
    (("GET", "HEAD"), f"/cdn/{REPO}/{REVISION}/(?P<path>.+)", "cdn"),
    (("GET", "HEAD"), f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
)
