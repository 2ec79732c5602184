"""Resizing, cropping and normalising inside the graph: from uint8 pictures of any size to what the network reads.

ONNX's Resize with ``antialias`` and ``exclude_outside`` is Pillow's filter: its values are Pillow's up to one grey
level, where the two round differently. The sizes are timm's, computed in the graph in integers and doubles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from PIL import Image
from timm.data import create_transform

from ccnn_zoo.errors import ConfigurationError, ExportError
from ccnn_zoo.metadata import ModelMetadata

from ._graph import BATCH, INPUT
from ._session import session_of

PARITY_SIZES = ((480, 640), (640, 427), (100, 100), (37, 201), (300, 41))
"""(height, width) of the pictures on which the graph is compared with timm's transform, besides the input's own."""

_MODES = {"bilinear": ("linear", {}), "bicubic": ("cubic", {"cubic_coeff_a": -0.5})}
_READY = "normalised_image"


@dataclass(frozen=True)
class PreprocessingDifference:
    """Differences between the graph's preprocessing and timm's transform, in grey levels of 255."""

    maximum: float
    mean: float


def check_supported(metadata: ModelMetadata) -> None:
    """Refuse preprocessing that ONNX's Resize cannot do as Pillow does.

    Raises:
        ConfigurationError: names the setting, and what there is.
    """
    if metadata.interpolation not in _MODES or metadata.crop_mode not in ("center", "squash"):
        raise ConfigurationError(
            f"preprocess=True does bilinear and bicubic resizing with a centre crop or squashing, the network's is "
            f"{metadata.interpolation}, {metadata.crop_mode}. Leave preprocess out: the runtime does it."
        )


def with_preprocessing(model: ModelProto, metadata: ModelMetadata) -> ModelProto:
    """Return a graph that takes uint8 (batch, height, width, C) and does what timm's transform does, then ``model``."""
    writer = _Writer(metadata)
    wrapped = ModelProto()
    wrapped.CopyFrom(model)
    graph = wrapped.graph
    for node in graph.node:
        node.input[:] = [_READY if name == INPUT else name for name in node.input]
    nodes = [*writer.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(writer.initializers)
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    sides = [batch.dim_value or BATCH, "height", "width", metadata.input_size[0]]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, sides))
    return wrapped


def measure_preprocessing(metadata: ModelMetadata, opset: int, ir_version: int) -> PreprocessingDifference:
    """Compare the graph's preprocessing with timm's transform on seeded pictures of several sizes.

    Raises:
        ExportError: a value is off by more than one grey level.
    """
    writer = _Writer(metadata)
    channels, *own = metadata.input_size
    graph = helper.make_graph(
        writer.nodes,
        "preprocessing",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [BATCH, "height", "width", channels])],
        [helper.make_tensor_value_info(_READY, TensorProto.FLOAT, None)],
        writer.initializers,
    )
    session = session_of(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    )
    transform = create_transform(**metadata.preprocessing())
    levels = 255 * np.float32(metadata.std)[:, None, None]
    maximum, means = 0.0, []
    for picture in _pictures((tuple(own), *PARITY_SIZES), channels):
        expected = transform(Image.fromarray(picture.squeeze(-1) if channels == 1 else picture)).numpy()
        difference = np.abs(session.run(None, {INPUT: picture[None]})[0][0] - expected) * levels
        maximum = max(maximum, float(difference.max()))
        means.append(float(difference.mean()))
    if not maximum <= 1.01:  # float32 does not hold every grey level exactly
        raise ExportError(
            f"preprocessing in the graph is off by {maximum:.3g} grey levels from timm's; 1 is allowed. "
            "Leave preprocess out: the runtime does it."
        )
    return PreprocessingDifference(maximum, float(np.mean(means)))


