"""Finding a backend by its name: the built-in ones, and those of other packages by their entry points."""

from __future__ import annotations

import functools
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ccnn_zoo.errors import ConfigurationError, DeviceError

from ._backend import Backend, OpenOptions, Session, reason
from ._nvidia import gpu_seen

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "ccnn_zoo.runtimes"
AUTO = "auto"
# Modules are named, not imported: none is paid for that does not run.
BUILT_IN = {
    "cpu": "ccnn_zoo.runtime._onnxruntime:Cpu",
    "cuda": "ccnn_zoo.runtime._cuda:Cuda",
    "tensorrt": "ccnn_zoo.runtime._cuda:TensorRT",
    "openvino": "ccnn_zoo.runtime._openvino:OpenVino",
    "torch": "ccnn_zoo.runtime._torch:Torch",
}
_OR_CPU = "Or pass device='cpu'."

_logger = logging.getLogger("ccnn_zoo.runtime")


def names() -> tuple[str, ...]:
    """Return the names of all backends: the built-in ones, then those of other packages."""
    return (*BUILT_IN, *plugged())


def plugged() -> dict[str, EntryPoint]:
    """Return the entry points of other packages' backends; none can take the name of a built-in one."""
    from importlib.metadata import entry_points  # not cheap, and needed for names of other packages only

    found = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return {point.name: point for point in found if point.name not in BUILT_IN and point.name != AUTO}


def find(device: str | Backend) -> Backend:
    """Return the backend that ``device`` names or is.

    Raises:
        ConfigurationError: there is none of this name.
        DeviceError: the package that brings it cannot be imported, or brings something else.
    """
    if isinstance(device, Backend):
        return device
    if device in BUILT_IN:
        module, _, attribute = BUILT_IN[device].partition(":")
        return getattr(import_module(module), attribute)()
    point = plugged().get(device) if isinstance(device, str) else None
    if point is None:
        raise ConfigurationError(f"device must be one of {(AUTO, *names())} or a Backend, got {device!r}")
    origin = f"the backend {device!r} of {point.dist.name if point.dist else point.value}"
    try:
        backend = point.load()()
    except Exception as error:  # another package's code: it may raise anything
        raise DeviceError(
            f"{origin} cannot be loaded: {type(error).__name__}: {reason(error)}. Update or remove it."
        ) from error
    if not isinstance(backend, Backend):
        raise DeviceError(
            f"{origin} is no ccnn_zoo.runtime.Backend but a {type(backend).__name__}. Update or remove it."
        )
    return backend


def check_device(device: str | Backend) -> None:
    """Refuse a device before anything is downloaded for it.

    Raises:
        ConfigurationError: there is no such device.
        DeviceError: it cannot run here; names what is missing and the remedy.
    """
    if device == AUTO:
        return
    backend = find(device)
    problem = backend.problem()
    if problem is not None:
        raise DeviceError(f"{_title(backend)} cannot run: {problem} {_OR_CPU}")


def open_session(path: Path, device: str | Backend, options: OpenOptions) -> Session:
    """Open an ONNX file on a device.

    Args:
        path: the file.
        device: a backend or its name, strictly; ``"auto"`` tries CUDA and says once (logger ``ccnn_zoo.runtime``)
            why it takes the CPU instead: as a warning where an NVIDIA GPU is there, else as information.
        options: for the backend.

    Raises:
        DeviceError: the device was asked for and cannot run the file.
        IntegrityError: the file is no ONNX network that the backend can read.
    """
    if device != AUTO:
        return find(device).open(path, options)
    try:
        return find("cuda").open(path, options)
    except DeviceError as error:
        _say_once(str(error).removesuffix(_OR_CPU).rstrip())
        return find("cpu").open(path, options)


@functools.cache
def _say_once(reason: str) -> None:
    # Where there is no GPU nobody expects one; `ccnn doctor` tells all the same.
    _logger.log(logging.WARNING if gpu_seen() else logging.INFO, "device='auto' runs on the CPU. %s", reason)


def _title(backend: Backend) -> str:
    return {"cuda": "CUDA", "tensorrt": "TensorRT", "openvino": "OpenVINO"}.get(backend.name, backend.name)
