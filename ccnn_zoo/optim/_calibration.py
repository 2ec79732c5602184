"""The step of R: gradient, absolute value, normalisation (Algorithm 1, lines 7 and 8)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CALIBRATION_UPDATES = ("descent", "ascent")


def calibration_step(calibration: Tensor, grad: Tensor, step_size: float) -> Tensor:
    """Return the next R: ``|R + step_size * grad|``, divided by its sum over the branches.

    Args:
        calibration: R, (K, ...).
        grad: dL/dR, the same shape.
        step_size: -l to descend, +l to ascend.

    Returns:
        A tensor of R's shape, in float32 at least; a position at which all R_k became 0 is 1/K.
    """
    precision = torch.promote_types(calibration.dtype, torch.float32)
    stepped = torch.add(calibration.to(precision), grad.to(precision), alpha=step_size).abs_()
    total = stepped.sum(0, keepdim=True)
    # Asks for zero, not for > 0: a NaN gradient must stay visible.
    return torch.where(total == 0, 1 / len(calibration), stepped.div_(total))


def update_one_by_one(calibrations: Sequence[Tensor], grads: Sequence[Tensor], step_size: float) -> None:
    """Give every R its next value in place."""
    for calibration, grad in zip(calibrations, grads, strict=True):
        calibration.copy_(calibration_step(calibration, grad, step_size))


def update_together(calibrations: Sequence[Tensor], grads: Sequence[Tensor], step_size: float) -> None:
    """Same as one by one, with all layers of K branches in one tensor (K, positions of all layers)."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, calibration in enumerate(calibrations):
        alike[len(calibration), calibration.device, calibration.dtype].append(i)
    for indices in alike.values():
        group = [calibrations[i] for i in indices]
        joined = torch.cat([r.flatten(1) for r in group], dim=1)
        stepped = calibration_step(joined, torch.cat([grads[i].flatten(1) for i in indices], dim=1), step_size)
        parts = stepped.split([r[0].numel() for r in group], dim=1)
        torch._foreach_copy_(group, [part.view_as(r) for part, r in zip(parts, group, strict=True)])
