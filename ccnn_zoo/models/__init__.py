"""The zoo: calibrated networks under timm names. Importing this module registers them with timm."""

from ._table import ZooRow as ZooRow
from ._table import table as table
from .ccnn_alexnet import CalibratedAlexNet as CalibratedAlexNet
from .ccnn_any import FINE_TUNED as FINE_TUNED
from .ccnn_any import zoo_name as zoo_name
from .ccnn_nin import CalibratedNIN as CalibratedNIN
from .ccnn_resnet import CalibratedResNet as CalibratedResNet
from .ccnn_vgg import CalibratedVGG as CalibratedVGG
from .ccnn_wrn import CalibratedWideResNet as CalibratedWideResNet
