"""One layer at a time: what each layer of a plain network becomes in a calibrated one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ccnn_zoo._base.compat import BatchOrInstanceNorm
from ccnn_zoo._conversion.known_blocks import CalibratedConv2dSame, qualified_name
from ccnn_zoo._conversion.options import ConversionOptions
from ccnn_zoo.errors import CalibrationError
from ccnn_zoo.layers import BranchConv2d, BranchLinear, CalibratedConv2d, MirroringConv2d

# By name: importing torchvision or timm for a class that the network may not have takes seconds.
_CONV_SAME = "timm.layers.conv2d_same.Conv2dSame"
_LINEAR = "timm.layers.linear.Linear"
_COUNTS = ("num_features", "num_channels", "num_groups", "num_parameters")
_FROZEN_NORMS = {"torchvision.ops.misc.FrozenBatchNorm2d", "timm.layers.norm_act.FrozenBatchNormAct2d"}


def is_calibratable_conv(module: nn.Module) -> bool:
    """Tell whether ``module`` is a plain 2D convolution. Subclasses, which may do anything to the weight, are not."""
    return type(module) is nn.Conv2d or qualified_name(module) == _CONV_SAME


def is_linear(module: nn.Module) -> bool:
    """Tell whether ``module`` is a plain linear layer."""
    return type(module) is nn.Linear or qualified_name(module) == _LINEAR


def is_normalisation(module: nn.Module) -> bool:
    """Tell whether ``module`` takes away the scale of each channel or group of channels."""
    return isinstance(module, BatchOrInstanceNorm | nn.GroupNorm)


def is_per_channel(module: nn.Module) -> bool:
    """Tell whether all parameters and buffers of ``module`` have one value per channel, or are the same for all."""
    return is_normalisation(module) or isinstance(module, nn.PReLU) or qualified_name(module) in _FROZEN_NORMS


def _is_one_for_all(module: nn.Module) -> bool:
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def tile_per_channel(module: nn.Module, branches: int) -> None:
    """Give every branch its own affine parameters and statistics, equal at the start."""
    if _is_one_for_all(module):
        return
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.detach().repeat(branches), parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.ndim:
            setattr(module, name, buffer.repeat(branches))
    for count in _COUNTS:
        if hasattr(module, count):
            setattr(module, count, getattr(module, count) * branches)


def branch_axes(module: nn.Module) -> dict[str, int] | None:
    """Return which tensors of a module of a folded network hold its branches one after another, and along which axis.

    None: that is not known. Linear layers stand behind the place where branches meet.
    """
    if is_calibratable_conv(module) or isinstance(module, MirroringConv2d):
        return {"weight": 0} | ({} if module.bias is None else {"bias": 0})
    if is_per_channel(module):
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        return {} if _is_one_for_all(module) else {name: 0 for name, tensor in own if tensor.ndim}
    if isinstance(module, BranchLinear | BranchConv2d):
        own = {"concat": {"weight": 1}, "probability": {"weight": 0, "bias": 0}}.get(module.merge, {})
        return {name: axis for name, axis in own.items() if getattr(module, name) is not None}
    return {} if is_linear(module) else None


def count_branches(module: nn.Module, before: int, chosen: Sequence[int]) -> None:
    """Tell a module of a folded network of ``before`` branches, whose tensors were cut down, which it has now."""
    now = len(chosen)
    counts: tuple[str, ...] = ()
    if isinstance(module, MirroringConv2d):
        module.mirrored = [module.mirrored[k] for k in chosen]
        counts = ("out_channels", "in_channels", "groups")
    elif is_calibratable_conv(module):
        # One group: of the image, which all branches read.
        counts = ("out_channels",) if module.groups == 1 else ("out_channels", "in_channels", "groups")
    elif is_per_channel(module) and not _is_one_for_all(module):
        counts = _COUNTS
    elif isinstance(module, BranchLinear | BranchConv2d):
        module.branches = now
        counts = ("in_features", "in_channels") if module.merge == "concat" else ()
    for count in counts:
        if hasattr(module, count):
            setattr(module, count, getattr(module, count) // before * now)


def unmirrored(conv: MirroringConv2d) -> nn.Conv2d:
    """Return the plain convolution of the image that ``conv``, none of whose branches sees the mirror image, is."""
    channels = conv.in_channels // len(conv.mirrored)
    plain = nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        bias=conv.bias is not None,
        device="meta",
    )
    plain.weight, plain.bias = conv.weight, conv.bias
    return plain.train(conv.training)


def dense_weight(weight: nn.Parameter, branches: int, *, same_function: bool, normalised: bool) -> nn.Parameter:
    """Return w of a dense layer, (C_out, K * C_in, kh, kw), from a plain weight (C_out, C_in, kh, kw).

    With R_k = 1/K and equal branches its output is that of ``weight``: the factor K for the scale of R and the
    1/K for K slices that add up cancel. From scratch, equal slices would learn alike, so all but the first are
    shuffled; the outputs of independent slices add up to a K-th of the variance, which normalisation does not see.
    """
    slices = [weight.detach()] * branches
    scale = 1.0
    if not same_function:
        slices = [weight.detach(), *(_shuffled(weight.detach()) for _ in range(branches - 1))]
        scale = 1.0 if normalised else math.sqrt(branches)
    return nn.Parameter(scale * torch.cat(slices, dim=1), weight.requires_grad)


def _shuffled(weight: torch.Tensor) -> torch.Tensor:
    rows, columns = (torch.randperm(size, device=weight.device) for size in weight.shape[:2])
    return weight[rows][:, columns]


def calibrated_conv(
    name: str,
    conv: nn.Conv2d,
    weight: nn.Parameter,
    branches: int,
    *,
    shared_input: bool,
    mixing: str,
    options: ConversionOptions,
) -> CalibratedConv2d:
    """Return the calibrated form of ``conv``, whose shared weight is ``weight``.

    Raises:
        CalibrationError: the branches would not come out one after another; names the convolution ``name``.
    """
    if shared_input and conv.groups > 1 and branches > 1:
        raise CalibrationError(
            f"{name} reads the image in {conv.groups} groups, which would not come out branch-major; the first "
            "convolution needs groups=1"
        )
    layer = CalibratedConv2d if type(conv) is nn.Conv2d else CalibratedConv2dSame
    mirrored = options.mirrored if shared_input else ()
    if mirrored and layer is CalibratedConv2dSame:
        raise CalibrationError(
            f"{name} ({type(conv).__name__}) has no form of which branches see the mirror image; leave mirrored out"
        )
    # On the meta device first: nothing is allocated or initialised that the given weight then replaces.
    calibrated = layer(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        branches=branches,
        shared_input=shared_input,
        mixing=mixing,
        mirrored=mirrored,
        device="meta",
    )
    calibration = weight.new_empty(branches, *conv.kernel_size)
    calibrated.adopt_parameters(weight, nn.Parameter(calibration), conv.bias)
    if not calibration.is_meta:
        calibrated.reset_calibration(options.diversity)
    return calibrated.train(conv.training)


def refuse_attachments(name: str, module: nn.Module) -> None:
    """Refuse a layer that is about to be replaced and carries what the new one would not.

    Raises:
        CalibrationError: ``module`` has hooks, or a weight that is computed (weight or spectral normalisation).
    """
    tensors = {n for n, _ in module.named_parameters(recurse=False)} | {n for n, _ in module.named_buffers()}
    if "weight" not in tensors or tensors - {"weight", "bias"}:
        raise CalibrationError(
            f"{name} computes its weight ({', '.join(sorted(tensors))}), as weight or spectral normalisation does; "
            "remove that first"
        )
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        raise CalibrationError(f"{name} has hooks, which would be lost; remove them first and add them again after")


def branch_linear(linear: nn.Linear, branches: int, merge: str) -> BranchLinear:
    """Return ``linear``, which reads one branch, as the classifier of ``branches`` branches: same function on K
    equal branches."""
    merged = BranchLinear(
        linear.in_features, linear.out_features, linear.bias is not None, branches, merge, device="meta"
    )
    return _adopt(merged, linear, branches, merge)


def branch_conv(conv: nn.Conv2d, branches: int, merge: str) -> BranchConv2d:
    """Return ``conv``, the 1x1 convolution to the classes, as :func:`branch_linear` does for a linear layer."""
    merged = BranchConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.bias is not None,
        branches,
        merge,
        device="meta",
    )
    return _adopt(merged, conv, branches, merge)


def _adopt(
    merged: BranchLinear | BranchConv2d, plain: nn.Linear | nn.Conv2d, branches: int, merge: str
) -> BranchLinear | BranchConv2d:
    merged.weight, merged.bias = plain.weight, plain.bias
    if merge == "concat" and branches > 1:
        columns = plain.weight.detach().repeat(1, branches, *(1 for _ in plain.weight.shape[2:])) / branches
        merged.weight = nn.Parameter(columns, plain.weight.requires_grad)
    if merge == "probability" and branches > 1:
        merged.weight = nn.Parameter(plain.weight.detach().repeat(branches, 1), plain.weight.requires_grad)
        if plain.bias is not None:
            merged.bias = nn.Parameter(plain.bias.detach().repeat(branches), plain.bias.requires_grad)
    return merged.train(plain.training)


def new_classifier(plain: nn.Linear | nn.Conv2d, branches: int, merge: str) -> BranchLinear | BranchConv2d:
    """Return an untrained classifier of ``branches`` branches of the size of ``plain``, which reads one branch."""
    how = {"bias": plain.bias is not None, "branches": branches, "merge": merge}
    how |= {"device": plain.weight.device, "dtype": plain.weight.dtype}
    if isinstance(plain, nn.Linear):
        return BranchLinear(plain.in_features, plain.out_features, **how).train(plain.training)
    return BranchConv2d(plain.in_channels, plain.out_channels, plain.kernel_size, **how).train(plain.training)


def plain_classifier(merged: BranchLinear | BranchConv2d) -> nn.Linear | nn.Conv2d:
    """Return the plain layer that ``merged``, of one branch, is."""
    bias = merged.bias is not None
    if isinstance(merged, BranchLinear):
        plain = nn.Linear(merged.in_features, merged.out_features, bias, device="meta")
    else:
        shape = (merged.in_channels, merged.out_channels, merged.kernel_size, merged.stride, merged.padding)
        plain = nn.Conv2d(*shape, bias=bias, device="meta")
    plain.weight, plain.bias = merged.weight, merged.bias
    return plain.train(merged.training)
