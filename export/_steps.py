"""The steps of an export, from the network to checked files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import nn

from ccnn_zoo.convert import fold
from ccnn_zoo.errors import ConfigurationError, ExportError
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.metadata import ModelMetadata
from ccnn_zoo.uncertainty import Confidence, Measured, measure

from ._compare import BATCH_SIZES, Comparison, Run, compare, runner, session_of
from ._convert import convert, count_convolutions
from ._graph import BATCH, INPUT, Expected, GraphSummary, check_file, check_graph, summary_of
from ._half import choose_kept, emulate, to_half
from ._images import Probe
from ._measure import Timing, choose_fp32, choose_int8, timer
from ._metadata import metadata_of
from ._options import ANY, ExportOptions, check_precision
from ._preprocess import PreprocessingDifference, check_supported, measure_preprocessing, with_preprocessing
from ._quantize import Quantizer, images_for_ranges
from ._report import ExportReport
from ._uncertainty import add_confidence, fitted

LARGEST_FILE = 2**31 - 1
"""Bytes that protobuf, the format of an ONNX file, can hold in one message."""

_TIMED_BATCH = 8


@dataclass(frozen=True)
class _Variant:
    """The network's graph in one precision, and what became known while it was made."""

    graph: ModelProto
    judged: ModelProto | None = None  # what is compared in the file's place: see _half
    kept: dict[str, str] | None = None
    int8_images: int | None = None
    timing: Timing | None = None


