"""onnxruntime's own plugin execution providers: shared libraries, loaded from a path that the user names."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime as ort

from ccnn_zoo.errors import ConfigurationError, DeviceError

from ._backend import Backend, OpenOptions, Problem, reason
from ._onnxruntime import ONNXRUNTIME_ERRORS, UNREADABLE_ERRORS, OrtSession, session_options, unreadable

_registered: dict[str, tuple[ort.OrtEpDevice, ...]] = {}
_registering = threading.Lock()


@dataclass(frozen=True)
class PluginProvider(Backend):
    """A plugin execution provider of onnxruntime.

    The library is code of this process: name only one that you trust. No model repository can name one. It stays
    loaded until the process ends, as onnxruntime's sessions may not outlive it.

    Args:
        library: path of the shared library.
        options: the provider's own, as its documentation names them.
        strict: refuse a network of which the provider leaves a part to the CPU.

    Raises:
        ConfigurationError: there is no such file.
    """

    library: str | os.PathLike[str]
    options: Mapping[str, str] = field(default_factory=dict)
    strict: bool = True
    name = "plugin"

    def __post_init__(self) -> None:
        if not Path(self.library).is_file():
            raise ConfigurationError(f"library must be the path of a provider's shared library, got {self.library}")

    def problem(self) -> Problem | None:
        try:
            _devices(Path(self.library))
        except DeviceError as error:
            return Problem(str(error), "Install the version that its publisher names for this machine.")
        return None

    def open(self, path: Path, options: OpenOptions) -> OrtSession:
        devices = _devices(Path(self.library))
        chosen = session_options(options.threads, strict=self.strict)
        try:
            # The first device: where a provider offers several, its options choose.
            chosen.add_provider_for_devices(devices[:1], dict(self.options))
            session = ort.InferenceSession(options.network(path), chosen, enable_fallback=0)
        except UNREADABLE_ERRORS as error:
            raise unreadable(path, error) from error
        except ONNXRUNTIME_ERRORS as error:
            raise DeviceError(
                f"{devices[0].ep_name} cannot run all of {path}: {reason(error)} Pass strict=False to let the CPU "
                "run the rest, or device='cpu'."
            ) from error
        return OrtSession(session, self.name)


def _devices(library: Path) -> tuple[ort.OrtEpDevice, ...]:
    """Register a library once in this process, and return the devices that it brought.

    Raises:
        DeviceError: onnxruntime cannot load it, or it finds no device here.
    """
    key = str(library.resolve())
    with _registering:
        if key not in _registered:
            before = len(ort.get_ep_devices())
            try:
                ort.register_execution_provider_library(key, key)
            except ONNXRUNTIME_ERRORS as error:
                raise DeviceError(
                    f"{library} is no provider that onnxruntime {ort.__version__} can load: {reason(error)}"
                ) from error
            _registered[key] = tuple(ort.get_ep_devices()[before:])
    if not _registered[key]:
        raise DeviceError(f"the provider {library} finds no device here that it can run on.")
    return _registered[key]
