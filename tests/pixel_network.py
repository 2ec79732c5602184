"""A network whose logits are the pixels of its picture, so that predictions tell what the network was shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.runtime import Prediction


def save_pixel_network(path: Path, height: int, width: int) -> Path:
    """Write a network of one class more than there are values; the logit of the last class is 0."""
    count = 3 * height * width
    metadata = ModelMetadata(
        "pixels", 1, tuple(map(str, range(count + 1))), (3, height, width), (0, 0, 0), (1, 1, 1), "bilinear", 1.0
    )
    nodes = [
        helper.make_node("Flatten", ["image"], ["values"]),
        helper.make_node("Pad", ["values", "one"], ["logits"]),
    ]
    one = numpy_helper.from_array(np.array([0, 0, 0, 1], np.int64), "one")
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, height, width])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", count + 1])]
    model = helper.make_model(
        helper.make_graph(nodes, "pixels", inputs, outputs, [one]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    helper.set_model_props(model, metadata.to_props())
    onnx.save(model, path)
    return path


def pixels_of(predictions: Sequence[Prediction], height: int, width: int) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3) that gave these predictions of all classes."""
    probabilities = np.empty(len(predictions))
    for each in predictions:
        probabilities[each.index] = each.probability
    values = 255 * np.log(probabilities[:-1] / probabilities[-1])
    return np.rint(values).astype(np.uint8).reshape(3, height, width).transpose(1, 2, 0)
