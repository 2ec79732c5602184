"""What a task has in this room: the module of its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ccnn_zoo.train import Recipe, TrainingResult


@dataclass(frozen=True)
class ExportRequest:
    """What ``ccnn export`` is asked for.

    Args:
        found: as of :func:`ccnn_zoo.cli._sources.find`.
        output: the file or folder to write.
        precisions: without repetitions.
        data: name of the data to compare on.
        options: those of :func:`ccnn_zoo.export.to_onnx`.
        uncertainty, cascade, branches, pictures: as the command's options.
        report, report_beside: where reports go as JSON.
    """

    found: Path | str
    output: Path
    precisions: list[str]
    data: str | None
    options: dict[str, Any]
    uncertainty: bool
    cascade: bool
    branches: int | None
    pictures: Path | None
    report: Path | None
    report_beside: bool


class Part(Protocol):
    """What the commands ask of a task.

    Attributes:
        SKIPS: the value of a recipe that ``--skip-unreadable`` sets.
        FIGURE: the metric that a training ends with, and what the command calls it.
    """

    SKIPS: str
    FIGURE: tuple[str, str]

    def train(self, recipe: Recipe, output: Path, *, resume: bool, tensorboard: bool) -> TrainingResult:
        """Train a network."""

    def export(self, request: ExportRequest) -> list[Path]:
        """Export a network, say what was measured, and return the files."""

    def beside(
        self, checkpoint: Path, precisions: Iterable[str], data: str | None, pictures: Path | None
    ) -> dict[str, Any]:
        """Return the images that publishing a checkpoint takes."""
