"""onnxruntime on NVIDIA GPUs: its CUDA and TensorRT providers. What was asked for runs there, or is an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ccnn_zoo._base.checks import check_choice, check_integer
from ccnn_zoo.errors import ConfigurationError, DeviceError

from . import _nvidia
from ._backend import Backend, OpenOptions, Problem, Session, reason
from ._onnxruntime import ONNXRUNTIME_ERRORS, UNREADABLE_ERRORS, OrtSession, session_options, unreadable, work_on_cpu

CONV_SEARCHES = ("heuristic", "exhaustive", "default")
_OR_CPU = "Or pass device='cpu'."
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


@dataclass(frozen=True)
class Cuda(Backend):
    """onnxruntime's CUDA provider.

    Args:
        device_id: number of the GPU.
        conv_search: how cuDNN chooses algorithms: ``"heuristic"``, ``"exhaustive"`` (times every new shape anew),
            ``"default"`` (many times slower since cuDNN's frontend), or ``"measure"``: all three are timed on the
            usual batch when the file is opened, and the fastest is kept.
        cuda_graph: record the GPU's work once and replay it: for small networks, where starting kernels costs more
            than running them. Every run takes as many images as ``batch_size`` says, fewer are padded; runs of one
            session wait for each other.
        stream: handle of a CUDA stream of your own to compute on, e.g. ``torch.cuda.Stream().cuda_stream``.
            Tensors are then ordered by the stream, and nothing waits for the whole device, but for ``cuda_graph``.
            Keep the stream alive as long as the session.

    Raises:
        ConfigurationError: a value outside its range.
    """

    device_id: int = 0
    conv_search: str = "heuristic"
    cuda_graph: bool = False
    stream: int | None = None
    name = "cuda"

    def __post_init__(self) -> None:
        check_choice("conv_search", self.conv_search, (*CONV_SEARCHES, "measure"))
        _check_gpu(self.device_id, self.stream)

    def problem(self) -> Problem | None:
        return _nvidia.cuda_problem()

    def open(self, path: Path, options: OpenOptions) -> Session:
        _require(self.problem(), "CUDA")
        if self.conv_search != "measure":
            return self._open(path, options, self.conv_search)
        return measured(lambda search: self._open(path, options, search), CONV_SEARCHES, options).session

    def provider(self, conv_search: str) -> tuple[str, dict[str, str]]:
        """Return onnxruntime's name and options of this provider."""
        chosen = {"device_id": str(self.device_id), "cudnn_conv_algo_search": conv_search.upper()}
        if self.cuda_graph:
            chosen["enable_cuda_graph"] = "1"
        if self.stream is not None:
            chosen |= {"has_user_compute_stream": "1", "user_compute_stream": str(self.stream)}
        return _nvidia.CUDA_PROVIDER, chosen

    def _open(self, path: Path, options: OpenOptions, conv_search: str) -> OrtSession:
        session = _open_strictly(path, options, [self.provider(conv_search)], "CUDA")
        if self.cuda_graph:
            return GraphSession(session, options, "cuda", self.device_id)
        return OrtSession(session, "cuda", self.stream, self.device_id)


@dataclass(frozen=True)
class TensorRT(Backend):
    """onnxruntime's TensorRT provider; what TensorRT leaves runs on CUDA. Building an engine takes minutes.

    An engine is for one shape: every run takes as many images as ``batch_size`` says, fewer are padded.

    Args:
        device_id: number of the GPU.
        fp16: let TensorRT compute in half precision.
        cache: folder in which built engines are kept. They are code: use one that only you can write.
        stream: as :class:`Cuda` has it.

    Raises:
        ConfigurationError: a value outside its range.
    """

    device_id: int = 0
    fp16: bool = False
    cache: Path | None = None
    stream: int | None = None
    name = "tensorrt"

    def __post_init__(self) -> None:
        _check_gpu(self.device_id, self.stream)

    def problem(self) -> Problem | None:
        return _nvidia.tensorrt_problem()

    def open(self, path: Path, options: OpenOptions) -> Session:
        _require(self.problem(), "TensorRT")
        session = OrtSession(
            _open_strictly(path, options, self.providers(), "TensorRT"), "cuda", self.stream, self.device_id
        )
        session.fixed_batch = options.shape[0]
        return session

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """Return onnxruntime's names and options of this provider and of CUDA, which runs the rest."""
        # Unlike CUDA's, TensorRT's options read "True" and "False" alone, and infer has_user_compute_stream.
        chosen = {"device_id": str(self.device_id), "trt_fp16_enable": str(bool(self.fp16))}
        if self.cache is not None:
            chosen |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(self.cache)}
        if self.stream is not None:
            chosen["user_compute_stream"] = str(self.stream)
        return [
            ("TensorrtExecutionProvider", chosen),
            Cuda(self.device_id, stream=self.stream).provider("heuristic"),
        ]


