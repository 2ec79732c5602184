"""Choosing where a network runs. CUDA asked for and not to be had is an error, never a quiet CPU run."""

from __future__ import annotations

import ctypes
import functools
import io
import logging
import re
import sys
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from ccnn_zoo.errors import ConfigurationError, DeviceError, IntegrityError

_logger = logging.getLogger("ccnn_zoo.runtime")

DEVICES = ("auto", "cuda", "cpu")
ONNXRUNTIME_ERRORS = (
    RuntimeError,
    ValueError,
    *(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_INSTALL = 'pip install "onnxruntime-gpu[cuda,cudnn]"'
_OR_CPU = "Or pass device='cpu'."
_NOT_LOADED = re.compile(r"([\w.+-]+): cannot open shared object|Failed to load (?:.*[/\\])?([\w.+-]+):")


def check_device(device: str) -> None:
    """Refuse a device before anything is downloaded for it.

    Raises:
        ConfigurationError: there is no such device.
        DeviceError: CUDA was asked for and cannot run here; names what is missing and the remedy.
    """
    if device not in DEVICES:
        raise ConfigurationError(f"device must be one of {DEVICES}, got {device!r}")
    if device == "cuda":
        _require_cuda()


def open_session(path: Path, device: str, threads: int | None) -> ort.InferenceSession:
    """Open an ONNX file on a device.

    Args:
        path: the file.
        device: ``"cuda"`` or ``"cpu"``, strictly; ``"auto"`` tries CUDA and says once (logger
            ``ccnn_zoo.runtime``) why it takes the CPU instead.
        threads: CPU threads of one inference; None lets onnxruntime take all cores.

    Raises:
        DeviceError: CUDA was asked for and cannot run the file.
        IntegrityError: the file is no ONNX network that this onnxruntime can read.
    """
    if device == "cpu":
        return _open_on_cpu(path, threads)
    try:
        return _open_on_cuda(path, threads)
    except DeviceError as error:
        if device == "cuda":
            raise
        _say_once(str(error).removesuffix(_OR_CPU).rstrip())
        return _open_on_cpu(path, threads)


def cuda_problem() -> str | None:
    """Return why CUDA cannot run on this machine and the remedy, or None if nothing speaks against it.

    The cheap checks come first: a machine without a driver does not pay for loading CUDA's libraries.
    """
    return _wheel_problem() or _driver_problem() or _library_problem()


def _require_cuda() -> None:
    problem = cuda_problem()
    if problem is not None:
        raise DeviceError(f"CUDA cannot run: {problem} {_OR_CPU}")


@functools.cache
def _say_once(reason: str) -> None:
    _logger.warning("device='auto' runs on the CPU. %s", reason)


def _options(threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # all that onnxruntime would print as an error is also raised
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _open_on_cpu(path: Path, threads: int | None) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(path, _options(threads), providers=[_CPU], enable_fallback=0)
    except ONNXRUNTIME_ERRORS as error:
        raise _unreadable(path, error) from error


def _open_on_cuda(path: Path, threads: int | None) -> ort.InferenceSession:
    _require_cuda()
    options = _options(threads)
    # Without this key onnxruntime gives a CPU session when CUDA does not start.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # HEURISTIC: DEFAULT is many times slower since cuDNN's frontend, EXHAUSTIVE times every new shape anew.
    providers = [(_CUDA, {"cudnn_conv_algo_search": "HEURISTIC"})]
    try:
        session = ort.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except (ort_errors.InvalidProtobuf, ort_errors.InvalidGraph, ort_errors.InvalidArgument) as error:
        raise _unreadable(path, error) from error
    except ONNXRUNTIME_ERRORS as error:
        raise DeviceError(
            f"CUDA cannot run {path}: {error} An int8 network needs the CPU; an fp32 one needs the "
            f"libraries of {_INSTALL} and a driver for CUDA {ort.cuda_version}. {_OR_CPU}"
        ) from error
    if session.get_providers()[0] != _CUDA:
        raise DeviceError(f"CUDA did not start for {path}: onnxruntime chose {session.get_providers()}. {_OR_CPU}")
    return session


def _unreadable(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged, or no ONNX network that onnxruntime {ort.__version__} can run ({error}). "
        "Download or export it again; if it is newer than this onnxruntime, update that."
    )


def _wheel_problem() -> str | None:
    if _CUDA in ort.get_available_providers():
        return None
    if _installed("onnxruntime") and _installed("onnxruntime-gpu"):
        return (
            "the CPU wheel 'onnxruntime' was installed over 'onnxruntime-gpu' and shadows it. "
            f"pip uninstall -y onnxruntime onnxruntime-gpu, then {_INSTALL}."
        )
    return (
        f"this onnxruntime {ort.__version__} was built without CUDA. "
        f"pip uninstall -y onnxruntime, then {_INSTALL} (Linux and Windows on x86-64)."
    )


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _driver_problem() -> str | None:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return f"{name} is missing. Install the NVIDIA driver (in a container: start it with --gpus all)."
    status = driver.cuInit(0)
    if status == 0:
        return None
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    reason = text.value.decode() if text.value else "unknown error"
    return (
        f"the NVIDIA driver finds no usable GPU ({reason}, error {status}). Check nvidia-smi and CUDA_VISIBLE_DEVICES."
    )


def _library_problem() -> str | None:
    """Load the libraries of the CUDA provider, so that the loader names the missing ones."""
    printed = io.StringIO()
    with redirect_stdout(printed):  # preload_dlls prints what it does not find
        ort.preload_dlls()
    failures = [line for line in printed.getvalue().splitlines() if line.startswith("Failed to load")]
    if sys.platform == "linux":  # preload_dlls takes cuDNN for optional, convolutions do not
        try:
            ctypes.CDLL("libcudnn.so.9")
        except OSError as error:
            failures.append(str(error))
    if not failures:
        return None
    matches = [match for text in failures if (match := _NOT_LOADED.search(text))]
    names = dict.fromkeys(match[1] or match[2] for match in matches)
    return f"{', '.join(names) or failures[0]} cannot be loaded. {_INSTALL}."
