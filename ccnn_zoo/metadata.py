"""What an exported network needs besides its graph: labels and preprocessing.

It travels in the ``metadata_props`` of the ONNX file, so that the file alone is enough to classify an image.
This module needs neither torch nor onnx: export writes it, the runtime reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from ccnn_zoo.errors import MetadataError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of one exported classifier.

    Args:
        architecture: timm name of the network, e.g. ``"ccnn_resnet18"``.
        branches: number K of branches; 1 for a plain network.
        labels: one name per class, in the order of the logits.
        input_size: (C, H, W) of one image; C is 1 (grey) or 3 (RGB).
        mean: per-channel mean, on pixel values in [0, 1].
        std: per-channel standard deviation, on pixel values in [0, 1].
        interpolation: PIL filter by which images are resized.
        crop_pct: share of the resized image that the central crop keeps, in (0, 1].
        crop_mode: timm's ``crop_mode``.

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

    def __post_init__(self) -> None:
        if self.branches < 1:
            raise MetadataError(f"branches must be at least 1, got {self.branches}")
        if not self.labels:
            raise MetadataError("labels must name at least one class")
        if len(self.input_size) != 3 or min(self.input_size) < 1 or self.input_size[0] not in (1, 3):
            raise MetadataError(f"input_size must be (1 or 3, height, width), got {self.input_size}")
        channels = self.input_size[0]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise MetadataError(f"{name} must have {channels} values, one per channel, got {values}")
        if min(self.std) <= 0:
            raise MetadataError(f"std must be positive, got {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise MetadataError(f"interpolation must be one of {INTERPOLATIONS}, got {self.interpolation!r}")
        if self.crop_mode not in CROP_MODES:
            raise MetadataError(f"crop_mode must be one of {CROP_MODES}, got {self.crop_mode!r}")
        if not 0 < self.crop_pct <= 1:
            raise MetadataError(f"crop_pct must be in (0, 1], got {self.crop_pct}")

    def to_props(self) -> dict[str, str]:
        """Return the ``metadata_props`` of an ONNX file: strings as they are, all else as JSON."""
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in asdict(self).items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], source: str = "ONNX file") -> ModelMetadata:
        """Read the metadata back from ``metadata_props``.

        Args:
            props: the file's properties.
            source: name of the file, for the error message.

        Raises:
            MetadataError: properties are missing or malformed; names them and the remedy.
        """
        missing = [f.name for f in fields(cls) if f.name not in props]
        if missing:
            raise MetadataError(
                f"{source} has no ccnn-zoo metadata ({', '.join(missing)} missing). "
                "Export it with ccnn_zoo.export.to_onnx or `ccnn export`, which write labels and preprocessing."
            )
        values = {}
        for field in fields(cls):
            text = props[field.name]
            try:
                value = text if field.type == "str" else json.loads(text)
            except json.JSONDecodeError as error:
                raise MetadataError(f"{source}: metadata {field.name!r} is not JSON: {text!r}") from error
            values[field.name] = tuple(value) if isinstance(value, list) else value
        try:
            return cls(**values)
        except TypeError as error:
            raise MetadataError(f"{source}: malformed metadata {dict(props)!r}: {error}") from error
