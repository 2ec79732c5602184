"""Calibrated ResNets: timm's ``ResNet`` with calibrated convolutions.

Paper: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019, Tables 1 to 3. Where
it names no number K of branches, K is 2, the smallest that calibrates: cost grows with K.
"""

from __future__ import annotations

from typing import Any

from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from timm.models.resnet import BasicBlock, Bottleneck

from ccnn_zoo.models._calibrated import ZooClassifier
from ccnn_zoo.models._cfgs import arguments_of_weights, cifar_cfg, imagenet_cfg, shipped_cfg
from ccnn_zoo.models._small_resnet import SmallInputResNet

__all__ = ["CalibratedResNet"]


class CalibratedResNet(ZooClassifier, SmallInputResNet):
    """timm's ``ResNet`` with calibrated convolutions; arguments of both."""


ENDS = {"first_conv": "conv1", "classifier": "fc"}

default_cfgs = generate_default_cfgs(
    {
        "ccnn_resnet18": imagenet_cfg(**ENDS),
        "ccnn_resnet34": imagenet_cfg(**ENDS),
        "ccnn_resnet50": imagenet_cfg(**ENDS),
        "ccnn_resnet101": imagenet_cfg(**ENDS),
        **{
            name: cifar_cfg(**ENDS, pool_size=(4, 4), **shipped_cfg(name))
            for name in (  # the first is what the name without a tag gives
                "ccnn_resnet18_cifar.mirror_cifar10",
                "ccnn_resnet18_cifar.cifar10",
                "ccnn_resnet18_cifar.mnist",
            )
        },
        "ccnn_resnet20_cifar": cifar_cfg(**ENDS),
        "ccnn_resnet32_cifar": cifar_cfg(**ENDS),
        "ccnn_resnet44_cifar": cifar_cfg(**ENDS),
        "ccnn_resnet56_cifar": cifar_cfg(**ENDS),
        "ccnn_resnet110_cifar": cifar_cfg(**ENDS),
        "ccnn_resnet1202_cifar": cifar_cfg(**ENDS),
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> CalibratedResNet:
    # An ensemble that comes with the package is not built as the network that is trained by default.
    arguments = {**defaults, **(_of_weights(variant, kwargs) if pretrained else {}), **kwargs}
    if not pretrained and not isinstance(kwargs.get("pretrained_cfg"), dict | PretrainedCfg):
        # The class names of the registered cfg belong to its weights, not to a network that learns other classes.
        overlay = kwargs.get("pretrained_cfg_overlay") or {}
        arguments["pretrained_cfg_overlay"] = {"label_names": None, **overlay}
    features = {"out_indices": tuple(range(len(arguments["layers"]) + 1))}
    return build_model_with_cfg(CalibratedResNet, variant, pretrained, feature_cfg=features, **arguments)


def _of_weights(variant: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    tag = kwargs.get("pretrained_cfg")
    if tag is not None and not isinstance(tag, str):  # of a repository, whose config.json says it
        return {}
    cfg = get_pretrained_cfg(f"{variant}.{tag}" if tag else variant)
    return arguments_of_weights(cfg.file) if cfg is not None and cfg.file else {}


def _create_cifar(depth: int, pretrained: bool, kwargs: dict[str, Any]) -> CalibratedResNet:
    """Three stages of n blocks, depth 6n + 2; He et al. (2016), section 4.2."""
    blocks = (depth - 2) // 6
    defaults = {
        "block": BasicBlock,
        "layers": (blocks, blocks, blocks),
        "channels": (16, 32, 64),
        "small_input": True,
        "pad_shortcuts": True,
        "branches": 2,
    }
    return _create(f"ccnn_resnet{depth}_cifar", pretrained, defaults, kwargs)


@register_model
def ccnn_resnet18(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-18 with K=2 branches by default; Table 3 "CCNNs-18"."""
    defaults = {"block": BasicBlock, "layers": (2, 2, 2, 2), "branches": 2}
    return _create("ccnn_resnet18", pretrained, defaults, kwargs)


@register_model
def ccnn_resnet34(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-34 with K=2 branches by default."""
    defaults = {"block": BasicBlock, "layers": (3, 4, 6, 3), "branches": 2}
    return _create("ccnn_resnet34", pretrained, defaults, kwargs)


@register_model
def ccnn_resnet50(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-50 with K=2 branches by default."""
    defaults = {"block": Bottleneck, "layers": (3, 4, 6, 3), "branches": 2}
    return _create("ccnn_resnet50", pretrained, defaults, kwargs)


@register_model
def ccnn_resnet101(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-101 with K=2 branches by default."""
    defaults = {"block": Bottleneck, "layers": (3, 4, 23, 3), "branches": 2}
    return _create("ccnn_resnet101", pretrained, defaults, kwargs)


@register_model
def ccnn_resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-18 for 32x32 images, stages 16-16-32-64, with K=4 branches by default; Table 1."""
    defaults = {
        "block": BasicBlock,
        "layers": (2, 2, 2, 2),
        "channels": (16, 16, 32, 64),
        "small_input": True,
        "branches": 4,
    }
    return _create("ccnn_resnet18_cifar", pretrained, defaults, kwargs)


@register_model
def ccnn_resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-20 for 32x32 images, stages 16-32-64, with K=2 branches by default."""
    return _create_cifar(20, pretrained, kwargs)


@register_model
def ccnn_resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-32 for 32x32 images, stages 16-32-64, with K=2 branches by default."""
    return _create_cifar(32, pretrained, kwargs)


@register_model
def ccnn_resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-44 for 32x32 images, stages 16-32-64, with K=2 branches by default."""
    return _create_cifar(44, pretrained, kwargs)


@register_model
def ccnn_resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-56 for 32x32 images, stages 16-32-64, with K=2 branches by default."""
    return _create_cifar(56, pretrained, kwargs)


@register_model
def ccnn_resnet110_cifar(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-110 for 32x32 images, stages 16-32-64, with K=2 branches by default; Table 2 "ResNet-110" with K=1."""
    return _create_cifar(110, pretrained, kwargs)


@register_model
def ccnn_resnet1202_cifar(pretrained: bool = False, **kwargs: Any) -> CalibratedResNet:
    """ResNet-1202 for 32x32 images, stages 16-32-64, with K=2 branches by default; Table 2 "ResNet-1202" with K=1.

    It has 19.4M parameters, as He et al. say; Table 2's 10.2M is the figure of another network, the pre-activation
    ResNet-1001.
    """
    return _create_cifar(1202, pretrained, kwargs)
