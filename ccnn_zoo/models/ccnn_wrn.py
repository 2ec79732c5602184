"""Calibrated Wide ResNets: timm's pre-activation ``ResNetV2`` with calibrated convolutions.

Paper: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019, Table 2; the plain
network is that of "Wide Residual Networks", BMVC 2016 (WRN-depth-width, depth 6n + 4, without dropout).
"""

from __future__ import annotations

from typing import Any

from timm.layers import BatchNormAct2d, ClassifierHead, create_conv2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnetv2 import ResNetV2
from torch import nn

from ccnn_zoo._base.compat import feature_take_indices
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.models._calibrated import ZooClassifier
from ccnn_zoo.models._cfgs import cifar_cfg
from ccnn_zoo.models._small_resnet import FewStages, timm_output_stride

__all__ = ["CalibratedWideResNet"]


class WideResNet(FewStages, ResNetV2):
    """timm's ``ResNetV2`` of basic blocks with the stem of a Wide ResNet: one 3x3 convolution, no pooling.

    Args:
        depth: number of layers, 6n + 4.
        width: factor of the stages' 16, 32 and 64 channels.
        wide_stem: give the stem the channels of the first stage, 16 * width, which then needs no shortcut convolution,
            as the paper's "64-64-128-256" has it; otherwise 16, as Zagoruyko and Komodakis do.
        num_classes, in_chans, global_pool, drop_rate, kwargs: as in timm's ``ResNetV2``.
        output_stride: largest reduction of the image: 4, or 2 to dilate the last stage instead.

    Raises:
        ConfigurationError: ``depth`` is not 6n + 4, or ``output_stride`` is below 2.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        wide_stem: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ConfigurationError(f"depth must be 6n + 4 (10, 16, 22, 28, ...), got {depth!r}")
        stem_channels = 16 * width if wide_stem else 16
        super().__init__(
            layers=3 * [(depth - 4) // 6],
            channels=(16 * width, 32 * width, 64 * width),
            num_classes=0,
            in_chans=in_chans,
            output_stride=timm_output_stride(output_stride),
            stem_chs=stem_channels,
            basic=True,
            bottle_ratio=1.0,
            norm_layer=BatchNormAct2d,
            conv_layer=create_conv2d,
            drop_rate=drop_rate,
            **kwargs,
        )
        like = {"device": self.stem.conv.weight.device, "dtype": self.stem.conv.weight.dtype}
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(in_chans, stem_channels, 3, padding=1, bias=False, **like))
        # timm's own head is a convolution; branches meet in a linear layer.
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate, **like)
        self.num_classes = num_classes
        self.head_hidden_size = self.head.num_features
        self.init_weights(zero_init_last=False)
        # timm counts a stem of stride 2 and a pooling of stride 2, which are not here.
        self.feature_info[0]["reduction"] = 1
        for info in self.feature_info[1:]:
            info["reduction"] //= 4

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As in timm; ``indices`` count the stem and the three stages."""
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        return super().prune_intermediate_layers(taken, prune_norm, prune_head)


class CalibratedWideResNet(ZooClassifier, WideResNet):
    """A Wide ResNet with calibrated convolutions; arguments of both."""


ENDS = {"first_conv": "stem.conv", "classifier": "head.fc"}

default_cfgs = generate_default_cfgs(
    {
        "ccnn_wrn28_4": cifar_cfg(**ENDS),
        "ccnn_wrn28_10": cifar_cfg(**ENDS),
        "ccnn_wrn40_4": cifar_cfg(**ENDS),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> CalibratedWideResNet:
    features = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(
        CalibratedWideResNet, variant, pretrained, feature_cfg=features, **{**defaults, **kwargs}
    )


@register_model
def ccnn_wrn28_4(pretrained: bool = False, **kwargs: Any) -> CalibratedWideResNet:
    """WRN-28-4 with K=3 branches by default; Table 2 "CCNNs3-28", whose stem is as wide as the first stage.

    The one of Zagoruyko and Komodakis is ``wide_stem=False``.
    """
    defaults = {"depth": 28, "width": 4, "wide_stem": True, "branches": 3}
    return _create("ccnn_wrn28_4", pretrained, defaults, kwargs)


@register_model
def ccnn_wrn28_10(pretrained: bool = False, **kwargs: Any) -> CalibratedWideResNet:
    """WRN-28-10 with K=2 branches by default; Table 2 "WRN-28" with K=1."""
    return _create("ccnn_wrn28_10", pretrained, {"depth": 28, "width": 10, "branches": 2}, kwargs)


@register_model
def ccnn_wrn40_4(pretrained: bool = False, **kwargs: Any) -> CalibratedWideResNet:
    """WRN-40-4 with K=2 branches by default; Table 2 "CCNNs2-40", and "WRN-40" with K=1."""
    return _create("ccnn_wrn40_4", pretrained, {"depth": 40, "width": 4, "branches": 2}, kwargs)
