"""Ctrl-C while a network computes: Python hears of it only when the runtime's call returns, which may take hours."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ._output import say

GRACE = 2.0
"""Seconds that Python has to hear of Ctrl-C."""

_LOOKS = 20  # in that time
_DEFAULT = signal.default_int_handler


@contextmanager
def ends_on_interrupt() -> Iterator[None]:
    """While entered, Ctrl-C of which Python does not hear within :data:`GRACE` seconds ends the process, exit code 130.

    Python writes a byte to a socket when the signal comes, and our handler reads it when Python gets to run it. What
    is still there after the time was not heard. The calls themselves are left as they are, and cost no more.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not _DEFAULT:
        yield  # a background job, which ignores Ctrl-C, or a program that does otherwise
        return
    unheard, pythons = socket.socketpair()
    unheard.setblocking(False)
    pythons.setblocking(False)

    def hear(number: int, frame: FrameType | None) -> None:
        with suppress(BlockingIOError):
            unheard.recv(4096)
        _DEFAULT(number, frame)

    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(unheard, done), name="ccnn-interrupts", daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _DEFAULT)
        signal.set_wakeup_fd(before)
        done.set()
        pythons.close()  # wakes the watcher
        watcher.join()
        unheard.close()


def _watch(unheard: socket.socket, done: threading.Event) -> None:
    while not done.is_set():
        select.select([unheard], [], [])
        for _ in range(_LOOKS):
            if done.wait(GRACE / _LOOKS) or not select.select([unheard], [], [], 0)[0]:
                break
        else:
            _end()


def _end() -> None:
    with suppress(OSError, ValueError, AttributeError):  # a stream may be closed, or none at all
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # a progress bar hides the cursor
    say("interrupted while the network computed", err=True)
    os._exit(128 + signal.SIGINT)
