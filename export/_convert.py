"""From a folded torch network to an ONNX graph, with torch.onnx and onnxscript's rewrite rules."""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import onnx
import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.onnx import OnnxExporterError

from ccnn_zoo._base.compat import TorchDispatchMode
from ccnn_zoo.errors import ExportError
from ccnn_zoo.metadata import ModelMetadata

from ._graph import BATCH, BRANCH_OUTPUT, INPUT, OUTPUT, ConvolutionKey

LARGEST_FILE = 2**31 - 1
"""Bytes that protobuf, the format of an ONNX file, can hold in one message."""

_LOGGERS = ("torch", "onnxscript", "onnx_ir")


def convert(
    network: nn.Module,
    metadata: ModelMetadata,
    opset: int,
    *,
    branch_outputs: bool = False,
    any_size: bool = False,
) -> onnx.ModelProto:
    """Translate a network that is folded and in eval mode, and write its metadata into the file.

    onnxscript's optimiser folds each batch normalisation into the grouped or plain convolution before it.

    Args:
        network: maps (N, C, H, W) to logits (N, classes).
        metadata: labels and preprocessing.
        opset: version of ONNX's operators.
        branch_outputs: make ``network.forward_branches`` the second output. What both outputs need is computed once.
        any_size: leave height and width open too.

    Raises:
        ExportError: the network has something that torch.onnx cannot translate, or is larger than one file can be.
    """
    _check_size(network)
    # Two images: of one, torch.export would take the batch size for fixed.
    example = torch.zeros(2, *metadata.input_size)
    outputs = [OUTPUT, BRANCH_OUTPUT] if branch_outputs else [OUTPUT]
    free = {0: BATCH, **({2: "height", 3: "width"} if any_size else {})}
    model = translate(
        _BothOutputs(network) if branch_outputs else network,
        (example,),
        metadata.architecture,
        prefix="network." if branch_outputs else "",
        input_names=[INPUT],
        output_names=outputs,
        dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in free.items()},),
        opset_version=opset,
    )
    onnx.helper.set_model_props(model, metadata.to_props())
    return model


def _check_size(folded: nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in folded.state_dict().values())
    if size > LARGEST_FILE:
        raise ExportError(
            f"the folded network holds {size / 1e9:.2f} GB of weights, one ONNX file at most "
            f"{LARGEST_FILE / 1e9:.2f} GB. Use fewer branches, grouped mixing or a narrower network."
        )


def translate(
    network: nn.Module, example: tuple[Tensor, ...], what: str, *, prefix: str = "", **options: Any
) -> onnx.ModelProto:
    """Translate a module that is folded and in eval mode, and let onnxscript's optimiser fold what it can.

    Args:
        network: the module.
        example: its arguments.
        what: name of the network, for the error message.
        prefix: what a wrapper put before the names of the weights; taken away again.
        options: further arguments of ``torch.onnx.export``.

    Raises:
        ExportError: the module has something that torch.onnx cannot translate.
    """
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                network, example, dynamo=True, external_data=False, optimize=False, verbose=False, **options
            )
            # Before the optimiser, which would fold a batch norm twice into convolutions that are then unlike.
            ir.passes.common.CommonSubexpressionEliminationPass()(program.model)
            program.optimize()
    except OnnxExporterError as error:
        reason = error.__cause__ or error
        raise ExportError(
            f"torch.onnx cannot translate {what}: {type(reason).__name__}: {str(reason).strip().splitlines()[0]}"
        ) from error
    if prefix:
        for value in tuple(program.model.graph.initializers.values()):
            value.name = value.name.removeprefix(prefix)
    # Nodes remember the source lines they came from, with paths of this machine.
    ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    return program.model_proto


class _BothOutputs(nn.Module):
    """Runs a network twice, for its logits and for those of its branches."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(image), self.network.forward_branches(image)


@torch.no_grad()
def count_convolutions(network: nn.Module, image: Tensor) -> Counter[ConvolutionKey]:
    """Run ``image`` (N, C, H, W) and return how often each kind of convolution ran: (weight shape, groups).

    Raises:
        ExportError: the network cannot run images of this size.
    """
    recorder = ConvolutionRecorder()
    try:
        with recorder:
            network(image)
    except (RuntimeError, AssertionError) as error:  # timm's own checks are assertions
        raise ExportError(
            f"the network cannot run an image of {tuple(image.shape[1:])}: {error}. Leave size out, and set the "
            'input_size that it was trained with in model.pretrained_cfg["input_size"].'
        ) from error
    return recorder.found


class ConvolutionRecorder(TorchDispatchMode):
    """Counts the convolutions that run inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[ConvolutionKey] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            weight, groups = args[1], args[8]
            self.found[tuple(weight.shape), groups] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what torch.onnx tells its developers; what matters to the user is raised."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
