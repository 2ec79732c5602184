"""An export: what may be asked of it, and its steps from the network to checked files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import nn

from ccnn_zoo._base.checks import check_integer, is_integer
from ccnn_zoo.convert import fold
from ccnn_zoo.errors import ConfigurationError, ExportError
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.metadata import check_precision

from ._compare import BATCH_SIZES, Comparison, compare
from ._convert import convert, count_convolutions
from ._graph import BATCH, DEFAULT_OPSET, INPUT, Expected, check_file, check_graph, summary_of
from ._metadata import metadata_of
from ._precisions import PRECISIONS, Made, Material
from ._preprocess import check_supported, measure_preprocessing, with_preprocessing
from ._probe import ImageBatches, Probe
from ._quantize import images_for_ranges
from ._report import ExportReport, reported
from ._session import Run, runner, session_of
from ._uncertainty import add_confidence, fitted

ANY = "any"
"""The size of the images is left open."""

_TIMED_BATCH = 8


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


@dataclass
class _File:
    """A file in the making.

    Attributes:
        precision: its precision.
        path: where it is written.
        made: its graph; figures are added to those it came with.
        run: what runs it on preprocessed images, once it is written.
    """

    precision: str
    path: Path
    made: Made
    run: Run | None = None


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
        needs_ranges = any(PRECISIONS[precision].needs_ranges for precision in precisions)
        if needs_ranges and options.int8_images is None:
            raise ConfigurationError(
                "int8 needs real images to measure ranges on: pass int8_images, a few hundred preprocessed images of "
                "the training set."
            )
        if options.branch_outputs and not callable(getattr(model, "forward_branches", None)):
            raise ConfigurationError(
                f"branch_outputs=True needs a network with forward_branches, {type(model).__name__} has none. Make it "
                'with timm.create_model("ccnn_...") or ccnn_zoo.calibrate, or leave branch_outputs out.'
            )
        self._options = options
        self._metadata = metadata_of(model, options.labels)
        if options.size not in (None, ANY):
            self._metadata = replace(self._metadata, input_size=(self._metadata.input_size[0], *options.size))
        if options.preprocess:
            check_supported(self._metadata)
        self._batch_sizes = BATCH_SIZES if options.batch is None else (options.batch,)
        classes = len(self._metadata.labels)
        size, count = self._metadata.input_size, max(self._batch_sizes)
        self._int8_images = images_for_ranges(options.int8_images, size, classes) if needs_ranges else None
        # Noise lies outside of the ranges that int8 is given.
        self._probe = Probe(options.images, size, classes, count, substitute=self._int8_images)
        self._held_out = None
        if options.held_out is not None:
            self._held_out = Probe(options.held_out, size, classes, 1, name="held_out")
            if not self._held_out.labelled:
                raise ConfigurationError("held_out must be images with their classes: pairs (images, classes)")
        self._network = deepcopy(model).to("cpu", torch.float32).eval()

    def write(self, paths: Mapping[str, Path], named: Mapping[str, Path]) -> dict[str, ExportReport]:
        """Write and check the file of every precision.

        Args:
            paths: by precision, where to write.
            named: by precision, what the report calls the file.

        Raises:
            ExportError: the network cannot be translated, or a file fails its check.
        """
        # A network may draw random numbers in eval mode too; the caller's go on as if nothing had run.
        with torch.random.fork_rng(devices=[]), ExitStack() as stack:
            core, expected, parameters = self._translated(stack)
            if set(paths) != {"fp32"}:
                self._compare({"fp32": runner(core)}, every_image=False)
            material = Material(
                core,
                self._probe.batch,
                self._int8_images,
                (self._options.batch or _TIMED_BATCH) if self._options.measure else None,
                self._metadata.branches,
                stack.callback,
            )
            files = [_File(name, path, PRECISIONS[name].make(material)) for name, path in paths.items()]
            together = {"parameters": parameters}
            if self._options.preprocess:
                found = measure_preprocessing(self._metadata, self._options.opset, core.ir_version)
                together["preprocessing"] = found
            judges = {file.precision: self._saved(file, expected) for file in files}
            compared = self._compare(judges)
            if self._held_out is not None:
                self._add_confidence(files)
            return {
                file.precision: reported(
                    named[file.precision],
                    file.precision,
                    file.path,
                    compared[file.precision],
                    file.made.figures | together,
                )
                for file in files
            }

    def _translated(self, stack: ExitStack) -> tuple[ModelProto, Expected, int]:
        """Return the folded network's graph in float32, what it must hold, and how many weights it does."""
        options = self._options
        any_size = options.size == ANY
        if any_size:
            self._check_any_size()
        convolutions = count_convolutions(self._network, self._probe.batch[:1])
        folded = fold(self._network)
        core = convert(folded, self._metadata, options.opset, branch_outputs=options.branch_outputs, any_size=any_size)
        calibrated = (module for module in self._network.modules() if isinstance(module, CalibratedConv2d))
        expected = Expected(
            self._metadata,
            options.opset,
            convolutions,
            tuple(module.calibration.detach().numpy() for module in calibrated),
            options.branch_outputs,
            size=("height", "width") if any_size else None,
        )
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ccnn-export-")), "core.onnx")
        onnx.save(core, path)
        summary = check_graph(path, expected)
        if any_size:
            compare(self._network, {"fp32": runner(core)}, self._other_size(), batch_sizes=(2,))
        return core, expected, summary.parameters

    def _saved(self, file: _File, expected: Expected) -> Run:
        """Write a finished file; return what runs that by which it is judged, on preprocessed images."""
        options, path = self._options, file.path
        graph = ModelProto()
        graph.CopyFrom(file.made.graph)
        if options.batch is not None:
            _fix_batch(graph, options.batch)
        core = graph
        metadata = replace(self._metadata, preprocessing_in_graph=options.preprocess)
        if options.preprocess:
            graph = with_preprocessing(graph, self._metadata)
        properties = metadata.to_props() | ({} if file.precision == "fp32" else {"precision": file.precision})
        onnx.helper.set_model_props(graph, properties)
        onnx.save(graph, path)
        summary = check_file(path, replace(expected, metadata=metadata, batch=options.batch or BATCH))
        file.made.figures |= vars(summary)
        if options.preprocess:
            self._check_pictures(path)
        file.run = runner(core if options.preprocess else path)
        if file.made.emulated is None:
            return file.run
        self._compare({file.precision: file.run}, every_image=False)
        return runner(file.made.emulated)

    def _add_confidence(self, files: Sequence[_File]) -> None:
        """Fit numbers of confidence for each file by its own logits, and write them into it."""
        found = fitted({file.precision: file.run for file in files}, self._held_out)
        for file in files:
            confidence = found[file.precision]
            add_confidence(file.path, confidence, outputs=True)
            file.made.figures |= {**vars(summary_of(file.path)), "confidence": confidence}

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


def _fix_batch(graph: ModelProto, batch: int) -> None:
    for value in (*graph.graph.input, *graph.graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param == BATCH:
                side.dim_value = batch
    del graph.graph.value_info[:]
