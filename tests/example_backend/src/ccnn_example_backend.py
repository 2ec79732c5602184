"""onnx's own reference evaluator as a backend: slow, and right by definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from ccnn_zoo.runtime import Backend, OpenOptions, Session


class Reference(Backend):
    name = "reference"

    def open(self, path: Path, options: OpenOptions) -> Session:
        return _Session(ReferenceEvaluator(onnx.load_from_string(options.network(path))))


class _Session(Session):
    provider = "onnx.reference"
    device = "cpu"

    def __init__(self, evaluator: ReferenceEvaluator) -> None:
        self._evaluator = evaluator

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        (name,) = self._evaluator.input_names
        return dict(zip(self._evaluator.output_names, self._evaluator.run(None, {name: batch}), strict=True))
