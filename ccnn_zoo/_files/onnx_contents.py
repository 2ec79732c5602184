"""What an ONNX file may hold: tensors and ONNX's own operators, nothing that points elsewhere.

The file is protobuf. It is walked here before any runtime parses it, without the package onnx, which downloading
and classifying do without. The field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from ccnn_zoo.errors import IntegrityError, RepositoryError

Data: TypeAlias = bytes | mmap.mmap

_DOMAINS = (b"", b"ai.onnx")
_ORT_FORMAT = b"ORTM"
_LARGEST = 2**31 - 1  # bytes of a protobuf message
_DEEPEST = 100  # levels of messages; protobuf's own limit

# Message to its fields that hold messages of interest, wherever a tensor or a node may hide.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_PROPERTY = 14  # of a model
_OP_TYPE, _DOMAIN = 4, 7  # of a node
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_LOOPS = frozenset({b"Loop", b"Scan", b"SequenceMap"})
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MalformedError(ValueError):
    """The bytes are no protobuf message."""


def checked_content(path: Path) -> bytes:
    """Read an ONNX file once, and look it through before anything parses it: what was looked at is what is used.

    Raises:
        RepositoryError: it cannot be read.
        IntegrityError: it holds what is refused, or is no ONNX network.
    """
    try:
        with path.open("rb") as stream:
            large = os.fstat(stream.fileno()).st_size > _LARGEST
            content = b"" if large else stream.read()
    except (OSError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RepositoryError(f"cannot read {path}: {reason}. Check the file and your rights to it.") from error
    problem = "has more than 2 GiB, as no ONNX file can" if large else refused_bytes(content)
    if problem is not None:
        raise IntegrityError(f"{path} {problem}, so it is not loaded. Download or export it again.")
    return content


def refused_network(path: Path) -> str | None:
    """Return why an ONNX file must not be loaded, or None: see :func:`refused_bytes`.

    Args:
        path: the file, which exists. What is loaded later is read anew and looked through again.
    """
    if path.stat().st_size == 0:
        return "is empty"
    # The cache is shared: what is mapped here may be a link, the file behind it is read only.
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return refused_bytes(data)


def properties_of(data: Data) -> dict[str, str]:
    """Return the ``metadata_props`` of an ONNX file.

    Raises:
        MalformedError: it is no protobuf message.
    """
    found = {}
    for number, wire, first, last in fields(data, 0, len(data)):
        if number == _PROPERTY and wire == _BYTES:
            inner = fields(data, first, last)
            parts = {n: data[a:b].decode("utf-8", "replace") for n, w, a, b in inner if w == _BYTES}
            found[parts.get(1, "")] = parts.get(2, "")
    return found


def refused_bytes(data: Data) -> str | None:
    """Return why the content of an ONNX file must not be loaded, or None.

    Loops are refused, whatever they are called: no network of ours needs one, and nobody can foresee when one ends.
    """
    if not len(data):
        return "is empty"
    if data[4:8] == _ORT_FORMAT:
        return "is in onnxruntime's own format, not in ONNX"
    try:
        if not any(number == 7 for number, *_ in fields(data, 0, len(data))):
            return "is no ONNX network"
        return next(_findings(data, 0, len(data), "model", 0), None)
    except MalformedError as error:
        return f"is no ONNX network ({error})"


def _findings(data: Data, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    """Yield what is refused in one message and those inside it."""
    if depth > _DEEPEST:
        raise MalformedError(f"it is nested deeper than {_DEEPEST} levels")
    inner = _FIELDS[message]
    for number, wire, first, last in fields(data, start, end):
        if message == "tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION):
            if number == _EXTERNAL_DATA or wire != _VARINT or first:
                yield "keeps tensors in other files"
        elif message == "node" and wire == _BYTES and number == _DOMAIN and data[first:last] not in _DOMAINS:
            yield f"has operators of the domain {_text(data[first:last])!r}, which are not ONNX's own"
        elif message == "node" and wire == _BYTES and number == _OP_TYPE and data[first:last] == b"EPContext":
            yield "holds a compiled network (EPContext)"
        elif message == "node" and wire == _BYTES and number == _OP_TYPE and data[first:last] in _LOOPS:
            yield f"has a loop ({_text(data[first:last])}), which may never end"
        elif number in inner and wire == _BYTES:
            yield from _findings(data, first, last, inner[number], depth + 1)


def fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, first, last) of a message; for a number ``first`` is its value."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end, 5)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position, end, 10)
            yield number, wire, value, position
            continue
        if wire == _BYTES:
            size, position = _varint(data, position, end, 5)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire, -1)
        if number == 0 or size < 0 or position + size > end:
            raise MalformedError(f"byte {position} is no field")
        yield number, wire, position, position + size
        position += size


def _varint(data: Data, position: int, end: int, longest: int) -> tuple[int, int]:
    """Return a number and the position after it; tags and sizes have 32 bits, in at most five bytes."""
    value = 0
    for shift in range(0, 7 * longest, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if longest == 5 and value >= 1 << 32:
                break
            return value, position
    raise MalformedError(f"byte {position} is no number")


def _text(name: bytes) -> str:
    return name[:60].decode("utf-8", "replace")
