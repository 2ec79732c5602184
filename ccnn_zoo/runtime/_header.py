"""Inputs, outputs and properties of an ONNX file, read without any runtime: they are the same for every backend.

The field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from ccnn_zoo._files.onnx_contents import MalformedError, fields, properties_of
from ccnn_zoo.errors import IntegrityError

_DTYPES = {1: "float32", 2: "uint8", 10: "float16"}
_BYTES = 2
_GRAPH = 7  # of a model
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # of a graph
_TENSOR_NAME = 8


class Tensor(NamedTuple):
    """An input or output.

    Args:
        name: in the graph.
        dtype: numpy's name, or ``"element type N"`` where it is none that pictures come in.
        shape: an integer where a side is fixed, else its name or None; None if not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


class Header(NamedTuple):
    """What a graph takes and gives, and the file's ``metadata_props``."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    properties: Mapping[str, str]


def parse_header(content: bytes, path: Path) -> Header:
    """Read the header of an ONNX network; the tensors' values are not touched.

    Args:
        content: of the file.
        path: its name, for the message.

    Raises:
        IntegrityError: it is no ONNX network.
    """
    try:
        return _header(content)
    except (MalformedError, ValueError) as error:
        raise IntegrityError(f"{path} is no ONNX network ({error}). Download or export it again.") from error


def _header(data: bytes) -> Header:
    inputs, outputs, constants = [], [], set()
    for number, first, last in _messages(data, 0, len(data)):
        if number != _GRAPH:
            continue
        for kind, start, end in _messages(data, first, last):
            if kind == _INPUT:
                inputs.append(_tensor(data, start, end))
            elif kind == _OUTPUT:
                outputs.append(_tensor(data, start, end))
            elif kind == _INITIALIZER:
                constants.update(_text(data, a, b) for n, a, b in _messages(data, start, end) if n == _TENSOR_NAME)
    # Old exporters list the weights among the inputs.
    return Header(tuple(t for t in inputs if t.name not in constants), tuple(outputs), properties_of(data))


def _tensor(data: bytes, start: int, end: int) -> Tensor:
    """Read a ValueInfoProto: name = 1, type = 2; in it tensor_type = 1, with elem_type = 1 and shape = 2."""
    name, dtype, shape = "", "no tensor", None
    for number, first, last in _messages(data, start, end):
        if number == 1:
            name = _text(data, first, last)
        for kind, a, b in _messages(data, first, last) if number == 2 else ():
            for field, wire, c, d in fields(data, a, b) if kind == 1 else ():
                if field == 1 and wire != _BYTES:
                    dtype = _DTYPES.get(c, f"element type {c}")
                elif field == 2 and wire == _BYTES:
                    shape = tuple(_side(data, e, f) for n, e, f in _messages(data, c, d) if n == 1)
    return Tensor(name, dtype, shape)


def _side(data: bytes, start: int, end: int) -> int | str | None:
    """Read a Dimension: dim_value = 1, dim_param = 2."""
    for number, wire, first, last in fields(data, start, end):
        if number == 1 and wire != _BYTES:
            return first if first < 1 << 63 else None  # negative: some exporters' sign for any size
        if number == 2 and wire == _BYTES:
            return _text(data, first, last)
    return None


def _messages(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, first, last) of the fields that hold bytes: messages and strings."""
    return ((number, first, last) for number, wire, first, last in fields(data, start, end) if wire == _BYTES)


def _text(data: bytes, first: int, last: int) -> str:
    return data[first:last].decode("utf-8", "replace")
