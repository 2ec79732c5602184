"""Calibrated Network in Network.

Paper: "Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019, Table 2; the plain
network is that of "Network In Network", ICLR 2014, for 32x32 images. Neither timm nor torchvision has it.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import ClassifierHead, get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ccnn_zoo.models._calibrated import ZooClassifier
from ccnn_zoo.models._cfgs import cifar_cfg
from ccnn_zoo.models._sequential import CutAtTaps

__all__ = ["CalibratedNIN"]


class NIN(CutAtTaps, nn.Module):
    """Network in Network: three mlpconv layers, that is a convolution and 1x1 convolutions, each with a ReLU.

    The paper's last 1x1 convolution, to the classes, stands before its global average pooling. A mean and a linear
    map commute, so here it is the linear classifier after it, as timm's users expect; without its ReLU, which
    would hide negative logits.

    Args:
        num_classes: classes; 0 for none.
        in_chans: channels of the image.
        global_pool: timm's pooling before the classifier.
        drop_rate: dropout after the first two mlpconv layers.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        like = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.features = nn.Sequential(
            *_mlpconv(in_chans, 5, (192, 160, 96), like),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Dropout(drop_rate),
            *_mlpconv(96, 5, (192, 192, 192), like),
            nn.AvgPool2d(3, stride=2, padding=1),
            nn.Dropout(drop_rate),
            *_mlpconv(192, 3, (192, 192), like),
        )
        self.feature_ends = [5, 13, 19]
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": f"features.{end}"}
            for channels, reduction, end in zip((96, 192, 192), (1, 2, 4), self.feature_ends, strict=True)
        ]
        self.num_features = 192
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, **like)
        self.head_hidden_size = self.head.num_features
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Group parameters by depth, for timm's layer decay."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)"}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; the pooling stays as it is if None."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of unpooled features, or the pooled features."""
        return self.head(x, pre_logits=pre_logits)


class CalibratedNIN(ZooClassifier, NIN):
    """Network in Network with calibrated convolutions; arguments of both.

    It has no batch normalisation, so w starts K times larger than in the plain network.
    """


def _mlpconv(in_channels: int, kernel_size: int, widths: tuple[int, ...], like: dict[str, Any]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(in_channels, width, kernel_size, padding=kernel_size // 2, **like), nn.ReLU(inplace=True)]
        in_channels, kernel_size = width, 1
    return layers


default_cfgs = generate_default_cfgs({"ccnn_nin": cifar_cfg("features.0", "head.fc")})


@register_model
def ccnn_nin(pretrained: bool = False, **kwargs: Any) -> CalibratedNIN:
    """Network in Network for 32x32 images, with K=2 branches by default; Table 2 "NIN" with K=1."""
    features = {"flatten_sequential": True, "out_indices": (0, 1, 2)}
    return build_model_with_cfg(
        CalibratedNIN, "ccnn_nin", pretrained, feature_cfg=features, **{"branches": 2, **kwargs}
    )
