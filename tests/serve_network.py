"""A real ONNX network whose answers numpy can compute by itself, and pictures for it."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.uncertainty import Confidence

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox")
METADATA = ModelMetadata("ccnn_test", 2, LABELS, (3, 12, 10), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
NUMBERS = Confidence(
    pictures=1000,
    temperature=1.0,
    sets={"lac": {"0.9": 0.72, "0.95": 0.9, "0.99": 1.0}},
    decide={"0.05": 0.45, "0.01": None},
    quantiles={"energy": tuple(np.linspace(-10, -2, 101).tolist())},
)
WEIGHT = np.random.default_rng(7).normal(size=(3, len(LABELS))).astype(np.float32)
# Ray takes for dead what does not answer in these times, and starts it anew.
PATIENCE = {
    "RAY_gcs_server_request_timeout_seconds": "600",
    "RAY_gcs_rpc_server_connect_timeout_s": "600",
    "RAY_health_check_timeout_ms": "600000",
    "RAY_raylet_start_wait_time_s": "600",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "600",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "600",
}


@contextmanager
def ray_folder() -> Iterator[dict[str, str]]:
    """An environment in which Ray keeps its files in a folder of their own, and has patience with a busy machine.

    Its sockets need a short path.
    """
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield os.environ | PATIENCE | {"RAY_TMPDIR": folder}


def save_network(path: Path, batch: int | str = "N", metadata: ModelMetadata = METADATA) -> Path:
    """Write a network that averages each channel and multiplies by :data:`WEIGHT`.

    Where the metadata say that pictures go into the graph as they are, it averages their uint8 values as they are.
    """
    shape, kind, first = [batch, *metadata.input_size], TensorProto.FLOAT, []
    if metadata.preprocessing_in_graph:
        shape, kind = [batch, "H", "W", metadata.input_size[0]], TensorProto.UINT8
        first = [
            helper.make_node("Cast", ["pictures"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["values"], ["images"], perm=[0, 3, 1, 2]),
        ]
    taken = "pictures" if first else "images"
    graph = helper.make_graph(
        [
            *first,
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
            helper.make_node("MatMul", ["features", "weight"], ["logits"]),
        ],
        "network",
        [helper.make_tensor_value_info(taken, kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(LABELS)])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata.to_props())
    onnx.save(model, path)
    return path


def probabilities_of(colour: tuple[int, int, int]) -> dict[str, float]:
    """What the network gives for a picture of one colour, most probable first, computed without the package."""
    features = (np.array(colour, float) / 255 - METADATA.mean) / METADATA.std
    exponentials = np.exp(features @ WEIGHT.astype(float))
    values = zip(LABELS, exponentials / exponentials.sum(), strict=True)
    return dict(sorted(values, key=lambda pair: -pair[1]))


def said_of(colour: tuple[int, int, int]) -> dict[str, object]:
    """What :data:`NUMBERS` say of a picture of one colour, at a coverage of 0.9 and a risk of 0.05, likewise."""
    known = probabilities_of(colour)
    logits = ((np.array(colour, float) / 255 - METADATA.mean) / METADATA.std) @ WEIGHT.astype(float)
    energy = -np.log(np.exp(logits).sum())
    likely = [label for label, value in known.items() if value >= 1 - 0.72]
    return {
        "prediction_set": likely or list(known)[:1],
        "decided": next(iter(known.values())) >= 0.45,
        "entropy": -sum(value * np.log(value) for value in known.values()),
        "energy": energy,
        "percentile": sum(energy > quantile for quantile in NUMBERS.quantiles["energy"][:100]),
    }


def encoded(colour: tuple[int, int, int], kind: str = "PNG", size: tuple[int, int] = (10, 12)) -> bytes:
    """A picture of one colour as a file's bytes."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()
