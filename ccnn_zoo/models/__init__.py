"""The zoo: calibrated networks under timm names. Importing this module registers them with timm."""

from ._table import ZooRow, table
from .ccnn_alexnet import CalibratedAlexNet
from .ccnn_any import FINE_TUNED, zoo_name
from .ccnn_nin import CalibratedNIN
from .ccnn_resnet import CalibratedResNet
from .ccnn_vgg import CalibratedVGG
from .ccnn_wrn import CalibratedWideResNet

__all__ = [
    "FINE_TUNED",
    "CalibratedAlexNet",
    "CalibratedNIN",
    "CalibratedResNet",
    "CalibratedVGG",
    "CalibratedWideResNet",
    "ZooRow",
    "table",
    "zoo_name",
]
