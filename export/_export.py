"""``to_onnx``: fold, translate, check, and only then put the file in its place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ccnn_zoo._files import replacing
from ccnn_zoo.convert import fold
from ccnn_zoo.errors import ConfigurationError, ExportError, RepositoryError
from ccnn_zoo.layers import CalibratedConv2d

from ._compare import BatchDifference, Probe, compare
from ._convert import convert, count_convolutions
from ._graph import Expected, check_graph
from ._metadata import metadata_of

DEFAULT_OPSET = 18
"""The version torch.onnx is written for, and the oldest it gives: the most runtimes read it."""

LARGEST_FILE = 2**31 - 1
"""Bytes that protobuf, the format of an ONNX file, can hold in one message."""


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and what its check measured.

    Args:
        path: the file.
        nodes: nodes of the graph by operator.
        parameters: floating-point weights in the file: effective kernels, with batch normalisation folded in where
            it follows a convolution.
        max_difference: largest absolute difference of a logit from the unfolded torch network, over all batch sizes.
        mean_difference: mean absolute difference at the largest batch size.
        differences: both, for each batch size.
        agreement: share of the given images on which the same class comes first; below 1 only by ties, None
            without images.
        images: number of images given.
        file_size: bytes.
        opset: version of ONNX's operators.
        branch_difference: largest absolute difference of a branch's logit, None where they are no output.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary that JSON can hold."""
        return {**asdict(self), "path": str(self.path), "differences": [asdict(d) for d in self.differences]}


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    images: Tensor | Iterable[Tensor] | None = None,
    labels: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
    branch_outputs: bool = False,
) -> ExportReport:
    """Export a classifier as one ONNX file that needs nothing else, and check it before it is put in its place.

    R and batch normalisation are folded into plain convolutions of K groups. The file maps ``image``, float32
    (batch, C, H, W) with any batch, to ``logits`` (batch, classes), and carries labels and preprocessing.

    Every time, the written file is checked: by ``onnx.checker`` in full; its operators are ONNX's own, its
    convolutions those that the network runs, nothing is copied (Tile, Expand), no R is left, and no batch
    normalisation that alone reads a convolution (pre-activation networks have others, which stay); its logits on
    onnxruntime's CPU provider are those of ``model`` before folding, in eval mode, within :data:`TOLERANCE` at batch
    sizes 1, 3 and 32; and on all ``images`` the same class comes first.

    Args:
        model: network made by ``timm.create_model``: calibrated, folded or plain, in either mode, on any device.
            It is left untouched.
        path: the file; an older one is replaced only by one that passed.
        images: preprocessed images to compare on, best all that were held out: a float tensor (N, C, H, W), or an
            iterable of such tensors or of single images (C, H, W), read once. None compares on seeded noise.
        labels: names of the classes, see :func:`metadata_of`.
        opset: version of ONNX's operators, 18 or later.
        branch_outputs: add a second output ``branch_logits``, (K, batch, classes): the logits of each branch alone,
            as ``model.forward_branches`` gives them and checked in the same way. No convolution runs twice for it.

    Raises:
        ExportError: the network cannot be translated or is larger than one ONNX file can be, or the file fails its
            check; nothing is left behind.
        MetadataError: labels or preprocessing are missing or contradict the network.
        ConfigurationError: ``images`` or ``opset`` is out of range, or ``branch_outputs`` are asked of a network
            that has no branches to ask.
        RepositoryError: the file cannot be written.
    """
    path = Path(path)
    if isinstance(opset, bool) or not isinstance(opset, int) or opset < DEFAULT_OPSET:
        raise ConfigurationError(f"opset must be an integer of at least {DEFAULT_OPSET}, got {opset!r}")
    if path.is_dir():
        raise RepositoryError(f"{path} is a folder. Pass a file name, e.g. {path / 'model.onnx'}.")
    if branch_outputs and not callable(getattr(model, "forward_branches", None)):
        raise ConfigurationError(
            f"branch_outputs=True needs a network with forward_branches, {type(model).__name__} has none. Make it with "
            'timm.create_model("ccnn_..."), or leave branch_outputs out.'
        )
    metadata = metadata_of(model, labels)
    probe = Probe(images, metadata.input_size)
    network = deepcopy(model).to("cpu", torch.float32).eval()
    # A network may draw random numbers in eval mode too; the caller's go on as if nothing had run.
    with torch.random.fork_rng(devices=[]), replacing(path) as temporary:
        convolutions = count_convolutions(network, probe.batch[:1])
        folded = fold(network)
        _check_size(folded)
        onnx.save(convert(folded, metadata, opset, branch_outputs=branch_outputs), temporary)
        expected = Expected(metadata, opset, convolutions, _calibrations(network), branch_outputs)
        graph = check_graph(temporary, expected)
        comparison = compare(network, temporary, probe, branch_outputs=branch_outputs)
        file_size = temporary.stat().st_size
    return ExportReport(
        path=path,
        nodes=graph.nodes,
        parameters=graph.parameters,
        max_difference=max(difference.maximum for difference in comparison.differences),
        mean_difference=comparison.differences[-1].mean,
        differences=comparison.differences,
        agreement=comparison.agreement,
        images=comparison.images,
        file_size=file_size,
        opset=graph.opset,
        branch_difference=comparison.branch_difference,
    )


def _calibrations(network: nn.Module) -> tuple[Any, ...]:
    return tuple(m.calibration.detach().numpy() for m in network.modules() if isinstance(m, CalibratedConv2d))


def _check_size(folded: nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in folded.state_dict().values())
    if size > LARGEST_FILE:
        raise ExportError(
            f"the folded network holds {size / 1e9:.2f} GB of weights, one ONNX file at most "
            f"{LARGEST_FILE / 1e9:.2f} GB. Use fewer branches, grouped mixing or a narrower network."
        )
