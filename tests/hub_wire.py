"""HTTP as the test server speaks it, and how it breaks."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_state import RefusalError, Request
from waiting import HANG_S

if TYPE_CHECKING:
    from hub_server import HubServer


class Wire(BaseHTTPRequestHandler):
    """Routes requests to methods; each answers, or raises :class:`RefusalError`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms between header and body
    hub: HubServer
    routes: tuple[tuple[tuple[str, ...], str, str], ...]

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query, self.content = parse_qs(url.query), self._read_content()
        with self.hub.lock:
            life = self.hub.life
            self.hub.requests.append(
                Request(
                    self.command,
                    url.path,
                    self.headers["Host"],
                    self.headers.get("Authorization"),
                    self.headers.get("Range"),
                )
            )
            self.fault = self.hub.next_fault(f"{self.command} {url.path}")
        if self.fault.until:
            self.fault.until.wait(HANG_S)
        if self.fault.meanwhile:
            self.fault.meanwhile()
        with self.hub.lock:
            if life != self.hub.life:  # a test that gave up has ended: what it still sends is not the next one's
                self.close_connection = True
                return
            try:
                self._route(url.path)
            except RefusalError as refusal:
                headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message, **refusal.headers}
                self._answer({"error": refusal.message}, refusal.status, {k: v for k, v in headers.items() if v})
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client went away

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815, http.server's names

    def _route(self, path: str) -> None:
        if self.fault.status:
            raise RefusalError(self.fault.status, "injected failure", headers=self.fault.headers)
        for methods, pattern, name in self.routes:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                getattr(self, name)(**{k: v and unquote(v) for k, v in match.groupdict().items()})
                return
        raise RefusalError(404, f"no route for {self.command} {path}")

    def _read_content(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = b"" if value is None else json.dumps(value).encode()
        self._send(body, status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        if self.fault.lost:
            self._hang_up()
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.body in ("reset", "truncated"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self._hang_up(crash=self.fault.body == "reset")
        elif self.fault.body == "tampered":
            self.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))
        else:
            self.wfile.write(body)

    def _hang_up(self, crash: bool = False) -> None:
        self.close_connection = True
        if crash:
            time.sleep(0.1)  # a reset throws away what the client has not read yet
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
