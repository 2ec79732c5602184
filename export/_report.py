"""What an export measured: as an object, as JSON, as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccnn_zoo._files import replacing
from ccnn_zoo.uncertainty import Confidence, Measured, measure

from ._compare import BatchDifference, Comparison
from ._measure import Timing
from ._preprocess import PreprocessingDifference


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and what its check measured.

    Differences of fp16 are those of a device that stores every half; see :mod:`ccnn_zoo.export`.

    Args:
        path: the file.
        nodes: nodes of the graph by operator.
        parameters: weights in the network: effective kernels, with batch normalisation folded in where it follows a
            convolution.
        max_difference: largest absolute difference of a logit from the unfolded torch network, over all batch sizes.
        mean_difference: mean absolute difference at the largest batch size.
        differences: both, for each batch size.
        agreement: share of the given images on which the same class comes first; in fp32 below 1 only by ties, None
            without images.
        images: number of images given.
        file_size: bytes.
        opset: version of ONNX's operators.
        branch_difference: largest absolute difference of a branch's logit, None where they are no output.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        accuracy: percent of the given images that the file has right; None where they came without classes.
        torch_accuracy: percent that the network has right.
        kept_fp32: nodes of an fp16 file that stay in single precision, each with the reason.
        int8_images: images on which the ranges of int8 were measured.
        preprocessing: how far the preprocessing in the graph is from timm's, None where it is not in the graph.
        timing: what was measured of the speed, None where that was not asked for.
        confidence: what was fitted on held-out images and stands in the file, None without.
        measured: what that is worth on the images given, where they came with classes.
    """

    path: Path
    nodes: dict[str, int]
    parameters: int
    max_difference: float
    mean_difference: float
    differences: tuple[BatchDifference, ...]
    agreement: float | None
    images: int
    file_size: int
    opset: int
    branch_difference: float | None = None
    precision: str = "fp32"
    accuracy: float | None = None
    torch_accuracy: float | None = None
    kept_fp32: dict[str, str] | None = None
    int8_images: int | None = None
    preprocessing: PreprocessingDifference | None = None
    timing: Timing | None = None
    confidence: Confidence | None = None
    measured: Measured | None = None

    @property
    def accuracy_loss(self) -> float | None:
        """Points of accuracy, of 100, that the file loses to the network; negative where it gains."""
        return None if self.accuracy is None else self.torch_accuracy - self.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can hold."""
        return {**asdict(self), "path": str(self.path), "accuracy_loss": self.accuracy_loss}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON, atomically.

        Raises:
            RepositoryError: the file cannot be written.
        """
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, default=list) + "\n", encoding="utf-8")

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the report as a table of two columns: what, and the figure."""
        yield "file", f"{self.file_size / 1e6:.2f} MB, {self.precision}, opset {self.opset}"
        yield "parameters", f"{self.parameters:,}"
        yield "nodes", ", ".join(f"{count} {kind}" for kind, count in sorted(self.nodes.items()))
        for difference in self.differences:
            images = "1 image" if difference.batch_size == 1 else f"{difference.batch_size} images"
            yield f"difference to torch, {images}", f"at most {difference.maximum:.2g}, mean {difference.mean:.2g}"
        if self.branch_difference is not None:
            yield "difference to torch, branch by branch", f"at most {self.branch_difference:.2g}"
        if self.images:
            yield "same class as torch", f"on {100 * self.agreement:.6g} % of {self.images} images"
        if self.accuracy is not None:
            yield "accuracy", f"{self.accuracy:.2f} %, {self.accuracy_loss:.2f} points less than torch"
        if self.kept_fp32 is not None:
            kept = ", ".join(f"{name} ({reason})" for name, reason in self.kept_fp32.items())
            yield "nodes left in single precision", kept or "none"
        if self.int8_images is not None:
            yield "ranges measured on", f"{self.int8_images} images"
        if self.preprocessing is not None:
            found = self.preprocessing
            yield "preprocessing, from timm's", f"at most {found.maximum:.2g} of 255 grey levels, mean {found.mean:.2g}"
        if self.timing is not None:
            yield from _timing_rows(self.timing)
        if self.confidence is not None:
            fitted = self.confidence
            yield "confidence fitted on", f"{fitted.pictures} images; temperature {fitted.temperature:.3f}"
        if self.measured is not None:
            yield from _measured_rows(self.measured)


def reported(
    path: Path, precision: str, written: Path, comparison: Comparison, figures: Mapping[str, Any]
) -> ExportReport:
    """Return the report of one file.

    Args:
        path: what it is called.
        precision: its precision.
        written: where it lies.
        comparison: with torch.
        figures: what else is known of it, by its names in the report.
    """
    images, confidence = comparison.images, figures.get("confidence")
    measured = None
    if confidence is not None and comparison.targets:  # what it is worth on images that it was not fitted on
        measured = measure(np.concatenate(comparison.logits), np.concatenate(comparison.targets), confidence)
    return ExportReport(
        path=path,
        precision=precision,
        file_size=written.stat().st_size,
        max_difference=max(difference.maximum for difference in comparison.differences),
        mean_difference=comparison.differences[-1].mean,
        differences=tuple(comparison.differences),
        branch_difference=comparison.branch_difference,
        images=images,
        agreement=comparison.agreeing / images if images else None,
        accuracy=None if comparison.correct is None else 100 * comparison.correct / images,
        torch_accuracy=None if comparison.torch_correct is None else 100 * comparison.torch_correct / images,
        measured=measured,
        **figures,
    )


def _timing_rows(timing: Timing) -> Iterator[tuple[str, str]]:
    measured = ", ".join(f"{name} {value:.2f}" for name, value in timing.milliseconds.items())
    yield f"ms for {timing.batch_size} images", f"{measured} ({timing.machine})"
    if timing.apart:
        yield "written", "branch by branch, which is faster than grouped convolutions here"
    if timing.separated:
        yield "written as separate convolutions", "; ".join(timing.separated)
    if timing.kept_fp32:
        yield "left in float32, where int8 is slower", "; ".join(timing.kept_fp32)
    if timing.slower:
        yield "slower than fp32", "; ".join(timing.slower)


def _measured_rows(found: Measured) -> Iterator[tuple[str, str]]:
    yield "ECE, with the temperature", f"{found.ece_percent:.2f} %, {found.ece_percent_fitted:.2f} %"
    for coverage, kept in found.covered_percent.items():
        asked = f"sets for {100 * float(coverage):g} %"
        yield asked, f"hold the class of {kept:.2f} %, {found.set_size[coverage]:.2f} classes each"
