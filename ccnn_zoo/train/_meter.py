"""Loss, error and speed of an epoch, read from the device only when asked for."""

from __future__ import annotations

import math
import time
from typing import TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor

from ccnn_zoo.errors import NonFiniteLossError

Sums: TypeAlias = tuple[float, int, int]
"""Loss times images, misses, and images."""

NOTHING: Sums = (0.0, 0, 0)


class Meter:
    """Sums over the batches of one epoch.

    Args:
        epoch: from 1, for error messages.
        processes: number of processes that share every batch evenly.
        sums: what :meth:`sums` gave before the epoch was interrupted.
    """

    def __init__(self, epoch: int, processes: int, sums: Sums = NOTHING) -> None:
        self._epoch, self._processes = epoch, processes
        self._pending: list[tuple[int, Tensor, Tensor, int]] = []
        self._loss, self._wrong, self._images = sums
        self._images_before = self._images
        self._start = time.perf_counter()

    def update(self, step: int, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a pass of a step: its mean loss, logits (N, classes) and classes (N,). Does not wait for the device."""
        self._pending.append((step, loss.detach(), (logits.detach().argmax(1) != targets).sum(), len(targets)))

    def check(self) -> None:
        """Read the batches added since the last check.

        Raises:
            NonFiniteLossError: the loss of one was not finite.
        """
        for step, loss, wrong, images in self._pending:
            require_finite(loss.item(), self._epoch, step, "training")
            self._loss += loss.item() * images
            self._wrong += int(wrong)
            self._images += images
        self._pending.clear()

    def running(self) -> tuple[float, float, float]:
        """Return this process's mean loss and error in percent, and the images per second of all of them."""
        images = max(self._images, 1)
        return self._loss / images, 100 * self._wrong / images, self.images_per_second()

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


def mean_of(sums: Sums) -> tuple[float, float]:
    """Return mean loss and error in percent."""
    loss, wrong, images = sums
    return loss / images, 100 * wrong / images


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
