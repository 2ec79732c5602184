"""Detection: torchvision's Faster R-CNN on calibrated backbones.

>>> detector = create_detector("ccnn_resnet18", num_classes=20, branches=2)
>>> detector.eval()([image])[0]["boxes"]

>>> result = train_detector(Recipe.load("voc07_detection"), "runs/voc")
>>> evaluate_detector(result.model, data.test, data.labels).voc.map_percent
"""

from __future__ import annotations

from ._annotated import VOC_LABELS, AnnotatedPicture, DetectionData
from ._checkpoint import load_detector, save_detector
from ._coco_figures import coco_evaluate
from ._data import load_detection_data
from ._detector import create_detector, detector_config
from ._evaluation import DetectorFigures, detect, evaluate_detector
from ._layouts import layout_table
from ._task import train_detector
from ._voc_protocol import Detections, VocResult, voc_evaluate

__all__ = [
    "VOC_LABELS",
    "AnnotatedPicture",
    "DetectionData",
    "Detections",
    "DetectorFigures",
    "VocResult",
    "coco_evaluate",
    "create_detector",
    "detect",
    "detector_config",
    "evaluate_detector",
    "layout_table",
    "load_detection_data",
    "load_detector",
    "save_detector",
    "train_detector",
    "voc_evaluate",
]
