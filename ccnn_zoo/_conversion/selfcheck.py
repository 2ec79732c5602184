"""Does a calibrated network compute what K separate plain networks do? Found out by running both.

Channels that are concatenated, split, shuffled or normalised in a ``forward`` leave no trace in the tree of modules.
So weights and statistics are drawn at random (zeros and ones would hide errors), and the tensors that go into and
come out of every module are compared, which also tells where the branches get mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ccnn_zoo._base.compat import tree_leaves
from ccnn_zoo._base.wrapped import usual_settings
from ccnn_zoo._conversion.apply import apply
from ccnn_zoo._conversion.options import ConversionOptions
from ccnn_zoo._conversion.probe import Probe, make_probe, private_randomness, settle, traced, tracking_norms
from ccnn_zoo._conversion.survey import Survey
from ccnn_zoo.errors import CalibrationError
from ccnn_zoo.layers import BranchConv2d, BranchLinear, CalibratedConv2d

_TOLERANCE = 1e-4
"""Relative, of norms. One module in float32 gives about 1e-6, branches in the wrong place about 1."""
_TOLERANCE_OF_NETWORK = 1e-2
"""The same over a whole network: ResNet-152 gives 2e-4."""
_MIXED = (
    "mixes the channels of different branches (does it concatenate, split, shuffle, normalise or attend over "
    "channels?), so it cannot be calibrated"
)
_BESIDE = (
    ". Or it reads the image beside its convolutions, which branches that see the mirror image cannot: it may do so "
    "without mirrored"
)
_LOPSIDED = (
    "treats left and right of the image differently before a convolution reads it, so branches cannot see the mirror "
    "image; leave mirrored out"
)


@usual_settings()
def checked(
    found: Survey, model: nn.Module, options: ConversionOptions, input_size: tuple[int, int, int] | None = None
) -> Survey:
    """Refuse a network that cannot be calibrated; return ``found`` with the convolutions that do read the image.

    Args:
        found: what the modules of ``model`` tell.
        model: the plain network, which is left as it is.
        options: how it is to be calibrated.
        input_size: (C, H, W) to run it on, or None for one that the network takes.

    Raises:
        CalibrationError: names the module and why.
    """
    if options.branches == 1 and not options.mirrored:
        return found
    if any(tensor.is_meta for tensor in model.parameters()):  # nothing to compute
        return traced(found, model, input_size)
    start = replace(options, rescale=True)
    with private_randomness():
        probe, found = make_probe(model, found, input_size)
        # First, for it names the module. The layout is that of all options, but only grouped branches are networks.
        apart = deepcopy(probe.network)
        apply(found, apart, replace(start, mixing="grouped", diversity=1.0))
        _check_branches_apart(probe, apart, options)
        del apart
        equal = deepcopy(probe.network)
        apply(found, equal, replace(start, diversity=0.0, mirrored=()))
        _check_same_function(probe, equal, options.branches, normalised=options.merge == "probability")
    return found


def _hold_branch(probe: Probe, calibrated: nn.Module, branch: int, branches: int, images: Tensor) -> None:
    """Give the probe the kernels H_k of ``branch``, and ``calibrated`` its statistics on ``images``."""
    for name, module in calibrated.named_modules():
        if isinstance(module, CalibratedConv2d):
            kernels = module.effective_weight().chunk(branches)[branch]
            probe.network.get_submodule(name).weight = nn.Parameter(kernels.clone(), requires_grad=False)
    settle(probe.network, images)
    for name, norm in tracking_norms(probe.network).items():
        for statistic in ("running_mean", "running_var"):
            tiled = getattr(calibrated.get_submodule(name), statistic)
            tiled.chunk(branches)[branch].copy_(getattr(norm, statistic))


def _check_same_function(probe: Probe, calibrated: nn.Module, branches: int, *, normalised: bool = False) -> None:
    """Check that ``calibrated``, with R uniform, computes what the probe does.

    Args:
        probe, calibrated: to compare.
        branches: number K of branches.
        normalised: the logits of ``calibrated`` are log-probabilities.

    Raises:
        CalibrationError: it does not.
    """
    merged = any(isinstance(module, BranchLinear | BranchConv2d) for module in calibrated.modules())
    expected = _tensors(probe.network(probe.images))
    if normalised and merged:
        expected = [tensor.log_softmax(-1) for tensor in expected]
    if not merged:  # the features of all branches
        expected = [tensor.repeat(1, branches, *(1 for _ in tensor.shape[2:])) for tensor in expected]
    # Nothing to compare within: only the root is watched, for the error.
    outputs = _run(calibrated, probe.images, lambda *_: None)
    if len(outputs) != len(expected) or not all(
        _close(a, b, _TOLERANCE_OF_NETWORK) for a, b in zip(outputs, expected, strict=True)
    ):
        raise CalibrationError(
            f"{type(calibrated).__name__} would not compute the function that it computes now: what follows the layer "
            "in which branches meet, or runs beside it, is not known how to calibrate"
        )


def _check_branches_apart(probe: Probe, calibrated: nn.Module, options: ConversionOptions) -> None:
    """Check that branch k of ``calibrated`` computes what the probe does when it holds H_k, module by module.

    Each branch gets weights and statistics of its own; those of the probe are overwritten.

    Raises:
        CalibrationError: it does not; names the module that mixes the branches.
    """
    records: list[list[list[Tensor]]] = []
    for k in range(options.branches):
        images = probe.images.flip(-1) if k in options.mirrored else probe.images
        _hold_branch(probe, calibrated, k, options.branches, images)
        record: list[list[Tensor]] = []
        _run(probe.network, images, _recorder(record))
        records.append(record)
    holds = partial(_holds_branches, mirrored=options.mirrored)
    position = 0
    merged = False

    def compare(name: str, module: nn.Module, entering: bool, tensors: list[Tensor]) -> Tensor | None:
        nonlocal position, merged
        separate = [record[position] if position < len(record) else [] for record in records]
        position += 1
        if merged:
            return None
        merged = isinstance(module, BranchLinear | BranchConv2d)
        alike = all(len(plain) == len(tensors) for plain in separate)
        if not alike or not all(map(holds, tensors, zip(*separate, strict=True))):
            # What goes in wrong was made wrong by the code around it.
            parent = name.rpartition(".")[0] if entering else name
            why = _MIXED
            if options.mirrored:
                one_for_all = alike and tensors and tensors[0].shape == separate[0][0].shape
                why = _LOPSIDED if one_for_all else _MIXED + _BESIDE
            raise CalibrationError(f"{_describe(calibrated, parent)} {why}")
        if entering or len(tensors) != 1 or tensors[0].shape == separate[0][0].shape:
            return None
        # Go on from the separate networks' own output: rounding errors do not pile up over the layers.
        return torch.cat([plain[0] for plain in separate], dim=1)

    _run(calibrated, probe.images, compare)


def _recorder(record: list[list[Tensor]]) -> Callable[[str, nn.Module, bool, list[Tensor]], None]:
    def note(name: str, module: nn.Module, entering: bool, tensors: list[Tensor]) -> None:
        # Cloned: layers that work in place would overwrite them.
        record.append([tensor.clone() for tensor in tensors])

    return note


def _run(
    network: nn.Module, images: Tensor, event: Callable[[str, nn.Module, bool, list[Tensor]], Tensor | None]
) -> list[Tensor]:
    """Run ``network`` and tell ``event`` (name, module, entering?, tensors) about every module.

    A tensor that ``event`` returns for a module that is left takes the place of its output.

    Raises:
        CalibrationError: the network fails; names the innermost module that does.
    """
    inside: list[str] = []
    handles: list[RemovableHandle] = []

    def watch(name: str) -> None:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            event(name, module, True, _tensors(args))
            inside.append(name)

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
            inside.pop()
            replacement = event(name, module, False, _tensors(output))
            return replacement if isinstance(output, Tensor) else None

        module = network.get_submodule(name)
        handles.extend((module.register_forward_pre_hook(enter), module.register_forward_hook(leave)))

    for name, _ in network.named_modules():
        watch(name)
    try:
        return _tensors(network(images))
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        if isinstance(error, CalibrationError):
            raise
        where = _describe(network, inside[-1] if inside else "")
        raise CalibrationError(f"{where} {_MIXED}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _holds_branches(tensor: Tensor, separate: tuple[Tensor, ...], mirrored: Sequence[int]) -> bool:
    """Tell whether ``tensor`` holds the K tensors side by side, or is the one that all of them are: something that
    no mirror changes, or the image, which the branches in ``mirrored`` see mirrored."""
    if tensor.shape == separate[0].shape:
        return all(
            _close(tensor, part) or (k in mirrored and part.ndim == 4 and _close(tensor, part.flip(-1)))
            for k, part in enumerate(separate)
        )
    if tensor.ndim < 2 or tensor.shape[1] != len(separate) * separate[0].shape[1]:
        return False
    return all(map(_close, tensor.chunk(len(separate), dim=1), separate))


def _close(actual: Tensor, expected: Tensor, tolerance: float = _TOLERANCE) -> bool:
    if actual.shape != expected.shape:
        return False
    difference = (actual.double() - expected.double()).norm()
    return bool(difference <= tolerance * expected.double().norm())


def _describe(network: nn.Module, name: str) -> str:
    return f"{name or 'the model'} ({type(network.get_submodule(name)).__name__})"