class Exporter:
    """Exports one network in one or more precisions.

    Args:
        model: the network.
        precisions: those wanted.
        options: see :func:`ccnn_zoo.export.to_onnx`.

    Raises:
        ConfigurationError: an argument is out of range.
        MetadataError: labels or preprocessing are missing or contradict the network.
    """

    def __init__(self, model: nn.Module, precisions: tuple[str, ...], options: ExportOptions) -> None:
        for precision in precisions:
            check_precision(precision)
        if "int8" in precisions and options.int8_images is None:
            raise ConfigurationError(
                "int8 needs real images to measure ranges on: pass int8_images, a few hundred preprocessed images of "
                "the training set."
            )
        if options.branch_outputs and not callable(getattr(model, "forward_branches", None)):
            raise ConfigurationError(
                f"branch_outputs=True needs a network with forward_branches, {type(model).__name__} has none. Make it "
                'with timm.create_model("ccnn_...") or ccnn_zoo.calibrate, or leave branch_outputs out.'
            )
        self._precisions, self._options = precisions, options
        self._metadata = _sized(metadata_of(model, options.labels), options)
        if options.preprocess:
            check_supported(self._metadata)
        self._batch_sizes = BATCH_SIZES if options.batch is None else (options.batch,)
        classes = len(self._metadata.labels)
        size, count = self._metadata.input_size, max(self._batch_sizes)
        self._int8_images = images_for_ranges(options.int8_images, size, classes) if "int8" in precisions else None
        # Noise lies outside of the ranges that int8 is given.
        self._probe = Probe(options.images, size, classes, count, substitute=self._int8_images)
        self._held_out = None
        if options.held_out is not None:
            self._held_out = Probe(options.held_out, size, classes, 1, name="held_out")
            if not self._held_out.labelled:
                raise ConfigurationError("held_out must be images with their classes: pairs (images, classes)")
        self._network = deepcopy(model).to("cpu", torch.float32).eval()

    def write(self, files: Mapping[str, Path], named: Mapping[str, Path]) -> dict[str, ExportReport]:
        """Write and check the file of every precision.

        Args:
            files: by precision, where to write.
            named: by precision, what the report calls the file.

        Raises:
            ExportError: the network cannot be translated, or a file fails its check.
        """
        # A network may draw random numbers in eval mode too; the caller's go on as if nothing had run.
        with torch.random.fork_rng(devices=[]), ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ccnn-export-")))
            if self._options.size == ANY:
                self._check_any_size()
            core, expected, summary = self._translate(folder)
            if set(files) != {"fp32"}:
                self._compare({"fp32": runner(core)}, every_image=False)
            if self._options.size == ANY:
                compare(self._network, {"fp32": runner(core)}, self._other_size(), batch_sizes=(2,))
            variants = {precision: self._variant(precision, core, stack) for precision in files}
            preprocessing = self._measure_preprocessing(core)
            graphs, judged, own = {}, {}, {}
            for precision, variant in variants.items():
                graphs[precision], judged[precision], own[precision] = self._save(
                    precision, variant, files[precision], expected
                )
            found = self._compare(judged)
            numbers = {} if self._held_out is None else fitted(own, self._held_out)
            for precision, confidence in numbers.items():
                add_confidence(files[precision], confidence, outputs=True)
                graphs[precision] = summary_of(files[precision])
            return {
                precision: _report(
                    named[precision],
                    precision,
                    replace(graphs[precision], parameters=summary.parameters),
                    found[precision],
                    files[precision].stat().st_size,
                    variants[precision],
                    preprocessing,
                    numbers.get(precision),
                )
                for precision in files
            }

    def _translate(self, folder: Path) -> tuple[ModelProto, Expected, GraphSummary]:
        """Return the folded network's graph in float32, what it must hold, and what it holds."""
        options = self._options
        convolutions = count_convolutions(self._network, self._probe.batch[:1])
        folded = fold(self._network)
        _check_size(folded)
        any_size = options.size == ANY
        core = convert(folded, self._metadata, options.opset, branch_outputs=options.branch_outputs, any_size=any_size)
        calibrations = tuple(
            module.calibration.detach().numpy()
            for module in self._network.modules()
            if isinstance(module, CalibratedConv2d)
        )
        size = ("height", "width") if any_size else None
        expected = Expected(
            self._metadata, options.opset, convolutions, calibrations, options.branch_outputs, size=size
        )
        onnx.save(core, folder / "core.onnx")
        return core, expected, check_graph(folder / "core.onnx", expected)

    def _variant(self, precision: str, core: ModelProto, stack: ExitStack) -> _Variant:
        timed = self._probe.batch[: self._options.batch or _TIMED_BATCH].numpy()
        if precision == "int8":
            return self._quantised(core, timed, stack)
        if precision == "fp16":  # for GPUs: what this machine's CPU prefers says nothing of them
            kept = choose_kept(core, self._probe.batch)
            return _Variant(to_half(core, kept), emulate(core, kept), kept)
        if not self._options.measure:
            return _Variant(core)
        graph, timing = choose_fp32(core, timer(timed), len(timed), self._metadata.branches)
        return _Variant(graph, timing=timing)

    def _quantised(self, core: ModelProto, timed: np.ndarray, stack: ExitStack) -> _Variant:
        images = self._int8_images

        def quantizer_of(graph: ModelProto) -> Quantizer:
            quantizer = Quantizer(graph, images)
            stack.callback(quantizer.close)
            return quantizer

        if not self._options.measure:
            return _Variant(quantizer_of(core)(), int8_images=len(images))
        graph, timing = choose_int8(core, quantizer_of, timer(timed), len(timed), self._metadata.branches)
        return _Variant(graph, int8_images=len(images), timing=timing)

    def _measure_preprocessing(self, core: ModelProto) -> PreprocessingDifference | None:
        if not self._options.preprocess:
            return None
        return measure_preprocessing(self._metadata, self._options.opset, core.ir_version)

    def _save(self, precision: str, variant: _Variant, path: Path, expected: Expected) -> tuple[GraphSummary, Run, Run]:
        """Write the finished file; return what it holds, what is judged in its place, and what runs it.

        Both run preprocessed images.
        """
        options = self._options
        graph = ModelProto()
        graph.CopyFrom(variant.graph)
        if options.batch is not None:
            _fix_batch(graph, options.batch)
        judged = graph
        metadata = replace(self._metadata, preprocessing_in_graph=options.preprocess)
        if options.preprocess:
            graph = with_preprocessing(graph, self._metadata)
        properties = metadata.to_props() | ({} if precision == "fp32" else {"precision": precision})
        onnx.helper.set_model_props(graph, properties)
        onnx.save(graph, path)
        summary = check_file(path, replace(expected, metadata=metadata, batch=options.batch or BATCH))
        if options.preprocess:
            self._check_pictures(path)
        own = runner(judged if options.preprocess else path)
        if variant.judged is None:
            return summary, own, own
        self._compare({precision: own}, every_image=False)
        return summary, runner(variant.judged), own

    def _check_pictures(self, path: Path) -> None:
        """Run a file that takes pictures on a grey one."""
        channels, height, width = self._metadata.input_size
        picture = np.full((self._options.batch or 1, height + 3, width + 5, channels), 127, np.uint8)
        (logits, *_) = session_of(path).run(None, {INPUT: picture})
        if logits.shape != (len(picture), len(self._metadata.labels)) or not np.isfinite(logits).all():
            raise ExportError(f"the exported graph turns {picture.shape} pictures into logits {logits.shape}")

    def _compare(self, files: Mapping[str, Run], *, every_image: bool = True) -> dict[str, Comparison]:
        return compare(
            self._network,
            files,
            self._probe,
            branch_outputs=self._options.branch_outputs,
            batch_sizes=self._batch_sizes,
            every_image=every_image,
        )

    def _other_size(self) -> Probe:
        channels, height, width = self._metadata.input_size
        return Probe(None, (channels, height + 32, width + 64), len(self._metadata.labels), 2)

    @torch.no_grad()
    def _check_any_size(self) -> None:
        images = self._other_size().batch
        try:
            self._network(images)
        except (RuntimeError, AssertionError) as error:  # timm's own checks are assertions
            raise ExportError(
                f"size='any': the network cannot run images of {tuple(images.shape[1:])} ({error}). Leave size out."
            ) from error


