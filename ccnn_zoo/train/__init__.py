"""Training: recipes, data, the loop on accelerate, curves.

>>> result = train(Recipe.load("digits"), "runs/digits")
>>> result.record.metrics["test_error_percent"]
"""

from __future__ import annotations

from ._curves import plot_curves
from ._data import Data, load_data
from ._history import EpochResult, History, read_history
from ._images import ArrayImages, FileImages, Images
from ._loop import TrainingResult, train
from ._network import build_model
from ._recipe import Recipe

__all__ = [
    "ArrayImages",
    "Data",
    "EpochResult",
    "FileImages",
    "History",
    "Images",
    "Recipe",
    "TrainingResult",
    "build_model",
    "load_data",
    "plot_curves",
    "read_history",
    "train",
]
