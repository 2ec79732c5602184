"""Kinds of tasks: what a network is for.

A :class:`Task` says by what its files are known. What a room of the package does for it in its own way, the module of
the task's name does there: ``hub/_detection.py`` makes its repositories, ``cli/_detection.py`` what ``ccnn`` does with
it. Shared code asks :meth:`Task.part` and names no task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ccnn_zoo.metadata import DETECTION, DetectorMetadata, Metadata, ModelMetadata


@dataclass(frozen=True)
class Task:
    """A kind of task.

    Args:
        name: as rooms call their module for it.
        noun: what messages call its networks.
        property: value of ``task`` in its ONNX files and manifests; None where they have no such property.
        checkpoint: the text that its checkpoints hold and no others do.
        metadata: of its ONNX files.
        loader: the function of :mod:`ccnn_zoo.runtime` that opens them.
        command: of ``ccnn``, which runs them on pictures.
        data: kinds of data that are for nothing else, as in ``"voc:FOLDER"``.
        trainer: the function that trains on them.
        classifies: whether an output of its files scores one class after the other.
    """

    name: str
    noun: str
    property: str | None
    checkpoint: str
    metadata: type[Metadata]
    loader: str
    command: str
    data: tuple[str, ...] = ()
    trainer: str = "ccnn_zoo.train.train"
    classifies: bool = False

    def part(self, room: str) -> Any:
        """Return what a room of the package has for this task, imported now.

        Args:
            room: a package's name, the caller's ``__package__``.
        """
        return import_module(f"{room}._{self.name}")


_CLASSIFICATION = Task(
    "classification", "classifier", None, "config", ModelMetadata, "load", "classify", classifies=True
)
TASKS = [
    Task(
        name="detection",
        noun="detector",
        property=DETECTION,
        checkpoint="detector",
        metadata=DetectorMetadata,
        loader="load_detector",
        command="detect",
        data=("voc", "coco"),
        trainer="ccnn_zoo.detection.train_detector",
    ),
    _CLASSIFICATION,  # takes all that no other does
]


def task_of_properties(properties: Mapping[str, Any]) -> Task:
    """Return the task of an ONNX file's properties, or of a manifest's details."""
    return next((task for task in TASKS if properties.get("task") == task.property), _CLASSIFICATION)


def task_of_texts(texts: Mapping[str, str]) -> Task:
    """Return the task of a checkpoint, by the texts in its header."""
    return next((task for task in TASKS if task.checkpoint in texts), _CLASSIFICATION)


def task_of_data(name: str) -> Task:
    """Return the task that data are for."""
    kind = name.partition(":")[0]
    return next((task for task in TASKS if kind in task.data), _CLASSIFICATION)
