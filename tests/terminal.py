"""Runs a command on a terminal of its own."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Sequence
from typing import Any


def on_terminal(command: Sequence[object], stream: str, **settings: Any) -> tuple[int, bytes, bytes | None]:
    """Return the exit status, what the terminal saw, and the other stream where ``settings`` make it a pipe.

    Args:
        command: the command and its arguments.
        stream: ``"stdout"`` or ``"stderr"``, which is the terminal.
        settings: further arguments of ``subprocess.Popen``.
    """
    ours, theirs = pty.openpty()
    child = subprocess.Popen([*map(str, command)], **{stream: theirs}, **settings)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    out, _ = child.communicate()
    return child.returncode, seen, out