class GraphSession(OrtSession):
    """A session that replays one CUDA graph: buffers with fixed addresses, one batch size, one run at a time.

    onnxruntime keeps the graph per thread, so all runs happen in one thread of the session's own.
    """

    def __init__(self, session: ort.InferenceSession, options: OpenOptions, device: str, device_id: int) -> None:
        super().__init__(session, device, device_id=device_id)
        self.fixed_batch = options.shape[0]
        self._caller = ThreadPoolExecutor(1, thread_name_prefix="ccnn-cuda-graph")
        self._caller.submit(self._capture, options).result()

    def run(self, batch: NDArray) -> Mapping[str, NDArray]:
        return self._caller.submit(self._replay, batch).result()

    def run_tensor(self, tensor: object) -> Mapping[str, ort.OrtValue]:
        """Copy the tensor into the graph's buffer; the outputs are copies in its memory, made for this run."""
        return self._caller.submit(self._replay_tensor, tensor).result()

    def _capture(self, options: OpenOptions) -> None:
        self._buffer = self._on_device(options.shape, options.dtype)
        self._results: dict[str, ort.OrtValue] = {}
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._input.name, self._buffer)
        for output in self._session.get_outputs():
            shape = self._with_batch(output.shape)
            if output.type not in _NUMPY or not all(isinstance(side, int) for side in shape):
                raise ConfigurationError(
                    f"cuda_graph needs outputs of known size, {output.name} is {output.type} {output.shape}. "
                    "Leave cuda_graph out."
                )
            self._results[output.name] = self._on_device(shape, _NUMPY[output.type])
            self._binding.bind_ortvalue_output(output.name, self._results[output.name])
        self._replay(np.zeros(options.shape, options.dtype))

    def _with_batch(self, sides: list[int | str | None]) -> tuple[int | str | None, ...]:
        """Fill in the number of images: where a side has the name of the input's, or else as the first side."""
        name = self._input.shape[0]
        known = [self.fixed_batch if isinstance(side, str) and side == name else side for side in sides]
        if known and not isinstance(known[0], int):
            known[0] = self.fixed_batch
        return tuple(known)

    def _on_device(self, shape: tuple[int, ...], dtype: object) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype).type, self.device, self._device_id)

    def _replay(self, batch: NDArray) -> Mapping[str, NDArray]:
        self._check_shape(batch.shape)
        self._run(lambda: self._buffer.update_inplace(batch))
        # Of values in CPU memory numpy() is a view, which the next run would overwrite.
        return {name: value.numpy().copy() for name, value in self._results.items()}

    def _replay_tensor(self, tensor: object) -> Mapping[str, ort.OrtValue]:
        value, device, index = self._shared(tensor)
        self._check_shape(tuple(value.shape()))
        if device != "cpu":
            _nvidia.wait_for_device(index)  # the copy below runs on another stream than the tensor's
        self._run(lambda: self._buffer.update_inplace(value))
        copies = {}
        for name, result in self._results.items():
            shape, dtype = tuple(result.shape()), _NUMPY[result.data_type()]
            copies[name] = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, index)
            copies[name].update_inplace(result.numpy() if device == "cpu" else result)
        return copies

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        recorded = tuple(self._buffer.shape())
        if shape != recorded:  # onnxruntime's copy compares the number of values alone
            raise ConfigurationError(
                f"cuda_graph has recorded the shape {recorded}, got {shape}. Bring pictures to one size, or leave "
                "cuda_graph out."
            )

    def _run(self, fill: Callable[[], None]) -> None:
        try:
            fill()
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except ONNXRUNTIME_ERRORS as error:
            raise self.failed(self.fixed_batch or 0, error) from error


