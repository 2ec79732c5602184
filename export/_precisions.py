"""The precisions: how the graph of each is made of the one in float32, and what it may differ by from the network.

Two implementations of float32 arithmetic round differently, in proportion to the numbers they add up. So fp32 may
differ by :data:`TOLERANCE` for logits up to 1, and by 1e-4 of the largest logit above that. Where all logits are
smaller than 0.01, an absolute 1e-4 would accept anything, and 1% of the largest is allowed.

fp16 keeps 11 bits: storing a value moves it by up to 2^-11, 0.05 %. Independent errors of N layers add up to
sqrt(N) times that, 0.3 % for ResNet-18's forty stored tensors and 0.7 % for two hundred. :data:`HALF_TOLERANCE`, 2 %
of the largest logit, leaves a factor of three.

int8 has no such bound: what it costs is measured. The root mean square of the error must stay below
:data:`INT8_TOLERANCE` of that of the logits (a wrong scale or a lost layer gives about 1), and where the images come
with their classes, no more than :data:`INT8_LOSS` points of accuracy may be lost, beyond twice what chance explains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor

from ccnn_zoo.errors import ExportError

from ._fp16 import HALF_TOLERANCE, choose_kept, emulate, to_half
from ._measure import choose_fp32, choose_int8, timer
from ._quantize import Quantizer
from ._session import Logits

TOLERANCE = 1e-4
"""Allowed difference of a logit in fp32, relative to the largest one or to 1, whichever is larger."""

INT8_TOLERANCE = 0.3
"""Allowed root mean square of int8's error, relative to that of the logits about their mean."""

INT8_LOSS = 0.5
"""Points of accuracy, of 100, that int8 may lose, besides two standard errors of the loss."""


@dataclass(frozen=True)
class Material:
    """What a graph is made of.

    Args:
        core: the network's graph in float32.
        images: preprocessed ones, (N, C, H, W), to look at the values in between.
        ranges: those on which int8's ranges are measured, None where it is not wanted.
        timed: how many images forms are timed with; None times nothing.
        branches: K.
        when_done: takes what is called once the file is written.
    """

    core: ModelProto
    images: Tensor
    ranges: Tensor | None
    timed: int | None
    branches: int
    when_done: Callable[[Callable[[], object]], object]

    def timing(self) -> tuple[Any, int, int]:
        """Return what forms are chosen by: a timer, its batch size, and K."""
        batch = self.images[: self.timed].numpy()
        return timer(batch), len(batch), self.branches


@dataclass
class Made:
    """A graph, and what became known while it was made.

    Args:
        graph: what is written.
        emulated: what is judged in its place, None for itself; see :mod:`ccnn_zoo.export._fp16`.
        figures: by their names in the report.
    """

    graph: ModelProto
    emulated: ModelProto | None = None
    figures: dict[str, Any] = field(default_factory=dict)


class Single:
    """float32, as the network computes."""

    keeps_classes = True  # the same one comes first on every image, but for ties
    needs_ranges = False

    def make(self, material: Material) -> Made:
        """Return the graph; :class:`ExportError` where it cannot be had."""
        if material.timed is None:
            return Made(material.core)
        graph, timing = choose_fp32(material.core, *material.timing())
        return Made(graph, figures={"timing": timing})

    def error(self, difference: NDArray[np.float32], scale: Logits) -> tuple[float, float, str]:
        """Return how far logits are off, what is allowed, and the unit of both.

        Args:
            difference: absolute ones.
            scale: the network's logits.
        """
        largest = float(np.abs(scale).max())
        return float(difference.max()), min(TOLERANCE * max(1.0, largest), 0.01 * largest), ""

    def check_accuracy(self, images: int, lost: int, gained: int) -> None:
        """Refuse a file that is right less often than the network, by more than allowed and than chance explains.

        Args:
            images: how many there were.
            lost: those that only the network has right.
            gained: those that only the file has right.
        """


class Half(Single):
    """float16 but for nodes that overflow or lose accuracy in it. For GPUs: what a CPU prefers says nothing of them."""

    keeps_classes = False

    def make(self, material: Material) -> Made:
        kept = choose_kept(material.core, material.images)
        return Made(to_half(material.core, kept), emulate(material.core, kept), {"kept_fp32": kept})

    def error(self, difference: NDArray[np.float32], scale: Logits) -> tuple[float, float, str]:
        return float(difference.max()), HALF_TOLERANCE * float(np.abs(scale).max()), ""


class Int8(Single):
    """8-bit integers, by ranges measured on images."""

    keeps_classes = False
    needs_ranges = True

    def make(self, material: Material) -> Made:
        def quantizer_of(graph: ModelProto) -> Quantizer:
            quantizer = Quantizer(graph, material.ranges)
            material.when_done(quantizer.close)
            return quantizer

        figures: dict[str, Any] = {"int8_images": len(material.ranges)}
        if material.timed is None:
            return Made(quantizer_of(material.core)(), figures=figures)
        graph, figures["timing"] = choose_int8(material.core, quantizer_of, *material.timing())
        return Made(graph, figures=figures)

    def error(self, difference: NDArray[np.float32], scale: Logits) -> tuple[float, float, str]:
        spread = float(np.sqrt(np.mean((scale - scale.mean(-1, keepdims=True)) ** 2)))
        found = float(np.sqrt(np.mean(difference**2)))
        return found / max(spread, 1e-30), INT8_TOLERANCE, " of their spread"

    def check_accuracy(self, images: int, lost: int, gained: int) -> None:
        loss = 100 * (lost - gained) / images
        error = 100 * np.sqrt(lost + gained) / images
        if loss > INT8_LOSS + 2 * error:
            raise ExportError(
                f"int8 loses {loss:.2f} points of accuracy on {images} images (the standard error is {error:.2f}); "
                f"{INT8_LOSS} are allowed. Give more int8_images, or use fp16."
            )


PRECISIONS: dict[str, Single] = {"fp32": Single(), "fp16": Half(), "int8": Int8()}
"""By the names of :data:`ccnn_zoo.metadata.FILES`."""
