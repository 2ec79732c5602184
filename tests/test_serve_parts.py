"""The service's parts, without Ray: a replica's answers, the front's time limit, the application's arguments."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import onnx
import pytest
from serve_network import encoded, save_network

from ccnn_zoo.errors import ConfigurationError

pytest.importorskip("ray", reason="the extra serve is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


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
