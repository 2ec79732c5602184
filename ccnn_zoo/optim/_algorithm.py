"""Algorithm 1 of the paper as functions: one parameter after another, as it is printed, and all of them together.

Source: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from ccnn_zoo._base.compat import foreach_add_

from ._sharded import place, whole

CALIBRATION_UPDATES = ("descent", "ascent")
"""The sign of R's step: against its gradient, or with it, as the paper prints."""

Noise = Iterable[tuple[list[Tensor], list[Tensor], float]]
"""Weights w, some at a time, with noise for each, and its factor."""


def csgd_one_by_one(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: list[Tensor | None],
    noise: Noise,
    calibrations: Sequence[Tensor],
    calibration_grads: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    step_size: float,
    maximize: bool,
) -> None:
    """Take one step of Algorithm 1 on every parameter in turn. Gradients are those at (w, R) before the step.

    Args:
        params: w of all layers and all ordinary parameters.
        grads: dL/d of these; autograd's for f(R * w) is sum_k R_k * dL/dH_k.
        momenta: their buffers, filled here where there is none yet.
        noise: N(0, 1) for every w, and its standard deviation sigma.
        calibrations: R of all layers, (K, ...).
        calibration_grads: dL/dR.
        lr: learning rate theta.
        momentum, weight_decay: of ``params``.
        step_size: -l to descend, +l to ascend.
        maximize: go uphill instead.
    """
    for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
        gradient = -grad if maximize else grad
        if weight_decay != 0:
            gradient = gradient.add(param, alpha=weight_decay)
        if momentum != 0:
            velocity = momenta[i]
            momenta[i] = gradient.clone() if velocity is None else velocity.mul_(momentum).add_(gradient)
            gradient = momenta[i]
        param.add_(gradient, alpha=-float(lr))  # w <- w - theta * sum_k R_k * dL/dH_k
    for weights, values, std in noise:
        for weight, value in zip(weights, values, strict=True):
            weight.add_(value, alpha=std)  # + N(0, sigma)
    for calibration, grad in zip(calibrations, calibration_grads, strict=True):
        place(calibration_step(whole(calibration), whole(grad), step_size), calibration)


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


def csgd_together(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: list[Tensor | None],
    noise: Noise,
    calibrations: Sequence[Tensor],
    calibration_grads: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    step_size: float,
    maximize: bool,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> None:
    """As :func:`csgd_one_by_one`, by torch's multi-tensor or fused kernels, all layers of K branches in one tensor."""
    sgd(
        params,
        grads,
        momenta,
        foreach=False if fused else foreach,
        fused=fused or None,
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=0.0,
        nesterov=False,
        maximize=maximize,
    )
    for weights, values, std in noise:
        foreach_add_(weights, values, alpha=std)
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, calibration in enumerate(calibrations):
        alike[len(calibration), calibration.device, calibration.dtype].append(i)
    for indices in alike.values():
        group = [whole(calibrations[i]) for i in indices]
        joined = torch.cat([r.flatten(1) for r in group], dim=1)
        gradient = torch.cat([whole(calibration_grads[i]).flatten(1) for i in indices], dim=1)
        parts = calibration_step(joined, gradient, step_size).split([r[0].numel() for r in group], dim=1)
        place([part.view_as(r) for part, r in zip(parts, group, strict=True)], [calibrations[i] for i in indices])
