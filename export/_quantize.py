"""int8: onnxruntime's static quantisation, with ranges measured on real images.

Activations become uint8 of one scale per tensor, weights int8 of one scale per output channel, in the QDQ format:
QuantizeLinear and DequantizeLinear around operators of float32, which every runtime can run and good ones fuse.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from ccnn_zoo.errors import ConfigurationError

from ._graph import INPUT
from ._probe import ImageBatches, single_images

INT8_IMAGES = 512
"""Images on which ranges are measured; more are left unread."""

_FLOAT_OUTPUT = ("Gemm", "MatMul")  # onnxruntime has kernels of these from int8 to float32
_SHAPE_ONLY = ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_CHUNK = 16  # images at once: every intermediate result is there at the same time


def images_for_ranges(int8_images: ImageBatches, input_size: tuple[int, int, int], classes: int) -> Tensor:
    """Return the images to measure ranges on, (N, C, H, W), at most :data:`INT8_IMAGES`.

    Args:
        int8_images: preprocessed images, best of the training set.
        input_size: (C, H, W) of one.
        classes: number of classes, for images that come with theirs.

    Raises:
        ConfigurationError: there are none, or one does not fit.
    """
    found = islice(single_images(int8_images, input_size, classes, "int8_images"), INT8_IMAGES)
    chosen = [image for image, _ in found]
    if not chosen:
        raise ConfigurationError("int8_images is empty. Pass a few hundred preprocessed images.")
    images = torch.stack(chosen)
    if bool((images == images[0]).all()) or float(images.flatten(1).std(1).max()) == 0:
        told = "one image" if len(chosen) == 1 else f"{len(chosen)} images that do not differ"
        warnings.warn(
            f"int8's ranges are measured on {told}: what other images reach is cut off. Pass a few hundred real ones.",
            stacklevel=2,
        )
    return images


class Quantizer:
    """Quantises one graph any number of times, measuring the ranges once.

    Args:
        model: in float32, with any batch.
        images: float32 (N, C, H, W), on which the ranges are measured.
    """

    def __init__(self, model: ModelProto, images: Tensor) -> None:
        self._batches = [batch.numpy() for batch in images.split(_CHUNK)]
        self._folder = tempfile.TemporaryDirectory(prefix="ccnn-int8-")
        self._source = Path(self._folder.name, "prepared.onnx")
        given = Path(self._folder.name, "given.onnx")
        onnx.save(model, given)  # handed a graph in memory, it would change that one
        with _quiet():
            # What its symbolic shape inference would add, onnx infers for convolutional networks.
            quant_pre_process(given, self._source, skip_symbolic_shape=True)
        # Logits in steps of 1/255 of their range would tie: what makes them gives float32.
        last = _makers_of_outputs(onnx.load(self._source).graph)
        self._last = [node.name for node in last if node.op_type not in _FLOAT_OUTPUT]

    def __call__(self, excluded: Collection[str] = ()) -> ModelProto:
        """Return the quantised graph; the nodes called ``excluded`` stay in float32."""
        target = Path(self._folder.name, "quantised.onnx")
        with _quiet():
            quantize_static(
                self._source,
                target,
                _Reader(self._batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*self._last, *excluded],
                extra_options={"OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUT)},
                calibration_cache_path=Path(self._folder.name, "ranges.json"),
            )
        model = onnx.load(target)
        # onnxruntime's optimiser declares every domain that it knows, used or not.
        used = {node.domain for node in model.graph.node}
        declared = [entry for entry in model.opset_import if entry.domain in used]
        del model.opset_import[:]
        model.opset_import.extend(declared)
        return model

    def close(self) -> None:
        """Remove the temporary files."""
        self._folder.cleanup()


def _makers_of_outputs(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes that make the outputs, and before those that only change a shape the nodes that make values."""
    makers = {name: node for node in graph.node for name in node.output}
    for value in graph.output:
        node = makers.get(value.name)
        while node is not None:
            yield node
            node = makers.get(node.input[0]) if node.op_type in _SHAPE_ONLY else None


class _Reader(CalibrationDataReader):
    def __init__(self, batches: list[NDArray[np.float32]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime warns the root logger of what was decided here."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
