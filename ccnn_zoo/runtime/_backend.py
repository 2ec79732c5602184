"""What runs a network: backends open ONNX files, sessions map batches to outputs.

Another package adds a backend with an entry point of the group ``ccnn_zoo.runtimes``; see docs/runtime.md.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ccnn_zoo.errors import ConfigurationError, DeviceError

# Written by scripts/make_probe_network.py: a 3x3 convolution to two channels, the mean over the picture, no metadata.
# The kernels are 1/27 and -1/27 everywhere and the biases 0 and 0.5, so a picture of v alone gives v and 0.5 - v.
PROBE = Path(__file__).with_name("probe.onnx")
PROBE_SHAPE = (2, 3, 8, 8)
_VALUES = np.array([1.0, 2.0], np.float32)

Taken = TypeVar("Taken")


@dataclass(frozen=True)
class Problem:
    """Why a backend cannot run on this machine.

    Args:
        reason: what is missing, as a sentence.
        remedy: the one command or step that mends it.
    """

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason} {self.remedy.removesuffix('.')}."


@dataclass(frozen=True)
class OpenOptions:
    """What every backend is told when it opens a file.

    Args:
        threads: CPU threads of one inference; None takes all cores.
        shape: of the usual batch, in the layout of the file's input. Other numbers of images may come too: what is
            compiled, captured or measured for one shape is so for this one.
        dtype: of the batch, as numpy names it.
        content: the bytes of the file, which were looked through. A backend that opens the path again may get another
            file than was checked.
        parts_on_cpu: the graph computes with sizes and indices, which a GPU's runtime may leave to the CPU. Without
            it, a network of which any part would run there is refused.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    threads: int | None = None
    parts_on_cpu: bool = False
    content: bytes | None = field(default=None, repr=False, compare=False)

    def network(self, path: Path) -> bytes:
        """Return the bytes of the ONNX file at ``path``: those that were looked through, where there are."""
        return path.read_bytes() if self.content is None else self.content


def reason(error: Exception) -> str:
    """Return an exception's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class Session(ABC):
    """An opened network with one input. Threads share it, so it keeps no state between runs.

    Attributes:
        provider: what runs the network, e.g. ``"CUDAExecutionProvider"``.
        device: where, e.g. ``"cuda"``.
        fixed_batch: the only number of images that it takes at once; None takes any.
    """

    provider: str
    device: str
    fixed_batch: int | None = None

    @abstractmethod
    def run(self, batch: NDArray) -> Mapping[str, NDArray]:
        """Return the outputs by their names in the ONNX file.

        Args:
            batch: contiguous, of the dtype and layout that the file's input has.

        Raises:
            DeviceError: the device fails while it runs, e.g. by lack of memory.
        """

    def run_tensor(self, tensor: object) -> Mapping[str, object]:
        """Return the outputs for a tensor of another library, without a copy where the backend can.

        This one takes tensors in CPU memory and gives arrays.

        Args:
            tensor: contiguous, of the dtype and layout of the file's input; implements DLPack.

        Raises:
            ConfigurationError: the tensor is not where this session can read it, or cannot be exported.
            DeviceError: the device fails while it runs.
        """
        batch = taken(tensor, np.from_dlpack, self.provider, "Pass one in CPU memory, detached.")
        return self.run(np.ascontiguousarray(batch))


class Backend(ABC):
    """A way to run networks.

    Attributes:
        name: what ``load(device=...)`` calls it.
        whole_repository: whether it reads other files of a repository beside the ONNX file.
    """

    name: str
    whole_repository = False

    @abstractmethod
    def open(self, path: Path, options: OpenOptions) -> Session:
        """Open an ONNX file.

        Args:
            path: a file that has been looked through: it holds ONNX's own operators, and all of its tensors.
            options: see there; ``options.network(path)`` is what to open.

        Raises:
            DeviceError: this machine or device cannot run the file.
            IntegrityError: the file is no ONNX network that the backend can read.
        """

    def problem(self) -> Problem | None:
        """Return why this backend cannot run here, or None if nothing speaks against it; cheap, starts nothing."""
        return None

    def probe(self) -> None:
        """Run a tiny network and compare its output with what is known; ``ccnn doctor`` calls it.

        Raises:
            CCNNError: it cannot run, or its output is wrong.
        """
        session = self.open(PROBE, OpenOptions(PROBE_SHAPE))
        batch = np.broadcast_to(_VALUES[:, None, None, None], PROBE_SHAPE).copy()
        found = np.asarray(session.run(batch)["logits"], np.float32)
        expected = np.stack([_VALUES, 0.5 - _VALUES], axis=1)
        # TensorFloat-32 and half precision keep ten bits of the mantissa.
        if found.shape != expected.shape or not np.allclose(found, expected, atol=0.01):
            raise DeviceError(f"{session.provider} computes {found.tolist()} where {expected.tolist()} is right")


def taken(tensor: object, from_dlpack: Callable[[object], Taken], reader: str, remedy: str) -> Taken:
    """Return what a library's ``from_dlpack`` makes of a tensor of another library.

    Raises:
        ConfigurationError: the tensor cannot be exported, or not read there; ends with ``remedy``.
    """
    try:
        return from_dlpack(tensor)
    except (BufferError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{reader} cannot read this {type(tensor).__name__} ({reason(error)}). {remedy}"
        ) from error


def like(tensor: object, value: object) -> object:
    """Return ``value``, which implements DLPack, as a tensor of the library of ``tensor``, without a copy.

    The library is one that the caller imported: torch, cupy or any with a ``from_dlpack`` at its top. Without that,
    ``value`` comes back as it is.
    """
    library = sys.modules.get(type(tensor).__module__.partition(".")[0])
    convert = getattr(library, "from_dlpack", None)
    return value if convert is None else convert(value)
