"""Do the exported files give the logits of the network? Measured on onnxruntime's CPU provider.

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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from ccnn_zoo._compat import ort_errors
from ccnn_zoo.errors import ExportError

from ._graph import BRANCH_OUTPUT, INPUT, OUTPUT
from ._images import Probe

TOLERANCE = 1e-4
"""Allowed difference of a logit in fp32, relative to the largest one or to 1, whichever is larger."""

HALF_TOLERANCE = 0.02
"""Allowed difference of a logit in fp16, relative to the largest one."""

INT8_TOLERANCE = 0.3
"""Allowed root mean square of int8's error, relative to that of the logits about their mean."""

INT8_LOSS = 0.5
"""Points of accuracy, of 100, that int8 may lose, besides two standard errors of the loss."""

BATCH_SIZES = (1, 3, 32)
"""Numbers of images for which the outputs are compared, where the batch is not fixed."""

TIE = 1e-5
"""Two logits nearer than this share of an image's largest one are tied: rounding decides which is first."""

_CHUNK = 8  # images that torch computes at once: the activations of 32 at 224 x 224 take gigabytes
ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

Logits = NDArray[np.float32]
"""(N, classes), or (K, N, classes) of the branches: images are the last axis but one."""

Run = Callable[[Tensor], dict[str, Logits]]
"""From images to every output by its name."""


@dataclass(frozen=True)
class BatchDifference:
    """Absolute differences of the logits between onnxruntime and torch at one batch size."""

    batch_size: int
    maximum: float
    mean: float


@dataclass
class Comparison:
    """What was measured of one file.

    Attributes:
        differences: by batch size.
        images: images of the caller that were compared.
        agreeing: on how many of them the same class comes first as in torch.
        correct: on how many it is the right one; None where the images have no classes.
        torch_correct: the same of the network.
        lost, gained: images that only the network, or only the file, has right.
        branch_difference: largest difference of a branch's logit, None where they are no output.
        logits: of the file for all images that came with classes, in batches.
        targets: these classes.
    """

    differences: list[BatchDifference] = field(default_factory=list)
    images: int = 0
    agreeing: int = 0
    correct: int | None = None
    torch_correct: int | None = None
    lost: int = 0
    gained: int = 0
    branch_difference: float | None = None
    logits: list[Logits] = field(default_factory=list)
    targets: list[NDArray[np.int64]] = field(default_factory=list)

    def count(self, logits: Logits, theirs: Logits, targets: Tensor | None) -> None:
        """Add a batch: the logits of the file and of the network on each image."""
        chosen, expected = logits.argmax(1), theirs.argmax(1)
        self.images += len(chosen)
        self.agreeing += int((chosen == expected).sum())
        if targets is None:
            return
        self.logits.append(logits)
        self.targets.append(targets.numpy())
        right, torch_right = chosen == targets.numpy(), expected == targets.numpy()
        self.correct = (self.correct or 0) + int(right.sum())
        self.torch_correct = (self.torch_correct or 0) + int(torch_right.sum())
        self.lost += int((torch_right & ~right).sum())
        self.gained += int((right & ~torch_right).sum())


def compare(
    network: nn.Module,
    files: Mapping[str, Run],
    probe: Probe,
    *,
    branch_outputs: bool = False,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    every_image: bool = True,
) -> dict[str, Comparison]:
    """Run network and files on the same images; the network once for all files.

    Args:
        network: the unfolded network, in eval mode on the CPU.
        files: by precision, what runs the file exported from it.
        probe: the images.
        branch_outputs: compare the logits of every branch too, in the same way.
        batch_sizes: numbers of images to compare at.
        every_image: go on to all images of the caller.

    Raises:
        ExportError: the logits differ by more than the tolerance, are not finite, in fp32 another class comes first
            on an image of the caller where the first two are not tied, or int8 loses too much accuracy.
    """
    methods: dict[str, Callable[[Tensor], Tensor]] = {OUTPUT: network}
    if branch_outputs:
        methods[BRANCH_OUTPUT] = network.forward_branches
    in_torch = _torch_runner(methods)
    references = in_torch(probe.batch)
    found = {
        precision: _first_comparison(precision, run, references, probe, batch_sizes) for precision, run in files.items()
    }
    if every_image and probe.given:
        _compare_all(in_torch, files, found, probe)
    for precision, comparison in found.items():
        _check_accuracy(precision, comparison)
    return found


def _first_comparison(
    precision: str, run: Run, references: dict[str, Logits], probe: Probe, batch_sizes: tuple[int, ...]
) -> Comparison:
    comparison = Comparison()
    for size in batch_sizes:
        outputs = run(probe.batch[:size])
        for name, reference in references.items():
            expected, where = reference[..., :size, :], f"batch size {size}"
            difference = _difference(precision, name, outputs[name], expected, reference, where)
            if name == OUTPUT:
                comparison.differences.append(BatchDifference(size, float(difference.max()), float(difference.mean())))
            else:
                largest = max(comparison.branch_difference or 0.0, float(difference.max()))
                comparison.branch_difference = largest
    return comparison


def _compare_all(in_torch: Run, files: Mapping[str, Run], found: dict[str, Comparison], probe: Probe) -> None:
    images = 0
    for batch, targets in probe.batches():
        theirs = in_torch(batch)
        where = f"images {images} to {images + len(batch) - 1}"
        for precision, run in files.items():
            ours = run(batch)
            for name, reference in theirs.items():
                _difference(precision, name, ours[name], reference, reference, where)
                if precision == "fp32":
                    _check_classes(name, ours[name], reference, images)
            found[precision].count(ours[OUTPUT], theirs[OUTPUT], targets)
        images += len(batch)


