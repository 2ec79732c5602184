"""ResNets for small images: timm's ``ResNet`` with the stem and the shortcuts of He et al. (2016), section 4.2.

Source: "Deep Residual Learning for Image Recognition", CVPR 2016.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from ccnn_zoo._base.compat import feature_take_indices
from ccnn_zoo.errors import ConfigurationError


class PadShortcut(nn.Module):
    """Shortcut without parameters between two stages (option A): pixels are skipped, new channels are zero.

    Args:
        in_channels: channels of one branch.
        out_channels: channels of one branch after it.
        stride: every stride-th pixel is kept.

    Shape:
        - Input: (N, K * in_channels, H, W), for any K
        - Output: (N, K * out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        by_branch = torch.stack(x.chunk(x.shape[1] // self.in_channels, dim=1), dim=1)
        return F.pad(by_branch, (0, 0, 0, 0, self.before, self.after)).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"zeros={self.before}+{self.after}, stride={self.stride}"


class FewStages:
    """Intermediate features of timm's ResNets, for networks of another number of stages than theirs."""

    def forward_intermediates(
        self, x: Tensor, indices: int | list[int] | None = None, **kwargs: Any
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As in timm; ``indices`` count the stem and the stages that there are."""
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        return super().forward_intermediates(x, taken, **kwargs)


class SmallInputResNet(FewStages, ResNet):
    """timm's ``ResNet``, fit for small images if asked.

    Args:
        block, layers, channels, in_chans, kwargs: as in timm's ``ResNet``; three or four stages.
        output_stride: largest reduction of the image, in pixels: timm's, or 2, 4 and 8 with ``small_input``.
        small_input: a stem of one 3x3 convolution of stride 1 and ``channels[0]`` channels, without pooling,
            instead of timm's 7x7 one, which always has 64 channels.
        pad_shortcuts: :class:`PadShortcut` between stages instead of timm's 1x1 projections.

    Raises:
        ConfigurationError: ``output_stride`` is below 2 with ``small_input``, or there are more or fewer stages.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: tuple[int, ...],
        channels: tuple[int, ...] = (64, 128, 256, 512),
        in_chans: int = 3,
        output_stride: int = 32,
        small_input: bool = False,
        pad_shortcuts: bool = False,
        **kwargs: Any,
    ) -> None:
        if not 3 <= len(layers) <= min(4, len(channels)):
            raise ConfigurationError(
                f"layers and channels are numbers for each of three or four stages, got {layers} and {channels}"
            )
        if small_input:
            output_stride = timm_output_stride(output_stride)
        super().__init__(block, layers, channels=channels, in_chans=in_chans, output_stride=output_stride, **kwargs)
        if small_input:
            self._replace_stem(in_chans, channels[0])
        if pad_shortcuts:
            self._replace_shortcuts()
        if len(layers) == 3:
            self.layer4 = nn.Sequential()  # timm's forward asks for four stages

    def _replace_stem(self, in_chans: int, width: int) -> None:
        like = {"device": self.conv1.weight.device, "dtype": self.conv1.weight.dtype}
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False, **like)
        self.bn1 = type(self.bn1)(width, **like)
        self.maxpool = nn.Identity()
        first = self.layer1[0]
        first.conv1 = nn.Conv2d(width, first.conv1.out_channels, 3, padding=1, bias=False, **like)
        first.downsample = None
        for conv in (self.conv1, first.conv1):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.feature_info[0]["num_chs"] = width
        # timm counts a stem of stride 2 and a pooling of stride 2, which are not here.
        self.feature_info[0]["reduction"] = 1
        for info in self.feature_info[1:]:
            info["reduction"] //= 4

    def _replace_shortcuts(self) -> None:
        for block in self.modules():
            if isinstance(block, BasicBlock) and block.downsample is not None:
                block.downsample = PadShortcut(block.conv1.in_channels, block.conv2.out_channels, block.stride)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As in timm; ``indices`` count the stem and the stages that there are."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        everything = last == len(self.feature_info) - 1
        super().prune_intermediate_layers([4] if everything else taken, prune_norm, prune_head)
        return taken


def timm_output_stride(output_stride: int) -> int:
    """Return what timm calls the output stride of a network without timm's stem, which reduces four times.

    Raises:
        ConfigurationError: it is below 2.
    """
    if output_stride < 2:
        raise ConfigurationError(f"output_stride must be 2, 4, 8 or above for small images, got {output_stride!r}")
    return min(4 * output_stride, 32)
