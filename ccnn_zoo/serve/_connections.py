"""Connections that wait for a request no longer than they may; uvicorn itself closes only those that had one."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.auto import AutoHTTPProtocol

MAX_HEADER_BYTES = 65_536


def punctual(timeout_s: float) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol, which in addition closes connections whose headers are late or endless.

    Args:
        timeout_s: seconds from the connection's beginning, or from the answer before, until all headers are there.
    """

    class Punctual(AutoHTTPProtocol):
        _late: asyncio.TimerHandle | None = None
        _received = 0

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._waits():
                self._received += len(data)
                if self._received > MAX_HEADER_BYTES:
                    self.transport.close()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._late.cancel()

        def _await_headers(self) -> None:
            if self._late is not None:
                self._late.cancel()
            self._late = self.loop.call_later(timeout_s, self._give_up)
            self._received = 0

        def _waits(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _give_up(self) -> None:
            if self._waits():
                self.transport.close()

    return Punctual
