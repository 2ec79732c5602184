"""Detectors on the Hub, over HTTP, against a server that speaks its protocol."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from detector_network import LABELS, RECORD, published_detector, save_picture


@pytest.fixture(scope="module")
def published() -> Path:
    """A local repository, not to be changed."""
    return published_detector()[1]


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    save_picture(path, 120, 160)
    return path


def test_what_is_published_comes_back_and_finds_what_torch_finds(server, user, published, picture):
    program = f"""
import torch, numpy, json
from PIL import Image
from ccnn_zoo import hub, runtime
from ccnn_zoo.detection import load_detector
commit = hub.publish({str(published)!r}, "org/cells").commit
folder = hub.download("org/cells", commit)
detector, record = load_detector(folder / "model.safetensors")
pixels = numpy.asarray(Image.open({str(picture)!r}), numpy.float32) / 255
with torch.no_grad():
    theirs = detector([torch.from_numpy(pixels).permute(2, 0, 1).contiguous()])[0]
(ours,) = runtime.load_detector("org/cells", revision=commit, device="cpu").detect([{str(picture)!r}], score=0.5)
sure = theirs["scores"] >= 0.5
print(json.dumps({{
    "scores": [[each.score for each in ours.objects], theirs["scores"][sure].tolist()],
    "metrics": record.metrics,
    "commit": folder.name,
}}))
"""
    answer = json.loads(user.run(program, token=server.token))
    ours, theirs = answer["scores"]
    assert len(ours) > 5
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert answer["metrics"] == RECORD.metrics
    repository = server.repositories["org/cells"]
    assert answer["commit"] == repository.branches["main"]
    assert "pipeline_tag: object-detection" in repository.files["README.md"].decode()


def test_a_list_of_an_organisation_says_how_good_its_detectors_are(server, user, published):
    user.publish(published, "org/cells")
    (found,) = json.loads(
        user.run(
            "import json; from ccnn_zoo import hub; "
            "print(json.dumps([[n.repo_id, n.architecture, n.branches, n.metrics] for n in hub.search('org')]))"
        )
    )
    assert found == ["org/cells", "ccnn_alexnet", 2, RECORD.metrics]
    table = user.ccnn("list", "--hub", "org")
    (row,) = [line for line in table.splitlines() if "org/cells" in line]
    assert "mAP 12.50" in row


def test_detect_and_export_take_a_repository_of_the_hub(server, user, published, picture, tmp_path):
    user.publish(published, "org/cells")
    record = json.loads(user.ccnn("detect", picture, "--model", "org/cells", "--device", "cpu", "--json"))
    assert {each["label"] for each in record["objects"]} <= set(LABELS)
    assert len(record["objects"]) > 5
    user.ccnn("export", "org/cells", "-o", tmp_path / "d.onnx")
    assert (tmp_path / "d.onnx").read_bytes() == server.repositories["org/cells"].files["onnx/model.onnx"]


def test_a_detector_taken_for_a_classifier_is_refused_with_the_right_call(server, user, published):
    user.publish(published, "org/cells")
    (answer,) = user.call("__import__('ccnn_zoo.runtime').runtime.load('org/cells', device='cpu')")
    assert answer[0] == "MetadataError"
    assert "load_detector" in answer[1]
    program = """
import timm, ccnn_zoo
try:
    timm.create_model("hf-hub:org/cells", pretrained=True)
except RuntimeError as error:
    print(error)
"""
    assert user.run(program) == "Unknown model (fasterrcnn_ccnn_alexnet)\n"


def test_a_tampered_detector_is_refused(server, user, published):
    user.publish(published, "org/cells")
    network = bytearray(server.repositories["org/cells"].files["onnx/model.onnx"])
    network[-1] ^= 1
    server.replaced["onnx/model.onnx"] = bytes(network)
    (answer,) = user.call("__import__('ccnn_zoo.runtime').runtime.load_detector('org/cells', device='cpu')")
    assert answer[0] == "IntegrityError"
    assert "onnx/model.onnx" in answer[1]
