"""Checks of a graph against its metadata, and of batches against the graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ccnn_zoo.errors import ConfigurationError, MetadataError
from ccnn_zoo.metadata import ModelMetadata

from ._header import Header, Tensor

_FLOATS = ("float32", "float16")
BRANCH_OUTPUT = "branch_logits"


def check_graph(header: Header, metadata: ModelMetadata, source: str) -> None:
    """Compare a graph's input and first output with the metadata; sizes that the graph leaves open agree.

    Raises:
        MetadataError: they contradict each other; names both and the remedy.
    """
    channels, height, width = metadata.input_size
    if metadata.preprocessing_in_graph:
        dtypes, expected = ("uint8",), (None, None, None, channels)
        takes = f"one uint8 input (N, H, W, {channels}) with any H and W"
    else:
        dtypes, expected = _FLOATS, (None, channels, height, width)
        takes = f"one float32 input (N, C, H, W) with (C, H, W) = {metadata.input_size}"
    inputs = header.inputs
    if len(inputs) != 1 or inputs[0].dtype not in dtypes or not _agrees(inputs[0].shape, expected):
        found = ", ".join(f"{i.name}: {i.dtype} {_sides(i.shape)}" for i in inputs)
        raise MetadataError(
            f"{source} takes ({found}), its metadata say {takes}. Export it again with `ccnn export`, or pass the "
            "metadata that fit."
        )
    outputs = header.outputs
    if not outputs or outputs[0].dtype not in _FLOATS or not _agrees(outputs[0].shape, (None, len(metadata.labels))):
        found = f"{outputs[0].name}: {outputs[0].dtype} {_sides(outputs[0].shape)}" if outputs else "nothing"
        raise MetadataError(
            f"{source} gives {found} for {len(metadata.labels)} labels. Export it again with one label per class, or "
            "pass the metadata that fit."
        )


def branch_output(header: Header, metadata: ModelMetadata) -> str | None:
    """Return the name of the output that holds the logits of each branch, (K, N, classes), if there is one."""
    expected = (metadata.branches, None, len(metadata.labels))
    for output in header.outputs[1:]:
        if output.name == BRANCH_OUTPUT and output.dtype in _FLOATS and _agrees(output.shape, expected):
            return output.name
    return None


def usual_shape(tensor: Tensor, metadata: ModelMetadata, batch_size: int) -> tuple[int, ...]:
    """Return the shape of a usual batch: what the graph fixes, else ``batch_size`` and the metadata's size."""
    channels, height, width = metadata.input_size
    image = (height, width, channels) if metadata.preprocessing_in_graph else metadata.input_size
    sides = tensor.shape or ()
    return tuple(s if isinstance(s, int) else usual for s, usual in zip(sides, (batch_size, *image), strict=True))


def checked_batch(batch: NDArray, tensor: Tensor, metadata: ModelMetadata) -> NDArray:
    """Return a batch as the graph takes it.

    Raises:
        ConfigurationError: it has another type, shape or dtype, or values that are not finite.
    """
    dtype = "uint8" if tensor.dtype == "uint8" else "float32"
    expected = _expected(dtype, tensor, metadata)
    if not isinstance(batch, np.ndarray) or batch.dtype != dtype:
        found = f"an array of {batch.dtype}" if isinstance(batch, np.ndarray) else f"a {type(batch).__name__}"
        raise ConfigurationError(f"predict takes a numpy array, {expected}, got {found}")
    _check_shape(batch.shape, expected, tensor, metadata)
    if dtype == "float32" and not np.isfinite(batch).all():
        raise ConfigurationError("predict takes finite values, got NaN or infinity: check the normalisation")
    return batch.astype(tensor.dtype, copy=False)


def checked_tensor(batch: object, tensor: Tensor, metadata: ModelMetadata, fixed_batch: int | None) -> int:
    """Return the number of images in another library's tensor, which is neither converted nor padded nor split.

    Raises:
        ConfigurationError: it does not fit.
    """
    expected = _expected(tensor.dtype, tensor, metadata)
    dtype = getattr(batch, "dtype", tensor.dtype)
    name = getattr(dtype, "name", str(dtype)).rpartition(".")[2]  # torch's is "torch.float32"
    if name != tensor.dtype:
        raise ConfigurationError(f"predict takes {expected}, got a {type(batch).__name__} of {name}. Convert it first.")
    shape = tuple(getattr(batch, "shape", ()))
    _check_shape(shape, expected, tensor, metadata)
    if fixed_batch is not None and shape[0] != fixed_batch:
        raise ConfigurationError(f"predict takes tensors of exactly {fixed_batch} images here, got {shape[0]}")
    return shape[0]


def _expected(dtype: str, tensor: Tensor, metadata: ModelMetadata) -> str:
    return f"{dtype} ({', '.join(map(str, _wanted(tensor, metadata)))})"


def _wanted(tensor: Tensor, metadata: ModelMetadata) -> tuple[int | str, ...]:
    channels = metadata.input_size[0]
    names = ("N", "H", "W", channels) if metadata.preprocessing_in_graph else ("N", channels, "H", "W")
    sides = (None, *(tensor.shape or ())[1:])
    return tuple(side if isinstance(side, int) else name for side, name in zip(sides, names, strict=True))


def _check_shape(shape: tuple[int, ...], expected: str, tensor: Tensor, metadata: ModelMetadata) -> None:
    wanted = _wanted(tensor, metadata)
    fits = len(shape) == 4 and all(
        side == want if isinstance(want, int) else side > 0 for side, want in zip(shape, wanted, strict=True)
    )
    if not fits:
        raise ConfigurationError(f"predict takes {expected} with N at least 1, got shape {shape}")


def _agrees(shape: tuple[int | str | None, ...] | None, expected: tuple[int | None, ...]) -> bool:
    """Compare a graph's shape with sizes, None standing for any; a shape of unknown rank does not agree."""
    return (
        shape is not None
        and len(shape) == len(expected)
        and all(
            not isinstance(side, int) or (side > 0 if size is None else side == size)
            for side, size in zip(shape, expected, strict=True)
        )
    )


def _sides(shape: tuple[int | str | None, ...] | None) -> object:
    return "of unknown rank" if shape is None else list(shape)
