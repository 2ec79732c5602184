"""How far the branches of a network are apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import CalibratedConv2d


@dataclass(frozen=True)
class Diversity:
    """What tells the branches apart; all figures are 0 with one branch.

    Args:
        calibration_distance: mean distance of two R_k by layer (:func:`calibration_distance`).
        disagreement: share of images, in [0, 1], on which two branches say different classes, mean over pairs.
        branch_error_percent: error of each branch alone.
        error_percent: error of the network.
        images: images that were classified.
    """

    calibration_distance: dict[str, float]
    disagreement: float
    branch_error_percent: tuple[float, ...]
    error_percent: float
    images: int


def calibrated_layers(model: nn.Module) -> dict[str, CalibratedConv2d]:
    """Return the calibrated convolutions of a network by name.

    Raises:
        ConfigurationError: there is none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, CalibratedConv2d)}
    if not layers:
        raise ConfigurationError(
            f"{type(model).__name__} has no calibrated convolution; analyse a network as it was trained, not folded"
        )
    return layers


def calibration_distance(calibration: Tensor) -> float:
    """Return the root mean square distance of two R_k at a kernel position, mean over all pairs, in units of R.

    Args:
        calibration: R, (K, ...).
    """
    pairs = list(combinations(calibration.detach().double(), 2))
    return sum((a - b).square().mean().sqrt().item() for a, b in pairs) / max(1, len(pairs))


def branch_disagreement(logits: Tensor) -> float:
    """Return the share of images on which two branches say different classes, mean over all pairs.

    Args:
        logits: of every branch alone, (K, N, classes).
    """
    pairs = list(combinations(logits.argmax(-1), 2))
    return sum((a != b).double().mean().item() for a, b in pairs) / max(1, len(pairs))


@torch.no_grad()
def branch_diversity(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Diversity:
    """Measure a network on labelled images, in eval mode.

    Args:
        model: one of the zoo's networks, unfolded.
        batches: images as the network sees them, with classes.

    Raises:
        ConfigurationError: the network has no calibrated convolution or no classifier, or there is no image.
    """
    layers, training = calibrated_layers(model), model.training
    model.eval()
    alone, together, classes = [], [], []
    for images, targets in batches:
        alone.append(model.forward_branches(images))
        together.append(model(images).argmax(1))
        classes.append(targets)
    model.train(training)
    if not classes:
        raise ConfigurationError("diversity is measured on images, and there is none")
    logits, targets = torch.cat(alone, dim=1), torch.cat(classes)
    return Diversity(
        calibration_distance={name: calibration_distance(layer.calibration) for name, layer in layers.items()},
        disagreement=branch_disagreement(logits),
        branch_error_percent=tuple(_error_percent(branch.argmax(-1), targets) for branch in logits),
        error_percent=_error_percent(torch.cat(together), targets),
        images=len(targets),
    )


def _error_percent(predicted: Tensor, targets: Tensor) -> float:
    return 100 * (predicted != targets).double().mean().item()
