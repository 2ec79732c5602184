"""A calibrated network taken apart: one plain network for each branch, and what merges their outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from ccnn_zoo._conversion.kinds import branch_axes, count_branches, is_calibratable_conv, unmirrored
from ccnn_zoo._conversion.network import CalibratedNetwork, become_plain, have_branches, meeting_layer
from ccnn_zoo._conversion.options import ConversionOptions
from ccnn_zoo._conversion.probe import FAILURES, Result, likely_sizes, on_first_size, private_randomness
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.layers import BranchConv2d, BranchLinear, MirroringConv2d

_TOLERANCE = 1e-3
"""Relative, of norms: rounding gives about 1e-6 in float32, a branch in the wrong place about 1."""


class Merge(nn.Module):
    """What a calibrated network does with the features of its K branches from where they meet on.

    Args:
        meeting: the classifier in which they meet; None of a network without one.
        behind: the layers that follow it, as in AlexNet.

    Shape:
        - Input: sequence of K tensors, (N, in_features), or (N, in_channels, H, W) where the classifier is a
          convolution; without a classifier (N, C, ...)
        - Output: (N, classes); without a classifier (N, K * C, ...), branch-major
    """

    def __init__(self, meeting: BranchLinear | BranchConv2d | None, behind: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.meeting = meeting
        self.behind = nn.Sequential(*behind)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        joined = torch.cat(list(features), -1 if isinstance(self.meeting, BranchLinear) else 1)
        return joined if self.meeting is None else self.behind(self.meeting(joined))


class Split(nn.Module):
    """K plain networks and what merges their outputs: together the network that :func:`ccnn_zoo.split` was given.

    Attributes:
        branches: ``nn.ModuleList`` of the K networks. Network k maps images to the features of branch k, up to where
            the branches meet: it ends before the classifier, as timm's networks do with ``num_classes=0``.
        merge: a module that maps the list of their K outputs, in order, to the output of the calibrated network. It
            holds the classifier, in which the branches meet as ``merge`` of the network says.

    Shape:
        - Input: images, (N, C, H, W)
        - Output: that of the calibrated network
    """

    def __init__(self, branches: Sequence[nn.Module], merge: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.merge = merge

    def forward(self, images: Tensor) -> Tensor:
        return self.merge([branch(images) for branch in self.branches])


def check_branches_can_part(model: nn.Module, *, all_of_them: bool = False) -> None:
    """Refuse a network of which no branch can run alone.

    Args:
        model: the network.
        all_of_them: it is to keep all its branches, which may then read each other.

    Raises:
        ConfigurationError: it was not calibrated, or its branches read each other.
    """
    options = getattr(model, "conversion", None)
    if not isinstance(options, ConversionOptions):
        raise ConfigurationError(
            f"{type(model).__name__} has no branches to take apart: pass what ccnn_zoo.calibrate or "
            'timm.create_model("ccnn_...") made'
        )
    if options.mixing == "dense" and options.branches > 1 and not all_of_them:
        raise ConfigurationError(
            f"{type(model).__name__} has mixing='dense': each branch reads all the others, so none can run without "
            "them; take a network of mixing='grouped'"
        )


@torch.no_grad()
def taken_apart(folded: nn.Module, input_size: tuple[int, int, int] | None) -> Split:
    """Return a folded network as K networks and what merges them; it is left as it is.

    Args:
        folded: the network, with branches that can run alone, of any device and in any mode.
        input_size: (C, H, W) to run it on, or None for one that it takes.

    Raises:
        CalibrationError: it cannot be taken apart; says why.
    """
    with private_randomness():
        network = to_run(folded)
        images, (expected, behind) = tried(network, partial(_followed, network), input_size)
        meeting = meeting_layer(folded)[1]
        ends = {folded.get_submodule(name) for name in behind} | ({meeting} - {None})
        branches = [some_branches(folded, [k], ends) for k in range(folded.conversion.branches)]
        for network in branches:
            become_plain(network)
        result = Split(branches, Merge(*deepcopy((meeting, [folded.get_submodule(name) for name in behind]))))
        for module in (result, result.branches, result.merge, result.merge.behind):
            module.training = folded.training
        _check_same(to_run(result), images, expected, folded, range(len(branches)))
    return result


@torch.no_grad()
def checked_branches(folded: nn.Module, chosen: Sequence[int]) -> nn.Module:
    """Return a network of the branches ``chosen``, whose logits are those of these branches in the whole.

    Args:
        folded: the whole network, on the CPU, in float32 and in eval mode; it is left as it is.
        chosen: numbers of branches.

    Raises:
        ConfigurationError: it has no classifier.
        CalibrationError: a branch does not say alone what it says in the whole network.
    """
    part = some_branches(folded, chosen)
    meeting = meeting_layer(part)[1]
    if meeting is not None and meeting.merge == "concat":  # a sum over branches, of which there are fewer now
        meeting.weight.mul_(folded.conversion.branches / len(chosen))
    with private_randomness():
        images, expected = tried(folded, partial(CalibratedNetwork.forward_branches, folded))
        alone = partial(CalibratedNetwork.forward_branches, part)  # which a graph of torch.fx has not
        _check_same(alone, images, expected[list(chosen)], folded, chosen)
    return part


def some_branches(folded: nn.Module, chosen: Sequence[int], ends: Collection[nn.Module] = ()) -> nn.Module:
    """Return a copy of a folded network that has only the branches ``chosen`` left, unchecked.

    Args:
        folded: the network, of grouped mixing.
        chosen: numbers of its branches, in their new order.
        ends: modules of it that the copy does not have: it ends where the first of them began.

    Raises:
        CalibrationError: it has a module of which it is not known what of it belongs to which branch.
    """
    branches = folded.conversion.branches
    memo: dict[int, object] = {id(module): module for module in ends}
    for name, module in folded.named_modules():
        if module not in ends:
            # Copying then takes a tensor's part for its copy.
            memo |= {id(whole): part for whole, part in _parts(name, module, branches, chosen)}
    network = deepcopy(folded, memo)
    have_branches(network, chosen)
    for module in set(network.modules()).difference(ends):
        count_branches(module, branches, chosen)
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module in ends:
            network.set_submodule(name, nn.Identity().train(module.training))
        elif isinstance(module, MirroringConv2d) and not any(module.mirrored):
            network.set_submodule(name, unmirrored(module))
    return network


def _parts(
    name: str, module: nn.Module, branches: int, chosen: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor | nn.Parameter]]:
    """Yield the tensors of ``module`` that hold the branches, with what the chosen ones have of them."""
    own = dict((*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)))
    axes = branch_axes(module)
    if axes is None and own:
        raise CalibrationError(
            f"{name or 'the network'} ({type(module).__name__}) has parameters or buffers ({', '.join(own)}) of which "
            "it is not known to which branch they belong; take the network as it was when it was calibrated"
        )
    for key, axis in (axes or {}).items():
        pieces = own[key].detach().chunk(branches, axis)
        part = torch.cat([pieces[k] for k in chosen], axis)
        if isinstance(own[key], nn.Parameter):
            part = nn.Parameter(part, own[key].requires_grad)
        yield own[key], part


def tried(
    network: nn.Module, call: Callable[[Tensor], Result], input_size: tuple[int, int, int] | None = None
) -> tuple[Tensor, Result]:
    """Return images that a folded network takes, two random ones, and what ``call`` makes of them.

    Raises:
        CalibrationError: it fails on images of every size that was tried.
    """
    reader, channels = _image_reader(network)
    sizes = [input_size] if input_size else likely_sizes(network, channels)
    remedy = "give split input_size=(channels, height, width), or name it in model.pretrained_cfg"
    images = (torch.randn(2, *size, device=reader.weight.device) for size in sizes)
    return on_first_size(images, call, f"{type(network).__name__} cannot be taken apart", remedy)


def _image_reader(network: nn.Module) -> tuple[nn.Conv2d, int]:
    """Return a convolution of a folded network that reads the image, and the image's channels."""
    for module in network.modules():
        if isinstance(module, MirroringConv2d):
            return module, module.in_channels // len(module.mirrored)
    # All convolutions but those that read the image have K times the groups of the plain network.
    reader = min(filter(is_calibratable_conv, network.modules()), key=lambda conv: conv.groups)
    return reader, reader.in_channels


