"""Classify images with an exported network: onnxruntime, numpy and Pillow, neither torch nor timm.

>>> classifier = load("org/ccnn_resnet18")  # or a folder, or an .onnx file
>>> for result in classifier.classify(["cat.jpg", "dog.png"]):
...     print(result.source, result.label, result.probability)

``load_detector`` and ``detect`` do the same for networks that find objects.

A network runs on the CPU, on CUDA, or on any other backend that ``load(device=...)`` names: docs/runtime.md.
"""

from __future__ import annotations

from ccnn_zoo.metadata import DetectorMetadata, ModelMetadata

from ._backend import Backend, OpenOptions, Problem, Session
from ._cuda import Cuda, TensorRT
from ._detection import Detection, FoundObject, ObjectDetector, load_detector
from ._doubt import Asked
from ._drawing import draw
from ._loading import load
from ._onnxruntime import Cpu
from ._openvino import OpenVino
from ._plugin_provider import PluginProvider
from ._registry import check_device
from ._results import Classification, OutOfDistribution, Prediction
from ._session import ImageClassifier, Outputs

__all__ = [
    "Asked",
    "Backend",
    "Classification",
    "Cpu",
    "Cuda",
    "Detection",
    "DetectorMetadata",
    "FoundObject",
    "ImageClassifier",
    "ModelMetadata",
    "ObjectDetector",
    "OpenOptions",
    "OpenVino",
    "OutOfDistribution",
    "Outputs",
    "PluginProvider",
    "Prediction",
    "Problem",
    "Session",
    "TensorRT",
    "check_device",
    "draw",
    "load",
    "load_detector",
]
