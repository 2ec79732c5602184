"""The training loop, on Hugging Face accelerate."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import Tensor, nn

from ccnn_zoo.branchwise import Branchwise
from ccnn_zoo.checkpoint import TrainingRecord, save_checkpoint
from ccnn_zoo.errors import ConfigurationError, DeviceError

from ._batches import Batch, ShuffledOrder, epoch_seed, loader_of, view_of
from ._curves import plot_curves
from ._data import load_data
from ._history import EpochResult, History, write_history
from ._images import Images
from ._meter import Meter, require_finite
from ._network import build_model, build_optimizer, build_scheduler, trained_form
from ._progress import TrainingProgress
from ._recipe import Recipe

CHECKPOINT, HISTORY, CURVES, RECIPE = "last.safetensors", "history.csv", "curves.png", "recipe.yaml"

_RECORDED = ("ccnn-zoo", "torch", "torchvision", "timm", "accelerate", "numpy")


@dataclass(frozen=True)
class TrainingResult:
    """What a training run gives.

    Args:
        model: the trained network, on the CPU, in eval mode.
        record: how it was trained and what was measured.
        history: one entry per epoch.
        checkpoint: the file that holds ``model`` and ``record``.
    """

    model: nn.Module
    record: TrainingRecord
    history: History
    checkpoint: Path


def train(recipe: Recipe, output: str | os.PathLike[str], *, progress: bool = True) -> TrainingResult:
    """Train a network, on whatever devices accelerate was launched on.

    After every epoch ``output`` holds ``last.safetensors`` (:mod:`ccnn_zoo.checkpoint`) and ``history.csv``, beside
    the resolved ``recipe.yaml``, each whole at any moment; ``curves.png`` is drawn at the end, also of a run that
    was interrupted. Python's, numpy's and torch's generators are seeded anew.

    Args:
        recipe: what to train.
        output: folder, made if missing; what an earlier run left there is overwritten.
        progress: show progress on stderr.

    Raises:
        ConfigurationError: the data cannot be had or do not fit the recipe.
        NonFiniteLossError: the loss became NaN or infinite; names epoch and step. The checkpoint of the epoch
            before stays.
        RepositoryError: ``output`` cannot be written.
        DeviceError: the device cannot compute in ``mixed_precision``.
        ImageError: an image cannot be read.
    """
    return _Trainer(recipe, Path(output)).run(progress)


class _Trainer:
    def __init__(self, recipe: Recipe, output: Path) -> None:
        self.recipe, self.output = recipe, output
        self.accelerator = _accelerator(recipe)
        data = load_data(recipe.data, recipe.image_size)
        held_out = None
        if recipe.validation:
            data, held_out = data.hold_out(recipe.validation, recipe.seed)
        self.data = data
        self.steps_per_epoch = _steps_per_epoch(recipe, len(data.train), self.accelerator.num_processes)
        self.steps = recipe.iterations or recipe.epochs * self.steps_per_epoch
        self.epochs = -(-self.steps // self.steps_per_epoch)

        model = build_model(recipe, data)
        optimizer = build_optimizer(recipe, model)
        self.scheduler = build_scheduler(recipe, optimizer, self.steps)
        view = view_of(data.train, data, recipe)
        self.order = ShuffledOrder(view, recipe.seed)
        trained = trained_form(recipe, model, self.accelerator.device)
        self.model, self.optimizer, self.batches = self.accelerator.prepare(
            trained, optimizer, loader_of(view, recipe, self.order)
        )
        self.test_batches = self._evaluation_batches(data.test)
        self.held_out_batches = None if held_out is None else self._evaluation_batches(held_out)
        self.step, self.lr = 0, recipe.lr
        self.history: History = ()

    def run(self, progress: bool) -> TrainingResult:
        recipe, main = self.recipe, self.accelerator.is_main_process
        if main:
            recipe.to_yaml(self.output / RECIPE)
            _remove_leftovers(self.output)
        title = f"{recipe.model} K={recipe.branches}"
        try:
            with TrainingProgress(title, self.epochs, self.steps, shown=progress and main) as shown:
                for epoch in range(1, self.epochs + 1):
                    result = self._epoch(epoch, shown)
                    self.history = (*self.history, result)
                    record = self._record(result)
                    if main:
                        save_checkpoint(self.output / CHECKPOINT, self._plain_model(), record)
                        write_history(self.history, self.output / HISTORY)
                    shown.show_epoch(result)
        finally:
            if main and self.history:
                plot_curves({title: self.history}, self.output / CURVES)
        self.accelerator.wait_for_everyone()
        model = self._plain_model().cpu().eval()
        return TrainingResult(model, record, self.history, self.output / CHECKPOINT)

    def _epoch(self, epoch: int, shown: TrainingProgress) -> EpochResult:
        # Whatever an epoch draws depends on its number only, not on the epochs before.
        set_seed(epoch_seed(self.recipe.seed, epoch))
        self.order.start_epoch(epoch - 1)
        meter = self._train(epoch, shown)
        throughput = meter.images_per_second()
        train_loss, train_error = meter.result(self.accelerator)
        test_loss, test_error = self._evaluate(self.test_batches, epoch)
        validation = (None, None)
        if self.held_out_batches is not None:
            validation = self._evaluate(self.held_out_batches, epoch)
        return EpochResult(
            epoch, self.step, self.lr, train_loss, train_error, test_loss, test_error, *validation, throughput
        )

    def _train(self, epoch: int, shown: TrainingProgress) -> Meter:
        self.model.train()
        meter = Meter(epoch, self.step, self.accelerator.num_processes)
        # Reading the loss waits for the device: free on the CPU, not elsewhere.
        interval = 1 if self.accelerator.device.type == "cpu" else 25
        for images, targets in self.batches:
            logits = self._forward(images)
            loss = F.cross_entropy(logits, targets)
            meter.update(loss, logits, targets)
            if (self.step + 1) % interval == 0:
                meter.check()  # before the step, so that R and w are still finite
            self.accelerator.backward(loss)
            self.lr = self.optimizer.param_groups[0]["lr"]
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.scheduler.step_update(self.step)
            if self.step % interval == 0:
                shown.show_step(epoch, self.step, *meter.running())
            if self.step == self.steps:
                break
        meter.check()
        return meter

    @torch.no_grad()
    def _evaluate(self, batches: Iterable[Batch], epoch: int) -> tuple[float, float]:
        """Return mean loss and error in percent."""
        self.model.eval()
        losses, wrong = [], []
        for images, targets in batches:
            logits = self._forward(images)
            loss = F.cross_entropy(logits, targets, reduction="none")
            # Drops the images that fill up the last batch of several processes.
            loss, miss = self.accelerator.gather_for_metrics((loss, logits.argmax(1) != targets))
            losses.append(loss)
            wrong.append(miss)
        mean_loss = torch.cat(losses).double().mean().item()
        require_finite(mean_loss, epoch, self.step, "evaluation")
        return mean_loss, 100 * torch.cat(wrong).double().mean().item()

    def _forward(self, images: Tensor) -> Tensor:
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return self.model(images)

    def _evaluation_batches(self, images: Images) -> Iterable[Batch]:
        return self.accelerator.prepare(loader_of(view_of(images, self.data), self.recipe))

    def _plain_model(self) -> nn.Module:
        model = self.accelerator.unwrap_model(self.model)
        return model.model if isinstance(model, Branchwise) else model

    def _record(self, result: EpochResult) -> TrainingRecord:
        return TrainingRecord(
            data=self.data.name,
            seed=self.recipe.seed,
            epochs=result.epoch,
            recipe=self.recipe.to_dict(),
            metrics=result.metrics(),
            versions={"python": platform.python_version(), **{name: version(name) for name in _RECORDED}},
        )


def _remove_leftovers(output: Path) -> None:
    """Remove the temporary files of runs that were killed while they wrote."""
    for name in (CHECKPOINT, HISTORY, CURVES, RECIPE):
        for leftover in output.glob(f".{Path(name).stem}-*{Path(name).suffix}"):
            leftover.unlink(missing_ok=True)


def _accelerator(recipe: Recipe) -> Accelerator:
    # Accelerate refuses a second precision in one process; nothing of ours outlives a run.
    AcceleratorState._reset_state()
    try:
        return Accelerator(
            # Asked for by name, or torchrun's processes would each train alone where there is no GPU.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=recipe.mixed_precision,
            # batch_size counts all processes together: more of them change the speed, not the training.
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
    except ValueError as error:
        raise DeviceError(
            f"mixed_precision={recipe.mixed_precision!r} is not possible here: {error}. Set it to 'no'."
        ) from error


def _steps_per_epoch(recipe: Recipe, images: int, processes: int) -> int:
    if recipe.batch_size > images:
        raise ConfigurationError(
            f"batch_size={recipe.batch_size} exceeds the {images} training images; make it smaller"
        )
    if recipe.batch_size % processes:
        raise ConfigurationError(
            f"batch_size={recipe.batch_size} cannot be shared evenly by {processes} processes; make it a multiple"
        )
    return images // recipe.batch_size
