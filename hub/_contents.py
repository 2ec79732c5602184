"""What the files of a repository may hold: tensors and ONNX's own operators, nothing that points elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from ccnn_zoo._onnx_contents import refused_network

from ._names import WEIGHTS


def refused_content(path: Path, name: str) -> str | None:
    """Return why a file must not be loaded, or None.

    Args:
        path: the file.
        name: its path in the repository, which says what it should be.
    """
    if name.endswith(".onnx"):
        return refused_network(path)
    if name == WEIGHTS:
        return _refused_weights(path)
    return None


def _refused_weights(path: Path) -> str | None:
    """A pickle called .safetensors is none: the header must be JSON that describes the rest of the file."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > path.stat().st_size - 8:
            return "is no safetensors file"
        try:
            header = json.loads(stream.read(size))
        except (ValueError, RecursionError):
            return "is no safetensors file"
    return None if isinstance(header, dict) else "is no safetensors file"
