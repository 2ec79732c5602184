"""OpenVINO's own runtime, which reads ONNX; on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from ccnn_zoo._base.checks import check_choice
from ccnn_zoo.errors import DeviceError, IntegrityError

from ._backend import Backend, OpenOptions, Problem, Session, reason
from ._onnxruntime import check_readable

if TYPE_CHECKING:
    import openvino

INSTALL = 'pip install "ccnn-zoo[openvino]"'
_HINTS = ("latency", "throughput")


@dataclass(frozen=True)
class OpenVino(Backend):
    """OpenVINO on the CPU, in single precision.

    Args:
        hint: what to compile for, ``"latency"`` or ``"throughput"``.
        bfloat16: let OpenVINO compute in bfloat16 where the CPU can; three digits of the logits remain.

    Raises:
        ConfigurationError: a value outside its range.
    """

    hint: str = "latency"
    bfloat16: bool = False
    name = "openvino"

    def __post_init__(self) -> None:
        check_choice("hint", self.hint, _HINTS)

    def problem(self) -> Problem | None:
        return None if find_spec("openvino") else Problem("the package openvino is not installed.", INSTALL)

    def open(self, path: Path, options: OpenOptions) -> Session:
        problem = self.problem()
        if problem is not None:
            raise DeviceError(f"OpenVINO cannot run: {problem} Or pass device='cpu'.")
        if options.dtype == "uint8":
            # Measured with version 2026.4: it leaves out the filter that a smaller picture needs, and says nothing.
            raise DeviceError(
                f"OpenVINO resizes pictures otherwise than {path} says. Export it without --preprocess, or pass "
                "device='cpu'."
            )
        import openvino

        network = options.network(path)
        check_readable(network, path)
        core = openvino.Core()
        # OpenVINO takes bfloat16 by itself wherever the CPU has it.
        config = {
            "PERFORMANCE_HINT": self.hint.upper(),
            "INFERENCE_PRECISION_HINT": "bf16" if self.bfloat16 else "f32",
        }
        if options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(options.threads)
        try:
            return _Session(core.compile_model(core.read_model(network), "CPU", config))
        except (RuntimeError, ValueError) as error:
            raise IntegrityError(
                f"{path} is damaged, or no ONNX network that OpenVINO {openvino.__version__} can run "
                f"({reason(error)}). Download or export it again, or pass device='cpu'."
            ) from error


class _Session(Session):
    provider = "OpenVINO"
    device = "openvino"

    def __init__(self, network: openvino.CompiledModel) -> None:
        self._network = network
        self._names = [output.any_name for output in network.outputs]
        self._requests = threading.local()  # a request is one inference; threads must not share one

    def run(self, batch: NDArray) -> Mapping[str, NDArray]:
        request = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._network.create_infer_request()
        try:
            results = request.infer([batch], share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise DeviceError(
                f"OpenVINO failed on a batch of {len(batch)}: {reason(error)} If memory ran out, lower batch_size."
            ) from error
        return {name: results[i] for i, name in enumerate(self._names)}
