"""Trying again what may succeed next time.

huggingface_hub tries most requests of an upload again by itself; not so creating repositories, branches, tags and
commits, looking at a repository, and a download whose connection was reset or whose server is down.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT = 1.0  # seconds; doubled each time
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is not waited for

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_REFUSED_UNREAD = frozenset({429, 503})

logger = logging.getLogger("ccnn_zoo.hub")


def persistently(call: Callable[[], T], may_retry: Callable[[Exception], bool] | None = None) -> T:
    """Return what ``call`` returns, trying again after 429, 5xx and broken connections, ever more slowly.

    ``Retry-After`` is obeyed up to :data:`LONGEST_WAIT`. A refused connection is not tried again: nobody listens.

    Args:
        call: what to try; nothing that it did in a failed attempt may hinder the next.
        may_retry: says of an error whether to try again; by default :func:`is_transient`.
    """
    may_retry = may_retry or is_transient
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            asked = _retry_after(error)
            pause = wait if asked is None else asked
            if attempt == ATTEMPTS or not may_retry(error) or pause > LONGEST_WAIT:
                raise
            # The kind alone: a message may hold an address with a signature in it.
            logger.warning("%s, trying again in %g s (%d of %d)", _kind(error), pause, attempt, ATTEMPTS - 1)
        time.sleep(pause)
        wait *= 2
    raise AssertionError("unreachable")


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    from huggingface_hub import errors as hub

    cause = root_of(error)
    status = status_of(cause)
    if status is not None:
        return status in _TRANSIENT
    # Whichever HTTP client huggingface_hub uses, it calls a refused connection so.
    return isinstance(cause, hub.HTTPError) and type(cause).__name__ != "ConnectError"


def is_brief(error: Exception) -> bool:
    """As :func:`is_transient`, except that a server that was waited for in vain is not waited for again."""
    return is_transient(error) and not was_unanswered(error)


def was_unanswered(error: Exception) -> bool:
    """Whether the server took the request and never answered."""
    return type(root_of(error)).__name__ == "ReadTimeout"


def was_refused_unread(error: Exception) -> bool:
    """Whether the server says that it did nothing: what must not happen twice may then be tried again."""
    return status_of(root_of(error)) in _REFUSED_UNREAD


def root_of(error: Exception) -> Exception:
    """Return the HTTP error behind one of huggingface_hub's that wraps it."""
    from huggingface_hub import errors as hub

    wrapped = error
    while not isinstance(wrapped, hub.HTTPError) and isinstance(wrapped.__cause__, Exception):
        wrapped = wrapped.__cause__
    return wrapped if isinstance(wrapped, hub.HTTPError) else error


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error, or None where no answer came."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _retry_after(error: Exception) -> float | None:
    response = getattr(root_of(error), "response", None)
    text = response.headers.get("Retry-After", "") if response is not None else ""
    return float(text) if text.isdigit() else None


def _kind(error: Exception) -> str:
    cause = root_of(error)
    status = status_of(cause)
    return f"the Hub answered {status}" if status else f"the connection failed ({type(cause).__name__})"
