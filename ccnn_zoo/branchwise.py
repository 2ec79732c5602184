"""Training many branches faster: a few at a time, each pass small enough for the cache.

All branches at once make every feature map K times larger; on a CPU the layers between the convolutions then
run at the speed of memory instead of that of the cache. ``scripts/bench_training.py`` measures both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ccnn_zoo._base.checks import check_integer
from ccnn_zoo._base.compat import BatchNorm
from ccnn_zoo.errors import CalibrationError
from ccnn_zoo.layers import BranchLinear, CalibratedConv2d


class Branchwise(nn.Module):
    """Trains a calibrated network a few branches at a time: the same function, gradients and statistics.

    Go on saving and exporting the network itself; in eval mode it is simply called. Random layers (dropout, drop
    path) draw anew for every pass. Not for ``torch.compile``: compile the network itself.

    Args:
        model: network with grouped branches, which meet in a :class:`BranchLinear`. It is not copied; its modules stay
            the same afterwards.
        at_once: branches of one pass. With no more branches than that, the network is simply called.

    Shape:
        - Input and output: those of ``model``.

    Raises:
        ConfigurationError: ``at_once`` is below 1.
        CalibrationError: the branches of ``model`` are not independent, or do not meet in a BranchLinear; at a pass,
            the network checkpoints its layers.
    """

    def __init__(self, model: nn.Module, at_once: int = 4) -> None:
        super().__init__()
        check_integer("at_once", at_once)
        self.model = model
        self.at_once = at_once
        self._merge = _find_merge(model)
        # Found once: walking over all modules at every step took longer than swapping their tensors.
        merge = model.get_submodule(self._merge)
        self._slots = [(module, name) for module in model.modules() for name in _per_branch_tensors(module)]
        self._counters = [m for m in model.modules() if getattr(m, "num_batches_tracked", None) is not None]
        self._counting = [m for m in model.modules() if hasattr(m, "branches") and m not in (model, merge)]

    def forward(self, images: Tensor) -> Tensor:
        merge = self.model.get_submodule(self._merge)
        if merge.branches <= self.at_once or not self.training:
            return self.model(images)
        if getattr(self.model, "grad_checkpointing", False):
            raise CalibrationError(
                "checkpointed layers are computed again in the backward pass, when all branches are back in place; "
                "call set_grad_checkpointing(False), or train the network without Branchwise"
            )
        parts = self._parts(merge.branches)
        features: list[Tensor] = []

        def collect(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            features.append(args[0])
            if len(features) < len(parts):
                raise _MergeReached
            return (torch.cat(features, dim=-1),)

        with merge.register_forward_pre_hook(collect):
            for part in parts[:-1]:
                with self._branches(part), suppress(_MergeReached):
                    self.model(images)
            with self._branches(parts[-1]):
                return self.model(images)

    def _parts(self, branches: int) -> list[_Part]:
        """Return what each pass has of the tensors that differ between branches."""
        sizes = [min(self.at_once, branches - first) for first in range(0, branches, self.at_once)]
        pieces = []
        for module, name in self._slots:
            tensor = getattr(module, name)
            pieces.append(tensor.split(self.at_once * len(tensor) // branches))
        counts = [[m.num_batches_tracked.clone() for m in self._counters] for _ in sizes]
        counts[0] = [m.num_batches_tracked for m in self._counters]  # a batch counts once
        firsts = range(0, branches, self.at_once)
        return [_Part(*part) for part in zip(firsts, sizes, zip(*pieces, strict=True), counts, strict=True)]

    @contextmanager
    def _branches(self, part: _Part) -> Iterator[None]:
        """Give the network the tensors of a pass, and tell every layer that counts branches how many they are."""
        places = [(*slot, tensor) for slot, tensor in zip(self._slots, part.tensors, strict=True)]
        places += [(m, "num_batches_tracked", count) for m, count in zip(self._counters, part.counts, strict=True)]
        before = [vars(layer).copy() for layer in self._counting]
        swapped: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
        try:
            for module, name, tensor in places:
                store = module._parameters if name in module._parameters else module._buffers
                swapped.append((store, name, store[name]))
                store[name] = tensor  # as torch.func.functional_call does: a piece of a parameter is none itself
            for layer in self._counting:
                if isinstance(layer, CalibratedConv2d):
                    layer.have_branches(layer.mirrored[part.first : part.first + part.branches])
                else:
                    layer.branches = part.branches
            yield
        finally:
            for store, name, tensor in swapped:
                store[name] = tensor
            for layer, attributes in zip(self._counting, before, strict=True):
                vars(layer).update(attributes)


class _Part(NamedTuple):
    first: int
    """Number of the first branch."""
    branches: int
    tensors: tuple[Tensor, ...]
    """In the order of ``Branchwise._slots``."""
    counts: list[Tensor]
    """In the order of ``Branchwise._counters``."""


class _MergeReached(Exception):  # noqa: N818, not an error
    """Ends a pass whose features have been collected."""


def _per_branch_tensors(module: nn.Module) -> list[str]:
    names = ()
    if isinstance(module, CalibratedConv2d):
        names = ("calibration",)
    elif isinstance(module, BatchNorm):
        names = ("weight", "bias", "running_mean", "running_var")
    return [name for name in names if getattr(module, name) is not None]


def _find_merge(model: nn.Module) -> str:
    merges = [name for name, module in model.named_modules() if isinstance(module, BranchLinear)]
    if len(merges) != 1:
        raise CalibrationError(
            f"{type(model).__name__} has {len(merges)} BranchLinear layers, not one in which its branches meet; "
            "train it as it is"
        )
    for name, module in model.named_modules():
        known = isinstance(module, CalibratedConv2d | nn.Linear) or _per_branch_tensors(module)
        if isinstance(module, CalibratedConv2d) and module.mixing != "grouped":
            raise CalibrationError(f"{name} has mixing={module.mixing!r}: every branch reads all others")
        if not known and any(True for _ in module.parameters(recurse=False)):
            raise CalibrationError(
                f"{name or 'the network'} ({type(module).__name__}) has parameters of which it is not known to "
                "which branch they belong; train the network as it is"
            )
    return merges[0]
