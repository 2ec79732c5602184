"""From a plain network to a calibrated one (calibrate) and back to a plain one (fold)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from ccnn_zoo.errors import CalibrationError
from ccnn_zoo.layers import BranchLinear, CalibratedConv2d, check_branches, check_merge


def calibrate(
    model: nn.Module,
    branches: int,
    merge: str = "mean",
    *,
    diversity: float = 0.0,
    rescale: bool = True,
) -> nn.Module:
    """Return a calibrated copy of a plain network; its weights become the shared weights w.

    By default the copy computes the same function as ``model``: R_k = 1/K and w is K times the given weight, so
    that every effective kernel equals it. All branches are then identical, and stay so: give a ``diversity``
    above 0 before fine-tuning.

    Args:
        model: network of plain ``nn.Conv2d``, batch normalisation, element-wise and pooling layers, which ends in
            ``nn.Linear`` layers. It is left untouched.
        branches: number K of branches; 1 gives the plain network.
        merge: how branches meet before the first linear layer: ``"mean"``, ``"max"`` or ``"concat"``.
        diversity: how far R starts from uniform: 0 (equal R_k) to 1 (the paper's random R).
        rescale: multiply w by K, so that H_k keeps the scale of the given weights. The paper, which trains from
            scratch, does not. Networks without batch normalisation are always rescaled: nothing else would keep
            their activations from shrinking K-fold at every layer.

    Returns:
        A new network of the same class.

    Raises:
        ConfigurationError: ``branches``, ``merge`` or ``diversity`` is out of range.
        CalibrationError: a module of the network has no calibrated form; names the module and why.
    """
    model = deepcopy(model)
    calibrate_(model, branches, merge, diversity=diversity, rescale=rescale)
    return model


@torch.no_grad()
def calibrate_(model: nn.Module, branches: int, merge: str = "mean", *, diversity: float, rescale: bool) -> None:
    """Calibrate ``model`` in place: :func:`calibrate` without the copy."""
    check_branches(branches)
    check_merge(merge)
    rescale = rescale or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    first_conv, classifier = _find_ends(model)
    if rescale:
        # By parameter, not by layer: layers may share one.
        for weight in {m.weight for m in model.modules() if type(m) is nn.Conv2d}:
            weight.mul_(branches)
    replaced: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) is nn.Conv2d:
            if module not in replaced:
                replaced[module] = _calibrated_conv(name, module, branches, module is first_conv, diversity)
            model.set_submodule(name, replaced[module])
        elif module is classifier:
            model.set_submodule(name, branch_linear(module, branches, merge))
    for module in set(model.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            _tile_batch_norm(module, branches)
    _scale_declared_widths(model, branches)


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


def branch_linear(linear: nn.Linear, branches: int, merge: str) -> BranchLinear:
    """Return ``linear``, which reads one branch, as the classifier of ``branches`` branches: same function on K
    equal branches."""
    merged = BranchLinear(
        linear.in_features, linear.out_features, linear.bias is not None, branches, merge, device="meta"
    )
    merged.weight, merged.bias = linear.weight, linear.bias
    if merge == "concat" and branches > 1:
        merged.weight = nn.Parameter(linear.weight.detach().repeat(1, branches) / branches)
    return merged.train(linear.training)


def _find_ends(model: nn.Module) -> tuple[nn.Conv2d, nn.Linear | None]:
    """Return the layer that reads the image and the one where branches meet, after refusing what we cannot do."""
    convs, linears = [], []
    for name, module in model.named_modules():
        if isinstance(module, CalibratedConv2d | BranchLinear):
            raise CalibrationError(f"{name or 'the model'} is calibrated already; pass the plain network")
        if type(module) is nn.Conv2d:
            if linears:
                raise CalibrationError(
                    f"{linears[0][0]} (Linear) comes before {name} (Conv2d): it would mix the channels of all "
                    "branches. Only linear layers after the last convolution can be calibrated."
                )
            convs.append((name, module))
        elif type(module) is nn.Linear:
            linears.append((name, module))
        elif not isinstance(module, nn.modules.batchnorm._BatchNorm) and _own_tensors(module):
            raise CalibrationError(
                f"{name or 'the model'} ({type(module).__name__}) has parameters or buffers of its own "
                f"({', '.join(_own_tensors(module))}) and no calibrated form is known. Supported: nn.Conv2d, batch "
                "normalisation, linear classifiers, and layers without parameters."
            )
    if not convs:
        raise CalibrationError(f"{type(model).__name__} has no nn.Conv2d to calibrate")
    return convs[0][1], linears[0][1] if linears else None


def _own_tensors(module: nn.Module) -> list[str]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [name for name, _ in own]


def _calibrated_conv(
    name: str, conv: nn.Conv2d, branches: int, shared_input: bool, diversity: float
) -> CalibratedConv2d:
    if conv.padding_mode != "zeros":
        raise CalibrationError(f"{name} has padding_mode={conv.padding_mode!r}; only 'zeros' is supported")
    # On the meta device first: nothing is allocated or initialised that the given weight then replaces.
    calibrated = CalibratedConv2d(
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
        device="meta",
    )
    calibration = conv.weight.new_empty(branches, *conv.kernel_size)
    calibrated.adopt_parameters(conv.weight, nn.Parameter(calibration), conv.bias)
    if not calibration.is_meta:
        calibrated.reset_calibration(diversity)
    return calibrated.train(conv.training)


def _tile_batch_norm(norm: nn.modules.batchnorm._BatchNorm, branches: int) -> None:
    """Give every branch its own affine parameters and statistics, equal at the start."""
    norm.num_features *= branches
    for name in ("weight", "bias"):
        parameter = getattr(norm, name)
        if parameter is not None:
            setattr(norm, name, nn.Parameter(parameter.detach().repeat(branches), parameter.requires_grad))
    for name in ("running_mean", "running_var"):
        statistic = getattr(norm, name)
        if statistic is not None:
            setattr(norm, name, statistic.repeat(branches))


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
    if isinstance(feature_info, list):
        model.feature_info = [{**info, "num_chs": info["num_chs"] * branches} for info in feature_info]
