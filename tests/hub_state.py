"""What the test server holds: repositories, commits, requests, and the faults that are to come."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LFS_SUFFIXES = (".safetensors", ".onnx", ".bin", ".pt", ".pth")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class RefusalError(Exception):
    """An HTTP error with the headers by which huggingface_hub tells errors apart."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


@dataclass
class Fault:
    """What goes wrong with requests that match, the first ``times`` of them (None: every one).

    Args:
        pattern: regular expression of "METHOD path".
        status: answer with this status instead, and with ``headers``.
        body: what becomes of the answer's body: "reset" and "truncated" break off in the middle, the first as if the
            server had crashed; "tampered" has another last byte.
        lost: do what is asked, and close the connection without an answer.
        until: an event without which no answer comes.
        meanwhile: called before the request is looked at.
    """

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    lost: bool = False
    until: threading.Event | None = None
    meanwhile: Callable[[], object] | None = None
    times: int | None = None


@dataclass
class Commit:
    files: dict[str, bytes]
    parent: str | None = None
    title: str = ""


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    sdk: str | None = None  # of a Space
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def add(self, files: dict[str, bytes], branch: str = "main", title: str = "") -> str:
        self.branches[branch] = self.record(files, self.branches.get(branch), title)
        return self.branches[branch]

    def record(self, files: dict[str, bytes], parent: str | None, title: str) -> str:
        content = [{path: sha256(data) for path, data in files.items()}, parent, title, len(self.commits)]
        commit = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.commits[commit] = Commit(files, parent, title)
        return commit

    def resolve(self, revision: str) -> str:
        commit = {**self.pull_requests, **self.tags, **self.branches}.get(revision, revision)
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
    range: str | None


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def entry_of(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_blob_id(content)}
    if is_lfs(path):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return entry
