"""Classification, as the trainer sees it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ccnn_zoo.checkpoint import TrainingRecord, save_checkpoint

from ._augment import Objective
from ._batches import Batch, ShuffledOrder, View, loader_of, view_of
from ._data import load_data
from ._images import Images
from ._network import Builder
from ._recipe import Recipe
from ._task import Outcome


class Classification:
    """Images with one class each: a :class:`ccnn_zoo.train._task.Task`.

    Args:
        recipe: names data, augmentation and loss.
        build: makes the network.
    """

    classifies = True

    def __init__(self, recipe: Recipe, build: Builder) -> None:
        data, self.held_out = load_data(recipe.data, recipe.image_size), None
        if recipe.validation:
            data, self.held_out = data.hold_out(recipe.validation, recipe.seed)
        self.recipe, self.data, self._build = recipe, data, build
        self.data_name, self.train, self.test = data.name, data.train, data.test
        self.objective = Objective(recipe, len(data.labels))

    def build_model(self) -> nn.Module:
        return self._build(self.recipe, self.data)

    def training_view(self) -> View:
        return view_of(self.data.train, self.data, self.recipe)

    def evaluation_view(self, examples: Images) -> View:
        return view_of(examples, self.data)

    def loader(self, view: View, order: ShuffledOrder | None = None) -> DataLoader[Batch]:
        return loader_of(view, self.recipe, order)

    def loss(self, model: nn.Module, batch: Batch) -> Outcome:
        images, targets = batch
        images, wanted = self.objective.mixed(images, targets)
        logits = self._forward(model, images)
        loss = self.objective.loss(logits, wanted)
        if len(logits) > len(targets):  # those of several members
            logits = logits.unflatten(0, (-1, len(targets))).mean(0)
        return Outcome(loss, (logits.detach().argmax(1) != targets).sum(), len(targets))

    def evaluate(self, model: nn.Module, batches: Iterable[Batch], accelerator: Accelerator) -> dict[str, float]:
        """Return mean loss and error in percent."""
        losses, wrong = [], []
        for images, targets in batches:
            with accelerator.autocast():  # of its own an average of weights does not know of it
                logits = self._forward(model, images).float()
            loss = F.cross_entropy(logits, targets, reduction="none")
            # Drops the images that fill up the last batch of several processes.
            loss, miss = accelerator.gather_for_metrics((loss, logits.argmax(1) != targets))
            losses.append(loss)
            wrong.append(miss)
        return {
            # Apple's GPUs have no float64.
            "loss": torch.cat(losses).cpu().double().mean().item(),
            "error_percent": 100 * torch.cat(wrong).cpu().double().mean().item(),
        }

    def save(self, path: Path, model: nn.Module, record: TrainingRecord) -> None:
        save_checkpoint(path, model, record)

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return model(images)
