"""The main job on real digits: train, fold, export, publish, download, classify."""

from __future__ import annotations

from ._demo import DemoReport, NetworkReport, run

__all__ = ["DemoReport", "NetworkReport", "run"]
