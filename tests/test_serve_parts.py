"""The service's parts, without Ray: a replica's answers, the front's time limit, the application's arguments."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import onnx
import pytest
from PIL import Image
from serve_network import METADATA, encoded, save_network
from waiting import HANG_S

from ccnn_zoo.errors import ConfigurationError

pytest.importorskip("ray", reason="the extra serve is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.fixture(autouse=True)
def _pillows_limit(monkeypatch) -> Iterator[None]:
    """A replica sets it for its own process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    with warnings.catch_warnings():
        yield


def test_a_picture_that_the_network_fails_on_fails_alone(tmp_path):
    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._replica import Replica
    from ccnn_zoo.serve._schema import Query

    model = onnx.load(save_network(tmp_path / "network.onnx"))
    model.graph.node.insert(1, onnx.helper.make_node("Log", ["pooled"], ["logarithm"]))
    model.graph.node[2].input[0] = "logarithm"  # of what is darker than the mean it is no number
    onnx.save(model, tmp_path / "network.onnx")
    replica = Replica(ServeOptions(str(tmp_path / "network.onnx"), device="cpu"))
    bright, dark = encoded((255, 255, 255)), encoded((0, 0, 0))
    good, bad, broken, last = replica._replies([bright, dark, b"junk", bright], [Query(top_k=k) for k in (1, 1, 1, 2)])
    assert (good.status, bad.status, broken.status, last.status) == (200, 500, 415, 200)
    assert "IntegrityError" in bad.error
    assert (len(good.found.predictions), len(last.found.predictions)) == (1, 2)


