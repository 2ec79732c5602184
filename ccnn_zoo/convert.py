"""From a plain network to a calibrated one (calibrate) and back to a plain one (fold)."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy

import torch
from torch import nn

from ccnn_zoo._conversions import (
    branch_conv,
    calibrated_conv,
    dense_weight,
    is_normalisation,
    is_per_channel,
    tile_per_channel,
)
from ccnn_zoo._conversions import branch_linear as branch_linear
from ccnn_zoo._ends import check_last_layer, find_classifier, find_convs
from ccnn_zoo._known_blocks import keep_branches_apart
from ccnn_zoo._selfcheck import check_branches_apart, check_same_function, make_probe, private_randomness
from ccnn_zoo.layers import CalibratedConv2d, check_branches, check_merge, check_mixing


def calibrate(
    model: nn.Module,
    branches: int,
    merge: str = "mean",
    *,
    mixing: str = "grouped",
    diversity: float = 0.0,
    rescale: bool = True,
    input_size: tuple[int, int, int] | None = None,
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

    Set the number of classes first: ``reset_classifier`` of a timm network that was calibrated puts a plain layer,
    which reads the features of all branches, in the place of the one in which they meet by ``merge``.

    Args:
        model: network of plain ``nn.Conv2d``, batch and group normalisation, element-wise and pooling layers, which
            ends in linear layers or in a 1x1 convolution that timm's ``get_classifier`` names.
        branches: number K of branches; 1 gives the plain network.
        merge: how branches meet before the first linear layer: ``"mean"``, ``"max"`` or ``"concat"``; or behind it,
            with a classifier per branch: ``"probability"``, whose logits are the logarithm of the mean of the branches'
            probabilities (:class:`BranchLinear`), for networks of a single linear layer.
        mixing: ``"grouped"``, a branch reads its own features, or ``"dense"``, it reads those of all branches
            through slices of w of its own. Each of the K slices then starts as the given weight (times K, for the
            scale of R, and over K, since K of them add up). Convolutions with groups stay grouped.
        diversity: how far R starts from uniform: 0 (equal R_k) to 1 (the paper's random R).
        rescale: multiply w by K, so that H_k keeps the scale of the given weights. The paper, which trains from
            scratch, does not. Networks without normalisation are always rescaled: nothing else would keep their
            activations from shrinking K-fold at every layer. False says that the weights are a fresh random start;
            with dense mixing all slices but the first are then shuffled copies, since equal ones would learn alike.
        input_size: (channels, height, width) to check with; by default 64x64, or what the network declares.

    Returns:
        A new network of the same class.

    Raises:
        ConfigurationError: ``branches``, ``merge``, ``mixing`` or ``diversity`` is out of range.
        CalibrationError: a module of the network has no calibrated form, or fails the check; names it and why.
    """
    for check, value in ((check_branches, branches), (check_merge, merge), (check_mixing, mixing)):
        check(value)
    find_convs(model)  # refuses before copying, which some of the refused networks cannot be
    readers = None
    # Without data there is nothing to compute; with one branch, nothing to keep apart.
    if branches > 1 and not any(tensor.is_meta for tensor in model.parameters()):
        readers = _check(model, branches, merge, mixing, input_size)
    model = deepcopy(model)
    calibrate_(model, branches, merge, mixing=mixing, diversity=diversity, rescale=rescale, image_readers=readers)
    return model


@torch.no_grad()
def calibrate_(
    model: nn.Module,
    branches: int,
    merge: str = "mean",
    *,
    mixing: str = "grouped",
    diversity: float,
    rescale: bool,
    image_readers: Collection[str] | None = None,
) -> None:
    """Calibrate ``model`` in place: :func:`calibrate` without the copy and without the check.

    Args:
        model, branches, merge, mixing, diversity, rescale: as in :func:`calibrate`.
        image_readers: names of the convolutions that read the image; None takes the first one.
    """
    check_branches(branches)
    check_merge(merge)
    check_mixing(mixing)
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
        how = mixing if conv.groups == 1 and name not in readers and branches > 1 else "grouped"
        key = (id(conv.weight), how)
        if key not in weights:
            weights[key] = conv.weight
            if how == "dense":
                weights[key] = dense_weight(conv.weight, branches, same_function=rescale, normalised=normalised)
        options = {"shared_input": name in readers, "mixing": how, "diversity": diversity}
        replaced[conv] = calibrated_conv(name, conv, weights[key], branches, **options)
    if rescale or not normalised:
        for (_, how), weight in weights.items():
            if how == "grouped":
                weight.mul_(branches)
    _replace(model, replaced)
    for module in set(model.modules()):
        if is_per_channel(module):
            tile_per_channel(module, branches)
    keep_branches_apart(model, branches)
    _scale_declared_widths(model, branches)


def _replace(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> None:
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replaced:
            model.set_submodule(name, replaced[module])


def _check(
    model: nn.Module, branches: int, merge: str, mixing: str, input_size: tuple[int, int, int] | None
) -> tuple[str, ...] | None:
    """Return the names of the convolutions that read the image, after refusing a network that cannot be calibrated."""
    with private_randomness():
        probe = make_probe(model, find_convs(model), input_size)
        readers = probe.image_readers or None
        # First, for it names the module. The layout is that of both mixings, but only grouped branches are networks.
        apart = deepcopy(probe.network)
        calibrate_(apart, branches, merge, diversity=1.0, rescale=True, image_readers=readers)
        check_branches_apart(probe, apart, branches)
        del apart
        equal = deepcopy(probe.network)
        calibrate_(equal, branches, merge, mixing=mixing, diversity=0.0, rescale=True, image_readers=readers)
        check_same_function(probe, equal, branches, normalised=merge == "probability")
    return readers


def fold(model: nn.Module) -> nn.Module:
    """Return a plain copy of a calibrated network: no ``CalibratedConv2d``, no R, the same outputs to the bit.

    Every calibrated convolution becomes one grouped ``nn.Conv2d`` with the effective kernels. ``model`` is left
    untouched. The outputs are bit-identical in eval mode; compare in eval mode, or batch normalisation differs.

    Args:
        model: a calibrated network, in either mode; the copy is in the same one.

    Returns:
        A new network whose state dict holds the effective kernels (K * out_channels, in_channels / groups, kh, kw).
    """
    model = deepcopy(model)
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


def _scale_declared_widths(model: nn.Module, branches: int) -> None:
    """timm networks declare their feature widths; K branches make them K times wider."""
    owners = [(model, ("num_features", "head_hidden_size"))]
    head = getattr(model, "head", None)
    if hasattr(head, "global_pool"):  # timm's ClassifierHead, which sizes new classifiers by it
        owners.append((head, ("in_features", "num_features")))
    for owner, names in owners:
        for name in names:
            if isinstance(getattr(owner, name, None), int):
                setattr(owner, name, getattr(owner, name) * branches)
    feature_info = getattr(model, "feature_info", None)
    holder, name = (feature_info, "info") if hasattr(feature_info, "info") else (model, "feature_info")
    if isinstance(levels := getattr(holder, name, None), list):
        setattr(holder, name, [{**level, "num_chs": level["num_chs"] * branches} for level in levels])
