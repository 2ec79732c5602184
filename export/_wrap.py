"""Preprocessing into the graph of a file that is exported already, for engines that have none of their own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ccnn_zoo._files import replacing
from ccnn_zoo.errors import ExportError
from ccnn_zoo.metadata import ModelMetadata

from ._graph import DEFAULT_OPSET, INPUT, read_network
from ._preprocess import check_supported, measure_preprocessing, with_preprocessing


def add_preprocessing(path: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Path:
    """Put resizing, cropping and normalising into the graph of an exported file, as ``to_onnx(preprocess=True)`` does.

    The graph then takes uint8 pictures (batch, height, width, C) of any size; a file that does so already stays as it
    is. What follows the preprocessing is not changed, and the preprocessing is compared with timm's before the file
    takes its name.

    Args:
        path: a file that this package exported, of one size of images.
        output: where to write; None replaces ``path``.

    Returns:
        the file that was written.

    Raises:
        IntegrityError: the file is no ONNX network, or holds what is refused.
        MetadataError: it carries no labels and preprocessing.
        ConfigurationError: its preprocessing is none that ONNX's Resize can do as Pillow does.
        ExportError: its operators are older than opset 18, its input is none of ``to_onnx``'s, or the preprocessing
            differs from timm's.
        RepositoryError: the file cannot be read or written.
    """
    path = Path(path)
    model = read_network(path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    metadata = ModelMetadata.from_props(properties, source=str(path))
    if not metadata.preprocessing_in_graph:
        check_supported(metadata)
        _check_input(model, path)
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        measure_preprocessing(metadata, opset, model.ir_version)
        model = with_preprocessing(model, metadata)
        helper.set_model_props(model, {**properties, **replace(metadata, preprocessing_in_graph=True).to_props()})
    target = path if output is None else Path(output)
    with replacing(target) as temporary:
        onnx.save(model, temporary)
        onnx.checker.check_model(temporary, full_check=True)
    return target


def _check_input(model: onnx.ModelProto, path: Path) -> None:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < DEFAULT_OPSET:
        raise ExportError(f"{path} has opset {opset}; preprocessing needs {DEFAULT_OPSET}. Export it again.")
    images = model.graph.input
    if [(one.name, one.type.tensor_type.elem_type) for one in images] != [(INPUT, TensorProto.FLOAT)]:
        raise ExportError(
            f"{path} does not take the one input {INPUT!r} of float32 numbers. Export it with ccnn export."
        )
