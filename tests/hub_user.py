"""Somebody who runs programs against the test server, as a user does: in processes of their own.

huggingface_hub reads its settings once, on import. So one process imports everything with the settings of the tests,
and each program runs in a fork of it: nothing is left of the program before, and no import is waited for.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from forks import EVERYTHING, Forks
from hub_server import HubServer
from waiting import HANG_S

IMPORTS = f"""{EVERYTHING}
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download, snapshot_download
"""
PRELUDE = """
import json, time
from ccnn_zoo import hub
from ccnn_zoo.errors import CCNNError

sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))  # before it tries again

def attempt(call):
    try:
        result = call()
    except CCNNError as error:
        print(json.dumps([type(error).__name__, str(error)]))
    else:
        print(json.dumps(result.commit if isinstance(result, hub.Publication) else str(result)))
"""


class User:
    """Somebody with a cache of their own.

    Attributes:
        server: the Hub.
        home: where huggingface_hub keeps what it fetched.
        errors: what the last program wrote to stderr.
    """

    def __init__(self, server: HubServer, home: Path) -> None:
        self.server, self.home, self.errors = server, home, ""

    def environment(self, **settings: str) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **others,
            "HF_ENDPOINT": self.server.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "TORCH_HOME": str(self.home / "torch"),
            "COLUMNS": "200",
            "MPLBACKEND": "agg",
            "HF_HUB_DOWNLOAD_TIMEOUT": str(HANG_S),
            "HF_HUB_ETAG_TIMEOUT": str(HANG_S),
            "NO_PROXY": "127.0.0.1,localhost",
            **settings,
        }

    def run(
        self,
        program: str,
        token: str | None = None,
        *,
        arguments: Sequence[object] = (),
        folder: Path | None = None,
        **settings: str,
    ) -> str:
        """Return what a program printed.

        Args:
            program: Python.
            token: the user's.
            arguments: the program's.
            folder: where it runs, here if None.
            settings: environment variables, for which the program gets a process without anything imported.
        """
        identity = {"HF_TOKEN": token} if token else {}
        if settings:
            command = [sys.executable, "-c", program, *map(str, arguments)]
            environment = self.environment(**identity, **settings)
            run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        else:
            run = _forks(self).run(program, arguments, folder, **identity)
        status, output, self.errors = run.returncode, run.stdout, run.stderr
        assert status == 0, self.errors
        assert self.server.token not in output + self.errors
        return output

    def ccnn(self, *arguments: object) -> str:
        """Return what a command prints that succeeds."""
        return self.run(f"import sys\nfrom ccnn_zoo.cli import main\nsys.argv[1:] = {[*map(str, arguments)]}\nmain()")

    def call(self, *calls: str, token: str | None = None, **settings: str) -> list:
        """Return what each call gave: a string, or [name of the error, message]."""
        program = PRELUDE + "\n".join(f"attempt(lambda: {call})" for call in calls)
        return [json.loads(line) for line in self.run(program, token, **settings).splitlines()]

    def publish(
        self, source: Path, repo_id: str = "org/digits", token: str | None = HubServer.token, **options: object
    ) -> object:
        """Publish a folder; return the commit, or [name of the error, message]."""
        arguments = "".join(f", {name}={value!r}" for name, value in options.items())
        (result,) = self.call(f"hub.publish({str(source)!r}, {repo_id!r}{arguments})", token=token)
        return result


@cache
def _only_user() -> User:
    server, home = HubServer(), tempfile.mkdtemp(prefix="ccnn-hub-user-")
    server.__enter__()
    atexit.register(server.__exit__)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return User(server, Path(home))


@cache
def _forks(user: User) -> Forks:
    return Forks(IMPORTS, user.environment())


@pytest.fixture
def server() -> HubServer:
    """The Hub, empty and without faults."""
    server = _only_user().server
    server.reset()
    return server


@pytest.fixture
def user(server: HubServer) -> Iterator[User]:
    """Somebody with an empty cache."""
    user = _only_user()
    yield user
    shutil.rmtree(user.home, ignore_errors=True)
    user.home.mkdir()