def agree(found: Tensor, expected: Tensor) -> bool:
    """Tell whether both are the same but for rounding; without values, of the same shape."""
    if found.is_meta or found.shape != expected.shape:
        return found.shape == expected.shape
    found, expected = (tensor.double().nan_to_num() for tensor in (found, expected))  # diverged networks have parts too
    return bool((found - expected).norm() <= _TOLERANCE * expected.norm())


def to_run(network: nn.Module) -> nn.Module:
    """Return a copy in eval mode and float32, on the CPU unless it has no values."""
    network = deepcopy(network).eval().float()
    return network if any(tensor.is_meta for tensor in network.parameters()) else network.cpu()


def _followed(network: nn.Module, images: Tensor) -> tuple[Tensor, list[str]]:
    """Return what ``network`` makes of ``images``, and the layers behind the one in which its branches meet.

    Raises:
        CalibrationError: what is behind it is more than one layer after another.
    """
    place, meeting = meeting_layer(network)
    behind: list[str] = []
    last: object = None

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            nonlocal last
            if module is meeting:
                last = output
            elif last is not None and args and args[0] is last:
                last = output
                behind.append(name)

        return note

    leaves = [(name, m) for name, m in network.named_modules() if m is meeting or not any(m.children())]
    hooks = [module.register_forward_hook(noting(name)) for name, module in leaves]
    try:
        output = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if meeting is not None and output is not last:
        raise CalibrationError(
            f"{type(network).__name__} does more behind {place}, in which its branches meet, than call one layer after "
            "another, so it cannot be split: put that into modules, or outside of the network"
        )
    return output, behind


def _check_same(
    alone: Callable[[Tensor], Tensor], images: Tensor, expected: Tensor, whole: nn.Module, branches: Sequence[int]
) -> None:
    why = ""
    try:
        same = agree(alone(images), expected)
    except FAILURES as error:
        same, why = False, f" ({error})"
    if not same:
        raise CalibrationError(
            f"branches {', '.join(map(str, branches))} of {type(whole).__name__} do not give alone what they give in "
            f"it{why}; take the network as it was when it was calibrated"
        )
