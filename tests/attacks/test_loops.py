"""No network runs for ever: loops are refused wherever they hide, and Ctrl-C ends all others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import psutil
import pytest
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from ccnn_zoo import runtime
from ccnn_zoo.errors import IntegrityError
from ccnn_zoo.metadata import DetectorMetadata, ModelMetadata


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
    model = slow_classifier([helper.make_node("Identity", ["image"], ["large"])])
    place(model, make())
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match=r"has a loop \((Loop|Scan|SequenceMap)\)"):
        runtime.load(path)
    with pytest.raises(IntegrityError, match="has a loop"):
        runtime.load_detector(path)


CONSTANTS = {"one": [1], "four": [4], "side": [3000], "million": [10**6], "zero": [0], "two": [2, 1], "rows": [-1, 2]}


def _products(last: str) -> Iterator[NodeProto]:
    """Hours of products of constants: onnxruntime computes them as it opens the file."""
    small = numpy_helper.from_array(np.array([1e-5], np.float32))
    yield helper.make_node("Concat", ["side", "side"], ["square"], axis=0)
    yield helper.make_node("ConstantOfShape", ["square"], ["m0"], value=small)
    for i in range(2000):
        yield helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}" if i < 1999 else last])


def _comparisons(last: str) -> Iterator[NodeProto]:
    """One node for hours: of a million boxes none covers another, and each is compared with all before it."""
    # By the size of the batch, or all of it would be computed as the file is opened.
    yield helper.make_node("Shape", ["image"], ["sides"])
    yield helper.make_node("Slice", ["sides", "zero", "one"], ["batch"])
    yield helper.make_node("Mul", ["batch", "million"], ["count"])
    yield helper.make_node("Concat", ["one", "count", "four"], ["boxes_shape"], axis=0)
    yield helper.make_node("Concat", ["one", "one", "count"], ["scores_shape"], axis=0)
    yield helper.make_node("ConstantOfShape", ["boxes_shape"], ["all_boxes"])
    yield helper.make_node("ConstantOfShape", ["scores_shape"], ["all_scores"])
    yield helper.make_node("NonMaxSuppression", ["all_boxes", "all_scores", "million", "never"], ["chosen"])
    yield helper.make_node("Cast", ["chosen"], [last], to=TensorProto.FLOAT)


def slow_classifier(nodes: Iterable[NodeProto]) -> ModelProto:
    """A network whose logits are those of the largest pixel and of what ``nodes`` compute."""
    after = [
        helper.make_node("ReduceMax", ["large"], ["largest"], keepdims=0),
        helper.make_node("ReduceMax", ["image"], ["pixel"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Add", ["pixel", "largest"], ["sum"]),
        helper.make_node("Expand", ["sum", "two"], ["twice"]),
        helper.make_node("Reshape", ["twice", "rows"], ["logits"]),
    ]
    about = ModelMetadata("slow", 1, ("a", "b"), (1, 8, 8), (0.5,), (0.5,))
    return _model([*nodes, *after], ["N", 1, 8, 8], {"logits": (TensorProto.FLOAT, ["N", 2])}, about)


def slow_detector() -> ModelProto:
    nodes = [
        *_products("boxes"),
        helper.make_node("ConstantOfShape", ["one"], ["scores"]),
        helper.make_node("Identity", ["one"], ["labels"]),
    ]
    gives = {"boxes": TensorProto.FLOAT, "labels": TensorProto.INT64, "scores": TensorProto.FLOAT}
    outputs = {name: (kind, None) for name, kind in gives.items()}
    return _model(nodes, [1, 3, "H", "W"], outputs, DetectorMetadata("slow", 1, ("a",), 64, 64))


def _model(nodes, takes: list, gives: dict, about: ModelMetadata | DetectorMetadata) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, takes)],
        [helper.make_tensor_value_info(name, *kind) for name, kind in gives.items()],
        [
            *(numpy_helper.from_array(np.array(values, np.int64), name) for name, values in CONSTANTS.items()),
            numpy_helper.from_array(np.array([1], np.float32), "never"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, about.to_props())
    return model


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize(
    ("command", "make"),
    [
        (["classify"], lambda: slow_classifier(_products("large"))),
        (["classify", "--output", "all.csv"], lambda: slow_classifier(_comparisons("large"))),
        (["detect"], slow_detector),
    ],
    ids=["opening", "running", "detecting"],
)
def test_ctrl_c_ends_a_network_of_hours(tmp_path, command: list[str], make: Callable[[], ModelProto]):
    onnx.save(make(), tmp_path / "slow.onnx")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    started = [sys.executable, "-c", "from ccnn_zoo.cli import main; main()", *command, "a.png"]
    process = subprocess.Popen(
        [*started, "--model", "slow.onnx", "--device", "cpu"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore it, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        busy = psutil.Process(process.pid)
        while busy.cpu_times().user < 3:  # long past its imports
            assert process.poll() is None, "it ended by itself"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert said == "interrupted while the network computed\n"
    assert process.returncode == 130
    assert not (tmp_path / "all.csv").exists()
    if "--output" in command:  # what was done is kept, and another run may go on
        assert (tmp_path / "all.csv.part").exists()
