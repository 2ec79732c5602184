"""Features of a calibrated network as torchvision's detectors read them: the branches have met."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from ccnn_zoo._base.compat import BatchNorm
from ccnn_zoo._rebuild import created
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import merge_features
from ccnn_zoo.models import zoo_name

PYRAMID_CHANNELS = 256
_FINEST_OF_PYRAMID = 4


class DetectorBackbone(nn.Module):
    """A network of the zoo up to the levels that a detector reads, its branches merged at each of them.

    Args:
        name: timm name of the network.
        arguments: of the network, as ``timm.create_model`` takes them.
        merge: how the branches meet: ``"mean"``, ``"max"`` or ``"concat"``.
        stride: of the single level, in pixels: the deepest one that is no coarser is taken.
        fpn: read all levels of stride 4 and more through a feature pyramid instead.
        frozen_norm: keep statistics and affine parameters of batch normalisation as they are.

    Shape:
        - Input: (N, 3, H, W)
        - Output: mapping of ``"0"``, ``"1"``, ... (and ``"pool"`` of a pyramid) to (N, out_channels, H_i, W_i)

    Raises:
        ConfigurationError: the network does not exist, refuses ``arguments``, or has no such level; or branches see
            the mirror image.
    """

    def __init__(
        self, name: str, arguments: Mapping[str, Any], *, merge: str, stride: int, fpn: bool, frozen_norm: bool
    ) -> None:
        super().__init__()
        if arguments.get("mirrored"):
            raise ConfigurationError(
                f"mirrored={arguments['mirrored']!r}: branches of a detector meet at every place, where a mirror image "
                "shows something else; leave mirrored out"
            )
        levels = _levels(name, arguments, stride, fpn)
        self.body = _features(name, {**arguments, "out_indices": levels})
        self.branches, self.merge = arguments["branches"], merge
        self.strides = tuple(self.body.feature_info.reduction())
        widths = self.body.feature_info.channels()
        if merge != "concat":
            widths = [width // self.branches for width in widths]
        self.pyramid = None
        self.out_channels = widths[-1]
        if fpn:
            self.pyramid = FeaturePyramidNetwork(widths, PYRAMID_CHANNELS, LastLevelMaxPool())
            self.out_channels = PYRAMID_CHANNELS
            self.strides = (*self.strides, 2 * self.strides[-1])
        self.frozen_norm = frozen_norm
        if frozen_norm:
            for module in self._norms():
                module.requires_grad_(False)
            self.train(self.training)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = OrderedDict(
            (str(i), merge_features(level, self.branches, self.merge, dim=1))
            for i, level in enumerate(self.body(images))
        )
        return features if self.pyramid is None else self.pyramid(features)

    def train(self, mode: bool = True) -> DetectorBackbone:
        """As in ``nn.Module``; frozen normalisation stays in eval mode."""
        super().train(mode)
        if self.frozen_norm:
            for module in self._norms():
                module.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.body.modules() if isinstance(module, BatchNorm)]


def _features(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    registered, base = zoo_name(name)
    return created(registered, features_only=True, **base, **arguments)


def _levels(name: str, arguments: Mapping[str, Any], stride: int, fpn: bool) -> Sequence[int]:
    """Return the indices of the network's levels that a detector reads."""
    try:
        zoo_name(name)
    except ConfigurationError as error:
        known = ", ".join(timm.list_models("ccnn_*"))
        raise ConfigurationError(
            f"backbone must be one of {known}, or a plain network of timm's, got {name!r}"
        ) from error
    with torch.device("meta"):  # only to ask for its strides
        reductions = _features(name, arguments).feature_info.reduction()
    # Of levels with one stride the deepest; a dict keeps the last.
    deepest = {reduction: index for index, reduction in enumerate(reductions)}
    if fpn:
        taken = [index for reduction, index in deepest.items() if reduction >= _FINEST_OF_PYRAMID]
    else:
        taken = [index for reduction, index in deepest.items() if reduction <= stride][-1:]
    if not taken:
        wanted = f"at least {_FINEST_OF_PYRAMID}" if fpn else f"at most {stride}"
        raise ConfigurationError(f"{name} has levels of stride {reductions}, none of {wanted}; give another stride")
    return taken
