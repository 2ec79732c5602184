"""What may be asked of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ccnn_zoo._checks import check_choice, check_integer, is_integer
from ccnn_zoo.errors import ConfigurationError

from ._images import ImageBatches

DEFAULT_OPSET = 18
"""The version torch.onnx is written for, and the oldest it gives: the most runtimes read it."""

FILES = {"fp32": "onnx/model.onnx", "fp16": "onnx/model_fp16.onnx", "int8": "onnx/model_quantized.onnx"}
"""Precision to the name of its file in a folder, as the Hub's convention has it."""

ANY = "any"
"""The size of the images is left open."""


@dataclass(frozen=True)
class ExportOptions:
    """The arguments of :func:`ccnn_zoo.export.to_onnx` besides network, path and precision.

    Raises:
        ConfigurationError: one is out of range, or two contradict each other.
    """

    images: ImageBatches | None = None
    int8_images: ImageBatches | None = None
    labels: Sequence[str] | None = None
    opset: int = DEFAULT_OPSET
    branch_outputs: bool = False
    batch: int | None = None
    size: tuple[int, int] | str | None = None
    preprocess: bool = False
    measure: bool = False
    held_out: ImageBatches | None = None

    def __post_init__(self) -> None:
        check_integer("opset", self.opset, DEFAULT_OPSET)
        if self.batch is not None:
            check_integer("batch", self.batch, note=", or None for any")
        sides = self.size if isinstance(self.size, tuple | list) else ()
        if self.size not in (None, ANY) and not (len(sides) == 2 and all(is_integer(side, 1) for side in sides)):
            raise ConfigurationError(f"size must be (height, width), {ANY!r} or None, got {self.size!r}")
        if self.size == ANY and self.preprocess:
            raise ConfigurationError(
                "preprocess=True resizes every picture to one size, which size='any' would leave open. Leave one out."
            )


def check_precision(precision: str) -> None:
    """Refuse a precision that there is not.

    Raises:
        ConfigurationError: it is none of :data:`FILES`.
    """
    check_choice("precision", precision, FILES)
