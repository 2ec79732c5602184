"""What a user may name a network by on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm

from ccnn_zoo import hub
from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint
from ccnn_zoo.errors import RepositoryError
from ccnn_zoo.train import CHECKPOINT, evaluation_batches, load_data

if TYPE_CHECKING:
    from torch import Tensor, nn


def load_network(source: str) -> tuple[nn.Module, TrainingRecord | None]:
    """Return the network that ``source`` names, in eval mode, and how it was trained where that is recorded.

    Args:
        source: a checkpoint or training folder, a repository folder (as it is or as ``local:FOLDER``), a Hub id
            ``org/name``, or a timm name, which needs pretrained weights.

    Raises:
        RepositoryError: ``source`` is none of these.
        IntegrityError: a file differs from its checksum.
    """
    path = checkpoint_path(source)
    if path.is_file():
        return load_checkpoint(path)
    if timm.is_model(source):
        return timm.create_model(source, pretrained=True).eval(), None
    if path.is_dir() or source.startswith("local:") or source.count("/") == 1:
        folder = hub.download(f"local:{path}" if path.is_dir() else source)
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), None
    raise RepositoryError(
        f"no network found for {source!r}: it is no file or folder, no timm name (`ccnn list`), and neither "
        "local:FOLDER nor a Hub id org/name. Check the spelling."
    )


def checkpoint_path(source: str) -> Path:
    """Return the path that ``source`` names; for a training folder that of its checkpoint."""
    path = Path(source).expanduser()
    return path / CHECKPOINT if (path / CHECKPOINT).is_file() else path


def beside_checkpoint(path: Path) -> dict[str, Any]:
    """Return what publishing a checkpoint takes besides it: test images to verify on, and its curves; else nothing."""
    if not path.is_file():
        return {}
    _, record = load_checkpoint(path)
    curves = path.with_name("curves.png")
    return {
        "images": image_batches(record.recipe["data"]) if "data" in record.recipe else None,
        "curves": curves if curves.is_file() else None,
    }


def image_batches(data: str) -> Iterator[Tensor]:
    """Return all test images of ``data``, preprocessed, batch by batch."""
    return (images for images, _ in evaluation_batches(load_data(data)))
