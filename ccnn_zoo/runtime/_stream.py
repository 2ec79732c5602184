"""Preparing images ahead of the network, in threads, and in order.

Threads, not processes: Pillow decodes and resizes without Python's lock, and pixels need not be copied from one
process to another. ``scripts/bench_classify.py`` measures both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def mapped(function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """Yield ``function(item)`` of each item, in the order of the items.

    Items are drawn in the calling thread, so that generators need not be safe for threads.

    Args:
        function: called in the workers; what it raises is raised here, in its turn.
        items: may be endless.
        workers: threads; with 0 each item is drawn and worked on only when its result is asked for.
        ahead: how many results at most are worked on or waiting before they are asked for.
    """
    if workers == 0:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ccnn-decode")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items, the last one maybe shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
