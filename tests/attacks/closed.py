"""A Python that refuses to reach out: while it is closed, sockets, writes, programs, pickles raise and are noted.

Or, for what has to write, one that refuses only the network and a canary.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_FORBIDDEN = (
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"),
    *("urllib.Request", "http.client.connect", "ftplib.connect", "subprocess.Popen", "pickle.find_class"),
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "pty.spawn"),
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown"),
    *(
        "tempfile.mkstemp",
        "tempfile.mkdtemp",
        "shutil.copyfile",
        "shutil.move",
        "shutil.unpack_archive",
        "sqlite3.connect",
    ),
)
_NETWORK = tuple(event for event in _FORBIDDEN if event.startswith(("socket", "urllib", "http", "ftplib")))
_LOOKING = ("os.listdir", "os.scandir")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_canary = ""
_may_write = False
_noted: list[str] | None = None


class Forbidden(BaseException):
    """No ``except Exception`` of the code under attack may hide it; it is noted all the same."""


@contextmanager
def closed(canary: os.PathLike[str], *, may_write: bool = False) -> Iterator[list[str]]:
    """Forbid to reach out, and to open ``canary`` or what lies in it; yield the list of what was tried."""
    global _canary, _may_write, _noted
    _canary, _may_write, _noted = os.fspath(canary), may_write, []
    try:
        yield _noted
    finally:
        _noted = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _noted is None:
        return
    what = None
    if event in (_NETWORK if _may_write else _FORBIDDEN):
        what = f"{event} {arguments!r:.200}"
    elif event in _LOOKING and arguments and str(arguments[0]).startswith(_canary):
        what = f"look into {arguments[0]!r}"
    elif event == "open":
        path, mode, flags = arguments
        if isinstance(flags, int) and flags & _WRITING and path != os.devnull and not _may_write:
            what = f"write {path!r} {mode} {flags}"
        elif isinstance(path, str | os.PathLike) and os.fspath(path).startswith(_canary):
            what = f"read {path!r}"
    if what is not None:
        _noted.append(what)
        raise Forbidden(what)


sys.addaudithook(_watch)
