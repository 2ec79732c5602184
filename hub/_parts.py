"""What a repository is made of, and what makes it: that is up to the network's task."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ccnn_zoo._tasks import TASKS, task_of_properties
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.metadata import check_precision

from ._names import DOUBT

if TYPE_CHECKING:
    from torch import nn

    from ccnn_zoo.checkpoint import TrainingRecord
    from ccnn_zoo.export import ImageBatches


@dataclass(frozen=True)
class Staging:
    """What a repository is made of; fields as the arguments of :func:`ccnn_zoo.hub.publish`."""

    source: nn.Module | str | os.PathLike[str]
    record: TrainingRecord | None
    images: ImageBatches | None
    curves: str | os.PathLike[str] | None
    networks: dict[str, str | os.PathLike[str] | None]
    int8_images: ImageBatches | None = None
    held_out: ImageBatches | None = None
    pictures: Mapping[str, str | os.PathLike[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.pictures.keys() <= DOUBT.keys():
            raise ConfigurationError(f"pictures must be a table by {', '.join(DOUBT)}, got {list(self.pictures)}")
        for precision in self.networks:
            check_precision(precision)
        if "fp32" in self.networks:
            raise ConfigurationError("networks holds fp32, which is exported from the network itself. Leave it out.")

    @property
    def exported(self) -> list[str]:
        """Precisions to export besides fp32."""
        return [precision for precision, path in self.networks.items() if path is None]


class Part(Protocol):
    """What a task has in this room: the module of its name."""

    def owns(self, network: nn.Module) -> bool:
        """Whether a network is one of this task."""

    def stage(self, staging: Staging, folder: Path) -> dict[str, Any]:
        """Write configuration, weights, exported ONNX files and heat map; return their part of the manifest."""

    def card(self, folder: Path, files: Collection[str], details: Mapping[str, Any], address: str | None) -> bytes:
        """Return the card of a staged repository, see :func:`ccnn_zoo.hub._card.card_of`; needs no torch."""


def part_of(source: nn.Module | str | os.PathLike[str]) -> Part:
    """Return what makes the repository of a network, or of a checkpoint."""
    if isinstance(source, str | os.PathLike):
        from ccnn_zoo.checkpoint import task_of

        return task_of(source).part(__package__)
    return next(part for task in TASKS if (part := task.part(__package__)).owns(source))


def card_of(folder: Path, files: Collection[str], details: Mapping[str, Any], address: str | None) -> bytes:
    """Return the card of a staged repository, as :meth:`Part.card` of its task."""
    part: Part = task_of_properties(details).part(__package__)
    return part.card(folder, files, details, address)
