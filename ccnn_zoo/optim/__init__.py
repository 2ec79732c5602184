"""CSGD, the calibrated stochastic gradient descent, as a torch optimizer and in timm's registry."""

from __future__ import annotations

from ccnn_zoo._base.roles import CALIBRATION, SHARED_WEIGHT, get_role

from ._algorithm import CALIBRATION_UPDATES, calibration_step
from ._csgd import CSGD
from ._noise import NOISES
from ._timm import register_with_timm

__all__ = [
    "CALIBRATION",
    "CALIBRATION_UPDATES",
    "CSGD",
    "NOISES",
    "SHARED_WEIGHT",
    "calibration_step",
    "get_role",
    "register_with_timm",
]
