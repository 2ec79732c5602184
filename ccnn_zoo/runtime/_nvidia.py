"""What NVIDIA's software on this machine lacks, and its versions."""

from __future__ import annotations

import ctypes
import io
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path

import onnxruntime as ort

from ccnn_zoo.errors import DeviceError

from ._backend import Problem

CUDA_PROVIDER = "CUDAExecutionProvider"
INSTALL_CUDA = 'pip install "onnxruntime-gpu[cuda,cudnn]"'
INSTALL_TENSORRT = 'pip install "tensorrt-cu13-libs>=10,<11"'

_WINDOWS = sys.platform == "win32"
_redirecting = threading.Lock()
_NOT_LOADED = re.compile(r"([\w.+-]+): cannot open shared object|Failed to load (?:.*[/\\])?([\w.+-]+):")


def cuda_problem() -> Problem | None:
    """Return why CUDA cannot run on this machine and the remedy, or None if nothing speaks against it.

    The cheap checks come first: a machine without a driver does not pay for loading CUDA's libraries.
    """
    return wheel_problem() or driver_problem() or library_problem()


def wheel_problem() -> Problem | None:
    """Return whether another wheel of onnxruntime is needed."""
    if CUDA_PROVIDER in ort.get_available_providers():
        return None
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        return Problem(
            "the CPU wheel 'onnxruntime' was installed over 'onnxruntime-gpu' and shadows it.",
            f"pip uninstall -y onnxruntime onnxruntime-gpu && {INSTALL_CUDA}",
        )
    return Problem(
        f"this onnxruntime {ort.__version__} was built without CUDA.",
        f"pip uninstall -y onnxruntime && {INSTALL_CUDA} (Linux and Windows on x86-64)",
    )


def installed(name: str) -> bool:
    """Return whether a distribution of this name is installed."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def driver_problem() -> Problem | None:
    """Start the driver; return why that fails."""
    driver = _library("nvcuda.dll" if _WINDOWS else "libcuda.so.1")
    if driver is None:
        return Problem(
            f"{'nvcuda.dll' if _WINDOWS else 'libcuda.so.1'} is missing.",
            "Install the NVIDIA driver (in a container: start it with --gpus all).",
        )
    status = driver.cuInit(0)
    if status == 0:
        return None
    text = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(text))
    reason = text.value.decode() if text.value else "unknown error"
    return Problem(
        f"the NVIDIA driver finds no usable GPU ({reason}, error {status}).",
        "Check nvidia-smi and CUDA_VISIBLE_DEVICES.",
    )


def library_problem() -> Problem | None:
    """Load the libraries of the CUDA provider, so that the loader names the missing ones."""
    printed = io.StringIO()
    # preload_dlls prints what it does not find. Two redirections that overlap would leave stdout redirected.
    with _redirecting, redirect_stdout(printed):
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
    return Problem(f"{', '.join(names) or failures[0]} cannot be loaded.", INSTALL_CUDA)


def tensorrt_problem() -> Problem | None:
    """Return why TensorRT cannot run; NVIDIA's libraries from the Python package count."""
    problem = cuda_problem()
    if problem is not None:
        return problem
    if "TensorrtExecutionProvider" not in ort.get_available_providers():
        return Problem("this onnxruntime was built without TensorRT.", INSTALL_CUDA)
    files = [f"{name}_10.dll" if _WINDOWS else f"lib{name}.so.10" for name in ("nvinfer", "nvonnxparser")]
    missing = [file for file in files if _tensorrt_library(file) is None]
    return Problem(f"{', '.join(missing)} cannot be loaded.", INSTALL_TENSORRT) if missing else None


