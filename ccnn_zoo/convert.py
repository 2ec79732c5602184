"""From a plain network to a calibrated one (calibrate) and back to a plain one (fold)."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ccnn_zoo._conversions import (
    branch_conv,
    calibrated_conv,
    dense_weight,
    is_normalisation,
    is_per_channel,
    plain_classifier,
    tile_per_channel,
)
from ccnn_zoo._conversions import branch_linear as branch_linear
from ccnn_zoo._ends import check_last_layer, find_classifier, find_convs
from ccnn_zoo._known_blocks import keep_branches_apart
from ccnn_zoo._network import CalibratedNetwork as CalibratedNetwork
from ccnn_zoo._network import become_calibrated, scale_declared_widths
from ccnn_zoo._network import timm_name as timm_name
from ccnn_zoo._options import OPTIONS
from ccnn_zoo._options import ConversionOptions as ConversionOptions
from ccnn_zoo._selfcheck import (
    check_branches_apart,
    check_same_function,
    make_probe,
    private_randomness,
    readers_without_data,
)
from ccnn_zoo._wrapped import unwrapped, usual_settings
from ccnn_zoo.layers import BranchConv2d, BranchLinear, CalibratedConv2d


@usual_settings()
def calibrate(
    model: nn.Module,
    branches: int,
    merge: str = "mean",
    *,
    input_size: tuple[int, int, int] | None = None,
    **options: Any,
) -> nn.Module:
    """Return a calibrated copy of a plain network; its weights become the shared weights w.

    By default the copy computes the same function as ``model``: R_k = 1/K and w is K times the given weight, so
    that every effective kernel equals it. All branches are then identical, and stay so: give a ``diversity``
    above 0 before fine-tuning.

    What is not a module (concatenating, splitting, shuffling or attending over channels in a ``forward``) cannot be
    seen in the network. So calibrating runs it: on a small random input, with weights and statistics drawn at
    random, every module of the calibrated network must give what K separate plain networks, which hold the
    kernels H_k, give. A network that fails is refused. Random state and ``model`` are left untouched.

    Networks without a classifier return the features of all branches, branch-major.

    The copy can do all that the networks of the zoo can (:class:`CalibratedNetwork`): it has ``forward_branches``, its
    ``reset_classifier`` merges the branches, and if ``model`` is one of timm's it is saved, published and loaded as
    ``timm.create_model("ccnn", base=...)``.

    Args:
        model: network of plain ``nn.Conv2d``, batch and group normalisation, element-wise and pooling layers, which
            ends in linear layers or in a 1x1 convolution that timm's ``get_classifier`` names; or a network of the zoo
            with one branch.
        branches: number K of branches; 1 gives the plain network.
        merge: how branches meet before the first linear layer: ``"mean"``, ``"max"`` or ``"concat"``; or behind it,
            with a classifier per branch: ``"probability"``, whose logits are the logarithm of the mean of the branches'
            probabilities (:class:`BranchLinear`), for networks of a single linear layer.
        input_size: (channels, height, width) to check with; by default 64x64, or what the network declares.
        options: ``mixing="grouped"``, ``diversity=0.0``, ``rescale=True`` and all else that
            :class:`ConversionOptions` explains.

    Returns:
        A new network, of a subclass of the given class.

    Raises:
        ConfigurationError: ``branches``, ``merge`` or another option is out of range, or ``model`` is a wrapper of a
            network; torch.compile is looked through.
        CalibrationError: a module of the network has no calibrated form, or fails the check; names it and why.
    """
    if unknown := options.keys() - OPTIONS:
        raise TypeError(
            f"calibrate() got an unexpected keyword argument {min(unknown)!r}; it takes {', '.join(OPTIONS)}"
        )
    return _calibrated(unwrapped(model), ConversionOptions(branches=branches, merge=merge, **options), input_size)


def _calibrated(model: nn.Module, options: ConversionOptions, input_size: tuple[int, int, int] | None) -> nn.Module:
    if isinstance(model, CalibratedNetwork) and model.conversion.branches == 1:
        model = plain_form(model)
    find_convs(model)  # refuses before copying, which some of the refused networks cannot be
    readers = check(model, options, input_size)
    model = deepcopy(model)
    calibrate_(model, options, readers)
    return model


@torch.no_grad()
def calibrate_(model: nn.Module, options: ConversionOptions, image_readers: Collection[str] | None = None) -> None:
    """Calibrate ``model`` in place: :func:`calibrate` without the copy and without the check.

    Args:
        model: as in :func:`calibrate`.
        options: how.
        image_readers: names of the convolutions that read the image; None takes the first one.
    """
    branches, merge = options.branches, options.merge
    convs = find_convs(model)
    classifier = find_classifier(model)
    if classifier in convs:
        del convs[classifier]
    if merge == "probability" and branches > 1:
        check_last_layer(model, classifier)
    readers = {next(iter(convs.values()))} if image_readers is None else set(image_readers)
    replaced: dict[nn.Module, nn.Module] = {}
    if isinstance(classifier, nn.Linear):
        replaced[classifier] = branch_linear(classifier, branches, merge)
    elif classifier is not None:
        replaced[classifier] = branch_conv(classifier, branches, merge)
    normalised = any(is_normalisation(module) for module in model.modules())
    weights: dict[tuple[int, str], nn.Parameter] = {}  # by the given weight, for layers may share one
    for conv, name in convs.items():
        how = options.mixing if conv.groups == 1 and name not in readers and branches > 1 else "grouped"
        key = (id(conv.weight), how)
        if key not in weights:
            weights[key] = conv.weight
            if how == "dense":
                weights[key] = dense_weight(conv.weight, branches, same_function=options.rescale, normalised=normalised)
        how_it_reads = {"shared_input": name in readers, "mixing": how, "options": options}
        replaced[conv] = calibrated_conv(name, conv, weights[key], branches, **how_it_reads)
    if options.rescale or not normalised:
        for (_, how), weight in weights.items():
            if how == "grouped":
                weight.mul_(branches)
    _replace(model, replaced)
    for module in set(model.modules()):
        if is_per_channel(module):
            tile_per_channel(module, branches)
    keep_branches_apart(model, branches)
    scale_declared_widths(model, lambda width: width * branches)
    _scale_feature_info(model, branches)
    become_calibrated(model, options)


def _replace(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replaced:
            model.set_submodule(name, replaced[module])


@usual_settings()
def check(
    model: nn.Module, options: ConversionOptions, input_size: tuple[int, int, int] | None = None
) -> tuple[str, ...] | None:
    """Refuse a network that cannot be calibrated; return the names of the convolutions that read the image.

    None stands for the first one.

    Raises:
        CalibrationError: names the module and why.
    """
    if options.branches == 1:
        return None
    if any(tensor.is_meta for tensor in model.parameters()):  # nothing to compute
        return find_readers(model, input_size)
    scale = "none" if options.input_scale == "none" else "learned"  # which begins at 1
    start = replace(options, rescale=True, input_scale=scale)
    with private_randomness():
        probe = make_probe(model, find_convs(model), input_size)
        readers = probe.image_readers or None
        # First, for it names the module. The layout is that of all options, but only grouped branches are networks.
        apart = deepcopy(probe.network)
        calibrate_(apart, replace(start, mixing="grouped", diversity=1.0), readers)
        check_branches_apart(probe, apart, options.branches)
        del apart
        equal = deepcopy(probe.network)
        calibrate_(equal, replace(start, diversity=0.0), readers)
        check_same_function(probe, equal, options.branches, normalised=options.merge == "probability")
    return readers


def find_readers(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> tuple[str, ...] | None:
    """Return what :func:`check` does, and check nothing: for networks that were checked when they were made."""
    return readers_without_data(model, find_convs(model), input_size) or None


def plain_form(model: nn.Module) -> nn.Module:
    """Return a plain copy of a network of one branch: ``nn.Conv2d`` and ``nn.Linear`` in place of ours."""
    model = fold(model)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, BranchLinear | BranchConv2d):
            model.set_submodule(name, plain_classifier(module))
    return model


@usual_settings()
def fold(model: nn.Module) -> nn.Module:
    """Return a plain copy of a calibrated network: no ``CalibratedConv2d``, no R, the same outputs to the bit.

    Every calibrated convolution becomes one grouped ``nn.Conv2d`` with the effective kernels. ``model`` is left
    untouched. The outputs are bit-identical in eval mode; compare in eval mode, or batch normalisation differs.

    Args:
        model: a calibrated network, in either mode; the copy is in the same one.

    Returns:
        A new network whose state dict holds the effective kernels (K * out_channels, in_channels / groups, kh, kw).

    Raises:
        ConfigurationError: ``model`` is a wrapper of a network. torch.compile is looked through.
    """
    model = deepcopy(unwrapped(model))
    if isinstance(model, CalibratedConv2d):
        return model.fuse()
    fold_(model)
    return model


def fold_(model: nn.Module) -> None:
    """Fold all descendants of ``model`` in place: :func:`fold` without the copy."""
    folded: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, CalibratedConv2d):
            if module not in folded:
                folded[module] = module.fuse()
            model.set_submodule(name, folded[module])


def _scale_feature_info(model: nn.Module, branches: int) -> None:
    """timm networks declare the widths of their features; K branches make them K times wider."""
    feature_info = getattr(model, "feature_info", None)
    holder, name = (feature_info, "info") if hasattr(feature_info, "info") else (model, "feature_info")
    if isinstance(levels := getattr(holder, name, None), list):
        setattr(holder, name, [{**level, "num_chs": level["num_chs"] * branches} for level in levels])
