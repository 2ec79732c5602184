"""The service's parts, without Ray: a replica's answers, the front's time limit, the application's arguments."""

from __future__ import annotations

import asyncio
import http.client
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

from ccnn_zoo.errors import ConfigurationError

pytest.importorskip("ray", reason="the extra serve is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

PATIENCE_S = 240  # what has not come by then never will


@pytest.fixture(autouse=True)
def _pillows_limit(monkeypatch) -> Iterator[None]:
    """A replica sets it for its own process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    with warnings.catch_warnings():
        yield


def test_a_picture_that_the_network_fails_on_fails_alone(tmp_path):
    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._replica import Replica

    model = onnx.load(save_network(tmp_path / "network.onnx"))
    model.graph.node.insert(1, onnx.helper.make_node("Log", ["pooled"], ["logarithm"]))
    model.graph.node[2].input[0] = "logarithm"  # of what is darker than the mean it is no number
    onnx.save(model, tmp_path / "network.onnx")
    replica = Replica(ServeOptions(str(tmp_path / "network.onnx"), device="cpu"))
    bright, dark = encoded((255, 255, 255)), encoded((0, 0, 0))
    good, bad, broken, last = replica._replies([bright, dark, b"junk", bright], [1, 1, 1, 2])
    assert (good.status, bad.status, broken.status, last.status) == (200, 500, 415, 200)
    assert "IntegrityError" in bad.error
    assert (len(good.predictions), len(last.predictions)) == (1, 2)


MEASURED = """
import resource, sys
from pathlib import Path
from ccnn_zoo.serve import ServeOptions
from ccnn_zoo.serve._replica import Replica

network, picture = sys.argv[1:]
replica = Replica(ServeOptions(network, device="cpu", threads=1, max_batch_size=32))
picture = Path(picture).read_bytes()
peaks = []
for count in (1, 32):
    replies = replica._replies([picture] * count, [1] * count)
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

    options = ServeOptions(str(save_network(tmp_path / "network.onnx")), device="cpu", max_pixels=1200)
    replica = Replica(options)
    pictures = [encoded((9, 9, 9), size=size) for size in ((30, 40), (30, 41), (300, 300))]
    icon = io.BytesIO()  # says 16 x 16, and holds a PNG of 100 x 100
    Image.new("RGB", (16, 16)).save(icon, "ICO", sizes=[(16, 16)])
    large = encoded((9, 9, 9), size=(100, 100))
    header = icon.getvalue()[:22]
    pictures.append(header[:14] + len(large).to_bytes(4, "little") + header[18:22] + large)
    small, larger, largest, hidden = replica._replies(pictures, [1] * 4)
    assert small.status == 200
    for reply in (larger, largest, hidden):
        assert (reply.status, reply.error) == (413, "the picture has more than 1200 pixels. Send a smaller one.")
    assert ServeOptions("x").max_pixels == 4 * 12_000_000
    with pytest.raises(ConfigurationError, match="max_pixels must be an integer of at least 1, got 0"):
        ServeOptions("x", max_pixels=0)


def test_a_batch_is_counted_once_and_whole_pictures_for_the_graph_are_held_a_few_at_a_time(tmp_path):
    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._replica import Replica

    pictures = [encoded((9, 9, 9), size=(20, 20))] * 5
    pictures[1] = b"junk"
    batches = {}
    for whole in (False, True):
        metadata = replace(METADATA, preprocessing_in_graph=whole)
        network = save_network(tmp_path / f"{whole}.onnx", metadata=metadata)
        replica = Replica(ServeOptions(str(network), device="cpu", max_pixels=1000))
        batches[whole] = [reply.batch for reply in replica._replies(pictures, [1] * 5)]
    assert batches == {False: [4, 0, 0, 0, 0], True: [2, 0, 0, 2, 0]}


@contextmanager
def listening(header_timeout_s: float) -> Iterator[tuple[str, int]]:
    """uvicorn with the service's connections, and an application that echoes."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    from ccnn_zoo.serve._connections import punctual

    async def echo(request: object) -> Response:
        return Response(await request.body())

    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    config = uvicorn.Config(
        app, http=punctual(header_timeout_s), timeout_keep_alive=600, lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"


@pytest.mark.parametrize(
    "sent", [b"", HEAD, HEAD + b"\r\nabc", HEAD + b"\r\nabc" + HEAD], ids=["silent", "slow", "idle", "slow again"]
)
def test_connections_that_send_no_request_are_closed(sent):
    with listening(0.5) as address, socket.create_connection(address, PATIENCE_S) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(1000):
            received += part
    assert received.count(b"200 OK") == sent.count(b"abc")


def test_endless_headers_end_the_connection():
    with listening(PATIENCE_S) as address, socket.create_connection(address, PATIENCE_S) as connection:
        connection.sendall(HEAD)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall((b"X-Filler: " + bytes([65] * 1000) + b"\r\n") * 100_000)


def test_a_body_may_take_longer_than_its_headers_and_connections_are_used_again():
    with listening(0.5) as address:
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
        for _ in range(2):
            connection.putrequest("POST", "/")
            connection.putheader("Content-Length", "200000")
            connection.endheaders()
            threading.Event().wait(1)
            connection.send(bytes(200_000))
            assert connection.getresponse().read() == bytes(200_000)
        connection.close()


def test_a_body_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Of EPS, which is a program, Pillow lets Ghostscript run the whole body."""
    from PIL import EpsImagePlugin

    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._replica import Replica

    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it is looked for once in a process
    body = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    replica = Replica(ServeOptions(str(save_network(tmp_path / "network.onnx")), device="cpu"))
    (reply,) = replica._replies([body], [1])
    assert not (tmp_path / "ran").exists()
    assert (reply.status, "JPEG2000" in reply.error) == (415, True)


def test_the_front_page_meets_the_time_limit():
    from starlette.exceptions import HTTPException

    from ccnn_zoo.serve import ServeOptions
    from ccnn_zoo.serve._front import Front

    never = SimpleNamespace(labels=SimpleNamespace(remote=asyncio.Event().wait))
    front = Front(never, ServeOptions("network.onnx", timeout_s=0.05), "service")
    with pytest.raises(HTTPException) as caught:
        asyncio.run(asyncio.wait_for(front.about(None), 60))
    assert caught.value.status_code == 504


def test_an_application_names_what_it_does_not_know():
    from ccnn_zoo.serve import application

    with pytest.raises(ConfigurationError, match="replica is none of them"):
        application({"model": "x.onnx", "replica": 2})
    with pytest.raises(ConfigurationError, match="model is missing"):
        application({})
