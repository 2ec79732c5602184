"""Safetensors files with texts and a sum over everything: a file is whole and unchanged, or refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ccnn_zoo._files import replacing
from ccnn_zoo.errors import IntegrityError, RepositoryError


def write_sealed(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write tensors and texts to one safetensors file, atomically.

    Args:
        path: the file.
        tensors: by name; no two may share storage.
        texts: by name, in an order that reader and writer agree on; they become the file's metadata.

    Raises:
        RepositoryError: the file cannot be written; what was there before is left untouched.
    """
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", **texts}
    metadata["sha256"] = _digest(metadata, whole)
    with replacing(path) as temporary:
        try:
            safetensors.torch.save_file(whole, temporary, metadata=metadata)
        except (OSError, safetensors.SafetensorError) as error:  # its own error for a full disk has no number
            raise RepositoryError(
                f"cannot write {path}: {error}. What was there before is kept; free some space or choose another "
                "folder."
            ) from error


def read_sealed(
    path: str | os.PathLike[str], names: tuple[str, ...], kind: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and texts of a file that ``write_sealed`` wrote.

    Args:
        path: the file.
        names: of the texts, in the writer's order.
        kind: what such a file is called in error messages.

    Raises:
        IntegrityError: it is not such a file, is truncated, or differs from its sum.
    """
    metadata, tensors = _read(path)
    if metadata.keys() != {"format", *names, "sha256"}:
        raise IntegrityError(
            f"{path} is not {kind}: its metadata must be format, {', '.join(names)} and sha256, "
            f"got {', '.join(sorted(metadata)) or 'none'}"
        )
    digest = _digest({name: metadata[name] for name in ("format", *names)}, tensors)
    if digest != metadata["sha256"]:
        raise IntegrityError(
            f"{path} is corrupt: its sum is {digest[:12]}…, not {metadata['sha256'][:12]}…; restore or retrain it"
        )
    return tensors, {name: metadata[name] for name in names}


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of any safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: it cannot be read, or is none.
    """
    return _read(path)[1]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (
        Exception
    ) as error:  # its own kinds, and what torch raises on types and shapes that it does not know: anything
        raise IntegrityError(f"{path} is not a readable safetensors file ({error}); restore or retrain it") from error


def _digest(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the sum of texts and tensors: of what they say, not of safetensors' layout, which may change."""
    digest = hashlib.sha256()
    for text in texts.values():
        digest.update(hashlib.sha256(text.encode()).digest())
    for name, tensor in sorted(tensors.items()):
        described = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        digest.update(hashlib.sha256(described.encode()).digest())
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(hashlib.sha256(values.numpy()).digest())
    return digest.hexdigest()
