"""What an exported file may hold: plain operators and folded weights, nothing else.

These checks know ONNX alone. What the graph is compared with is measured on the unfolded network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from ccnn_zoo._files.onnx_contents import checked_content
from ccnn_zoo.errors import ExportError, IntegrityError, MetadataError
from ccnn_zoo.metadata import Metadata, ModelMetadata

ConvolutionKey = tuple[tuple[int, ...], int]
"""Shape of a convolution's weight, and its groups."""

DEFAULT_OPSET = 18
"""The version torch.onnx is written for, and the oldest it gives: the most runtimes read it."""

INPUT, OUTPUT, BRANCH_OUTPUT, BATCH = "image", "logits", "branch_logits", "batch"

_DEFAULT_DOMAINS = ("", "ai.onnx")
_REFUSED = {
    "Tile": "the branches must never be made by copying features",
    "Expand": "the branches must never be made by copying features",
}


def read_network(path: Path) -> ModelProto:
    """Read a file once: what is looked through is what is changed.

    Raises:
        RepositoryError: it cannot be read.
        IntegrityError: it is no ONNX network, or holds what is refused.
    """
    try:
        return onnx.load_from_string(checked_content(path))
    except DecodeError as error:
        raise IntegrityError(f"{path} is no ONNX network ({error}). Download or export it again.") from error


@dataclass(frozen=True)
class Expected:
    """What the network says that its graph must hold.

    Args:
        metadata: labels and preprocessing.
        opset: version of ONNX's operators.
        convolutions: how often the network runs each kind of convolution.
        calibrations: every R of the network, (K, kh, kw); none of them may be in the file.
        branch_outputs: the logits of each branch are a second output.
        batch: number of images that the finished file takes, or the name of a free dimension.
        size: (height, width) of one, the metadata's by default.
    """

    metadata: ModelMetadata
    opset: int
    convolutions: Counter[ConvolutionKey]
    calibrations: tuple[NDArray[np.float32], ...] = ()
    branch_outputs: bool = False
    batch: int | str = BATCH
    size: tuple[int | str, int | str] | None = None


@dataclass(frozen=True)
class GraphSummary:
    """What a checked file holds: nodes by operator, floating-point weights, opset."""

    nodes: dict[str, int]
    parameters: int
    opset: int


def check_file(path: Path, expected: Expected) -> GraphSummary:
    """Check a finished file of any precision: valid, alone, of ONNX's own operators, without R, of the right interface.

    Raises:
        ExportError: the file is not what ``expected`` says; names the first reason.
    """
    model, nodes = _opened(path)
    check_no_calibration(model, expected.calibrations)
    _check_interface(model, expected)
    return summarised(model, nodes)


def _opened(path: Path) -> tuple[ModelProto, list[NodeProto]]:
    model = load_graph(path)
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    check_self_contained(model, nodes)
    return model, nodes


def check_graph(path: Path, expected: Expected) -> GraphSummary:
    """Read the network's own graph in float32, refuse what must not be in it, and count what is.

    Raises:
        ExportError: the file is not what ``expected`` says; names the first reason.
    """
    model, nodes = _opened(path)
    _check_operators(nodes, expected.metadata.branches)
    check_batch_norms(model, nodes)
    check_convolutions(model, nodes, expected.convolutions)
    check_no_calibration(model, expected.calibrations)
    _check_interface(model, expected)
    return summarised(model, nodes)


def summary_of(path: Path) -> GraphSummary:
    """Count what a file holds, once it is valid ONNX; else ExportError."""
    model = load_graph(path)
    return summarised(model, [node for graph in _graphs(model.graph) for node in graph.node])


def summarised(model: ModelProto, nodes: list[NodeProto]) -> GraphSummary:
    """Count what a file holds."""
    return GraphSummary(
        nodes=dict(sorted(Counter(node.op_type for node in nodes).items())),
        parameters=sum(array.size for _, array in _constants(model) if _is_weight(array)),
        opset=model.opset_import[0].version,
    )


def load_graph(path: Path) -> ModelProto:
    """Read a file that is valid ONNX and needs no other; else ExportError."""
    try:
        # Without external data: a weight that lies elsewhere is refused by name, not sought.
        model = onnx.load(path, load_external_data=False)
        _check_single_file(model)
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, DecodeError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return model


def _check_single_file(model: ModelProto) -> None:
    for name, tensor in _tensors(model.graph):
        if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
            raise ExportError(f"the weight {name!r} lies in another file; one self-contained file is wanted")


