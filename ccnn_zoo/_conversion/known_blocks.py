"""Layers of timm and torchvision whose ``forward`` needs to know the branches.

They are recognised by name and imported only where a network has them: importing timm takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccnn_zoo._conversion.mixed import Mixin, mix_in
from ccnn_zoo.layers import CalibratedConv2d, concat_branches


def qualified_name(module: nn.Module) -> str:
    """Return ``package.module.Class`` of ``module``."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


class CalibratedConv2dSame(CalibratedConv2d):
    """Calibrated form of timm's ``Conv2dSame``, which pads as TensorFlow does: by the size of its input."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, nn.Conv2d's own name
        pads: list[int] = []
        for axis in (1, 0):  # F.pad begins with the last dimension
            reach = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
            size, stride = input.shape[2 + axis], self.stride[axis]
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            pads += [total // 2, total - total // 2]
        return self._convolved(F.pad(input, pads))

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """Return timm's ``Conv2dSame`` with the effective kernels."""
        from timm.layers import Conv2dSame

        plain = super().fuse()
        same = Conv2dSame(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,
            plain.stride,
            0,
            plain.dilation,
            plain.groups,
            plain.bias is not None,
            device="meta",
        )
        same.weight, same.bias = plain.weight, plain.bias
        return same.train(self.training)


class _DenseLayer(Mixin):
    """DenseNet's layer, which reads the concatenation of all features before it."""

    branches: int

    def bottleneck_fn(self, xs: Sequence[Tensor]) -> Tensor:
        return super().bottleneck_fn([concat_branches(xs, self.branches)])

    def bn_function(self, inputs: Sequence[Tensor]) -> Tensor:  # torchvision's name
        return super().bn_function([concat_branches(inputs, self.branches)])


class _DenseBlock(Mixin):
    """DenseNet's block, which gives the concatenation of all its features."""

    branches: int

    def forward(self, init_features: Tensor) -> Tensor:
        features = [init_features]
        for layer in self.values():
            features.append(layer(features))
        return concat_branches(features, self.branches)


class _CatAvgMax(Mixin):
    """timm's ``catavgmax`` pooling, which gives the averages of all channels, then their maxima."""

    branches: int

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.stack(self.plain_forward(x).chunk(2, dim=1), dim=1)
        by_branch = torch.stack(parts.chunk(self.branches, dim=2), dim=1)
        return by_branch.flatten(1, 3)


_CONCATENATING = {
    "timm.layers.adaptive_avgmax_pool.AdaptiveCatAvgMaxPool2d": _CatAvgMax,
    "timm.layers.adaptive_avgmax_pool.FastAdaptiveCatAvgMaxPool": _CatAvgMax,
    "timm.models.densenet.DenseLayer": _DenseLayer,
    "timm.models.densenet.DenseBlock": _DenseBlock,
    "torchvision.models.densenet._DenseLayer": _DenseLayer,
    "torchvision.models.densenet._DenseBlock": _DenseBlock,
}


def keep_branches_apart(model: nn.Module, branches: int) -> None:
    """Let the blocks of ``model`` that are known to concatenate features do so branch by branch."""
    for module in model.modules():
        mixin = _CONCATENATING.get(qualified_name(module))
        if mixin is not None and branches > 1:
            mix_in(module, mixin, "BranchMajor")
            module.branches = branches
