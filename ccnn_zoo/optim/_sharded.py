"""Parameters in parts on several ranks (DTensor, of FSDP2): each rank computes the whole and keeps its part."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ccnn_zoo._base.compat import foreach_copy_


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether ``tensor`` is a DTensor. By its method: importing torch.distributed.tensor takes a while."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered from all ranks if it is sharded."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """Return of ``value``, which is the same on all ranks, the part that this rank has of ``like``."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # nothing is sent


def place(value: Tensor | Sequence[Tensor], target: Tensor | Sequence[Tensor]) -> None:
    """Copy whole values, which are the same on all ranks, into parameters."""
    if isinstance(target, Tensor):
        target.copy_(part_of(value, target))
    elif any(map(is_sharded, target)):
        for one, other in zip(value, target, strict=True):
            place(one, other)
    else:
        foreach_copy_(target, value)
