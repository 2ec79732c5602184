"""Calls into native code that Ctrl-C ends: Python hears of a signal only between its own instructions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

GRACE = 2.0
"""Seconds that a call, once told to stop, has before it is left behind."""

_POLL = 0.1  # a wait without limit cannot be interrupted on Windows


class _Call(Generic[T]):
    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._done = threading.Event()
        self._value: T
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value


class _Worker:
    """One thread that makes calls for the main thread, one after another."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="ccnn-run", daemon=True)
        self.thread.start()

    def take(self, call: _Call) -> None:
        self._calls.put(call)

    def _work(self) -> None:
        while True:
            self._calls.get().run()


_worker: _Worker | None = None


def interruptible(function: Callable[[], T], stop: Callable[[], None]) -> T:
    """Return ``function()``. In the main thread, to which signals come, it can be interrupted.

    What a signal's handler raises there (``KeyboardInterrupt``) is raised at once, after ``stop`` and at most
    :data:`GRACE` seconds. A call that does not stop by then is left to a thread that nobody waits for.

    Args:
        function: releases Python's lock while it works. In the main thread it is called in another one.
        stop: asks it to end early; called in the main thread.
    """
    global _worker
    if threading.current_thread() is not threading.main_thread():
        return function()
    worker, _worker = _worker, None  # it comes back once its call has ended
    if worker is None or not worker.thread.is_alive():  # a forked process has none
        worker = _Worker()
    call = _Call(function)
    try:
        worker.take(call)
        while not call.wait(_POLL):
            pass
    except BaseException:
        stop()
        if call.wait(GRACE):
            _worker = worker
        raise
    _worker = worker
    return call.result()
