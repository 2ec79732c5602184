"""What may be asked of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        if not _is_integer(self.opset, DEFAULT_OPSET):
            raise ConfigurationError(f"opset must be an integer of at least {DEFAULT_OPSET}, got {self.opset!r}")
        if self.batch is not None and not _is_integer(self.batch, 1):
            raise ConfigurationError(f"batch must be an integer of at least 1, or None for any, got {self.batch!r}")
        sides = self.size if isinstance(self.size, tuple | list) else ()
        if self.size not in (None, ANY) and not (len(sides) == 2 and all(_is_integer(side, 1) for side in sides)):
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
    if precision not in FILES:
        raise ConfigurationError(f"precision must be one of {', '.join(FILES)}, got {precision!r}")


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
