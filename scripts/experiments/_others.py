"""Ensembles in one network to compare with, of the layers of torch-uncertainty, in the plain network of a recipe.

BatchEnsemble: Wen et al., ICLR 2020. Packed-Ensembles: Laurent et al., ICLR 2023. In training every member learns
from all images, as every branch of ours does. In eval mode they return the logarithm of the mean of the members'
probabilities.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ccnn_zoo import fold
from ccnn_zoo._base.roles import SHARED_WEIGHT, set_role
from ccnn_zoo.train import Data, Recipe, build_model

ALPHA = 2
"""Width of Packed-Ensembles, all members together, over the plain network's: its paper's value."""

MISSING = "the library torch-uncertainty is missing: pip install 'ccnn-zoo[experiments]'"


def available() -> bool:
    """Return whether torch-uncertainty, and lightning which it imports, are installed."""
    return all(find_spec(name) for name in ("torch_uncertainty", "lightning", "jsonargparse"))


def batch_ensemble(recipe: Recipe, data: Data) -> nn.Module:
    """Return the plain network with BatchEnsemble's layers, ``recipe.branches`` members."""
    from torch_uncertainty.layers import BatchConv2d, BatchLinear

    members = recipe.branches
    model = _plain(recipe, data)
    for name, module in _of_types(model, nn.Conv2d):
        layer = BatchConv2d.from_conv2d(module, members)
        layer.conv.weight = module.weight  # drawn as the plain network's are
        set_role(layer.conv.weight, SHARED_WEIGHT)  # so that CSGD's noise falls on it too
        model.set_submodule(name, layer)
    for name, module in _of_types(model, nn.Linear):
        layer = BatchLinear.from_linear(module, members)
        layer.linear.weight = module.weight
        model.set_submodule(name, layer)
    model.register_forward_pre_hook(partial(_repeat, members))
    model.register_forward_hook(partial(_join, members))
    return model


def packed_ensemble(recipe: Recipe, data: Data) -> nn.Module:
    """Return the plain network with Packed-Ensembles' layers, ``recipe.branches`` members, alpha 2 and gamma 1."""
    from torch_uncertainty.layers import PackedConv2d, PackedLinear

    members = recipe.branches
    packed = {"alpha": ALPHA, "num_estimators": members}
    model = _plain(recipe, data)
    for number, (name, module) in enumerate(_of_types(model, nn.Conv2d)):
        sizes = (module.in_channels, module.out_channels, module.kernel_size)
        options = {"stride": module.stride, "padding": module.padding, "bias": module.bias is not None}
        layer = PackedConv2d(*sizes, **packed, **options, first=number == 0)
        nn.init.kaiming_normal_(layer.conv.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNet does
        set_role(layer.conv.weight, SHARED_WEIGHT)
        model.set_submodule(name, layer)
    for name, module in _of_types(model, nn.BatchNorm2d):
        layer = nn.BatchNorm2d(ALPHA * module.num_features)
        layer.load_state_dict({n: v.repeat(ALPHA) if v.dim() else v for n, v in module.state_dict().items()})
        model.set_submodule(name, layer)
    for name, module in _of_types(model, nn.Linear):
        layer = PackedLinear(module.in_features, module.out_features, **packed, last=True, implementation="conv1d")
        model.set_submodule(name, layer)
    model.register_forward_hook(partial(_join, members))
    return model


NETWORKS = {"batch_ensemble": batch_ensemble, "packed_ensemble": packed_ensemble}
"""What builds them, by name; both need torch-uncertainty."""


def _plain(recipe: Recipe, data: Data) -> nn.Module:
    # The layers put in place draw from the global generator.
    torch.manual_seed(recipe.seed)
    return fold(build_model(replace(recipe, branches=1), data))


def _of_types(model: nn.Module, kind: type[nn.Module]) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]


def _repeat(members: int, _: nn.Module, images: tuple[Tensor]) -> Tensor:
    return images[0].repeat(members, 1, 1, 1)


def _join(members: int, model: nn.Module, _: tuple[Tensor], logits: Tensor) -> Tensor:
    if model.training:
        return logits
    return logits.unflatten(0, (members, -1)).log_softmax(-1).logsumexp(0) - torch.tensor(members).log()
