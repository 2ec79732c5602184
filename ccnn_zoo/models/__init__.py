"""The zoo: calibrated networks under timm names. Importing this module registers them with timm."""

from .ccnn_resnet import CalibratedResNet as CalibratedResNet
