"""The history as TensorBoard shows it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from ccnn_zoo._base.missing import missing_package

from ._history import EpochResult


class TensorBoard:
    """Writes one point per figure and epoch, over optimizer steps.

    Args:
        folder: for TensorBoard's event files; None writes nothing.

    Raises:
        MissingPackageError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._writer = folder, None
        if folder is not None:
            _writer_class()  # before hours of training

    def begin(self, step: int) -> None:
        """Open the files; of an earlier attempt, TensorBoard forgets what came after ``step``."""
        if self._folder is not None:
            self._writer = _writer_class()(str(self._folder), purge_step=step + 1)

    def add(self, result: EpochResult) -> None:
        """Write the figures of an epoch."""
        if self._writer is not None:
            for name, value in {
                **result.metrics(),
                "lr": result.lr,
                "images_per_second": result.images_per_second,
            }.items():
                self._writer.add_scalar(name, value, result.step)
            self._writer.flush()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing_package("tensorboard") from error
    return SummaryWriter
