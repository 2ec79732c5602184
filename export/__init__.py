"""From a network to self-contained ONNX files that are checked before anyone sees them: fp32, fp16 and int8.

>>> report = to_onnx(model, "model.onnx", images=held_out)
>>> reports = to_folder(model, "folder", ["fp32", "fp16", "int8"], images=held_out, int8_images=training_images)

What each precision may differ from torch, and why, stands in ``ccnn_zoo.export._precisions``.
"""

from ccnn_zoo.convert import chosen_branches
from ccnn_zoo.metadata import FILES

from ._cascade import CascadeReport, cascade_to_onnx
from ._compare import BATCH_SIZES, BatchDifference
from ._detection import DetectionReport, detector_metadata_of, detector_to_onnx
from ._detection_compare import BOX_TOLERANCE, SCORE_TOLERANCE, PictureDifference
from ._export import to_folder, to_onnx
from ._foreign import describe
from ._graph import DEFAULT_OPSET
from ._measure import Timing
from ._metadata import metadata_of
from ._precisions import HALF_TOLERANCE, INT8_LOSS, INT8_TOLERANCE, TOLERANCE
from ._preprocess import PreprocessingDifference
from ._probe import ImageBatches
from ._report import ExportReport
from ._uncertainty import add_confidence
from ._wrap import add_preprocessing

__all__ = [
    "BATCH_SIZES",
    "BOX_TOLERANCE",
    "DEFAULT_OPSET",
    "FILES",
    "HALF_TOLERANCE",
    "INT8_LOSS",
    "INT8_TOLERANCE",
    "SCORE_TOLERANCE",
    "TOLERANCE",
    "BatchDifference",
    "CascadeReport",
    "DetectionReport",
    "ExportReport",
    "ImageBatches",
    "PictureDifference",
    "PreprocessingDifference",
    "Timing",
    "add_confidence",
    "add_preprocessing",
    "cascade_to_onnx",
    "chosen_branches",
    "describe",
    "detector_metadata_of",
    "detector_to_onnx",
    "metadata_of",
    "to_folder",
    "to_onnx",
]