MEASURED = """
import resource, sys
from pathlib import Path
from ccnn_zoo.serve import ServeOptions
from ccnn_zoo.serve._replica import Replica
from ccnn_zoo.serve._schema import Query

network, picture = sys.argv[1:]
replica = Replica(ServeOptions(network, device="cpu", threads=1, max_batch_size=32))
picture = Path(picture).read_bytes()
peaks = []
for count in (1, 32):
    replies = replica._replies([picture] * count, [Query()] * count)
    assert {reply.status for reply in replies} == {200}
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is counted in kilobytes on Linux")
def test_a_batch_of_large_pictures_takes_the_memory_of_one(tmp_path):
    side = 3000
    picture = tmp_path / "large.png"
    picture.write_bytes(encoded((1, 2, 3), size=(side, side)))
    assert picture.stat().st_size < 100_000
    command = [sys.executable, "-c", MEASURED, save_network(tmp_path / "network.onnx"), picture]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    one = side * side * 4 / 1024  # as Pillow holds it
    assert int(run.stdout) < 2 * one


def test_pictures_of_more_pixels_than_the_service_takes_are_refused(tmp_path):
    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._replica import Replica
    from ccnn_zoo.serve._schema import Query

    options = ServeOptions(str(save_network(tmp_path / "network.onnx")), device="cpu", max_pixels=1200)
    replica = Replica(options)
    pictures = [encoded((9, 9, 9), size=size) for size in ((30, 40), (30, 41), (300, 300))]
    icon = io.BytesIO()  # says 16 x 16, and holds a PNG of 100 x 100
    Image.new("RGB", (16, 16)).save(icon, "ICO", sizes=[(16, 16)])
    large = encoded((9, 9, 9), size=(100, 100))
    header = icon.getvalue()[:22]
    pictures.append(header[:14] + len(large).to_bytes(4, "little") + header[18:22] + large)
    small, larger, largest, hidden = replica._replies(pictures, [Query()] * 4)
    assert small.status == 200
    for reply in (larger, largest, hidden):
        assert (reply.status, reply.error) == (413, "the picture has more than 1200 pixels. Send a smaller one.")
    assert ServeOptions("x").max_pixels == 4 * 12_000_000
    with pytest.raises(ConfigurationError, match="max_pixels must be an integer of at least 1, got 0"):
        ServeOptions("x", max_pixels=0)


def test_a_batch_is_counted_once_and_whole_pictures_for_the_graph_are_held_a_few_at_a_time(tmp_path):
    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._replica import Replica
    from ccnn_zoo.serve._schema import Query

    pictures = [encoded((9, 9, 9), size=(20, 20))] * 5
    pictures[1] = b"junk"
    batches = {}
    for whole in (False, True):
        metadata = replace(METADATA, preprocessing_in_graph=whole)
        network = save_network(tmp_path / f"{whole}.onnx", metadata=metadata)
        replica = Replica(ServeOptions(str(network), device="cpu", max_pixels=1000))
        batches[whole] = [reply.batch for reply in replica._replies(pictures, [Query()] * 5)]
    assert batches == {False: [4, 0, 0, 0, 0], True: [2, 0, 0, 2, 0]}


@contextmanager
def connected(header_timeout_s: float, sent: bytes) -> Iterator[socket.socket]:
    """A connection to uvicorn with the service's protocol and an application that echoes.

    What is sent lies there when the server starts, so that no stall of this machine makes it late.
    """
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    from ccnn_zoo.serve._connections import punctual

    async def echo(request: object) -> Response:
        return Response(await request.body())

    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    config = uvicorn.Config(
        app, http=punctual(header_timeout_s), timeout_keep_alive=HANG_S, lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), HANG_S) as connection,
    ):
        connection.sendall(sent)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield connection
        finally:
            server.should_exit = True
            connection.close()
            thread.join()


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
WHOLE = HEAD + b"\r\nabc"


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = b""
    while part := connection.recv(1000):
        received += part
    return received


@pytest.mark.parametrize(
    "sent",
    [b"", HEAD, WHOLE, WHOLE + HEAD, WHOLE + WHOLE],
    ids=["silent", "slow", "idle", "slow after an answer", "idle after two"],
)
def test_connections_that_send_no_request_are_closed(sent):
    with connected(0.5, sent) as connection:
        assert all_of(connection).count(b"200 OK") == sent.count(b"abc")


def test_endless_headers_end_the_connection():
    with connected(HANG_S, HEAD) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.sendall((b"X-Filler: " + bytes([65] * 1000) + b"\r\n") * 100_000)


def test_a_body_may_take_longer_than_the_headers():
    with connected(0.5, HEAD + b"\r\n") as connection:
        threading.Event().wait(1)
        connection.sendall(b"abc")
        answer = all_of(connection)
    assert (answer.count(b"200 OK"), answer[-3:]) == (1, b"abc")


def test_a_body_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Of EPS, which is a program, Pillow lets Ghostscript run the whole body."""
    from PIL import EpsImagePlugin

    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._replica import Replica
    from ccnn_zoo.serve._schema import Query

    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it is looked for once in a process
    body = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    replica = Replica(ServeOptions(str(save_network(tmp_path / "network.onnx")), device="cpu"))
    (reply,) = replica._replies([body], [Query()])
    assert not (tmp_path / "ran").exists()
    assert (reply.status, "JPEG2000" in reply.error) == (415, True)


def test_the_front_page_meets_the_time_limit():
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._front import Front

    never = SimpleNamespace(labels=SimpleNamespace(remote=asyncio.Event().wait))
    front = Front(never, ServeOptions("network.onnx", timeout_s=0.05), "service")
    with pytest.raises(HTTPException) as caught:
        asyncio.run(asyncio.wait_for(front.about(Request({"type": "http", "headers": []})), 60))
    assert caught.value.status_code == 504


def test_an_application_names_what_it_does_not_know():
    from ccnn_zoo.serve import application

    with pytest.raises(ConfigurationError, match="replica is none of them"):
        application({"model": "x.onnx", "replica": 2})
    with pytest.raises(ConfigurationError, match="model is missing"):
        application({})


def test_the_description_is_valid_wherever_the_service_lies_and_its_page_names_all_of_it():
    from openapi_spec_validator import validate
    from starlette.testclient import TestClient

    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._front import Front

    app = Front(SimpleNamespace(), ServeOptions("network.onnx"), "service").app()
    for root in ("", "/pets"):
        client = TestClient(app, root_path=root)
        described = client.get("/openapi.json").json()
        validate(described)
        assert described["servers"] == [{"url": root or "/"}]
    text = client.get("/docs").text
    for path, operations in described["paths"].items():
        assert all(f"{method.upper()} {path}" in text for method in operations)
    assert all(f'id="{name}"' in text for name in described["components"]["schemas"])
    assert "<script" not in text
