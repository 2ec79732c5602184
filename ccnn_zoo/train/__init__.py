"""Training: recipes, data, the loop on accelerate, curves.

>>> result = train(Recipe.load("digits"), "runs/digits")
>>> result.record.metrics["test_error_percent"]
"""

from __future__ import annotations

from ._batches import evaluation_batches
from ._curves import draw_curves, plot_curves
from ._data import Data, data_to_open, load_data
from ._ensemble import join_runs, measure
from ._history import EpochResult, History, read_history
from ._images import ArrayImages, FileImages, Images
from ._memory import keep_freed_memory
from ._network import build_model, build_optimizer, build_scheduler
from ._recipe import Recipe
from ._train import train
from ._trainer import CHECKPOINT, TrainingResult

__all__ = [
    "CHECKPOINT",
    "ArrayImages",
    "Data",
    "EpochResult",
    "FileImages",
    "History",
    "Images",
    "Recipe",
    "TrainingResult",
    "build_model",
    "build_optimizer",
    "build_scheduler",
    "data_to_open",
    "draw_curves",
    "evaluation_batches",
    "join_runs",
    "keep_freed_memory",
    "load_data",
    "measure",
    "plot_curves",
    "read_history",
    "train",
]