def versions() -> dict[str, str | None]:
    """Return versions of driver, CUDA and cuDNN; None for what is not there."""
    driver = _library("nvcuda.dll" if _WINDOWS else "libcuda.so.1")
    library_problem()  # loads what pip has installed
    runtime = _cuda_runtime()
    cudnn = _library("cudnn64_9.dll" if _WINDOWS else "libcudnn.so.9")
    return {
        "GPU": gpu_name(),
        "driver": _driver_release(),
        "CUDA of the driver": _cuda_version(driver and driver.cuDriverGetVersion),
        "CUDA runtime": _cuda_version(runtime and runtime.cudaRuntimeGetVersion),
        "CUDA that onnxruntime was built for": ort.cuda_version or None,
        "cuDNN": _cudnn_version(cudnn),
    }


def wait_for_device(device_id: int) -> None:
    """Wait until a GPU has done all that it was given, on whatever stream.

    Of onnxruntime's own synchronisation only its CUDA provider's waits for other streams, TensorRT's does nothing.

    Raises:
        DeviceError: CUDA reports an error, of this or of earlier work.
    """
    with on_device(device_id) as runtime:
        _check(runtime, runtime.cudaDeviceSynchronize(), device_id)


@contextmanager
def on_device(device_id: int) -> Iterator[ctypes.CDLL]:
    """Make a GPU the calling thread's current one, and give CUDA's runtime library.

    Raises:
        DeviceError: there is no such GPU, or CUDA reports an error of earlier work.
    """
    runtime = _cuda_runtime()
    if runtime is None:
        raise DeviceError("the CUDA runtime library cannot be loaded any more. Start the process anew.")
    before = ctypes.c_int()
    _check(runtime, runtime.cudaGetDevice(ctypes.byref(before)), device_id)
    try:
        _check(runtime, runtime.cudaSetDevice(ctypes.c_int(device_id)), device_id)
        yield runtime
    finally:
        runtime.cudaSetDevice(before)


def _check(runtime: ctypes.CDLL, status: int, device_id: int) -> None:
    if status:
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
        text = runtime.cudaGetErrorString(status).decode()
        raise DeviceError(f"GPU {device_id} failed before the network ran: {text} (error {status}).")


def gpu_name() -> str | None:
    """Return the name and compute capability of the first GPU, or None if there is none."""
    driver = _library("nvcuda.dll" if _WINDOWS else "libcuda.so.1")
    device = ctypes.c_int()
    if driver is None or driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    name = ctypes.create_string_buffer(128)
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR, MINOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return f"{name.value.decode()} (compute capability {major.value}.{minor.value})"


def gpu_seen(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether the system shows an NVIDIA GPU that is not hidden on purpose, usable or not.

    Args:
        devices: where Linux lists what is on the PCI bus, also for containers that were not given the GPU.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles"):
        return False
    with suppress(OSError):
        for device in devices.iterdir():
            with suppress(OSError):
                vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
                if vendor == "0x10de" and kind.startswith("0x03"):  # NVIDIA, display or 3D controller
                    return True
    return gpu_name() is not None  # Windows, WSL


def _cuda_runtime() -> ctypes.CDLL | None:
    major = ort.cuda_version.partition(".")[0]
    return _library(f"cudart64_{major}.dll" if _WINDOWS else f"libcudart.so.{major}")


def _driver_release() -> str | None:
    """Return the driver's own version, e.g. ``"580.65.06"``, through NVML."""
    nvml = _library("nvml.dll" if _WINDOWS else "libnvidia-ml.so.1")
    if nvml is None or nvml.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(96)
    status = nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return text.value.decode() if status == 0 else None


def _cuda_version(function: Callable[..., int] | None) -> str | None:
    number = ctypes.c_int()
    if function is None or function(ctypes.byref(number)) != 0 or number.value == 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _cudnn_version(library: ctypes.CDLL | None) -> str | None:
    if library is None:
        return None
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = library.cudnnGetVersion()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _tensorrt_library(file: str) -> ctypes.CDLL | None:
    spec = find_spec("tensorrt_libs")
    folders = (spec.submodule_search_locations or ()) if spec is not None else ()
    packaged = (_library(str(Path(folder, file))) for folder in folders)
    return next(filter(None, packaged), None) or _library(file)


def _library(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
