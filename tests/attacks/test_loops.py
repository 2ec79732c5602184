"""No network runs for ever: loops are refused wherever they hide, and Ctrl-C ends all others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import psutil
import pytest
from hub_network import published_folder
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from ccnn_zoo import runtime
from ccnn_zoo.errors import IntegrityError
from ccnn_zoo.metadata import ModelMetadata

ABOUT = ModelMetadata("slow", 1, ("a", "b"), (1, 8, 8), (0.5,), (0.5,))


def scan(depth: int = 0) -> NodeProto:
    """Scans in scans: the steps of one times those of the other, and so on."""
    inner = [helper.make_node("Identity", ["step"], ["result"])] if depth == 0 else [scan(depth - 1)]
    value = helper.make_tensor_value_info("step", TensorProto.FLOAT, None)
    body = helper.make_graph(inner, "body", [value], [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)])
    return helper.make_node("Scan", ["step"], ["result"], body=body, num_scan_inputs=1)


def loop() -> NodeProto:
    return helper.make_node("Loop", ["n", "c"], ["y"], body=GraphProto(name="body"))


def sequence_map() -> NodeProto:
    """onnxruntime makes a Loop of it."""
    return helper.make_node("SequenceMap", ["s"], ["t"], body=GraphProto(name="body"))


def in_the_graph(model: ModelProto, node: NodeProto) -> None:
    model.graph.node.append(node)


def in_a_branch(model: ModelProto, node: NodeProto) -> None:
    branch = helper.make_graph([node], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))


def in_a_function(model: ModelProto, node: NodeProto) -> None:
    model.functions.append(FunctionProto(name="f", domain="", node=[node]))


@pytest.mark.parametrize("place", [in_the_graph, in_a_branch, in_a_function])
@pytest.mark.parametrize("make", [loop, scan, lambda: scan(3), sequence_map], ids=["loop", "scan", "scans", "map"])
def test_loops_are_refused_wherever_they_hide(tmp_path, make: Callable[[], NodeProto], place):
    model = onnx.load(published_folder() / "onnx" / "model.onnx")
    place(model, make())
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match=r"has a loop \((Loop|Scan|SequenceMap)\)"):
        runtime.load(path)
    with pytest.raises(IntegrityError, match="has a loop"):
        runtime.load_detector(path)


def _many_nodes() -> list[NodeProto]:
    return [*_products("sides_of_it")]


def _one_node() -> list[NodeProto]:
    """A million boxes, none of which covers another: each is compared with all before it."""
    return [
        helper.make_node("Concat", ["one", "count", "four"], ["boxes_shape"], axis=0),
        helper.make_node("Concat", ["one", "one", "count"], ["scores_shape"], axis=0),
        helper.make_node("ConstantOfShape", ["boxes_shape"], ["boxes"]),
        helper.make_node("ConstantOfShape", ["scores_shape"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["boxes", "scores", "million", "never"], ["chosen"]),
        helper.make_node("Cast", ["chosen"], ["large"], to=TensorProto.FLOAT),
    ]


def _opening() -> list[NodeProto]:
    """onnxruntime computes what is constant as it opens the file."""
    return [*_products("side")]


def _products(side: str) -> Iterator[NodeProto]:
    small = numpy_helper.from_array(np.array([1e-5], np.float32))
    yield helper.make_node("Concat", [side, side], ["square"], axis=0)
    yield helper.make_node("ConstantOfShape", ["square"], ["m0"], value=small)
    for i in range(2000):
        yield helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}" if i < 1999 else "large"])


CONSTANTS = {"one": [1], "four": [4], "side": [3000], "million": [10**6], "zero": [0], "two": [2, 1], "rows": [-1, 2]}


def slow_network(nodes: list[NodeProto]) -> bytes:
    """A network whose logits are those of the largest pixel and of what ``nodes`` compute, in hours."""
    # By the size of the batch, or all of it would be computed as the file is opened.
    before = [
        helper.make_node("Shape", ["image"], ["sides"]),
        helper.make_node("Slice", ["sides", "zero", "one"], ["batch"]),
        helper.make_node("Mul", ["batch", "million"], ["count"]),
        helper.make_node("Mul", ["batch", "side"], ["sides_of_it"]),
    ]
    after = [
        helper.make_node("ReduceMax", ["large"], ["largest"], keepdims=0),
        helper.make_node("ReduceMax", ["image"], ["pixel"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Add", ["pixel", "largest"], ["sum"]),
        helper.make_node("Expand", ["sum", "two"], ["twice"]),
        helper.make_node("Reshape", ["twice", "rows"], ["logits"]),
    ]
    graph = helper.make_graph(
        [*before, *nodes, *after],
        "slow",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [
            *(numpy_helper.from_array(np.array(values, np.int64), name) for name, values in CONSTANTS.items()),
            numpy_helper.from_array(np.array([1], np.float32), "never"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, ABOUT.to_props())
    return model.SerializeToString()


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("nodes", [_many_nodes, _one_node, _opening])
def test_ctrl_c_ends_a_network_of_hours(tmp_path, nodes):
    (tmp_path / "slow.onnx").write_bytes(slow_network(nodes()))
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", "from ccnn_zoo.cli import main; main()", "classify", "a.png"]
    process = subprocess.Popen([*command, "--model", "slow.onnx", "--device", "cpu"], cwd=tmp_path)
    try:
        busy = psutil.Process(process.pid)
        while busy.cpu_times().user < 4:  # long past its imports
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) != 0
    finally:
        process.kill()
        process.wait()
