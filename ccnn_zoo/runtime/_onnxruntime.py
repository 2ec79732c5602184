"""Sessions of onnxruntime, and the backend that runs on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ccnn_zoo._base.compat import ort_errors
from ccnn_zoo.errors import ConfigurationError, DeviceError, IntegrityError

from ._backend import Backend, OpenOptions, Session, reason
from ._nvidia import on_device, wait_for_device

ONNXRUNTIME_ERRORS = (
    RuntimeError,
    ValueError,
    *(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
UNREADABLE_ERRORS = (ort_errors.InvalidProtobuf, ort_errors.InvalidGraph, ort_errors.InvalidArgument)

CPU_PROVIDER = "CPUExecutionProvider"
# DLPack's numbers of devices that onnxruntime's built-in providers know.
_PINNED = 3  # CPU memory that CUDA has made known to the GPU
_DEVICES = {1: "cpu", 2: "cuda", _PINNED: "cpu"}
_WORK = {
    "AveragePool",
    "BatchNormalization",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MatMul",
    "MatMulInteger",
    "MaxPool",
    "QLinearConv",
    "QLinearMatMul",
    "Relu",
    "Resize",
    "Softmax",
}
_LEGACY_STREAM = 1  # CUDA's default stream in DLPack


@dataclass(frozen=True)
class Cpu(Backend):
    """onnxruntime on the CPU; runs everywhere."""

    name = "cpu"

    def open(self, path: Path, options: OpenOptions) -> OrtSession:
        try:
            session = ort.InferenceSession(
                options.network(path), session_options(options.threads), providers=[CPU_PROVIDER], enable_fallback=0
            )
        except ONNXRUNTIME_ERRORS as error:
            raise unreadable(path, error) from error
        return OrtSession(session, "cpu")


class OrtSession(Session):
    """A session of onnxruntime on any of its providers.

    Args:
        session: the open session.
        device: where it runs; for tensors that lie there, onnxruntime's own name of it (``"cuda"``).
        stream: handle of the CUDA stream that the session computes on, if the user gave one.
        device_id: which of several such devices.
    """

    def __init__(
        self, session: ort.InferenceSession, device: str, stream: int | None = None, device_id: int = 0
    ) -> None:
        self.provider: str = session.get_providers()[0]
        self.device = device
        self._session = session
        self._stream = stream
        self._device_id = device_id
        self._input = session.get_inputs()[0]
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, batch: NDArray) -> Mapping[str, NDArray]:
        try:
            values = self._session.run(self._outputs, {self._input.name: batch})
        except ONNXRUNTIME_ERRORS as error:
            raise self.failed(len(batch), error) from error
        return dict(zip(self._outputs, values, strict=True))

    def run_tensor(self, tensor: object) -> Mapping[str, ort.OrtValue]:
        """Bind the tensor's own memory as the input; the outputs are made on the tensor's device."""
        value, device, index = self._shared(tensor)
        binding = self._session.io_binding()
        try:
            binding.bind_ortvalue_input(self._input.name, value)
            for name in self._outputs:
                binding.bind_output(name, device, index)
            if device != "cpu" and self._stream is None:
                wait_for_device(index)  # the session's own stream knows nothing of the tensor's
            self._session.run_with_iobinding(binding)
            if self._stream is None:  # else the run itself has waited for the stream, and this would for the device
                binding.synchronize_outputs()
            values = binding.get_outputs()
        except ONNXRUNTIME_ERRORS as error:
            raise self.failed(value.shape()[0], error) from error
        return dict(zip(self._outputs, values, strict=True))

    def failed(self, images: int, error: Exception) -> DeviceError:
        """Return the error of a run that failed."""
        return DeviceError(
            f"{self.provider} failed on a batch of {images}: {reason(error)} If memory ran out, lower batch_size."
        )

    def _shared(self, tensor: object) -> tuple[ort.OrtValue, str, int]:
        """Return a value of onnxruntime over the tensor's memory, and where that is."""
        try:
            kind, index = map(int, tensor.__dlpack_device__())
        except (BufferError, RuntimeError, TypeError, ValueError) as error:  # e.g. a meta tensor, which has no memory
            raise ConfigurationError(
                f"this {type(tensor).__name__} lies nowhere that others could read it ({reason(error)}). Pass one in "
                "CPU memory or on the network's device."
            ) from error
        device = _DEVICES.get(kind)
        if device not in ("cpu", self.device):
            where = device or f"a device of DLPack's type {kind}"
            raise ConfigurationError(
                f"the batch lies on {where}, the network runs on {self.device}. Move either of them."
            )
        if device != "cpu" and index != self._device_id:
            raise ConfigurationError(
                f"the batch lies on GPU {index}, the network runs on GPU {self._device_id}. Move either of them."
            )
        try:
            value = self._exported(tensor, kind, index)
        except DeviceError:
            raise
        except (BufferError, TypeError, *ONNXRUNTIME_ERRORS) as error:
            raise ConfigurationError(
                f"this {type(tensor).__name__} cannot be shared ({reason(error)}). Pass a contiguous one without "
                "gradient: tensor.detach().contiguous()."
            ) from error
        if value.data_type() != self._input.type:
            raise ConfigurationError(f"predict takes {self._input.type}, got {value.data_type()}. Convert it first.")
        return value, device, 0 if device == "cpu" else index

    def _exported(self, tensor: object, kind: int, index: int) -> ort.OrtValue:
        if kind == _PINNED:  # onnxruntime takes no such tensor, numpy does
            array = np.from_dlpack(tensor)
            if not array.flags.c_contiguous:
                raise BufferError("it is not contiguous")
            return ort.OrtValue.ortvalue_from_numpy(array)
        if _DEVICES[kind] == "cpu":
            return ort.OrtValue.from_dlpack(tensor.__dlpack__())
        with on_device(index):  # torch exports tensors of the current GPU alone
            # The tensor's library makes the stream named here wait for what it still has to write.
            return ort.OrtValue.from_dlpack(tensor.__dlpack__(stream=self._stream or _LEGACY_STREAM))


