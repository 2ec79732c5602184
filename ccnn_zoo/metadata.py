"""What an exported network needs besides its graph: labels and preprocessing.

It travels in the ``metadata_props`` of the ONNX file, so that the file alone is enough to read an image.
This module needs neither torch nor onnx: export writes it, the runtime reads it.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ccnn_zoo._base.checks import check_choice, is_integer
from ccnn_zoo.errors import MetadataError

if TYPE_CHECKING:
    from ccnn_zoo.uncertainty import Confidence

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
"""timm's names of what decides how a picture becomes a network's input."""
DETECTION = "object-detection"
"""The property ``task`` of a detector's file; a classifier's has none."""

FILES = {"fp32": "onnx/model.onnx", "fp16": "onnx/model_fp16.onnx", "int8": "onnx/model_quantized.onnx"}
"""Precision to the path of its file in a repository; the paths are those that transformers.js looks for."""

_OPTIONAL = {"preprocessing_in_graph": False, "confidence": None}
"""Fields that files need not have, with the value that is not written: as in files from before there was the field."""

# A file that asks for more, e.g. by a slip of its author or to exhaust memory, is refused before an image is made.
_MAX_PIXELS = 2**24
_MIN_CROP_PCT = 0.01
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_TEXT, _TEXTS = "a string without control characters", "one string per class, without control characters"


def check_precision(precision: str) -> None:
    """Refuse a precision that there is not.

    Raises:
        ConfigurationError: it is none of :data:`FILES`.
    """
    check_choice("precision", precision, FILES)


def in_order(names: Sequence[str] | Mapping[str | int, str]) -> Sequence[str]:
    """Return timm's ``label_names`` in the order of the logits; they may be a table by index.

    Raises:
        MetadataError: an index is missing from the table.
    """
    if not isinstance(names, Mapping):
        return names
    by_index = {str(index): name for index, name in names.items()}  # JSON makes strings of numbers
    try:
        return [by_index[str(index)] for index in range(len(by_index))]
    except KeyError as error:
        raise MetadataError(f"label_names is a table without the index {error}; name all classes, from 0") from error


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of one exported classifier.

    Args:
        architecture: timm name of the network, e.g. ``"ccnn_resnet18"``.
        branches: number K of branches; 1 for a plain network.
        labels: one name per class, in the order of the logits.
        input_size: (C, H, W) of one image; C is 1 (grey) or 3 (RGB), H x W at most 2**24.
        mean: per-channel mean, on pixel values in [0, 1].
        std: per-channel standard deviation, on pixel values in [0, 1].
        interpolation: PIL filter by which images are resized.
        crop_pct: share of the resized image that the central crop keeps, in [0.01, 1].
        crop_mode: timm's ``crop_mode``.
        preprocessing_in_graph: the graph takes uint8 pictures (N, H, W, C) of any size, and resizes, crops and
            normalises them itself as the other fields say.
        confidence: what was fitted on held-out pictures for this very file: temperature and thresholds.

    Raises:
        MetadataError: a field is missing or inconsistent; names it.
    """

    architecture: str
    branches: int
    labels: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    preprocessing_in_graph: bool = False
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        _require(self, "architecture", is_label, _TEXT)
        _require(self, "branches", lambda value: is_integer(value, 1), "an integer of at least 1")
        _require(self, "labels", lambda value: _all(value, is_label) and len(value) > 0, _TEXTS)
        _require(self, "input_size", _is_size, f"(1 or 3, height, width) of at most {_MAX_PIXELS} pixels")
        numbers = f"{self.input_size[0]} finite numbers, one per channel"
        for name in ("mean", "std"):
            _require(self, name, lambda v: _all(v, _is_finite) and len(v) == self.input_size[0], numbers)
        _require(self, "std", lambda value: min(value) > 0, "positive")
        _require(self, "interpolation", INTERPOLATIONS.__contains__, f"one of {INTERPOLATIONS}")
        _require(self, "crop_mode", CROP_MODES.__contains__, f"one of {CROP_MODES}")
        share = f"a number in [{_MIN_CROP_PCT}, 1]"
        _require(self, "crop_pct", lambda value: _is_finite(value) and _MIN_CROP_PCT <= value <= 1, share)
        _require(self, "preprocessing_in_graph", lambda value: isinstance(value, bool), "true or false")

    def preprocessing(self) -> dict[str, Any]:
        """Return the preprocessing in the names of timm's ``pretrained_cfg``, which its ``create_transform`` takes."""
        return {name: getattr(self, name) for name in PREPROCESSING}

    def to_props(self) -> dict[str, str]:
        """Return the ``metadata_props`` of an ONNX file: strings as they are, all else as JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {name: value for name, value in values.items() if name not in _OPTIONAL or value != _OPTIONAL[name]}
        if "confidence" in values:
            values["confidence"] = values["confidence"].to_json()
        return {name: _written(value) for name, value in values.items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], source: str = "ONNX file") -> ModelMetadata:
        """Read the metadata back from ``metadata_props``.

        Args:
            props: the file's properties.
            source: name of the file, for the error message.

        Raises:
            MetadataError: properties are missing or malformed; names them and the remedy.
        """
        return _read(cls, props, source)


@dataclass(frozen=True)
class DetectorMetadata:
    """Metadata of one exported detector.

    Its graph maps ``image``, float32 (1, 3, height, width) of any size with RGB values in [0, 1], to ``boxes`` (n, 4),
    (x1, y1, x2, y2) in pixels of that image, ``labels`` (n,), counted from 1, and ``scores`` (n,) in [0, 1].

    Args:
        architecture: timm name of the backbone, e.g. ``"ccnn_resnet18"``.
        branches: number K of branches; 1 for a plain network.
        labels: one name per kind of objects, the first of which has the label 1.
        min_size: short side in pixels to which the graph resizes an image.
        max_size: longest side in pixels of the same.

    Raises:
        MetadataError: a field is missing or inconsistent; names it.
    """

    architecture: str
    branches: int
    labels: tuple[str, ...]
    min_size: int
    max_size: int

    def __post_init__(self) -> None:
        _require(self, "architecture", is_label, _TEXT)
        _require(self, "labels", lambda value: _all(value, is_label) and len(value) > 0, _TEXTS)
        for name in ("branches", "min_size", "max_size"):
            _require(self, name, lambda value: is_integer(value, 1), "an integer of at least 1")

    def to_props(self) -> dict[str, str]:
        """Return the ``metadata_props`` of an ONNX file: strings as they are, all else as JSON."""
        values = {"task": DETECTION, **asdict(self), "input_range": [0, 1]}
        return {name: _written(value) for name, value in values.items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], source: str = "ONNX file") -> DetectorMetadata:
        """Read the metadata back from ``metadata_props``.

        Args:
            props: the file's properties.
            source: name of the file, for the error message.

        Raises:
            MetadataError: the file is no detector, or properties are missing or malformed; names them and the remedy.
        """
        if props.get("task") != DETECTION:
            raise MetadataError(
                f"{source} has no metadata of a detector. Detectors are exported by `ccnn export`; what classifies is "
                "loaded with ccnn_zoo.runtime.load and `ccnn classify`."
            )
        return _read(cls, props, source)


class Metadata(Protocol):
    """What the metadata of every exported network have, whatever its task."""

    architecture: str
    branches: int
    labels: tuple[str, ...]

    def to_props(self) -> dict[str, str]: ...

    @classmethod
    def from_props(cls, props: Mapping[str, str], source: str = "ONNX file") -> Metadata: ...


_Metadata = TypeVar("_Metadata", ModelMetadata, DetectorMetadata)


def _read(cls: type[_Metadata], props: Mapping[str, str], source: str) -> _Metadata:
    written = [f for f in fields(cls) if f.name in props or f.name not in _OPTIONAL]
    missing = [f.name for f in written if f.name not in props]
    if missing:
        raise MetadataError(
            f"{source} has no ccnn-zoo metadata ({', '.join(missing)} missing). "
            "Export it with ccnn_zoo.export or `ccnn export`, which write labels and preprocessing, or describe a "
            "classifier of somebody else's with `ccnn calibrate-confidence --metadata`."
        )
    values = {}
    for field in written:
        text = props[field.name]
        if field.name == "confidence":
            continue
        try:
            value = text if field.type == "str" else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MetadataError(f"{source}: metadata {field.name!r} is not JSON: {reprlib.repr(text)}") from error
        values[field.name] = tuple(value) if isinstance(value, list) else value
    try:
        if "confidence" in props and cls is ModelMetadata:
            from ccnn_zoo.uncertainty import Confidence  # which imports numpy; hub does without

            values["confidence"] = Confidence.from_json(props["confidence"])
        return cls(**values)
    except MetadataError as error:
        raise MetadataError(f"{source} has malformed metadata: {error}. Export it again.") from error


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _require(metadata: object, name: str, holds: Callable[[Any], bool], expected: str) -> None:
    value = getattr(metadata, name)
    if not holds(value):
        raise MetadataError(f"{name} must be {expected}, got {reprlib.repr(value)}")


def _all(values: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(values, tuple) and all(map(holds, values))


def is_label(value: Any) -> bool:
    """Tell whether ``value`` can be the name of a class in an exported file."""
    # Control characters could command a terminal, those of direction turn "90 %" into "09 %"; halves of surrogate pairs
    # can be neither printed nor written.
    return isinstance(value, str) and not _CONTROLS.search(value)


def _is_finite(value: Any) -> bool:
    # Comparing first: an integer too long for a float cannot be asked whether it is finite.
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)


def _is_size(value: Any) -> bool:
    if not _all(value, is_integer) or len(value) != 3 or min(value) < 1:
        return False
    return value[0] in (1, 3) and value[1] * value[2] <= _MAX_PIXELS