def check_self_contained(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Refuse functions, and operators that are not ONNX's own."""
    if model.functions:
        names = ", ".join(function.name for function in model.functions)
        raise ExportError(f"the exported graph calls functions of its own ({names}); only plain operators are wanted")
    foreign = {f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in _DEFAULT_DOMAINS}
    foreign |= {entry.domain for entry in model.opset_import if entry.domain not in _DEFAULT_DOMAINS}
    if foreign:
        raise ExportError(
            f"the exported graph needs more than ONNX's own operators: {', '.join(sorted(foreign))}. "
            "Not every runtime has them."
        )


def _check_operators(nodes: Iterable[NodeProto], branches: int) -> None:
    for node in nodes:
        if branches > 1 and node.op_type in _REFUSED:  # a plain network, a transformer say, may expand its own tensors
            raise ExportError(f"the exported graph has a {node.op_type} ({node.name!r}): {_REFUSED[node.op_type]}")
        if "Conv" in node.op_type and node.op_type != "Conv":
            raise ExportError(f"the exported graph has a {node.op_type} ({node.name!r}); only plain Conv is wanted")


def check_batch_norms(model: ModelProto, nodes: Iterable[NodeProto]) -> None:
    """Refuse those that could have been folded; pre-activation networks have others, after an addition."""
    nodes = list(nodes)
    convolutions = {node.output[0]: node for node in nodes if node.op_type == "Conv"}
    uses = Counter(name for node in nodes for name in node.input)
    uses.update(value.name for graph in _graphs(model.graph) for value in graph.output)
    for node in nodes:
        if node.op_type == "BatchNormalization" and node.input[0] in convolutions and uses[node.input[0]] == 1:
            raise ExportError(
                f"the exported graph has a BatchNormalization ({node.name!r}) that alone reads the convolution "
                f"{convolutions[node.input[0]].name!r}; it must be folded into it"
            )


def check_convolutions(model: ModelProto, nodes: Iterable[NodeProto], expected: Counter[ConvolutionKey]) -> None:
    """Refuse other convolutions than those that the network runs."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: Counter[ConvolutionKey] = Counter()
    for node in nodes:
        if node.op_type == "Conv":
            if node.input[1] not in shapes:
                raise ExportError(f"the weight of {node.name!r} (Conv) is computed in the graph; it must be stored")
            groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            found[shapes[node.input[1]], groups] += 1
    if found != expected:
        raise ExportError(
            f"the convolutions of the exported graph are not those of the network. Only in the graph: "
            f"{_described(found - expected)}; only in the network: {_described(expected - found)}"
        )


def _described(convolutions: Counter[ConvolutionKey]) -> str:
    kinds = (f"{n} with weight {list(shape)} in {groups} groups" for (shape, groups), n in convolutions.items())
    return ", ".join(kinds) or "none"


def check_no_calibration(model: ModelProto, calibrations: Iterable[NDArray[np.float32]]) -> None:
    """Refuse an R, by its name or its values."""
    # For K=1, R is identically 1 and the weights hold nothing that could be told from any other 1.
    secrets = {_squeezed(values) for values in calibrations if len(values) > 1}
    for name, array in _constants(model):
        if "calibration" in name.split("."):
            raise ExportError(f"the exported graph holds the calibration kernels {name!r}; they must be folded")
        if _is_weight(array) and _squeezed(array) in secrets:
            raise ExportError(f"{name!r} in the exported graph equals a calibration kernel; it must be folded")


def _squeezed(array: NDArray[np.float32]) -> tuple[tuple[int, ...], bytes]:
    values = np.ascontiguousarray(array.squeeze(), np.float32)
    return values.shape, values.tobytes()


def _check_interface(model: ModelProto, expected: Expected) -> None:
    metadata = expected.metadata
    channels, *sides = metadata.input_size
    image: tuple[str | int, ...] = (INPUT, "FLOAT", expected.batch, channels, *(expected.size or sides))
    if metadata.preprocessing_in_graph:
        image = (INPUT, "UINT8", expected.batch, "height", "width", channels)
    wanted = [image, (OUTPUT, "FLOAT", expected.batch, len(metadata.labels))]
    if expected.branch_outputs:
        wanted.append((BRANCH_OUTPUT, "FLOAT", metadata.branches, expected.batch, len(metadata.labels)))
    check_interface(model, expected.opset, wanted, metadata)


def check_interface(
    model: ModelProto,
    opset: int,
    wanted: list[tuple[int | str, ...]],
    metadata: Metadata,
) -> None:
    """Compare a graph's opset, its inputs and outputs (name, type, sides), and its metadata.

    Raises:
        ExportError: one of them is another.
    """
    opsets = [entry.version for entry in model.opset_import]
    if opsets != [opset]:
        raise ExportError(f"the exported graph has opset {opsets} instead of {opset}; pass another opset")
    found = [_interface(value) for value in (*model.graph.input, *model.graph.output)]
    if found != wanted:
        raise ExportError(f"the exported graph maps {found}, not {wanted}")
    try:
        written = type(metadata).from_props({entry.key: entry.value for entry in model.metadata_props})
    except MetadataError as error:
        raise ExportError(f"the metadata of the exported file cannot be read back: {error}") from error
    if written != metadata:
        raise ExportError(f"the exported file carries {written}, not {metadata}")


def _interface(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    kind = value.type.tensor_type
    sides = (side.dim_param or side.dim_value for side in kind.shape.dim)
    return (value.name, TensorProto.DataType.Name(kind.elem_type), *sides)


def _is_weight(array: NDArray[np.generic]) -> bool:
    return bool(array.ndim) and np.issubdtype(array.dtype, np.floating)


def _constants(model: ModelProto) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield every stored tensor with its name, whether initializer or Constant node."""
    for name, tensor in _tensors(model.graph):
        yield name, numpy_helper.to_array(tensor)


def _tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    for inner in _graphs(graph):
        yield from ((tensor.name, tensor) for tensor in inner.initializer)
        for node in inner.node:
            tensors = (attribute.t for attribute in node.attribute if attribute.type == AttributeProto.TENSOR)
            yield from ((node.output[0], tensor) for tensor in tensors)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
