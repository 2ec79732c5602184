"""Calibrated VGG: timm's ``VGG`` with calibrated convolutions.

Paper: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019, Table 2.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vgg import VGG, cfgs
from torch import nn

from ccnn_zoo._base.compat import vgg_weights
from ccnn_zoo.models._calibrated import ZooClassifier
from ccnn_zoo.models._cfgs import imagenet_cfg
from ccnn_zoo.models._sequential import TappedFeatures

__all__ = ["CalibratedVGG"]


class CalibratedVGG(TappedFeatures, ZooClassifier, VGG):
    """timm's ``VGG`` with calibrated convolutions, the two hidden ones of its head included; arguments of both."""


default_cfgs = generate_default_cfgs({"ccnn_vgg16": imagenet_cfg("features.0", "head.fc")})


@register_model
def ccnn_vgg16(pretrained: bool = False, **kwargs: Any) -> CalibratedVGG:
    """VGG-16 with batch normalisation and K=2 branches by default; Table 2 "VGG" with K=1."""
    features = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3, 4, 5)}
    arguments = {"model_cfg": cfgs["vgg16"], "norm_layer": nn.BatchNorm2d, "branches": 2, **kwargs}
    return build_model_with_cfg(
        CalibratedVGG, "ccnn_vgg16", pretrained, feature_cfg=features, pretrained_filter_fn=vgg_weights, **arguments
    )
