"""What Triton may be told about a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ccnn_zoo._base.checks import check_choice, check_integer, is_integer
from ccnn_zoo.errors import ConfigurationError

KINDS = ("auto", "cpu", "gpu")
ACCELERATORS = ("none", "cuda", "tensorrt", "openvino")


@dataclass(frozen=True)
class TritonOptions:
    """How Triton shall run the network.

    Args:
        max_batch_size: pictures that Triton puts into one batch, at least 1. None: 32 where the graph leaves the
            batch open; a graph that fixes it is run as it is, without batching.
        queue_delay_us: microseconds that a request waits for others to share its batch.
        instances: copies of the network that run side by side, on each device.
        kind: ``"gpu"``, ``"cpu"`` or ``"auto"`` (a GPU where there is one).
        gpus: numbers of the GPUs; empty takes all of them.
        accelerator: ``"tensorrt"`` and ``"cuda"`` for GPUs, ``"openvino"`` for CPUs, ``"none"``.
        fp16: let TensorRT compute in half precision.
        cuda_graph: record the kernels once and replay them; the graph's shapes must all be fixed.
        threads: CPU threads of one inference; None takes all cores.

    Raises:
        ConfigurationError: a value is outside its range or contradicts another; names it.
    """

    max_batch_size: int | None = None
    queue_delay_us: int = 1000
    instances: int = 1
    kind: str = "auto"
    gpus: Sequence[int] = ()
    accelerator: str = "none"
    fp16: bool = False
    cuda_graph: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_batch_size", 1), ("queue_delay_us", 0), ("instances", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None or name not in ("max_batch_size", "threads"):
                check_integer(name, value, least)
        for name, choices in (("kind", KINDS), ("accelerator", ACCELERATORS)):
            check_choice(name, getattr(self, name), choices)
        for name in ("fp16", "cuda_graph"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if isinstance(self.gpus, str) or not all(is_integer(gpu, 0) for gpu in _listed(self.gpus)):
            raise ConfigurationError(f"gpus must be a list of GPU numbers such as [0, 1], got {self.gpus!r}")
        self._check_together()

    def _check_together(self) -> None:
        on_gpu = self.accelerator in ("cuda", "tensorrt")
        if self.kind == "cpu" and (on_gpu or self.gpus or self.cuda_graph):
            raise ConfigurationError(
                f"kind='cpu' contradicts accelerator={self.accelerator!r}, gpus={list(self.gpus)} and "
                f"cuda_graph={self.cuda_graph}, which are for GPUs. Leave one of them out."
            )
        if self.kind == "gpu" and self.accelerator == "openvino":
            raise ConfigurationError("accelerator='openvino' is for CPUs. Pass kind='cpu' or another accelerator.")
        if self.gpus and self.kind != "gpu":
            raise ConfigurationError(f"gpus={list(self.gpus)} needs kind='gpu', got kind={self.kind!r}")
        if self.fp16 and self.accelerator != "tensorrt":
            raise ConfigurationError(f"fp16=true needs accelerator='tensorrt', got {self.accelerator!r}")
        if self.cuda_graph and not on_gpu:
            raise ConfigurationError(
                f"cuda_graph=true needs accelerator 'cuda' or 'tensorrt', got {self.accelerator!r}"
            )


def _listed(values: object) -> Sequence[object]:
    return values if isinstance(values, (list, tuple)) else (values,)
