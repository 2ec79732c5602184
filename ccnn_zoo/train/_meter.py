"""Loss, error and speed of an epoch, read from the device only when asked for."""

from __future__ import annotations

import math
import time

import torch
from accelerate import Accelerator
from torch import Tensor

from ccnn_zoo.errors import NonFiniteLossError


class Meter:
    """Sums over the batches of one epoch.

    Args:
        epoch: from 1, for error messages.
        step: optimizer steps done before the epoch, for error messages.
        processes: number of processes that share every batch evenly.
    """

    def __init__(self, epoch: int, step: int, processes: int) -> None:
        self._epoch, self._step, self._processes = epoch, step, processes
        self._pending: list[tuple[Tensor, Tensor, int]] = []
        self._loss, self._wrong, self._images = 0.0, 0, 0
        self._start = time.perf_counter()

    def update(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: its mean loss, logits (N, classes) and classes (N,). Does not wait for the device."""
        self._pending.append((loss.detach(), (logits.detach().argmax(1) != targets).sum(), len(targets)))

    def check(self) -> None:
        """Read the batches added since the last check.

        Raises:
            NonFiniteLossError: the loss of one was not finite.
        """
        for loss, wrong, images in self._pending:
            self._step += 1
            require_finite(loss.item(), self._epoch, self._step, "training")
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
        return self._processes * self._images / (time.perf_counter() - self._start)

    def result(self, accelerator: Accelerator) -> tuple[float, float]:
        """Return mean loss and error in percent over all processes."""
        sums = (self._loss, self._wrong, self._images)
        if accelerator.num_processes > 1:
            joined = torch.tensor(sums, dtype=torch.float64, device=accelerator.device)
            sums = accelerator.reduce(joined, reduction="sum").tolist()
        return sums[0] / sums[2], 100 * sums[1] / sums[2]


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
