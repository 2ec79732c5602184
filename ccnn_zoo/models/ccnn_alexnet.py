"""Calibrated AlexNet: torchvision's ``AlexNet`` with calibrated convolutions, under timm's contract.

Paper: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019, Table 4; the plain
network is that of "One weird trick for parallelizing convolutional neural networks", 2014, as torchvision has it.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from timm.layers import SelectAdaptivePool2d, get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ccnn_zoo._base.checks import check_choice
from ccnn_zoo.models._calibrated import ZooClassifier
from ccnn_zoo.models._cfgs import imagenet_cfg
from ccnn_zoo.models._sequential import CutAtTaps

__all__ = ["CalibratedAlexNet"]

POOLS = ("", "avg", "max", "avgmax")
LOGITS = 6
"""Index of the last linear layer in torchvision's ``classifier``."""


class AlexNet(CutAtTaps, torchvision.models.AlexNet):
    """torchvision's ``AlexNet`` with the methods of a timm network; the keys of its weights are torchvision's.

    Args:
        num_classes: classes; 0 for none.
        in_chans: channels of the image.
        global_pool: pooling to 6x6 before the hidden layers: ``"avg"``, ``"max"`` or ``"avgmax"``; ``""`` gives the
            unpooled features, without the hidden layers, which need 6x6 pixels.
        drop_rate: dropout before both hidden layers.
        device, dtype: of the parameters.

    Raises:
        ConfigurationError: ``global_pool`` is none of these.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        with torch.device(device or torch.get_default_device()):
            super().__init__(dropout=drop_rate)
            self.features[0] = nn.Conv2d(in_chans, 64, 11, stride=4, padding=2)
        self.to(dtype=dtype)
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_ends = [1, 4, 11, 12]
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": f"features.{end}"}
            for channels, reduction, end in zip((64, 192, 256, 256), (4, 8, 16, 32), self.feature_ends, strict=True)
        ]
        self.num_features = 256
        self.avgpool = SelectAdaptivePool2d(6, "avg", flatten=True)
        self._set_head(num_classes, global_pool)

    def has_hidden_layers(self) -> bool:
        """Return whether the two hidden linear layers are there: not without pooling, and not once pruned."""
        return not isinstance(self.classifier[1], nn.Identity)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Group parameters by depth, for timm's layer decay."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)"}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.classifier[LOGITS]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer; the pooling stays as it is if None.

        Without pooling the hidden layers go too, for good.

        Raises:
            ConfigurationError: ``global_pool`` is not known.
        """
        self._set_head(num_classes, self.avgpool.pool_type if global_pool is None else global_pool)

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        check_choice("global_pool", global_pool, POOLS)
        if not global_pool:
            self._drop_hidden_layers()
        size = 6 if self.has_hidden_layers() else 1
        self.avgpool = SelectAdaptivePool2d(size, global_pool, flatten=bool(global_pool)).train(self.training)
        self.num_classes = num_classes
        self.head_hidden_size = 4096 if self.has_hidden_layers() else self.num_features
        like = get_device_dtype(self)
        logits = nn.Linear(self.head_hidden_size, num_classes, **like) if num_classes else nn.Identity()
        self.classifier[LOGITS] = logits.train(self.training)

    def _drop_hidden_layers(self) -> None:
        for i in range(LOGITS):
            self.classifier[i] = nn.Identity().train(self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of unpooled features, or what the last linear layer reads."""
        x = self.avgpool(x)
        for i, layer in enumerate(self.classifier):
            if not (pre_logits and i == 6):
                x = layer(x)
        return x


class CalibratedAlexNet(ZooClassifier, AlexNet):
    """AlexNet with calibrated convolutions; arguments of both. The branches meet before the hidden layers.

    It has no batch normalisation, so w starts K times larger than in the plain network. Hidden layers follow the
    meeting of the branches, so the network's logits are not the mean of those of the branches.
    """


default_cfgs = generate_default_cfgs({"ccnn_alexnet": imagenet_cfg("features.0", "classifier.6", pool_size=(6, 6))})


@register_model
def ccnn_alexnet(pretrained: bool = False, **kwargs: Any) -> CalibratedAlexNet:
    """AlexNet with K=2 branches by default; Table 4 "AlexNet-CCNNs", and "AlexNet" with K=1."""
    features = {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(
        CalibratedAlexNet, "ccnn_alexnet", pretrained, feature_cfg=features, **{"branches": 2, **kwargs}
    )
