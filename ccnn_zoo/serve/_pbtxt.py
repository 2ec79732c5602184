"""Protobuf's text format, as much of it as a configuration needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias


class Enum(str):
    """The name of an enumeration's value, which stands without quotes."""

    __slots__ = ()


Scalar: TypeAlias = "str | int | bool | Enum"
Block: TypeAlias = "dict[str, Scalar | Block | Sequence[Scalar] | Sequence[Block]]"


def render(message: Block) -> str:
    """Return a message in protobuf's text format, a field a line; empty messages and lists are left out."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Block, indent: str) -> Iterator[str]:
    for name, value in message.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if values and not isinstance(values[0], Mapping):
            yield f"{indent}{name}: {_list(values) if values is value else _scalar(values[0])}"
            continue
        for item in values:
            if item:
                yield f"{indent}{name} {{"
                yield from _lines(item, indent + "  ")
                yield f"{indent}}}"


def _list(values: Sequence[Scalar]) -> str:
    return f"[{', '.join(map(_scalar, values))}]"


def _scalar(value: Scalar) -> str:
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, str):
        # Protobuf reads the escapes of JSON that remain when text outside ASCII stands as it is.
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower()
