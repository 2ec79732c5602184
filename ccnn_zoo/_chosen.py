"""Some of a network's branches as a network of its own, which costs as many parts of the time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ccnn_zoo._conversion.network import CalibratedNetwork, meeting_layer
from ccnn_zoo._rebuild import build, filled
from ccnn_zoo._wrapped import unwrapped, usual_settings
from ccnn_zoo.convert import fold
from ccnn_zoo.errors import ConfigurationError

_SAME = 1e-4
"""Allowed difference of a branch's logits from those in the whole network, relative to their largest or to 1."""


@usual_settings()
@torch.no_grad()
def chosen_branches(model: nn.Module, chosen: Sequence[int]) -> nn.Module:
    """Return a folded network of some branches of a calibrated one, in eval mode, with the weights that they have.

    On random images it must say what these branches say in the whole network.

    Args:
        model: a calibrated network of timm's or of the zoo, with a classifier, of grouped mixing.
        chosen: numbers of different branches, from 0.

    Raises:
        ConfigurationError: it is no such network, or there are no such branches.
    """
    model, chosen = unwrapped(model), list(chosen)
    _check(model, chosen)
    whole, options = fold(model).to("cpu", torch.float32).eval(), model.conversion
    if len(chosen) == options.branches:
        return whole
    arguments = {**whole._model_args, **options.architecture(), "branches": len(chosen), "folded": True}
    arguments |= {"num_classes": whole.num_classes}
    make = partial(build, whole.pretrained_cfg["architecture"], arguments, dict(whole.pretrained_cfg))
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in make().state_dict().items()}
    weights = {n: _part(n, t, shapes.get(n), options.branches, chosen) for n, t in whole.state_dict().items()}
    if options.merge == "concat":  # each branch's part of a sum, of which there are fewer now
        weights[f"{meeting_layer(whole)[0]}.weight"] *= options.branches / len(chosen)
    network = filled(make, weights).eval()
    _compare(whole, network, chosen)
    return network


def _check(model: nn.Module, chosen: Sequence[int]) -> None:
    if not isinstance(model, CalibratedNetwork) or not hasattr(model, "_model_args"):
        raise ConfigurationError(
            f"{type(model).__name__} has no branches to choose from: make it with timm.create_model or "
            "ccnn_zoo.calibrate of a network of timm's"
        )
    count, known = model.conversion.branches, all(isinstance(k, int) and not isinstance(k, bool) for k in chosen)
    if not known or not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(count)):
        raise ConfigurationError(
            f"there are branches 0 to {count - 1}, some of which were to be chosen, got {chosen!r}"
        )
    if model.conversion.mixing == "dense" and len(chosen) < count:
        raise ConfigurationError("mixing='dense': each branch reads all the others, so none can run without them")


def _part(name: str, tensor: Tensor, shape: torch.Size | None, branches: int, chosen: Sequence[int]) -> Tensor:
    """Return what the chosen branches have of a tensor, which is branch-major along the one side that differs."""
    if shape is None or len(shape) != tensor.ndim:
        raise ConfigurationError(f"{name} is not in the network of {len(chosen)} branches; build it as it was built")
    sides = [side for side, (whole, part) in enumerate(zip(tensor.shape, shape, strict=True)) if whole != part]
    if not sides:
        return tensor.clone()
    (side,) = sides
    return tensor.unflatten(side, (branches, -1)).index_select(side, torch.tensor(chosen)).flatten(side, side + 1)


def _compare(whole: nn.Module, part: nn.Module, chosen: Sequence[int]) -> None:
    size = whole.pretrained_cfg["input_size"]
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    expected, found = whole.forward_branches(images)[list(chosen)], part.forward_branches(images)
    allowed = _SAME * max(1.0, float(expected.abs().max()))
    if found.shape != expected.shape or not (found - expected).abs().max() <= allowed:
        raise ConfigurationError(
            f"branches {list(chosen)} of {type(whole).__name__} alone are not what they are in the whole network"
        )
