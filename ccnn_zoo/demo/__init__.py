"""The main job on real digits: train, fold, export, publish, download, classify."""

from __future__ import annotations

from ._demo import run
from ._report import DemoReport, NetworkReport

__all__ = ["DemoReport", "NetworkReport", "run"]