def _torch_runner(methods: dict[str, Callable[[Tensor], Tensor]]) -> Run:
    @torch.no_grad()
    def run(batch: Tensor) -> dict[str, Logits]:
        chunks = batch.split(_CHUNK)
        return {name: torch.cat([method(c) for c in chunks], dim=-2).numpy() for name, method in methods.items()}

    return run


def session_of(source: Path | ModelProto, **config: int | str) -> ort.InferenceSession:
    """Open a graph on onnxruntime's CPU provider.

    Raises:
        ExportError: onnxruntime cannot load it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what onnxruntime would print as an error is also raised
    # Several sessions live at once here; threads that wait by spinning would take each other's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, value in config.items():
        setattr(options, name, value)
    content = source.SerializeToString() if isinstance(source, ModelProto) else source
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise ExportError(f"onnxruntime {ort.__version__} cannot load the exported graph: {error}") from error


def runner(source: Path | ModelProto) -> Run:
    """Return what runs a graph on float32 images, whole batches at once, or as many as the graph fixes."""
    session = session_of(source)
    names = [output.name for output in session.get_outputs()]
    fixed = session.get_inputs()[0].shape[0]

    def run(batch: Tensor) -> dict[str, Logits]:
        size = fixed if isinstance(fixed, int) else len(batch)
        parts = []
        for part in batch.split(size):
            padded = torch.cat([part, part[:1].expand(size - len(part), -1, -1, -1)])
            try:
                outputs = session.run(names, {INPUT: padded.numpy()})
            except ORT_ERRORS as error:
                raise ExportError(f"the exported graph fails on a batch of {size}: {error}") from error
            parts.append([output[..., : len(part), :] if len(part) < size else output for output in outputs])
        joined = [
            np.concatenate(pieces, axis=-2) if len(parts) > 1 else pieces[0] for pieces in zip(*parts, strict=True)
        ]
        return dict(zip(names, joined, strict=True))

    return run


def _difference(
    precision: str, name: str, ours: Logits, theirs: Logits, scale: Logits, where: str
) -> NDArray[np.float32]:
    """Return the absolute differences, which the precision must allow; ``scale`` are logits to measure them by."""
    if not np.isfinite(scale).all():
        raise ExportError(
            f"the network itself gives {name} that are not finite. Its weights or the images are damaged."
        )
    if ours.shape != theirs.shape:
        raise ExportError(f"the exported graph gives {name} {ours.shape} for {where}, the network {theirs.shape}")
    difference = np.abs(ours - theirs)
    found, allowed, what = _measure(precision, difference, scale)
    if not found <= allowed:  # also where the difference is NaN
        raise ExportError(
            f"in {name} the exported graph differs from the network by {found:.3g}{what} at {where}; "
            f"{allowed:.3g} is allowed" + ("" if precision == "fp32" else f" in {precision}")
        )
    return difference


def _measure(precision: str, difference: NDArray[np.float32], scale: Logits) -> tuple[float, float, str]:
    """Return the error, what is allowed, and the error's unit; see the module's docstring."""
    largest = float(np.abs(scale).max())
    if precision == "int8":
        spread = float(np.sqrt(np.mean((scale - scale.mean(-1, keepdims=True)) ** 2)))
        found = float(np.sqrt(np.mean(difference**2)))
        return found / max(spread, 1e-30), INT8_TOLERANCE, " of their spread"
    if precision == "fp16":
        return float(difference.max()), HALF_TOLERANCE * largest, ""
    return float(difference.max()), min(TOLERANCE * max(1.0, largest), 0.01 * largest), ""


def _check_classes(name: str, ours: Logits, theirs: Logits, first: int) -> None:
    if ours.ndim == 2:
        _check_first_class(name, ours, theirs, first)
        return
    for k in range(len(ours)):
        _check_first_class(f"{name}[{k}]", ours[k], theirs[k], first)


def _check_first_class(name: str, ours: Logits, theirs: Logits, first: int) -> None:
    """Refuse another first class than torch's, except on a tie in torch."""
    rows, chosen = np.arange(len(ours)), ours.argmax(1)
    margin = theirs.max(1) - theirs[rows, chosen]
    wrong = (chosen != theirs.argmax(1)) & (margin > TIE * np.abs(theirs).max(1))
    if wrong.any():
        row = int(wrong.argmax())
        raise ExportError(
            f"in {name} the exported graph puts class {chosen[row]} first on image {first + row}, the network class "
            f"{theirs[row].argmax()}, ahead by {margin[row]:.3g}"
        )


def _check_accuracy(precision: str, comparison: Comparison) -> None:
    """Refuse int8 where the accuracy lost is more than allowed and more than chance explains."""
    if precision != "int8" or comparison.correct is None:
        return
    loss = 100 * (comparison.lost - comparison.gained) / comparison.images
    error = 100 * np.sqrt(comparison.lost + comparison.gained) / comparison.images
    if loss > INT8_LOSS + 2 * error:
        raise ExportError(
            f"int8 loses {loss:.2f} points of accuracy on {comparison.images} images (the standard error is "
            f"{error:.2f}); {INT8_LOSS} are allowed. Give more int8_images, or use fp16."
        )
