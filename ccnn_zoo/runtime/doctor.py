"""Trying every backend, each in a process of its own: what crashes there is named, and takes nothing else along.

``python -m ccnn_zoo.runtime.doctor NAME`` tries one and prints what it found as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import onnxruntime as ort

from ccnn_zoo.errors import CCNNError

from . import _nvidia
from ._backend import Backend, reason
from ._plugin_provider import PluginProvider
from ._registry import BUILT_IN, find, plugged

_SECONDS = 300  # TensorRT builds an engine even for the tiny network
_WHEELS = ("onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True)
class Finding:
    """What became of trying one backend.

    Args:
        backend: its name, or the path of a plugin provider's library.
        origin: ``"built in"``, or the package that brings it, with its version.
        works: it ran a tiny network and gave the right answer.
        reason: why it does not work; empty if it does.
        remedy: the command or step that mends it; empty where none is known.
    """

    backend: str
    origin: str
    works: bool
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All of this machine that decides where a network can run.

    Args:
        findings: one per backend.
        versions: of Python, onnxruntime, GPU, driver, CUDA and cuDNN; None for what is not there.
        wheels: the installed wheels of onnxruntime with their versions.
    """

    findings: tuple[Finding, ...]
    versions: dict[str, str | None]
    wheels: tuple[str, ...]

    @property
    def cpu_works(self) -> bool:
        return self._works("cpu")

    @property
    def cuda_works(self) -> bool:
        return self._works("cuda")

    def _works(self, backend: str) -> bool:
        return any(finding.works for finding in self.findings if finding.backend == backend)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def examine(libraries: Sequence[str | os.PathLike[str]] = ()) -> Report:
    """Try all backends and the plugin providers in ``libraries``."""
    origins = dict.fromkeys(BUILT_IN, "built in")
    for name, point in plugged().items():
        origins[name] = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    for library in libraries:
        origins[os.fspath(library)] = "named by you"
    with ThreadPoolExecutor(2) as pool:
        findings = tuple(pool.map(_tried, origins, origins.values()))
    versions = {
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "onnxruntime": ort.__version__,
        **_nvidia.versions(),
    }
    wheels = tuple(f"{name} {version(name)}" for name in _WHEELS if _nvidia.installed(name))
    return Report(findings, versions, wheels)


def _tried(name: str, origin: str) -> Finding:
    """Try one backend in a process of its own."""
    try:
        run = subprocess.run(  # noqa: S603, this module itself
            [sys.executable, "-m", __name__, name],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Finding(name, origin, False, f"it did not answer within {_SECONDS} seconds.")
    answer = run.stdout.splitlines()[-1:]
    if run.returncode == 0 and answer:
        return Finding(name, origin, **json.loads(answer[0]))
    if run.returncode < 0:
        return Finding(name, origin, False, f"it crashed ({signal.Signals(-run.returncode).name}).")
    said = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
    return Finding(name, origin, False, f"it ended with: {said}")


def _outcome(name: str) -> dict[str, object]:
    """Try a backend in this process; return the fields of its finding."""
    try:
        backend: Backend = find(name) if name in BUILT_IN or name in plugged() else PluginProvider(Path(name))
        problem = backend.problem()
        if problem is not None:
            return {"works": False, "reason": problem.reason, "remedy": problem.remedy}
        backend.probe()
    except CCNNError as error:
        return {"works": False, "reason": reason(error), "remedy": ""}
    except Exception as error:  # another package's code may raise anything
        return {"works": False, "reason": f"{type(error).__name__}: {reason(error)}", "remedy": ""}
    return {"works": True}


if __name__ == "__main__":
    print(json.dumps(_outcome(sys.argv[1])))
