"""What may be asked of a conversion: one list, which every door takes by these names and ``config.json`` holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ccnn_zoo._base.former import FORMER
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import check_branches, check_diversity, check_merge, check_mirrored, check_mixing

_START = {"decides": "the first weights only"}


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """How a plain network becomes a calibrated one.

    ``calibrate``, the registered networks and recipes take these by name, and detectors those that make sense for them.
    A new option is a new field here, and what acts on it.

    Args:
        branches: number K of branches; 1 is the plain network.
        merge: how branches meet before the first linear layer: ``"mean"``, ``"max"`` or ``"concat"``; or behind it,
            with a classifier per branch: ``"probability"``.
        mixing: ``"grouped"``, a branch reads its own features, or ``"dense"``, it reads those of all branches
            through slices of w of its own. Convolutions with groups stay grouped.
        mirrored: numbers of the branches that see the mirror image, left and right exchanged; the others see the image.
            For classifiers with grouped mixing that learned from mirrored images too; feature maps of such a branch
            are mirrored. The exchange is where the first convolution reads: what is cropped or padded before may differ
            by a column from a mirror image that is prepared so.
        diversity: how far R starts from uniform: 0 (equal R_k, which leaves branches that see the same identical for
            ever) to 1 (the paper's random R).
        rescale: multiply w by K, so that H_k keeps the scale of the given weights. Networks without normalisation are
            always rescaled: nothing else would keep their activations from shrinking K-fold at every layer. False
            says that the weights are a fresh random start; with dense mixing all slices but the first are then
            shuffled copies, since equal ones would learn alike.

    Raises:
        ConfigurationError: one is out of range.
    """

    branches: int
    merge: str = "mean"
    mixing: str = "grouped"
    mirrored: Sequence[int] = ()
    diversity: float = field(default=0.0, metadata=_START)
    rescale: bool = field(default=True, metadata=_START)

    def __post_init__(self) -> None:
        check_branches(self.branches)
        check_merge(self.merge)
        check_mixing(self.mixing)
        object.__setattr__(self, "mirrored", check_mirrored(self.mirrored, self.branches))
        if self.mirrored and self.mixing == "dense":
            raise ConfigurationError(
                "mirrored needs mixing='grouped': a branch cannot read the features of a mirror image beside its own"
            )
        check_diversity(self.diversity)
        if not isinstance(self.rescale, bool):
            raise ConfigurationError(f"rescale must be True or False, got {self.rescale!r}")

    def architecture(self) -> dict[str, Any]:
        """Return the options by which the same network is built again, whatever weights it then gets."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata != _START}
        return {name: list(value) if name == "mirrored" else value for name, value in values.items() if value != ()}


OPTIONS = tuple(f.name for f in fields(ConversionOptions))
"""Names of all options."""

FROM_SCRATCH = {"diversity": 1.0, "rescale": False}
"""How the paper trains from scratch: R random, w at the plain network's scale."""


def take_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of a conversion from the arguments of a network, and return them; :data:`FORMER` ones go."""
    for name in [name for name, neutral in FORMER.items() if arguments.get(name) in neutral]:
        del arguments[name]
    return {name: arguments.pop(name) for name in OPTIONS if name in arguments}
