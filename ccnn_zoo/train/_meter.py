"""Loss, error and speed of an epoch, read from the device only when asked for."""

from __future__ import annotations

import math
import time
from typing import TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor

from ccnn_zoo.errors import NonFiniteLossError

from .tasks import Outcome

Sums: TypeAlias = tuple[float, int, int]
"""Loss times images, misses, and images."""

NOTHING: Sums = (0.0, 0, 0)


class Meter:
    """Sums over the batches of one epoch.

    Args:
        epoch: from 1, for error messages.
        processes: number of processes that share every batch evenly.
        sums: what :meth:`sums` gave before the epoch was interrupted.
        classifies: whether there are misses to count.
    """

    def __init__(self, epoch: int, processes: int, sums: Sums = NOTHING, *, classifies: bool = True) -> None:
        self._epoch, self._processes = epoch, processes
        self._pending: list[tuple[int, Tensor, Tensor | None, int]] = []
        self._loss, self._wrong, self._images = sums
        self._images_before = self._images
        self._classifies = classifies
        self._start = time.perf_counter()

    def update(self, step: int, outcome: Outcome) -> None:
        """Add a pass of a step. Does not wait for the device."""
        self._pending.append((step, outcome.loss.detach(), outcome.wrong, outcome.count))

    def check(self) -> None:
        """Read the batches added since the last check.

        Raises:
            NonFiniteLossError: the loss of one was not finite.
        """
        for step, loss, wrong, images in self._pending:
            require_finite(loss.item(), self._epoch, step, "training")
            self._loss += loss.item() * images
            self._wrong += 0 if wrong is None else int(wrong)
            self._images += images
        self._pending.clear()

    def running(self) -> tuple[float, float | None, float]:
        """Return this process's mean loss and error in percent, and the images per second of all of them."""
        images = max(self._images, 1)
        return self._loss / images, self._error(self._wrong, images), self.images_per_second()

    def means(self, accelerator: Accelerator) -> tuple[float, float | None]:
        """Return mean loss and error in percent over all processes; no error where nothing is classified.

        Raises:
            NonFiniteLossError: a loss was not finite.
        """
        loss, wrong, images = self.sums(accelerator)
        return loss / images, self._error(wrong, images)

    def _error(self, wrong: int, images: int) -> float | None:
        return 100 * wrong / images if self._classifies else None

    def images_per_second(self) -> float:
        """Return the throughput of all processes since the meter was made."""
        return self._processes * (self._images - self._images_before) / (time.perf_counter() - self._start)

    def sums(self, accelerator: Accelerator) -> Sums:
        """Return the sums over all processes.

        Raises:
            NonFiniteLossError: a loss was not finite.
        """
        self.check()
        if accelerator.num_processes == 1:
            return self._loss, self._wrong, self._images
        mine = torch.tensor((self._loss, self._wrong, self._images), dtype=torch.float64, device=accelerator.device)
        loss, wrong, images = accelerator.reduce(mine, reduction="sum").tolist()
        return loss, int(wrong), int(images)


def require_finite(loss: float, epoch: int, step: int, kind: str) -> None:
    """Refuse a loss that is NaN or infinite.

    Raises:
        NonFiniteLossError: it is; names where and the remedy.
    """
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"the {kind} loss became {loss} in epoch {epoch} at step {step}. Lower lr or noise_std, or lengthen "
            "warmup; the checkpoint of the epoch before, if there was one, is kept."
        )
