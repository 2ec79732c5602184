"""``to_onnx`` and ``to_folder``: fold, translate, change the precision, check, and only then put files in place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from ccnn_zoo._base.wrapped import unwrapped, usual_settings
from ccnn_zoo._files import replacing
from ccnn_zoo.errors import ConfigurationError, RepositoryError
from ccnn_zoo.metadata import FILES, check_precision

from ._exporter import Exporter, ExportOptions
from ._graph import DEFAULT_OPSET
from ._probe import ImageBatches
from ._report import ExportReport


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    images: ImageBatches | None = None,
    int8_images: ImageBatches | None = None,
    labels: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
    branch_outputs: bool = False,
    batch: int | None = None,
    size: tuple[int, int] | str | None = None,
    preprocess: bool = False,
    measure: bool = False,
    held_out: ImageBatches | None = None,
) -> ExportReport:
    """Export a classifier as one ONNX file that needs nothing else, and check it before it is put in its place.

    R and batch normalisation are folded into plain convolutions of K groups. The file maps ``image``, float32
    (batch, C, H, W) with any batch, to ``logits`` (batch, classes), both float32 in every precision, and carries
    labels and preprocessing.

    Every time, the graph is checked: by ``onnx.checker`` in full; its operators are ONNX's own, its convolutions
    those that the network runs, nothing is copied (Tile, Expand), no R is left, and no batch normalisation that
    alone reads a convolution (pre-activation networks have others, which stay); its logits on onnxruntime's CPU
    provider are those of ``model`` before folding, in eval mode, at batch sizes 1, 3 and 32 and on all ``images``,
    within the tolerance of the precision: see ``ccnn_zoo.export._precisions``, where each is justified. In fp32 the
    same class comes first on all images; of fp16 and int8 the report says on how many.

    Args:
        model: network made by ``timm.create_model``: calibrated, folded or plain, in either mode, on any device.
            It is left untouched. torch.compile is looked through, and what else is set (autocast, inference mode,
            default dtype and device) does not matter.
        path: the file; an older one is replaced only by one that passed.
        precision: ``"fp32"``; ``"fp16"``, half precision except in nodes that overflow or lose accuracy in it; or
            ``"int8"``, quantised per channel by ranges that are measured on ``int8_images``.
        images: preprocessed images to compare on, best all that were held out: a float tensor (N, C, H, W), or an
            iterable of such tensors or of single images (C, H, W), or of pairs of these with their classes, from
            which the accuracy is measured; read once. None compares on ``int8_images``, or on seeded noise.
        int8_images: for int8, images in the same forms, best of the training set, on which the ranges of its numbers
            are measured (what others call calibration, which here is R); the first 512 are taken.
        labels: names of the classes, see :func:`metadata_of`.
        opset: version of ONNX's operators, 18 or later.
        branch_outputs: add a second output ``branch_logits``, (K, batch, classes): the logits of each branch alone,
            as ``model.forward_branches`` gives them and checked in the same way. No convolution runs twice for it.
        batch: fix the number of images; None leaves it open.
        size: (height, width) of the images instead of the network's own; ``"any"`` leaves it open.
        preprocess: put resizing, cropping and normalising into the graph, whose input then is uint8
            (batch, height, width, C), pictures of any size.
        measure: time forms of the network on this machine, with ``batch`` images or 8. In fp32 and int8 it is written
            branch by branch, or with separate convolutions for grouped ones, where that is faster, and int8 is kept
            only where it is. The report says both. fp16, which is for GPUs, stays as it is.
        held_out: images with their classes, in the forms of ``images``, at least 100, that were used neither for
            training nor for testing. By each file's own logits on them, on onnxruntime's CPU provider, its numbers of
            confidence are fitted (:func:`ccnn_zoo.uncertainty.fit`), written into it, and given by further outputs
            (:func:`add_confidence`).

    Raises:
        ExportError: the network cannot be translated or is larger than one ONNX file can be, or the file fails its
            check; nothing is left behind.
        MetadataError: labels or preprocessing are missing or contradict the network.
        ConfigurationError: an argument is out of range, int8 comes without ``int8_images``, ``held_out`` are too few or
            without classes, ``branch_outputs`` are asked of a network that has no branches to ask, or ``model`` is a
            wrapper (DataParallel, DDP, EMA).
        RepositoryError: the file cannot be written.
    """
    path = Path(path)
    options = ExportOptions(
        images=images,
        int8_images=int8_images,
        labels=labels,
        opset=opset,
        branch_outputs=branch_outputs,
        batch=batch,
        size=size,
        preprocess=preprocess,
        measure=measure,
        held_out=held_out,
    )
    return _export(model, {precision: path}, options)[precision]


def to_folder(
    model: nn.Module, folder: str | os.PathLike[str], precisions: Iterable[str] = ("fp32",), **options: Any
) -> dict[str, ExportReport]:
    """Export a classifier in several precisions at once, named as on the Hub.

    No file is put in its place before all have passed their checks. The files are then renamed one by one.

    Args:
        model: as of :func:`to_onnx`.
        folder: gets ``onnx/model.onnx``, ``onnx/model_fp16.onnx`` and ``onnx/model_quantized.onnx``.
        precisions: those wanted.
        options: further arguments of :func:`to_onnx`.

    Returns:
        the report of each precision.

    Raises: as :func:`to_onnx`.
    """
    wanted = list(precisions)
    if isinstance(precisions, str) or not wanted:
        raise ConfigurationError(f"precisions must be a list of {', '.join(FILES)}, got {precisions!r}")
    for precision in wanted:
        check_precision(precision)
    paths = {precision: Path(folder) / FILES[precision] for precision in wanted}
    return _export(model, paths, ExportOptions(**options))


@usual_settings()
def _export(model: nn.Module, paths: dict[str, Path], options: ExportOptions) -> dict[str, ExportReport]:
    for path in paths.values():
        if path.is_dir():
            raise RepositoryError(f"{path} is a folder. Pass a file name, e.g. {path / 'model.onnx'}, or move it away.")
    exporter = Exporter(unwrapped(model), tuple(paths), options)
    with ExitStack() as stack:
        temporary = {precision: stack.enter_context(replacing(path)) for precision, path in paths.items()}
        return exporter.write(temporary, paths)
