"""What the trainer leaves to the kind of task: data, network, loss, figures of quality.

Another kind is a class with the methods of :class:`Task`, given to :func:`ccnn_zoo.train.train`. Its order and what it
draws come from here, so that its runs go on from any step to the bit, as those of classifiers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ccnn_zoo.checkpoint import TrainingRecord

from ._batches import Draw, ShuffledOrder, derived_seed, loader_of, view_of
from ._recipe import Recipe

__all__ = [
    "Draw",
    "MakeTask",
    "Outcome",
    "ShuffledOrder",
    "Task",
    "TrainingView",
    "derived_seed",
    "loader_of",
    "view_of",
]


class TrainingView(Protocol):
    """Training examples as batches, their augmentation a function of seed, epoch and index alone."""

    def __len__(self) -> int: ...

    def start_epoch(self, epoch: int) -> None:
        """Augment otherwise from now on."""


class Outcome(NamedTuple):
    """What one pass of training gave.

    Args:
        loss: mean over the examples, to be minimised.
        wrong: how many examples were classified wrongly; None where nothing is classified.
        count: examples.
    """

    loss: Tensor
    wrong: Tensor | None
    count: int


class Task(Protocol):
    """A kind of task, for one recipe.

    Attributes:
        classifies: whether outcomes count misses.
        data_name: of the data, as a reader would cite it.
        train: training examples.
        held_out: those held out for validation; None for none.
        test: test examples.
    """

    classifies: bool
    data_name: str
    train: Any
    held_out: Any
    test: Any

    def build_model(self) -> nn.Module:
        """Return the network as training starts from it: the same for the same recipe."""

    def training_view(self) -> TrainingView:
        """Return the training examples as the recipe augments them."""

    def evaluation_view(self, examples: Any) -> Dataset:
        """Return held-out or test examples as they are evaluated."""

    def loader(self, view: Dataset, order: Any = None) -> DataLoader:
        """Return batches of a view: in ``order``, each a pass of training, or all as they come."""

    def loss(self, model: nn.Module, batch: Any) -> Outcome:
        """Run one pass of training on a batch."""

    def evaluate(self, model: nn.Module, batches: Iterable[Any], accelerator: Accelerator) -> dict[str, float]:
        """Return figures by the names that :class:`ccnn_zoo.train.EpochResult` has after ``test_``."""

    def save(self, path: Path, model: nn.Module, record: TrainingRecord) -> None:
        """Write a checkpoint, atomically."""

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> None:
        """Draw what there is to see of the trained network, which is on the CPU in eval mode and stays so."""


MakeTask: TypeAlias = Callable[[Recipe], Task]
