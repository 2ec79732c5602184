"""What ``ccnn serve`` may be told."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from ccnn_zoo._base.checks import check_integer, is_integer
from ccnn_zoo.errors import ConfigurationError

from ._ray import LOCAL

GPU_DEVICES = ("cuda", "tensorrt")


@dataclass(frozen=True)
class ServeOptions:
    """A network as a service.

    Args:
        model: what :func:`ccnn_zoo.runtime.load` takes. On a cluster every machine must be able to reach it.
        device: what runs it, see :func:`ccnn_zoo.runtime.load`. Ray shows a GPU only to replicas that ask for one by
            ``"cuda"`` or ``"tensorrt"``.
        precision: which ONNX file of a repository.
        token: whether the stored token is sent to the Hub, for a private repository: each machine's own.
        replicas: processes that hold the network.
        threads: CPU threads of each; None shares this machine's cores among the replicas.
        max_batch_size: pictures that a replica classifies at once.
        batch_wait_s: seconds that the first picture of a batch waits for others.
        coverage: of the prediction sets where a request asks for none itself; see
            :meth:`ccnn_zoo.runtime.ImageClassifier.classify`.
        max_risk: of the decisions, likewise.
        max_bytes: size of a request's body, refused with 413 beyond it.
        max_pixels: of one picture, refused with 413 beyond it. By default four times what a camera of 12 megapixels
            gives; a replica decodes one picture at a time, so that this bounds its memory.
        max_pending: requests that are held at once, refused with 503 beyond it.
        timeout_s: seconds for reading a request, and again for answering it.
        header_timeout_s: seconds for a request's headers; a connection that has sent none by then, or not all of them,
            is closed.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        address: ``"local"`` starts Ray on this machine, ``"auto"`` joins the cluster that it belongs to.
        name: the Serve application's name, one a cluster.

    Raises:
        ConfigurationError: a value is outside its range; names it.
    """

    model: str
    device: str = "auto"
    precision: str = "fp32"
    token: bool = False
    replicas: int = 1
    threads: int | None = None
    max_batch_size: int = 16
    batch_wait_s: float = 0.005
    coverage: float | None = None
    max_risk: float | None = None
    max_bytes: int = 10_000_000
    max_pixels: int = 48_000_000
    max_pending: int = 128
    timeout_s: float = 30.0
    header_timeout_s: float = 10.0
    host: str = "127.0.0.1"
    port: int = 8000
    address: str = LOCAL
    name: str = "ccnn"

    def __post_init__(self) -> None:
        for name in ("replicas", "max_batch_size", "max_bytes", "max_pixels", "max_pending"):
            check_integer(name, getattr(self, name))
        check_flag("token", self.token)
        if self.threads is not None:
            check_integer("threads", self.threads)
        for name, value in self.promises.items():
            if not _is_number(value) or not 0 < value < 1:
                raise ConfigurationError(f"{name} must be a share between 0 and 1, got {value!r}")
        if not _is_number(self.batch_wait_s) or self.batch_wait_s < 0:
            raise ConfigurationError(f"batch_wait_s must be seconds of at least 0, got {self.batch_wait_s!r}")
        for name in ("timeout_s", "header_timeout_s"):
            value = getattr(self, name)
            if not _is_number(value) or value <= 0:
                raise ConfigurationError(f"{name} must be more than 0 seconds, got {value!r}")
        if not is_integer(self.port) or not 0 <= self.port < 2**16:
            raise ConfigurationError(f"port must be from 0 to 65535, got {self.port!r}")
        if not self.name or "#" in self.name:
            raise ConfigurationError(f"name must be text without '#', got {self.name!r}")

    @property
    def promises(self) -> dict[str, float]:
        """``coverage`` and ``max_risk``, where they are set."""
        asked = {"coverage": self.coverage, "max_risk": self.max_risk}
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def threads_each(self) -> int:
        """CPU threads of one replica."""
        return self.threads or threads_each(self.replicas)

    @property
    def gpus_each(self) -> int:
        """GPUs of one replica."""
        return int(self.device in GPU_DEVICES)


def threads_each(processes: int) -> int:
    """Return each process's share of this machine's cores, at least one."""
    return max(1, (os.cpu_count() or 1) // processes)


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False: a token itself would be kept among what Ray knows of a deployment.

    Raises:
        ConfigurationError: names the argument, and not its value.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False: the stored token is sent, or none")


def _is_number(value: object) -> bool:
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))
