"""How long the Hub may be silent: huggingface_hub waits for ever where a request writes.

Requests with a limit of their own, downloads among them, keep it.
"""

from __future__ import annotations

from typing import Any

CONNECT = 30.0
"""Seconds to wait for a connection."""

ANSWER = 300.0
"""Seconds to wait for the next byte of an answer; making a large commit takes the Hub a minute or two."""


def limit_waiting() -> None:
    """Give the requests of this process a limit, unless its user has set how huggingface_hub makes its HTTP client."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    # There is no public way to ask whether a factory was set.
    default = getattr(_http, "default_client_factory", None)
    if default is not None and getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) is default:
        set_client_factory(_limited_client)


def _limited_client() -> Any:
    from huggingface_hub.utils._http import default_client_factory

    client = default_client_factory()
    client.timeout = (CONNECT, ANSWER, ANSWER, CONNECT)  # to connect, read, write, and for a free connection
    return client
