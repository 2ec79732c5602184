"""What each branch alone says, beside the merged logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import BranchLinear


def meeting_classifier(model: nn.Module, classes: int) -> BranchLinear | None:
    """Return the linear classifier in which the branches of ``model`` meet, None where they meet elsewhere."""
    meeting = next((module for module in model.modules() if isinstance(module, BranchLinear)), None)
    return meeting if meeting is not None and meeting.out_features == classes else None


@contextmanager
def branch_logits(model: nn.Module, classes: int, *, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Collect what each branch alone says, (K, N, classes), beside the merged logits of the passes within.

    They are computed where the branches meet, inside the pass: under its autocast, and seen by what wraps the network.

    Args:
        model: the network, in whatever wraps it for training.
        classes: number of them.
        wanted: False collects nothing.

    Raises:
        ConfigurationError: the branches of ``model`` do not meet in its classifier.
    """
    found: list[Tensor] = []
    if not wanted:
        yield found
        return
    meeting = meeting_classifier(model, classes)
    if meeting is None:
        raise ConfigurationError(
            "objective: branches have losses of their own only where they meet in a linear classifier, which this "
            "network does not have; set objective='joint'"
        )

    def collect(layer: BranchLinear, features: tuple[Tensor], _: Tensor) -> None:
        found.append(layer.forward_branches(features[0]).float())

    handle = meeting.register_forward_hook(collect)
    try:
        yield found
    finally:
        handle.remove()
