"""From a plain network to a calibrated one (calibrate), back to a plain one (fold), and to its branches (split)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from ccnn_zoo._base.checks import is_integer
from ccnn_zoo._base.wrapped import unwrapped, usual_settings
from ccnn_zoo._conversion.apply import apply
from ccnn_zoo._conversion.ensemble import check_alike, join
from ccnn_zoo._conversion.kinds import plain_classifier
from ccnn_zoo._conversion.network import CalibratedNetwork as CalibratedNetwork
from ccnn_zoo._conversion.network import timm_name as timm_name
from ccnn_zoo._conversion.options import OPTIONS
from ccnn_zoo._conversion.options import ConversionOptions as ConversionOptions
from ccnn_zoo._conversion.parts import Split as Split
from ccnn_zoo._conversion.parts import check_branches_can_part, checked_branches, taken_apart
from ccnn_zoo._conversion.selfcheck import checked
from ccnn_zoo._conversion.survey import survey
from ccnn_zoo.errors import ConfigurationError
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
    above 0 before fine-tuning. With ``mirrored`` the copy gives the mean over an image and its mirror image, if
    branches meet by their mean and in the last layer; where a hidden layer merges them, what follows reads the mean of
    what the two have there.

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
    # Refuses before copying, which some of the refused networks cannot be.
    found = checked(survey(model, options), model, options, input_size)
    model = deepcopy(model)
    apply(found, model, options)
    return model


def plain_form(model: nn.Module) -> nn.Module:
    """Return a plain copy of a network of one branch: ``nn.Conv2d`` and ``nn.Linear`` in place of ours.

    Raises:
        ConfigurationError: the branch sees the mirror image.
    """
    if model.conversion.mirrored:
        raise ConfigurationError(
            f"this {type(model).__name__} is a branch that sees the mirror image; take the network that it came from"
        )
    model = fold(model)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, BranchLinear | BranchConv2d):
            model.set_submodule(name, plain_classifier(module))
    return model


@usual_settings()
def fold(model: nn.Module) -> nn.Module:
    """Return a plain copy of a calibrated network: no ``CalibratedConv2d``, no R, the same outputs to the bit.

    Every calibrated convolution becomes one grouped ``nn.Conv2d`` with the effective kernels; where branches see the
    mirror image, those that read the image become a :class:`~ccnn_zoo.layers.MirroringConv2d`. ``model`` is left
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


@usual_settings()
def deep_ensemble(
    networks: Sequence[nn.Module], *, mirrored: bool = False, input_size: tuple[int, int, int] | None = None
) -> nn.Module:
    """Return one folded network of K plain networks of one architecture that were trained apart.

    Branch k is network k. The logits are the logarithm of the mean of the networks' probabilities, as in
    Lakshminarayanan et al., NeurIPS 2017 (https://arxiv.org/abs/1612.01474). So K networks are saved, exported to one
    ONNX file, published and served as any network with K branches is. Unlike branches of one calibrated network they
    share no weights.

    With ``mirrored=True`` there are as many branches more, in which the same networks see the mirror image: a single
    network so makes fewer errors, untrained, at twice the cost. It must have learned from mirrored pictures too.

    >>> together = ccnn_zoo.deep_ensemble([first, second, third])
    >>> together(images).softmax(-1)  # the mean of the three networks' softmax

    Args:
        networks: at least two, or one with ``mirrored=True``, as :func:`calibrate` takes them, which end in one linear
            layer; or networks of the zoo with one branch. They are left untouched.
        mirrored: whether each network sees the picture with left and right exchanged, too; branch K + k is then
            network k.
        input_size: (channels, height, width) to try with; by default 64x64, or what the networks declare.

    Returns:
        A new network with ``merge="probability"``, on the CPU, in float32 and in eval mode.

    Raises:
        ConfigurationError: they differ in more than their weights (shapes, preprocessing, class names), have no
            classifier, or have several branches already; or there are too few, or ``mirrored`` is no truth value.
        CalibrationError: the architecture has no form with branches; names the module and why.
    """
    if not isinstance(mirrored, bool):  # elsewhere the word names branches
        raise ConfigurationError(f"mirrored must be True or False for an ensemble, got {mirrored!r}")
    if len(networks) < (least := 1 if mirrored else 2):
        raise ConfigurationError(
            f"an ensemble has at least {least} networks, got {len(networks)} (or at least 1, with mirror images: "
            "mirrored=True, --mirrored)"
        )
    members = [_plain_member(unwrapped(network), number) for number, network in enumerate(networks)]
    check_alike(members)
    count, seen = len(members), 2 if mirrored else 1
    options = ConversionOptions(branches=seen * count, merge="probability", mirrored=range(seen * count)[count:])
    together = _calibrated(members[0], options, input_size)
    fold_(together)
    return join(together, seen * members, input_size)


