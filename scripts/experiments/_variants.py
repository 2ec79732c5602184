"""Freedoms of branches that folding leaves nothing of. None lowered the error, so none is an option of the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ccnn_zoo import fold
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.optim import SHARED_WEIGHT
from ccnn_zoo.train import Data, Recipe, build_model

STAGE = "layer3"
"""First stage of :func:`late_branches` that has branches."""


class FreeConv2d(CalibratedConv2d):
    """A calibrated convolution whose R is an ordinary weight: of any sign, decayed, and never projected."""

    parameter_roles = {"weight": SHARED_WEIGHT}  # noqa: RUF012, never changed


class ScaledConv2d(CalibratedConv2d):
    """A calibrated convolution with a factor for every channel that a branch reads: H_k = R_k * w * s_k.

    ``input_scale`` (s) is (K, in_channels). That is BatchEnsemble's rank one (Wen et al., ICLR 2020), of its inputs.
    """

    def effective_weight(self) -> Tensor:
        """Return H."""
        kernels = super().effective_weight().unflatten(0, (self.branches, -1))
        return (kernels * self.input_scale[:, None, :, None, None]).flatten(0, 1)


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


def random_signs(recipe: Recipe, data: Data) -> nn.Module:
    """Return the network of the recipe, every branch with random signs of its own for the channels that it reads."""
    model = build_model(recipe, data)
    for conv, signs in _signs(model, recipe.seed):
        conv.register_buffer("input_scale", signs)
    return model


def learned_scales(recipe: Recipe, data: Data) -> nn.Module:
    """Return the same with signs that are learned on from there, as factors, and not decayed."""
    model = build_model(recipe, data)
    for conv, signs in _signs(model, recipe.seed):
        conv.input_scale = nn.Parameter(signs)
    kept = {*model.no_weight_decay(), *(n for n, _ in model.named_parameters() if n.endswith("input_scale"))}
    model.no_weight_decay = partial(set, kept)
    return model


def _signs(model: nn.Module, seed: int) -> Iterator[tuple[ScaledConv2d, Tensor]]:
    """Yield every calibrated convolution, which has become a scaled one, and its signs."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if type(module) is CalibratedConv2d:
            module.__class__ = ScaledConv2d
            yield module, torch.randint(0, 2, (module.branches, module.in_channels), generator=generator) * 2.0 - 1.0


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