def _pictures(sizes: tuple[tuple[int, int], ...], channels: int) -> list[np.ndarray]:
    """Return pictures with smooth areas, edges and noise, uint8 (H, W, C)."""
    rng = np.random.default_rng(0)
    pictures = []
    for height, width in sizes:
        rows, columns = np.linspace(0, 9, height)[:, None, None], np.linspace(0, 7, width)[None, :, None]
        waves = np.sin(rows + np.arange(channels)) * np.cos(columns) + (rows > 4) * (columns < 3)
        noise = rng.normal(0, 0.2, (height, width, channels))
        pictures.append(np.clip(127 + 90 * (waves + noise), 0, 255).astype(np.uint8))
    return pictures


class _Writer:
    """Writes the nodes from INPUT to the normalised image."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], str] = {}
        channels, *crop = metadata.input_size
        image = self._add("Transpose", [INPUT], perm=[0, 3, 1, 2])
        shape = self._add("Shape", [image])
        kept, size = self._slice(shape, 0, 2), self._slice(shape, 2, 4)
        resized_size = self._resized_size(size, metadata)
        mode, options = _MODES[metadata.interpolation]
        sizes = self._add("Concat", [kept, resized_size], axis=0)
        image = self._add(
            "Resize",
            [image, "", "", sizes],
            mode=mode,
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
            **options,
        )
        image = self._crop(image, resized_size, crop)
        image = self._add("Cast", [image], to=TensorProto.FLOAT)
        image = self._add("Div", [image, self._constant(np.float32(255))])
        for operator, values in (("Sub", metadata.mean), ("Div", metadata.std)):
            per_channel = np.float32(values).reshape(1, channels, 1, 1)
            image = self._add(operator, [image, self._constant(per_channel)])
        self.nodes[-1].output[0] = _READY

    def _resized_size(self, size: str, metadata: ModelMetadata) -> str:
        """Return (height, width) as int64, see ``resized_size`` of the runtime's preprocessing."""
        scaled = [math.floor(side / metadata.crop_pct) for side in metadata.input_size[1:]]
        if metadata.crop_mode == "squash":
            return self._constant(np.int64(scaled))
        if scaled[0] == scaled[1]:  # torchvision rounds the longer side down
            shorter = self._add("ReduceMin", [size], keepdims=1)
            return self._add("Div", [self._add("Mul", [size, self._constant(np.int64([scaled[0]]))]), shorter])
        sides = self._add("Cast", [size], to=TensorProto.DOUBLE)
        ratios = self._add("Div", [sides, self._constant(np.float64(scaled))])
        ratio = self._add("ReduceMin", [ratios], keepdims=1)
        rounded = self._add("Round", [self._add("Div", [sides, ratio])])  # half to even, as Python does
        whole = self._add("Cast", [rounded], to=TensorProto.INT64)
        return self._add("Max", [whole, self._constant(np.int64([1]))])

    def _crop(self, image: str, size: str, crop: list[int]) -> str:
        """Cut out the middle; where it cannot be in the very middle, Python's round decides."""
        wanted = self._constant(np.int64(crop))
        spare = self._add("Cast", [self._add("Sub", [size, wanted])], to=TensorProto.DOUBLE)
        half = self._add("Round", [self._add("Mul", [spare, self._constant(np.float64(0.5))])])
        start = self._add("Cast", [half], to=TensorProto.INT64)
        end = self._add("Add", [start, wanted])
        return self._add("Slice", [image, start, end, self._constant(np.int64([2, 3]))])

    def _slice(self, name: str, start: int, end: int) -> str:
        return self._add("Slice", [name, self._constant(np.int64([start])), self._constant(np.int64([end]))])

    def _add(self, operator: str, inputs: list[str], **attributes: object) -> str:
        name = f"preprocess_{len(self.nodes)}_{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, value: np.ndarray | np.generic) -> str:
        array = np.asarray(value)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            name = f"preprocess_constant_{len(self._constants)}"
            self._constants[key] = name
            self.initializers.append(numpy_helper.from_array(array, name))
        return self._constants[key]
