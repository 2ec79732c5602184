"""Freed memory stays with the process, so that the next step need not ask the system for it again."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1  # both are C ints


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory; return whether this C library could be told.

    By default it gives large blocks back at once, and the kernel clears every page again when the next step
    allocates the same feature maps, which on small images can take a third of a step. This holds for the whole
    process, whose memory no longer shrinks; so programs call it, the library does not.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST))
