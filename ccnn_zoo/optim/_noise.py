"""Gaussian noise of one seed, its generators kept by device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ccnn_zoo._base.compat import disable_dynamo

from ._sharded import is_sharded, part_of

NOISES = ("weight", "gradient")
"""What the noise is added to: w after the step, or its gradient before it."""


class NoiseSource:
    """Unit Gaussian noise for lists of tensors; the same for the same seed and the same calls.

    Args:
        seed: seed of one generator per device, made when the device is first met.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._loaded: dict[str, Tensor] = {}

    def batches(self, tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Yield all ``tensors``, some at a time, with noise of their shape, memory layout and dtype.

        The noise is the caller's to overwrite. On the CPU a batch is one tensor: for 11 million values in one piece
        the system hands out fresh memory in every step, which took 1.4 times as long. Elsewhere a batch is all
        tensors of a device, for one launch.
        """
        by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            by_device[tensor.device].append(tensor)
        for device, alike in by_device.items():
            size = 1 if device.type == "cpu" else len(alike)
            for start in range(0, len(alike), size):
                batch = alike[start : start + size]
                yield batch, [part_of(noise, tensor) for noise, tensor in zip(self._normal(batch), batch, strict=True)]

    # Dynamo cannot trace a generator. (torch.compiler.disable would import all of dynamo with this module.)
    @disable_dynamo
    def _normal(self, tensors: list[Tensor]) -> list[Tensor]:
        # Contiguous float32 whatever the tensors are: torch fills only that by vector instructions on the CPU.
        device, sizes = tensors[0].device, [t.numel() for t in tensors]
        flat = torch.empty(sum(sizes), device=device).normal_(generator=self.generator(device))
        return [
            part.as_strided(t.shape, t.stride() if is_sharded(t) else torch.empty_like(t, device="meta").stride()).to(
                t.dtype
            )
            for part, t in zip(flat.split(sizes), tensors, strict=True)
        ]

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the generator of a device."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
            self._restore(device)
        return self._generators[device]

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, and the states of the generators by device."""
        used = {str(device): generator.get_state() for device, generator in self._generators.items()}
        return {"seed": self._seed, "generators": {**self._loaded, **used}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state, to the bit on the same kind of device; on another kind from its seed."""
        self._seed = state["seed"]
        self._loaded = {name: generator.cpu() for name, generator in state["generators"].items()}
        # Generators that a CUDA graph knows are kept; others are made on first use, for the device that had them may
        # be absent from this machine.
        for device in self._generators:
            self._restore(device)

    def _restore(self, device: torch.device) -> None:
        """Set a generator to the loaded state of its device, which is used up, or to the seed."""
        # Data-parallel ranks all load what one of them saved of its own device, and must go on alike.
        alike = [name for name in self._loaded if torch.device(name).type == device.type]
        name = str(device) if str(device) in self._loaded or len(alike) != 1 else alike[0]
        if name in self._loaded:
            self._generators[device].set_state(self._loaded.pop(name))
        else:
            self._generators[device].manual_seed(self._seed)

    def __getstate__(self) -> dict[str, Any]:
        return self.state_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._generators, self._loaded = {}, {}
        self.load_state_dict(state)
