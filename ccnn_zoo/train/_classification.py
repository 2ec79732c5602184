"""Classification, as the trainer sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ccnn_zoo.checkpoint import TrainingRecord, rebuildable_config, save_checkpoint
from ccnn_zoo.errors import ConfigurationError

from ._augment import Objective
from ._batches import Batch, ShuffledOrder, View, loader_of, view_of
from ._branch_logits import branch_logits
from ._data import load_data
from ._doubt import draw_doubt
from ._images import Images
from ._look import only_readable
from ._network import Builder, build_model
from ._pretrained import load_teacher
from ._recipe import Recipe
from .tasks import Outcome


def loss_and_error(losses: Sequence[Tensor], wrong: Sequence[Tensor]) -> dict[str, float]:
    """Return the mean ``loss`` and ``error_percent`` of batches, each a value for every image."""
    return {
        # Apple's GPUs have no float64.
        "loss": torch.cat(losses).cpu().double().mean().item(),
        "error_percent": 100 * torch.cat(wrong).cpu().double().mean().item(),
    }


class Classification:
    """Images with one class each: a :class:`ccnn_zoo.train.tasks.Task`.

    Args:
        recipe: names data, augmentation and loss.
        build: makes the network.
        progress: show on stderr how many pictures have been looked at.
    """

    classifies = True

    def __init__(self, recipe: Recipe, build: Builder, *, progress: bool = True) -> None:
        data, self.held_out = load_data(recipe.data, recipe.image_size), None
        data = only_readable(data, skip=recipe.skip_unreadable, shown=progress)
        if recipe.validation:
            data, self.held_out = data.hold_out(recipe.validation, recipe.seed)
        self.recipe, self.data, self._build, self._configured = recipe, data, build, True
        self.data_name, self.train, self.test = data.name, data.train, data.test
        self.objective = Objective(recipe, len(data.labels))
        self.teacher = None
        if recipe.teacher is not None:
            self.teacher = load_teacher(recipe.teacher, data.labels, data.input_size)

    def build_model(self) -> nn.Module:
        """Make the network; one whose checkpoints nothing could load is refused before the training, not after it."""
        model = self._build(self.recipe, self.data)
        try:
            rebuildable_config(model)
        except ConfigurationError:
            if self._build is build_model:
                raise
            self._configured = False  # load_checkpoint(path, into=...) can
        return model

    def training_view(self) -> View:
        return view_of(self.data.train, self.data, self.recipe)

    def evaluation_view(self, examples: Images) -> View:
        return view_of(examples, self.data)

    def loader(self, view: View, order: ShuffledOrder | None = None) -> DataLoader[Batch]:
        return loader_of(view, self.recipe, order)

    def loss(self, model: nn.Module, batch: Batch) -> Outcome:
        images, targets = batch
        images, wanted = self.objective.mixed(images, targets)
        share = self.recipe.joint_share if self.recipe.branches > 1 else 1.0
        with branch_logits(model, len(self.data.labels), wanted=share < 1) as alone:
            logits = self._forward(model, images)
        loss = self.objective.loss(logits, wanted)
        if share < 1:
            loss = share * loss + (1 - share) * self.objective.loss(alone[0].flatten(0, 1), wanted)
        if self.teacher is not None:
            loss = (1 - self.recipe.teacher_share) * loss + self.recipe.teacher_share * self._taught(logits, images)
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
        return loss_and_error(losses, wrong)

    def save(self, path: Path, model: nn.Module, record: TrainingRecord) -> None:
        save_checkpoint(path, model, record, configured=self._configured)

    def draw(self, model: nn.Module, device: torch.device, folder: Path) -> None:
        """Draw ``confidence.png`` and ``doubtful.png``, see :mod:`ccnn_zoo.train._doubt`."""
        if len(self.data.labels) > 1:
            draw_doubt(model, self.data, self.held_out, self._evaluated, device, folder)

    def _evaluated(self, images: Images) -> DataLoader[Batch]:
        return self.loader(self.evaluation_view(images))

    def _taught(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return the divergence from the teacher's probabilities, mean over the images, in nats."""
        with torch.no_grad():
            wanted = self.teacher.to(images.device)(images).float().log_softmax(1)
        wanted = wanted.repeat(len(logits) // len(wanted), 1)  # for each of several members
        return F.kl_div(logits.float().log_softmax(1), wanted, reduction="batchmean", log_target=True)

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return model(images)
