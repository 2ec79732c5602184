"""Files that change under the reader, cannot be read, or are none: an error of the package, or the file as checked."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, helper
from PIL import Image
from typer.testing import CliRunner

from ccnn_zoo import hub, runtime
from ccnn_zoo.checkpoint import load_checkpoint, load_repository
from ccnn_zoo.cli import app
from ccnn_zoo.detection import load_detector
from ccnn_zoo.errors import CCNNError, ConfigurationError, IntegrityError, RepositoryError
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.runtime import Backend, OpenOptions, OpenVino, Session

SIZE = (1, 2, 2)


def save_network(path: Path, nodes: list[NodeProto], rows: int | str = "N") -> Path:
    """Write a network whose four logits come from the four pixels by way of ``nodes``, which make logits of values."""
    flat = helper.make_node("Flatten", ["image"], ["values"])
    graph = helper.make_graph(
        [flat, *nodes],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    about = ModelMetadata("small", 1, ("a", "b", "c", "d"), SIZE, (0,), (1,))
    helper.set_model_props(model, about.to_props())
    path.write_bytes(model.SerializeToString())
    return path


def forward(path: Path) -> Path:
    return save_network(path, [helper.make_node("Identity", ["values"], ["logits"])])


class Swapping(Backend):
    """Puts another network in the place of the one that was checked, then opens it as the backend ``own`` does."""

    name = "swapping"

    def __init__(self, own: Backend) -> None:
        self._own = own

    def open(self, path: Path, options: OpenOptions) -> Session:
        save_network(path, [helper.make_node("Neg", ["values"], ["logits"])])
        return self._own.open(path, options)


@pytest.mark.parametrize("make", [runtime.Cpu, OpenVino], ids=["cpu", "openvino"])
def test_what_was_checked_is_what_runs(tmp_path, make: Callable[[], Backend]):
    if make().problem():
        pytest.skip(str(make().problem()))
    network = runtime.load(forward(tmp_path / "a.onnx"), device=Swapping(make()))
    images = np.arange(8, dtype=np.float32).reshape(2, *SIZE)
    np.testing.assert_array_equal(network.predict(images), images.reshape(2, 4))
    other = runtime.load(tmp_path / "a.onnx", device="cpu")
    np.testing.assert_array_equal(other.predict(images), -images.reshape(2, 4))


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_more_or_fewer_rows_than_images_are_refused(tmp_path, of):
    doubled = helper.make_node("Concat", ["values", "values"], ["logits"], axis=0)
    once = helper.make_node("ReduceMax", ["values"], ["logits"], axes=[0], keepdims=1)
    for name, node in (("doubled", doubled), ("once", once)):
        network = runtime.load(save_network(tmp_path / f"{name}.onnx", [node], "M"), device="cpu")
        with pytest.raises(IntegrityError, match=r"turned 3 images into logits of shape"):
            network.predict(of(np.zeros((3, *SIZE), np.float32)))


def test_a_meta_tensor_is_refused(tmp_path):
    images = torch.zeros(1, *SIZE, device="meta")
    network = runtime.load(forward(tmp_path / "a.onnx"), device="cpu")
    with pytest.raises(ConfigurationError, match="Tensor"):
        network.predict(images)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes")
def test_names_of_networks_need_not_be_text(tmp_path):
    path = tmp_path / os.fsdecode(b"n\xff.onnx")
    try:
        forward(path)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    result = CliRunner().invoke(app, ["classify", str(tmp_path / "a.png"), "--model", str(path)])
    assert (result.exit_code, result.exception) == (0, None)


DOORS: dict[str, Callable[[Path], object]] = {
    "load": lambda path: runtime.load(path, device="cpu"),
    "load_detector": lambda path: runtime.load_detector(path, device="cpu"),
    "torch": lambda path: runtime.load(path, device="torch"),
    "checkpoint": load_checkpoint,
    "into": lambda path: load_checkpoint(path, into=torch.nn.Linear(1, 1)),
    "detector": load_detector,
    "repository": load_repository,
    "download": lambda path: hub.download(f"local:{path}"),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_readable_file_is_refused(tmp_path, door):
    (tmp_path / "folder.onnx").mkdir()
    places = [tmp_path / "folder.onnx", Path("a" * 5000), Path("a\0b"), tmp_path / "loop"]
    (tmp_path / "loop").symlink_to("loop")
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe.onnx")
        places.append(tmp_path / "pipe.onnx")
    if os.path.exists("/proc/self/mem"):
        places.append(Path("/proc/self/mem"))  # a regular file, whose first byte cannot be read
    for place in places:
        with pytest.raises((RepositoryError, IntegrityError)):
            DOORS[door](place)


def safetensors(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(dtype: str, shape: list[int], offsets: list[int], data: bytes) -> bytes:
    return safetensors({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, data)


MALFORMED = {
    "empty": b"",
    "short": b"123",
    "header larger than the file": safetensors(b"{}", size=2**63),
    "header of a negative size": safetensors(b"{}", size=2**64 - 1),
    "a list": safetensors([]),
    "nested": safetensors(b"[" * 100_000),
    "half of a surrogate pair": safetensors(b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
    "beyond the end": one("F32", [1], [0, 4], b"12"),
    "backwards": one("F32", [1], [4, 0], b"1234"),
    "a gap": one("F32", [1], [4, 8], b"12345678"),
    "negative": one("F32", [1], [-4, 0], b"1234"),
    "fewer bytes than its shape": one("F32", [2], [0, 4], b"1234"),
    "an overflow": one("F32", [2**62, 4], [0, 0], b""),
    "an overflow times zero": one("F32", [2**62, 0], [0, 0], b""),
    "a type that torch lacks": one("F6_E2M3", [4], [0, 3], b"123"),
    "a type that nobody has": one("X99", [1], [0, 4], b"1234"),
    "sizes that are no integers": one("F32", [True], [0, 4], b"1234"),  # type: ignore[list-item]
    "5,000 dimensions": one("F32", [1] * 5000, [0, 4], b"1234"),
    "overlapping": safetensors(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]} for name, at in (("a", 0), ("b", 2))},
        b"123456",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_safetensors_are_refused(tmp_path, what):
    path = tmp_path / "model.safetensors"
    path.write_bytes(MALFORMED[what])
    (tmp_path / "config.json").write_text("{}")
    for door in ("checkpoint", "into", "detector"):
        with pytest.raises(IntegrityError, match=r"model\.safetensors"):
            DOORS[door](path)
    with pytest.raises(CCNNError):
        load_repository(tmp_path)