def _plain_member(network: nn.Module, number: int) -> nn.Module:
    """Return a plain copy of a network of one branch, on the CPU, in float32 and in eval mode."""
    if isinstance(network, CalibratedNetwork):
        if (count := network.conversion.branches) > 1:
            raise ConfigurationError(
                f"network {number} has {count} branches already; an ensemble takes networks of one branch (branches=1)"
            )
        copy = plain_form(network)
    else:
        copy = deepcopy(network)
    return copy.to("cpu", torch.float32).eval()


@usual_settings()
def split(model: nn.Module, *, input_size: tuple[int, int, int] | None = None) -> Split:
    """Return K plain networks, one for each branch of a calibrated network, and what merges their outputs.

    Network k holds the effective kernels H_k in plain ``nn.Conv2d`` (a :class:`~ccnn_zoo.layers.MirroringConv2d` where
    branch k reads the mirror image), and what the normalisation layers have for branch k; of what :func:`calibrate`
    made it has the plain class again. It ends where the branches meet: before the classifier, which ``merge`` of the
    result holds. Called with images, the result gives what ``model`` gives; in eval mode, or batch normalisation and
    dropout differ. It is tried on two random images before it is returned.

    >>> apart = ccnn_zoo.split(model)
    >>> features = [network(images) for network in apart.branches]  # anywhere, in any order
    >>> logits = apart.merge(features)

    Args:
        model: what :func:`calibrate` or ``timm.create_model("ccnn_...")`` made, folded or not, with grouped mixing;
            it is left untouched. The copies have its mode, dtype and device.
        input_size: (channels, height, width) to try with; by default 64x64, or what the network declares.

    Returns:
        A module of the parts, :class:`Split`.

    Raises:
        ConfigurationError: ``model`` is no calibrated network, its branches read each other (``mixing="dense"``), or it
            is a wrapper of one; torch.compile is looked through.
        CalibrationError: a module that was put in later has parameters, or mixes channels; or behind the classifier is
            more than a chain of modules. Names it and the remedy.
    """
    check_branches_can_part(unwrapped(model))
    return taken_apart(fold(model), input_size)


@usual_settings()
def chosen_branches(model: nn.Module, chosen: Sequence[int]) -> nn.Module:
    """Return a folded network of some branches of a calibrated one, which costs as many parts of the time.

    It is on the CPU, in float32 and in eval mode. On random images each branch must say what it says in the whole.

    Args:
        model: a calibrated network with a classifier, of grouped mixing.
        chosen: numbers of different branches, from 0.

    Raises:
        ConfigurationError: it is no such network, or there are no such branches.
        CalibrationError: they do not say alone what they say in the whole network; see :func:`ccnn_zoo.split`.
    """
    model, chosen = unwrapped(model), list(chosen)
    check_branches_can_part(model, all_of_them=True)
    count, known = model.conversion.branches, all(map(is_integer, chosen))
    if not known or not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(count)):
        raise ConfigurationError(
            f"there are branches 0 to {count - 1}, some of which were to be chosen, got {chosen!r}"
        )
    check_branches_can_part(model, all_of_them=len(chosen) == count)
    whole = fold(model).to("cpu", torch.float32).eval()
    return whole if len(chosen) == count else checked_branches(whole, chosen)
