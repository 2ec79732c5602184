"""Networks that others exported: described, so that everything here can read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, helper

from ccnn_zoo._files import replacing
from ccnn_zoo.errors import ConfigurationError, MetadataError
from ccnn_zoo.metadata import ModelMetadata

from ._graph import read_network

_GIVEN = ("preprocessing_in_graph", "confidence")
"""Fields that nobody gives by hand."""


def describe(path: Path, given: Mapping[str, Any], output: Path) -> ModelMetadata:
    """Write labels and preprocessing into a classifier that others exported.

    Its logits become the first output: where a Softmax makes that one, what the Softmax reads is put before it.

    Args:
        path: an ONNX file that maps one batch of pictures (N, C, H, W) to logits or probabilities (N, classes).
        given: fields of :class:`ModelMetadata` by name. ``labels``, ``mean`` and ``std`` are needed, and
            ``input_size`` where the graph leaves the size open.
        output: where to write.

    Raises:
        ConfigurationError: fields are unknown or missing; names them.
        MetadataError: one is malformed.
        IntegrityError: the file is no ONNX network, or holds what is refused.
        RepositoryError: the file cannot be read or written.
    """
    model = read_network(path)
    metadata = _metadata(path, given, model.graph)
    _logits_first(model.graph)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, properties | metadata.to_props())
    with replacing(output) as temporary:
        onnx.save(model, temporary)
    return metadata


def _metadata(path: Path, given: Mapping[str, Any], graph: GraphProto) -> ModelMetadata:
    known = {field.name: field for field in fields(ModelMetadata) if field.name not in _GIVEN}
    if unknown := sorted(set(given) - set(known)):
        raise ConfigurationError(f"{path}: nobody knows {', '.join(unknown)}; metadata are {', '.join(known)}")
    values = {"architecture": path.stem, "branches": 1, **_size(graph), **given}
    missing = [name for name, field in known.items() if field.default is MISSING and name not in values]
    if missing:
        raise ConfigurationError(
            f"{path} does not say its {', '.join(missing)}, nor do the metadata that are given for it. Add them: "
            "labels are the names of the classes in the order of the outputs, mean and std those of each channel on "
            "pixels in [0, 1], input_size [channels, height, width]."
        )
    try:
        return ModelMetadata(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except MetadataError as error:
        raise MetadataError(f"metadata for {path}: {error}") from error


def _size(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    """Return ``input_size`` where the graph fixes it."""
    constants = {tensor.name for tensor in graph.initializer}
    images = [value for value in graph.input if value.name not in constants]
    sides = [side.dim_value for side in images[0].type.tensor_type.shape.dim] if images else []
    return {"input_size": tuple(sides[1:])} if len(sides) == 4 and min(sides[1:]) > 0 else {}


def _logits_first(graph: GraphProto) -> None:
    first = graph.output[0]
    last = next((node for node in graph.node if first.name in node.output), None)
    if last is not None and last.op_type == "Softmax":
        logits = onnx.ValueInfoProto()
        logits.CopyFrom(first)
        logits.name = last.input[0]
        outputs = [logits, *(value for value in graph.output if value.name != logits.name)]
        del graph.output[:]
        graph.output.extend(outputs)
