"""CSGD, the calibrated stochastic gradient descent, as a torch optimizer and in timm's registry."""

from __future__ import annotations

from ._algorithm import CALIBRATION_UPDATES, calibration_step
from ._csgd import CSGD
from ._noise import NOISES
from ._timm import register_with_timm

__all__ = ["CALIBRATION_UPDATES", "CSGD", "NOISES", "calibration_step", "register_with_timm"]
