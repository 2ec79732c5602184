"""Detection: torchvision's Faster R-CNN on calibrated backbones.

>>> detector = create_detector("ccnn_resnet18", num_classes=20, branches=2)
>>> detector.eval()([image])[0]["boxes"]
"""

from __future__ import annotations

from ._checkpoint import load_detector, save_detector
from ._detector import create_detector, detector_config

__all__ = [
    "create_detector",
    "detector_config",
    "load_detector",
    "save_detector",
]
