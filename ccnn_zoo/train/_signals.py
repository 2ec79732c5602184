"""SIGINT and SIGTERM as a wish that the training loop grants between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from ccnn_zoo.errors import TrainingInterrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, notes SIGINT and SIGTERM instead of dying of them; a second one acts at once.

    Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        accelerator: whose processes must stop at the same step.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if kind is None and self._received is not None:  # it came too late to stop anything, but was meant
            signal.raise_signal(self._received)

    def agreed(self) -> bool:
        """Return whether any process was asked to stop; all processes must call it alike."""
        asked = self._received is not None
        if self._accelerator.num_processes == 1:
            return asked
        anyone = torch.tensor(float(asked), device=self._accelerator.device)
        return bool(self._accelerator.reduce(anyone, reduction="sum"))

    def error(self, saved: str) -> TrainingInterrupted:
        """Return what ends the run; ``saved`` says where it stands."""
        number = self._received or signal.SIGTERM
        return TrainingInterrupted(
            f"stopped by {signal.Signals(number).name} {saved}; --resume (resume=True) goes on from there", number
        )

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = number
        elif self._accelerator.num_processes == 1:  # a launcher repeats the terminal's signal, and kills by itself
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