def session_options(threads: int | None, *, strict: bool = False, recorded: bool = False) -> ort.SessionOptions:
    """Return options for a session.

    Args:
        threads: CPU threads of one inference; None lets onnxruntime take all cores.
        strict: refuse a network of which a part would run on the CPU, and all of one whose provider does not start.
        recorded: keep which provider took which node, for :func:`work_on_cpu`.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # all that onnxruntime would print as an error is also raised
    if threads is not None:
        options.intra_op_num_threads = threads
    if strict:
        # Without this key onnxruntime gives a CPU session when CUDA does not start.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if recorded:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def work_on_cpu(session: ort.InferenceSession) -> tuple[str, ...]:
    """Return the operators on pictures and features that the CPU provider took; arithmetic on sizes does not count."""
    on_cpu = (part for part in session.get_provider_graph_assignment_info() if part.ep_name == CPU_PROVIDER)
    return tuple(sorted({node.op_type for part in on_cpu for node in part.get_nodes()} & _WORK))


def check_readable(network: bytes, path: Path) -> None:
    """Let onnxruntime read a network for a backend whose own parser crashes on malformed ones (OpenVINO's does).

    Raises:
        IntegrityError: onnxruntime cannot read it either.
    """
    options = session_options(1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        ort.InferenceSession(network, options, providers=[CPU_PROVIDER], enable_fallback=0)
    except ONNXRUNTIME_ERRORS as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> IntegrityError:
    """Return the error of a file that onnxruntime cannot read."""
    return IntegrityError(
        f"{path} is damaged, or no ONNX network that onnxruntime {ort.__version__} can run ({reason(error)}). "
        "Download or export it again; if it is newer than this onnxruntime, update that."
    )
