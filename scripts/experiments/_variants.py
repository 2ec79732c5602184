"""Freedoms of branches that folding leaves nothing of, tried here before any becomes an option of the package."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ccnn_zoo import fold
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.optim import SHARED_WEIGHT
from ccnn_zoo.train import Data, Recipe, build_model

STAGE = "layer3"
"""First stage of :func:`late_branches` that has branches."""


class FreeConv2d(CalibratedConv2d):
    """A calibrated convolution whose R is an ordinary weight: of any sign, decayed, and never projected."""

    parameter_roles = {"weight": SHARED_WEIGHT}  # noqa: RUF012, never changed


def late_branches(recipe: Recipe, data: Data) -> nn.Module:
    """Return the ResNet of the recipe with one branch before :data:`STAGE`, and ``recipe.branches`` from there on.

    All branches read the features of the one before. The stage's first block has a convolution as its shortcut, so that
    nothing but its two first convolutions reads them.
    """
    model = build_model(recipe, data)
    shared = fold(build_model(replace(recipe, branches=1), data))
    for name, module in shared.named_children():
        if name == STAGE:
            break
        model.set_submodule(name, module)
    first = model.get_submodule(STAGE)[0]
    for conv in (first.conv1, first.downsample[0]):
        conv.shared_input, conv.total_groups = True, conv.groups
    return model


def free_calibration(recipe: Recipe, data: Data) -> nn.Module:
    """Return the network of the recipe, R drawn as ever and then free, K times as large: every kernel is about w.

    That changes nothing else, since each convolution is normalised.
    """
    model = build_model(recipe, data)
    for module in model.modules():
        if type(module) is CalibratedConv2d:
            module.__class__ = FreeConv2d
            del module.calibration.ccnn_role
            with torch.no_grad():
                module.calibration.mul_(recipe.branches)
    return model
