"""How long the Hub may be silent: huggingface_hub waits for ever where a request writes.

Requests with a limit of their own, downloads among them, keep it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

CONNECT = 30.0
"""Seconds to wait for a connection."""

ANSWER = 300.0
"""Seconds to wait for the next byte of an answer; making a large commit takes the Hub a minute or two."""


def limit_waiting() -> None:
    """Give the requests of this process a limit, unless its user has set how huggingface_hub makes its HTTP client."""
    from huggingface_hub import set_client_factory

    from ccnn_zoo._base.compat import hub_client_factory

    if (factory := hub_client_factory()) is not None:
        set_client_factory(partial(_limited_client, factory))


def _limited_client(factory: Callable[[], Any]) -> Any:
    client = factory()
    client.timeout = (CONNECT, ANSWER, ANSWER, CONNECT)  # to connect, read, write, and for a free connection
    return client
