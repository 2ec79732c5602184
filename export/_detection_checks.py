"""What the file of a detector may hold: ONNX's own operators without control flow, and folded weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccnn_zoo._files.onnx_contents import refused_network
from ccnn_zoo.errors import ExportError
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.metadata import DetectorMetadata

from . import _graph
from ._convert import ConvolutionRecorder
from ._detection_graph import BOXES, DETECTIONS, LABELS, SCORES
from ._graph import INPUT, ConvolutionKey, GraphSummary

_CONTROL_FLOW = ("If", "Loop", "Scan")
_INTERFACE = [
    (INPUT, "FLOAT", 1, 3, "height", "width"),
    (BOXES, "FLOAT", DETECTIONS, 4),
    (LABELS, "INT64", DETECTIONS),
    (SCORES, "FLOAT", DETECTIONS),
]


@torch.no_grad()
def convolutions_of(detector: nn.Module, picture: Tensor) -> Counter[ConvolutionKey]:
    """Run a picture (3, H, W) and return how often each kind of convolution ran: (weight shape, groups)."""
    with ConvolutionRecorder() as recorder:
        detector([picture])
    return recorder.found


def check_detector_file(
    path: Path, detector: nn.Module, metadata: DetectorMetadata, opset: int, convolutions: Counter[ConvolutionKey]
) -> GraphSummary:
    """Read the file of a detector, refuse what must not be in it, and count what is.

    Args:
        path: the file.
        detector: the unfolded network.
        metadata: what the file must carry.
        opset: the version of ONNX's operators that it must have.
        convolutions: of the network, see :func:`convolutions_of`.

    Raises:
        ExportError: something is not as it must be; names the first reason.
    """
    refused = refused_network(path)
    if refused:
        raise ExportError(f"the exported graph {refused}, which the runtime refuses")
    model = _graph.load_graph(path)
    nodes = model.graph.node
    flow = sorted({node.op_type for node in nodes} & set(_CONTROL_FLOW))
    if flow:
        raise ExportError(f"the exported graph has control flow ({', '.join(flow)}), which not every runtime has")
    _graph.check_self_contained(model, nodes)
    _graph.check_batch_norms(model, nodes)
    _graph.check_convolutions(model, nodes, convolutions)
    _graph.check_no_calibration(model, _calibrations(detector))
    _graph.check_interface(model, opset, _INTERFACE, metadata)
    return _graph.summarised(model, nodes)


def _calibrations(detector: nn.Module) -> Iterator[NDArray[np.float32]]:
    return (m.calibration.detach().numpy() for m in detector.modules() if isinstance(m, CalibratedConv2d))
