"""Networks that were trained apart, as the branches of one folded network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from ccnn_zoo._conversion.kinds import branch_axes
from ccnn_zoo._conversion.network import CalibratedNetwork, meeting_layer
from ccnn_zoo._conversion.parts import agree, tried
from ccnn_zoo._conversion.probe import private_randomness
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.metadata import PREPROCESSING


def check_alike(networks: Sequence[nn.Module]) -> None:
    """Refuse networks that differ in more than their weights.

    Raises:
        ConfigurationError: names the first that does, and in what.
    """
    first, *others = networks
    expected = _shapes(first)
    for number, other in enumerate(others, start=1):
        if differ := _described_otherwise(first, other):
            raise ConfigurationError(
                f"network {number} has other values of {', '.join(differ)} than network 0; an ensemble takes networks "
                "of one architecture, which see the same pictures and name the same classes"
            )
        if (found := _shapes(other)) != expected:
            name = min(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
            raise ConfigurationError(
                f"network {number} is of another architecture than network 0: {name} is {found.get(name)} in place of "
                f"{expected.get(name)}. Take networks that differ in their weights only."
            )


@torch.no_grad()
def join(folded: nn.Module, networks: Sequence[nn.Module], input_size: tuple[int, int, int] | None) -> nn.Module:
    """Give branch k of a folded network the weights of network k, and return it.

    Args:
        folded: of ``len(networks)`` branches, each with a classifier of its own; on the CPU and in eval mode, as all.
        networks: plain networks, whose modules are called as those of ``folded``.
        input_size: (C, H, W) to try it on, or None for one that it takes.

    Raises:
        ConfigurationError: it has no classifier.
        CalibrationError: a branch then does not say what its network says.
    """
    if meeting_layer(folded)[1] is None:
        raise ConfigurationError(f"{type(folded).__name__} has no classifier, so there are no probabilities to average")
    for name, module in folded.named_modules():
        axes = branch_axes(module) or {}
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            theirs = [getattr(network.get_submodule(name), key) for network in networks]
            if key in axes:
                tensor.copy_(torch.cat(theirs, axes[key]))
            elif tensor.is_floating_point() and not all(torch.equal(theirs[0], other) for other in theirs):
                raise CalibrationError(
                    f"{name}.{key} ({type(module).__name__}) is one for all branches, and the networks differ in it"
                )
    with private_randomness():
        images, found = tried(folded, partial(CalibratedNetwork.forward_branches, folded), input_size)
        for number, network in enumerate(networks):
            seen = images.flip(-1) if number in folded.conversion.mirrored else images
            if not agree(found[number], network(seen)):
                raise CalibrationError(
                    f"network {number} does not say in the ensemble what it says alone; do the networks differ in more "
                    "than their weights?"
                )
    return folded


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _described_otherwise(first: nn.Module, other: nn.Module) -> list[str]:
    """Return in what the pictures or classes that two networks declare differ."""
    ours, theirs = (getattr(network, "pretrained_cfg", None) or {} for network in (first, other))
    names = (*PREPROCESSING, "label_names")
    return [name for name in names if _as_tuple(ours.get(name)) != _as_tuple(theirs.get(name))]


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # a list, where it was read from a file
