"""Do the exported files give the logits of the network? Measured on onnxruntime's CPU provider.

What each precision may differ by stands in ``_precisions``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccnn_zoo.errors import ExportError

from ._graph import BRANCH_OUTPUT, OUTPUT
from ._precisions import PRECISIONS
from ._probe import Probe
from ._session import Logits, Run

BATCH_SIZES = (1, 3, 32)
"""Numbers of images for which the outputs are compared, where the batch is not fixed."""

TIE = 1e-5
"""Two logits nearer than this share of an image's largest one are tied: rounding decides which is first."""

_CHUNK = 8  # images that torch computes at once: the activations of 32 at 224 x 224 take gigabytes


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
        if comparison.correct is not None:
            PRECISIONS[precision].check_accuracy(comparison.images, comparison.lost, comparison.gained)
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
                if PRECISIONS[precision].keeps_classes:
                    _check_classes(name, ours[name], reference, images)
            found[precision].count(ours[OUTPUT], theirs[OUTPUT], targets)
        images += len(batch)


def _torch_runner(methods: dict[str, Callable[[Tensor], Tensor]]) -> Run:
    @torch.no_grad()
    def run(batch: Tensor) -> dict[str, Logits]:
        chunks = batch.split(_CHUNK)
        return {name: torch.cat([method(c) for c in chunks], dim=-2).numpy() for name, method in methods.items()}

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
    found, allowed, what = PRECISIONS[precision].error(difference, scale)
    if not found <= allowed:  # also where the difference is NaN
        raise ExportError(
            f"in {name} the exported graph differs from the network by {found:.3g}{what} at {where}; "
            f"{allowed:.3g} is allowed" + ("" if precision == "fp32" else f" in {precision}")
        )
    return difference


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
