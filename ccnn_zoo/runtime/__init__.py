"""Classify images with an exported network: onnxruntime, numpy and Pillow, neither torch nor timm.

>>> classifier = load("org/ccnn_resnet18")  # or a folder, or an .onnx file
>>> for result in classifier.classify(["cat.jpg", "dog.png"]):
...     print(result.source, result.label, result.probability)
"""

from __future__ import annotations

from ._loading import load
from ._providers import check_device
from ._results import Classification, Prediction
from ._session import ImageClassifier

__all__ = ["Classification", "ImageClassifier", "Prediction", "check_device", "load"]
