"""What the files of a repository may hold: tensors and ONNX's own operators, nothing that points elsewhere."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

from ccnn_zoo._files.onnx_contents import properties_of, refused_network
from ccnn_zoo.errors import MetadataError

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


def numbers_in(network: Path) -> dict[str, Any] | None:
    """Return the numbers of confidence that an ONNX file carries, as JSON holds them; None where it has none.

    Args:
        network: a file that :func:`refused_content` accepts.

    Raises:
        MetadataError: they are malformed or absurd; names the value.
    """
    with network.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        text = properties_of(data).get("confidence")
    try:
        return None if text is None else _checked(text)
    except MetadataError as error:
        raise MetadataError(f"{network.name}: {error}") from error


def refused_numbers(network: Path, said: object) -> str | None:
    """Return why what the manifest says of an ONNX file's numbers of confidence cannot be, or None.

    Args:
        network: a file that :func:`refused_content` accepts.
        said: the manifest's entry for it, None where there is none.
    """
    try:
        expected = None if said is None else _checked(json.dumps(said))
        found = numbers_in(network)
    except MetadataError as error:
        return f"has malformed numbers: {error}"
    return None if found == expected else "carries other numbers of confidence than the manifest says"


def _checked(text: str) -> dict[str, Any]:
    from ccnn_zoo.uncertainty import Confidence  # imports numpy, which a repository without numbers does not need

    return json.loads(Confidence.from_json(text).to_json())


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
