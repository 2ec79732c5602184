"""The runtime's reference backend: a repository's trained weights in torch, through timm.

The one module of the runtime that imports torch, and only when it is asked for: the registry knows it by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from ccnn_zoo.errors import ConfigurationError, DeviceError

from ._backend import Backend, OpenOptions, Problem, Session, reason, taken
from ._header import parse_header

if TYPE_CHECKING:
    import torch

_PROBED = "ccnn_resnet18_cifar.mnist"  # its weights come with the package


@dataclass(frozen=True)
class Torch(Backend):
    """torch in eager mode, to compare other backends with. It runs ``model.safetensors``, not the ONNX file.

    How many threads it takes is torch's own setting (``torch.set_num_threads``).

    Args:
        device: torch's name of the device, e.g. ``"cpu"`` or ``"cuda:0"``.
    """

    device: str = "cpu"
    name = "torch"
    whole_repository = True

    def problem(self) -> Problem | None:
        missing = [package for package in ("torch", "timm") if find_spec(package) is None]
        return Problem(f"{', '.join(missing)} cannot be imported.", "pip install torch timm") if missing else None

    def open(self, path: Path, options: OpenOptions) -> Session:
        folder = path.parent.parent
        if path.parts[-2:] != ("onnx", "model.onnx") or not (folder / "config.json").is_file():
            raise ConfigurationError(
                f"device='torch' runs the trained weights of a repository, {path} is only their export. Name the "
                "repository, in precision fp32, or pass device='cpu'."
            )
        output = parse_header(options.network(path), path).outputs[0].name
        from ccnn_zoo.checkpoint import load_repository

        return _Session(self._placed(load_repository(folder)), output, self.device)

    def probe(self) -> None:
        import timm
        import torch

        import ccnn_zoo  # noqa: F401, its networks join timm's

        network = self._placed(timm.create_model(_PROBED, pretrained=True).eval())
        with torch.inference_mode():
            logits = network(torch.zeros(1, *network.pretrained_cfg["input_size"], device=self.device))
        if not logits.isfinite().all():
            raise DeviceError(f"torch {torch.__version__} gives {logits.tolist()} for {_PROBED}")

    def _placed(self, network: torch.nn.Module) -> torch.nn.Module:
        try:
            return network.to(self.device)
        except (RuntimeError, AssertionError) as error:  # what torch raises for a device that is not there
            raise DeviceError(f"torch cannot use {self.device}: {reason(error)} Or pass device='cpu'.") from error


class _Session(Session):
    provider = "torch"

    def __init__(self, network: torch.nn.Module, output: str, device: str) -> None:
        self.device = device
        self._network = network
        self._output = output

    def run(self, batch: NDArray) -> Mapping[str, NDArray]:
        import torch

        return {self._output: self._forward(torch.from_numpy(batch)).cpu().numpy()}

    def run_tensor(self, tensor: object) -> Mapping[str, object]:
        import torch

        images = taken(tensor, torch.from_dlpack, "torch", "Pass one without gradient: tensor.detach().")
        return {self._output: self._forward(images).to(images.device)}

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        import torch

        try:
            with torch.inference_mode():
                return self._network(images.to(self.device))
        except RuntimeError as error:
            raise DeviceError(
                f"torch failed on a batch of {len(images)}: {reason(error)} If memory ran out, lower batch_size."
            ) from error
