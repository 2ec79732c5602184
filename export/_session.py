"""Graphs on onnxruntime's CPU provider."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor

from ccnn_zoo._base.compat import ort_errors
from ccnn_zoo.errors import ExportError

from ._graph import INPUT

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
