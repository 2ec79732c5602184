"""Waiting for what other processes do.

Tests wait for events, not for seconds: pytest's own limit (pyproject.toml) ends a hang, and no other limit judges.
"""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Callable

HANG_S = 1200
"""For calls that need a number of seconds; below pytest's limit, so that threads that wait end before the test does."""


def until(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Return when ``condition`` holds; fail where the process that should bring it about has ended before."""
    while not condition():
        if process is not None and process.poll() is not None:
            assert condition(), f"process ended with status {process.returncode} before it was done"
        time.sleep(0.02)


def free_port() -> int:
    """Return a port for a server that cannot be asked which one it took.

    The kernel gives ports above 32768 to whoever asks for any, and Ray those below 20000: between them the port stays
    free until the server takes it.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