def _report(
    path: Path,
    precision: str,
    graph: GraphSummary,
    comparison: Comparison,
    file_size: int,
    variant: _Variant,
    preprocessing: PreprocessingDifference | None,
    confidence: Confidence | None,
) -> ExportReport:
    images = comparison.images
    correct, torch_correct = comparison.correct, comparison.torch_correct
    return ExportReport(
        path=path,
        nodes=graph.nodes,
        parameters=graph.parameters,
        max_difference=max(difference.maximum for difference in comparison.differences),
        mean_difference=comparison.differences[-1].mean,
        differences=tuple(comparison.differences),
        agreement=comparison.agreeing / images if images else None,
        images=images,
        file_size=file_size,
        opset=graph.opset,
        branch_difference=comparison.branch_difference,
        precision=precision,
        accuracy=None if correct is None else 100 * correct / images,
        torch_accuracy=None if torch_correct is None else 100 * torch_correct / images,
        kept_fp32=variant.kept,
        int8_images=variant.int8_images,
        preprocessing=preprocessing,
        timing=variant.timing,
        confidence=confidence,
        measured=_measured(comparison, confidence),
    )


def _measured(comparison: Comparison, confidence: Confidence | None) -> Measured | None:
    """Measure the numbers that were fitted on the images of the comparison, where these came with classes."""
    if confidence is None or not comparison.targets:
        return None
    return measure(np.concatenate(comparison.logits), np.concatenate(comparison.targets), confidence)


def _sized(metadata: ModelMetadata, options: ExportOptions) -> ModelMetadata:
    if options.size in (None, ANY):
        return metadata
    return replace(metadata, input_size=(metadata.input_size[0], *options.size))


def _fix_batch(graph: ModelProto, batch: int) -> None:
    for value in (*graph.graph.input, *graph.graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param == BATCH:
                side.dim_value = batch
    del graph.graph.value_info[:]


def _check_size(folded: nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in folded.state_dict().values())
    if size > LARGEST_FILE:
        raise ExportError(
            f"the folded network holds {size / 1e9:.2f} GB of weights, one ONNX file at most "
            f"{LARGEST_FILE / 1e9:.2f} GB. Use fewer branches, grouped mixing or a narrower network."
        )
