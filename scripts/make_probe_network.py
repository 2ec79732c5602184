"""Write the tiny network with which `ccnn doctor` tries backends: ccnn_zoo/runtime/probe.onnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TARGET = Path(__file__).parents[1] / "ccnn_zoo" / "runtime" / "probe.onnx"


def network() -> onnx.ModelProto:
    """Convolve with 1/27 and -1/27, add 0 and 0.5, take the mean: v becomes (v, 0.5 - v)."""
    kernels = np.full((2, 3, 3, 3), 1 / 27, np.float32) * np.array([1, -1], np.float32)[:, None, None, None]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "kernels", "biases"], ["features"]),
            helper.make_node("ReduceMean", ["features"], ["logits"], axes=[2, 3], keepdims=0),
        ],
        "probe",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 2])],
        [
            numpy_helper.from_array(kernels, "kernels"),
            numpy_helper.from_array(np.array([0, 0.5], np.float32), "biases"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    TARGET.write_bytes(network().SerializeToString(deterministic=True))
