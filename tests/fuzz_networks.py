"""Small real networks to classify pictures with, and to mutate: convolutions, QDQ int8, and branches of control."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ccnn_zoo.metadata import ModelMetadata

LABELS = ("ant", "bee", "cat", "dog")
METADATA = ModelMetadata("fuzzed", 2, LABELS, (3, 16, 16), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bilinear", 0.9)


def networks() -> dict[str, onnx.ModelProto]:
    """Return the networks by name, all with the same input, labels and preprocessing."""
    return {"convolutions": convolutions(), "int8": int8(), "control flow": control_flow()}


def convolutions() -> onnx.ModelProto:
    """As exported: grouped convolutions with bias, ReLU, a shortcut, pooling, a linear layer."""
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=2),
        node("Add", ["c2", "r1"], ["s"]),
        node("MaxPool", ["s"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["m"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
    ]
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 4, 3, 3), "w3": (4, 8), "b3": (4,)}
    return _model(nodes, [_tensor(name, *shape) for name, shape in weights.items()])


def int8() -> onnx.ModelProto:
    """Quantised and dequantised around a convolution, per channel, as static quantisation writes it."""
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["image", "xs", "xz"], ["q"]),
        node("DequantizeLinear", ["q", "xs", "xz"], ["x"]),
        node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
        node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], strides=[2, 2]),
        node("Relu", ["c"], ["r"]),
        node("ReduceMean", ["r", "axes"], ["p"], keepdims=0),
        node("MatMul", ["p", "w2"], ["logits"]),
    ]
    rng = np.random.default_rng(3)
    constants = {
        "xs": np.float32(0.02),
        "xz": np.int8(0),
        "wq": rng.integers(-127, 128, (8, 3, 3, 3), dtype=np.int8),
        "ws": np.full(8, 0.01, np.float32),
        "wz": np.zeros(8, np.int8),
        "axes": np.array([2, 3], np.int64),
    }
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return _model(nodes, [*tensors, _tensor("w2", 8, 4)])


def control_flow() -> onnx.ModelProto:
    """If, constants of several kinds, and shapes that are computed in the graph."""
    node = helper.make_node
    nodes = [
        node("GlobalAveragePool", ["image"], ["p"]),
        node("Shape", ["p"], ["shape"]),
        node("Constant", [], ["zero"], value_int=0),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Constant", [], ["minus"], value_ints=[-1]),
        node("Unsqueeze", ["n", "first"], ["rows"]),
        node("Concat", ["rows", "minus"], ["wanted"], axis=0),
        node("Reshape", ["p", "wanted"], ["f"]),
        node("Constant", [], ["steps"], value=_tensor("steps", 1, 3)),
        node("Constant", [], ["true"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True])),
        node("If", ["true"], ["g"], then_branch=_branch("Relu"), else_branch=_branch("Neg")),
        node("Add", ["g", "steps"], ["moved"]),
        node("ConstantOfShape", ["three"], ["ones"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0])),
        node("Mul", ["moved", "ones"], ["scaled"]),
        node("Gemm", ["scaled", "w"], ["logits"]),
    ]
    constants = {
        "first": np.array([0], np.int64),
        "three": np.array([3], np.int64),
    }
    return _model(nodes, [*(numpy_helper.from_array(v, name) for name, v in constants.items()), _tensor("w", 3, 4)])


def _branch(operator: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(operator, ["f"], ["y"])], operator, [], [output])


def _tensor(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name) + sum(shape)).normal(size=shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def _model(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *METADATA.input_size])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)])]
    graph = helper.make_graph(nodes, "network", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, METADATA.to_props())
    onnx.checker.check_model(model, full_check=True)
    return model
