"""Calibrated ResNets: timm's ``ResNet`` with calibrated convolutions.

Paper: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019, Tables 1 and 3.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from ccnn_zoo.models._calibrated import CalibratedClassifier

__all__ = ["CalibratedResNet"]

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


class NarrowStemResNet(ResNet):
    """timm's ``ResNet``, with the stem of He et al. (2016), section 4.2, for small images if asked.

    Args:
        small_input: one 3x3 convolution of stride 1 and ``channels[0]`` channels, and no pooling, instead of
            timm's 7x7 one, which always has 64 channels.
        block, layers, channels, in_chans, kwargs: as in timm's ``ResNet``.
    """

    def __init__(
        self,
        block: type[BasicBlock],
        layers: tuple[int, ...],
        channels: tuple[int, ...] = (64, 128, 256, 512),
        in_chans: int = 3,
        small_input: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(block, layers, channels=channels, in_chans=in_chans, **kwargs)
        if small_input:
            self._replace_stem(in_chans, channels[0])

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


class CalibratedResNet(CalibratedClassifier, NarrowStemResNet):
    """timm's ``ResNet`` with calibrated convolutions; arguments of both."""


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        **kwargs,
    }


def _cifar_cfg(**kwargs: Any) -> dict[str, Any]:
    return _cfg(
        **{
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "mean": CIFAR_MEAN,
            "std": CIFAR_STD,
            **kwargs,
        }
    )


default_cfgs = generate_default_cfgs(
    {
        "ccnn_resnet18": _cfg(),
        "ccnn_resnet18_cifar": _cifar_cfg(),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> ResNet:
    return build_model_with_cfg(CalibratedResNet, variant, pretrained, **{**defaults, **kwargs})


@register_model
def ccnn_resnet18(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 with K=2 branches by default; Table 3 "CCNNs-18"."""
    defaults = {"block": BasicBlock, "layers": (2, 2, 2, 2), "branches": 2}
    return _create("ccnn_resnet18", pretrained, defaults, kwargs)


@register_model
def ccnn_resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 for 32x32 images, stages 16-16-32-64, with K=4 branches by default; Table 1."""
    defaults = {
        "block": BasicBlock,
        "layers": (2, 2, 2, 2),
        "channels": (16, 16, 32, 64),
        "small_input": True,
        "branches": 4,
    }
    return _create("ccnn_resnet18_cifar", pretrained, defaults, kwargs)