class Measured(NamedTuple):
    """The fastest of several sessions, and how long every candidate took: seconds of one run."""

    session: Session
    fastest: str
    seconds: Mapping[str, float]


def measured(
    opened: Callable[[str], Session], candidates: tuple[str, ...], options: OpenOptions, rounds: int = 10
) -> Measured:
    """Open one session per candidate, time them on the usual batch, and keep the fastest.

    Never more than two are open at once. Three runs come before the timed ones: the first of a shape searches.
    """
    generator = np.random.default_rng(0)
    batch = (
        generator.integers(0, 256, options.shape, np.uint8)
        if options.dtype == "uint8"
        else generator.standard_normal(options.shape, np.float32).astype(options.dtype)
    )
    best, fastest, seconds = None, "", {}
    for candidate in candidates:
        session = opened(candidate)
        times = []
        for _ in range(3 + rounds):
            start = time.perf_counter()
            session.run(batch)
            times.append(time.perf_counter() - start)
        seconds[candidate] = min(times[3:])
        if best is None or seconds[candidate] < seconds[fastest]:
            best, fastest = session, candidate
        del session  # else the slower of two would be open beside the next one
    return Measured(best, fastest, seconds)


def _open_strictly(
    path: Path, options: OpenOptions, providers: list[tuple[str, dict[str, str]]], title: str
) -> ort.InferenceSession:
    # onnxruntime does arithmetic on sizes on the CPU: where a graph has some, only other work there is refused.
    counted = options.parts_on_cpu or options.dtype == "uint8"
    chosen = session_options(options.threads, strict=not counted, recorded=counted)
    try:
        session = ort.InferenceSession(options.network(path), chosen, providers=providers, enable_fallback=0)
    except UNREADABLE_ERRORS as error:
        raise unreadable(path, error) from error
    except ONNXRUNTIME_ERRORS as error:
        raise DeviceError(
            f"{title} cannot run {path}: {reason(error)} An int8 network needs the CPU; an fp32 one needs the "
            f"libraries of {_nvidia.INSTALL_CUDA} and a driver for CUDA {ort.cuda_version}. {_OR_CPU}"
        ) from error
    if session.get_providers()[0] != providers[0][0]:
        raise DeviceError(f"{title} did not start for {path}: onnxruntime chose {session.get_providers()}. {_OR_CPU}")
    left = work_on_cpu(session) if counted else ()
    if left:
        raise DeviceError(f"{title} leaves {', '.join(left)} of {path} to the CPU. {_OR_CPU}")
    return session


def _require(problem: Problem | None, title: str) -> None:
    if problem is not None:
        raise DeviceError(f"{title} cannot run: {problem} {_OR_CPU}")


def _check_gpu(device_id: int, stream: int | None) -> None:
    check_integer("device_id", device_id, least=0)
    # 0, 1 and 2 stand for default streams, on which nothing can be recorded or told apart.
    if stream is not None and (not isinstance(stream, int) or stream <= 2):
        raise ConfigurationError(
            f"stream must be the handle of a stream of your own, got {stream!r}: torch.cuda.Stream().cuda_stream"
        )
