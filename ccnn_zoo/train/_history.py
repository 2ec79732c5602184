"""What was measured after each epoch, and its CSV file."""

from __future__ import annotations

import csv
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeAlias

from ccnn_zoo._files import replacing, why_unreadable
from ccnn_zoo.errors import RepositoryError

_LATER = ("test_map_percent", "validation_map_percent")
"""Columns that earlier versions did not write."""


@dataclass(frozen=True)
class Quality:
    """By what networks of a task are judged, in per cent.

    Args:
        field: the end of its names in :class:`EpochResult`.
        axis: what a picture calls it.
        word: what stands before its value in a line; empty for the error, of which nobody asks what it is.
        rises: whether more is better.
    """

    field: str
    axis: str
    word: str
    rises: bool


QUALITIES = (
    Quality("map_percent", "mean average precision (%)", "mAP ", rises=True),
    Quality("error_percent", "error (%)", "", rises=False),
)
"""Of every task; the first that was measured is the network's."""


@dataclass(frozen=True)
class EpochResult:
    """Figures of one epoch.

    Args:
        epoch: epochs done, from 1.
        step: optimizer steps done since the start.
        lr: learning rate of the epoch's last step.
        train_loss: mean loss over the epoch's batches as they were trained on, augmented.
        train_error_percent: error over the same; None where nothing is classified.
        test_loss: mean cross-entropy over the test images, after the epoch; None where it was left out.
        test_error_percent: error over the same; None where nothing is classified.
        validation_loss: as ``test_loss``, over the held-out training images; None if there are none, or left out.
        validation_error_percent: error over the same.
        images_per_second: training throughput, without evaluation.
        test_map_percent: mean average precision over the test images, of a detector.
        validation_map_percent: the same over the held-out training images.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_error_percent: float | None = None
    test_loss: float | None = None
    test_error_percent: float | None = None
    validation_loss: float | None = None
    validation_error_percent: float | None = None
    images_per_second: float = 0.0
    test_map_percent: float | None = None
    validation_map_percent: float | None = None

    @property
    def validation_rank(self) -> float | None:
        """Return what is the lower the better the network is on held-out images; None if there are none."""
        judged = self.judged("validation")
        return judged and (-judged[1] if judged[0].rises else judged[1])

    def judged(self, part: str) -> tuple[Quality, float] | None:
        """Return by what the network is judged on a part, and its value; None if it was not measured.

        Args:
            part: ``"train"``, ``"validation"`` or ``"test"``.
        """
        values = ((quality, getattr(self, f"{part}_{quality.field}", None)) for quality in QUALITIES)
        return next(((quality, value) for quality, value in values if value is not None), None)

    def metrics(self) -> dict[str, float]:
        """Return losses and measures of quality by name, without those that were not measured."""
        measured = {k: v for k, v in asdict(self).items() if k.endswith(("_loss", "_percent"))}
        return {name: value for name, value in measured.items() if value is not None}


History: TypeAlias = tuple[EpochResult, ...]
"""What was measured in each epoch, in their order."""


def write_history(history: History, path: str | os.PathLike[str]) -> None:
    """Write one CSV row per epoch, atomically.

    Raises:
        RepositoryError: the folder cannot be written.
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [f.name for f in fields(EpochResult)])
        writer.writeheader()
        writer.writerows(asdict(result) for result in history)


def read_history(path: str | os.PathLike[str]) -> History:
    """Read the ``history.csv`` of a training run.

    Raises:
        RepositoryError: it is missing or no such file.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets write a mark
            history = tuple(_result(row) for row in csv.DictReader(stream))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RepositoryError(f"{path} is not a history.csv of a training run: {why_unreadable(error)}") from error
    if not history:
        raise RepositoryError(f"{path} is not a history.csv of a training run: it has no rows")
    return history


def _result(row: dict[str, str]) -> EpochResult:
    values = {f.name: float(row[f.name]) if row[f.name] else None for f in fields(EpochResult) if f.name not in _LATER}
    values |= {name: float(row[name]) if row.get(name) else None for name in _LATER}
    return EpochResult(**{**values, "epoch": int(row["epoch"]), "step": int(row["step"])})
