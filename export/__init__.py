"""From a network to one self-contained ONNX file that is checked before anyone sees it."""

from ._compare import BATCH_SIZES, TOLERANCE, BatchDifference
from ._export import DEFAULT_OPSET, ExportReport, to_onnx
from ._metadata import metadata_of

__all__ = [
    "BATCH_SIZES",
    "DEFAULT_OPSET",
    "TOLERANCE",
    "BatchDifference",
    "ExportReport",
    "metadata_of",
    "to_onnx",
]
