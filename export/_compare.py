"""Does the exported file give the logits of the network? Measured on onnxruntime's CPU provider.

Two implementations of float32 arithmetic round differently, in proportion to the numbers they add up. So the
allowed difference is :data:`TOLERANCE` for logits up to 1, and grows with the largest logit above that: 1e-4 of it.
Where all logits are smaller than 0.01, an absolute 1e-4 would accept anything, and 1% of the largest is allowed.
What the differences really are stands in the report; for ResNets they are near 1e-6 of the largest logit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor, nn

from ccnn_zoo.errors import ConfigurationError, ExportError

from ._graph import BRANCH_OUTPUT, INPUT, OUTPUT

TOLERANCE = 1e-4
"""Allowed difference of a logit, relative to the largest one or to 1, whichever is larger."""

BATCH_SIZES = (1, 3, 32)
"""Numbers of images for which the outputs are compared."""

TIE = 1e-5
"""Two logits nearer than this share of an image's largest one are tied: rounding decides which is first."""

_CHUNK = 8  # images that torch computes at once: the activations of 32 at 224 x 224 take gigabytes
_ORT_ERRORS = (
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


@dataclass(frozen=True)
class Comparison:
    """What was measured: differences by batch size, images compared, and the share with the same arg-max.

    ``branch_difference`` is the largest difference of a branch's logit, None where they are no output.
    """

    differences: tuple[BatchDifference, ...]
    images: int
    agreement: float | None
    branch_difference: float | None


class Probe:
    """The images that the outputs are compared on.

    Args:
        images: preprocessed images of the caller, see :func:`ccnn_zoo.export.to_onnx`; None for seeded noise.
        input_size: (C, H, W) of one image.

    Attributes:
        batch: (32, C, H, W), the first images of the caller (again from the first where they are fewer), or noise.

    Raises:
        ConfigurationError: an image has another type or shape, is not finite, or there is none.
    """

    def __init__(self, images: Tensor | Iterable[Tensor] | None, input_size: tuple[int, int, int]) -> None:
        largest = max(BATCH_SIZES)
        self._stream: Iterator[Tensor] = iter(())
        if images is None:
            self._first: list[Tensor] = []
            self.batch = torch.randn(largest, *input_size, generator=torch.Generator().manual_seed(0))
            return
        self._stream = _single_images(images, input_size)
        self._first = list(islice(self._stream, largest))
        if not self._first:
            raise ConfigurationError("images is empty. Pass preprocessed images, or leave it out to compare on noise.")
        repeated = [self._first[i % len(self._first)] for i in range(largest)]
        self.batch = torch.stack(repeated)

    def batches(self) -> Iterator[Tensor]:
        """Yield all images of the caller once, (N, C, H, W), at most 32 at a time."""
        stream = chain(self._first, self._stream)
        while batch := list(islice(stream, max(BATCH_SIZES))):
            yield torch.stack(batch)


def compare(network: nn.Module, path: Path, probe: Probe, *, branch_outputs: bool = False) -> Comparison:
    """Run network and file on the same images.

    Args:
        network: the unfolded network, in eval mode on the CPU.
        path: the file exported from it.
        probe: the images.
        branch_outputs: compare the logits of every branch too, in the same way.

    Raises:
        ExportError: the logits differ by more than the tolerance, are not finite, or another class comes first on
            an image of the caller where the first two are not tied.
    """
    methods: dict[str, Callable[[Tensor], Tensor]] = {OUTPUT: network}
    if branch_outputs:
        methods[BRANCH_OUTPUT] = network.forward_branches
    in_torch, in_onnx = _torch_runner(methods), _onnx_runner(path, list(methods))
    differences: dict[str, list[BatchDifference]] = {name: [] for name in methods}
    references = in_torch(probe.batch)
    for size in BATCH_SIZES:
        found = in_onnx(probe.batch[:size])
        for name, reference in references.items():
            expected, where = reference[..., :size, :], f"batch size {size}"
            difference = _difference(name, found[name], expected, _tolerance(name, reference), where)
            differences[name].append(BatchDifference(size, float(difference.max()), float(difference.mean())))
    images, agreeing = _compare_all(in_onnx, in_torch, probe)
    return Comparison(
        differences=tuple(differences[OUTPUT]),
        images=images,
        agreement=agreeing / images if images else None,
        branch_difference=max(d.maximum for d in differences[BRANCH_OUTPUT]) if branch_outputs else None,
    )


def _compare_all(in_onnx: Run, in_torch: Run, probe: Probe) -> tuple[int, int]:
    """Return the number of the caller's images, and on how many of them the same class comes first."""
    images, agreeing = 0, 0
    for batch in probe.batches():
        found = in_onnx(batch)
        for name, theirs in in_torch(batch).items():
            ours = found[name]
            _difference(name, ours, theirs, _tolerance(name, theirs), f"images {images} to {images + len(batch) - 1}")
            if name == OUTPUT:
                agreeing += _agreeing(name, ours, theirs, images)
            else:
                for k in range(len(theirs)):
                    _agreeing(f"{name}[{k}]", ours[k], theirs[k], images)
        images += len(batch)
    return images, agreeing


def _torch_runner(methods: dict[str, Callable[[Tensor], Tensor]]) -> Run:
    @torch.no_grad()
    def run(batch: Tensor) -> dict[str, Logits]:
        chunks = batch.split(_CHUNK)
        return {name: torch.cat([method(c) for c in chunks], dim=-2).numpy() for name, method in methods.items()}

    return run


def _onnx_runner(path: Path, outputs: list[str]) -> Run:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what onnxruntime would print as an error is also raised
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        raise ExportError(f"onnxruntime {ort.__version__} cannot load the exported graph: {error}") from error

    def run(batch: Tensor) -> dict[str, Logits]:
        try:
            return dict(zip(outputs, session.run(outputs, {INPUT: batch.numpy()}), strict=True))
        except _ORT_ERRORS as error:
            raise ExportError(f"the exported graph fails on a batch of {len(batch)}: {error}") from error

    return run


def _tolerance(name: str, reference: Logits) -> float:
    """Return the allowed difference of logits, see the module's docstring."""
    if not np.isfinite(reference).all():
        raise ExportError(
            f"the network itself gives {name} that are not finite. Its weights or the images are damaged."
        )
    largest = float(np.abs(reference).max())
    return min(TOLERANCE * max(1.0, largest), 0.01 * largest)


def _difference(name: str, ours: Logits, theirs: Logits, tolerance: float, where: str) -> Logits:
    if ours.shape != theirs.shape:
        raise ExportError(f"the exported graph gives {name} {ours.shape} for {where}, the network {theirs.shape}")
    difference = np.abs(ours - theirs)
    if not (difference <= tolerance).all():  # also where the difference is NaN
        raise ExportError(
            f"in {name} the exported graph differs from the network by {difference.max():.3g} at {where}; "
            f"{tolerance:.3g} is allowed"
        )
    return difference


def _agreeing(name: str, ours: Logits, theirs: Logits, first: int) -> int:
    """Return for how many images the same class comes first; a difference is forgiven only for a tie in torch."""
    rows, chosen = np.arange(len(ours)), ours.argmax(1)
    same = chosen == theirs.argmax(1)
    margin = theirs.max(1) - theirs[rows, chosen]
    wrong = ~same & (margin > TIE * np.abs(theirs).max(1))
    if wrong.any():
        row = int(wrong.argmax())
        raise ExportError(
            f"in {name} the exported graph puts class {chosen[row]} first on image {first + row}, the network class "
            f"{theirs[row].argmax()}, ahead by {margin[row]:.3g}"
        )
    return int(same.sum())


def _single_images(images: Tensor | Iterable[Tensor], input_size: tuple[int, int, int]) -> Iterator[Tensor]:
    for number, item in enumerate([images] if isinstance(images, Tensor) else images):
        if not isinstance(item, Tensor) or not item.is_floating_point():
            found = f"{item.dtype} tensor" if isinstance(item, Tensor) else type(item).__name__
            raise ConfigurationError(f"images[{number}] is a {found}. Pass float tensors as the transform makes them.")
        if item.dim() not in (3, 4) or item.shape[-3:] != input_size:
            raise ConfigurationError(
                f"images[{number}] has shape {tuple(item.shape)}, the network's pretrained_cfg says {input_size}"
            )
        if not item.isfinite().all():
            raise ConfigurationError(f"images[{number}] is not finite everywhere; check its normalisation")
        item = item.detach().to("cpu", torch.float32)
        yield from item.unsqueeze(0) if item.dim() == 3 else item
