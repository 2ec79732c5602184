"""The calibrated convolution, and the layers in which its branches meet."""

from __future__ import annotations

from ._branches import (
    FEATURE_MERGES,
    MERGES,
    MIXINGS,
    BranchConv2d,
    BranchLinear,
    check_branches,
    check_diversity,
    check_merge,
    check_mixing,
    concat_branches,
    merge_features,
)
from ._calibrated import CalibratedConv2d
from ._views import MirroringConv2d, check_mirrored

__all__ = [
    "FEATURE_MERGES",
    "MERGES",
    "MIXINGS",
    "BranchConv2d",
    "BranchLinear",
    "CalibratedConv2d",
    "MirroringConv2d",
    "check_branches",
    "check_diversity",
    "check_merge",
    "check_mirrored",
    "check_mixing",
    "concat_branches",
    "merge_features",
]
