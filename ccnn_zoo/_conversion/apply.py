"""A calibration carried out: the layers that the survey found are replaced, and all others told of the branches."""

from __future__ import annotations

import torch
from torch import nn

from ccnn_zoo._conversion.kinds import (
    branch_conv,
    branch_linear,
    calibrated_conv,
    dense_weight,
    is_normalisation,
    is_per_channel,
    tile_per_channel,
)
from ccnn_zoo._conversion.known_blocks import keep_branches_apart
from ccnn_zoo._conversion.network import become_calibrated, scale_declared_widths
from ccnn_zoo._conversion.options import ConversionOptions
from ccnn_zoo._conversion.survey import Survey


@torch.no_grad()
def apply(found: Survey, model: nn.Module, options: ConversionOptions) -> None:
    """Calibrate ``model`` in place, unchecked.

    Args:
        found: what :func:`ccnn_zoo._conversion.survey.survey` found in it, or in a network of which it is a copy.
        model: a plain network; its weights become the shared weights w.
        options: how.

    Raises:
        CalibrationError: a convolution that reads the image has groups.
    """
    branches = options.branches
    normalised = any(is_normalisation(module) for module in model.modules())
    replaced = _calibrated_convs(found, model, options, normalised=normalised)
    if found.classifier is not None:
        classifier = model.get_submodule(found.classifier)
        meeting = branch_linear if isinstance(classifier, nn.Linear) else branch_conv
        replaced[classifier] = meeting(classifier, branches, options.merge)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in replaced:
            model.set_submodule(name, replaced[module])
    for module in set(model.modules()):
        if is_per_channel(module):
            tile_per_channel(module, branches)
    keep_branches_apart(model, branches)
    scale_declared_widths(model, lambda width: width * branches)
    become_calibrated(model, options)


def _calibrated_convs(
    found: Survey, model: nn.Module, options: ConversionOptions, *, normalised: bool
) -> dict[nn.Module, nn.Module]:
    """Return the convolutions of ``model`` with their calibrated forms."""
    branches = options.branches
    replaced: dict[nn.Module, nn.Module] = {}
    weights: dict[tuple[int, str], nn.Parameter] = {}  # by the given weight, for layers may share one
    for name in found.convs:
        conv = model.get_submodule(name)
        reads_image = name in found.image_readers
        how = options.mixing if conv.groups == 1 and not reads_image and branches > 1 else "grouped"
        key = (id(conv.weight), how)
        if key not in weights:
            weights[key] = conv.weight
            if how == "dense":
                weights[key] = dense_weight(conv.weight, branches, same_function=options.rescale, normalised=normalised)
        how_it_reads = {"shared_input": reads_image, "mixing": how, "options": options}
        replaced[conv] = calibrated_conv(name, conv, weights[key], branches, **how_it_reads)
    if options.rescale or not normalised:
        for (_, how), weight in weights.items():
            if how == "grouped":
                weight.mul_(branches)
    return replaced
