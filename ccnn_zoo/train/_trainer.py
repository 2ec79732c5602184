"""A training run, on Hugging Face accelerate."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import broadcast, set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ccnn_zoo._files import remove_leftovers
from ccnn_zoo.branchwise import Branchwise
from ccnn_zoo.checkpoint import TrainingRecord, save_checkpoint

from ._accelerator import make_accelerator, steps_per_epoch
from ._augment import Objective
from ._batches import Batch, ShuffledOrder, loader_of, step_seed, view_of
from ._curves import plot_curves
from ._data import load_data
from ._environment import package_versions, write_environment
from ._history import EpochResult, History, write_history
from ._images import Images
from ._meter import NOTHING, Meter, Sums, mean_of, require_finite
from ._network import Builder, build_model, build_optimizer, build_scheduler, trained_form
from ._progress import TrainingProgress
from ._recipe import Recipe
from ._signals import StopRequest
from ._start import CHECKPOINT, load_start
from ._state import FOLDER, RunState, StateFolder
from ._tensorboard import TensorBoard

BEST, HISTORY, CURVES = "best.safetensors", "history.csv", "curves.png"
RECIPE, ENVIRONMENT = "recipe.yaml", "environment.json"


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


class Trainer:
    """One run of :func:`ccnn_zoo.train.train`."""

    def __init__(self, recipe: Recipe, output: Path, tensorboard: bool, build: Builder = build_model) -> None:
        self.recipe, self.output, self.build = recipe, output, build
        self.accelerator = make_accelerator(recipe)
        logged = tensorboard and self.accelerator.is_main_process
        self.logs = TensorBoard(output / "tensorboard" if logged else None)
        data = load_data(recipe.data, recipe.image_size)
        held_out = None
        if recipe.validation:
            data, held_out = data.hold_out(recipe.validation, recipe.seed)
        self.data = data
        self.steps_per_epoch = steps_per_epoch(recipe, len(data.train), self.accelerator.num_processes)
        self.steps = recipe.iterations or recipe.epochs * self.steps_per_epoch
        self.epochs = -(-self.steps // self.steps_per_epoch)

        self._prepare(build(recipe, data))
        self.test_batches = self._evaluation_batches(data.test)
        self.held_out_batches = None if held_out is None else self._evaluation_batches(held_out)
        self.objective = Objective(recipe, len(data.labels))
        self.states = StateFolder(output, recipe.keep)
        self.stop = StopRequest(self.accelerator)
        # Reading a value waits for the device: free on the CPU, not elsewhere.
        self.interval = 1 if self.accelerator.device.type == "cpu" else 25
        self.step, self.lr, self.sums = 0, recipe.lr, NOTHING
        self.history: History = ()

    def _prepare(self, model: nn.Module) -> None:
        """Build all that one step of training needs, and name what outlasts it."""
        recipe = self.recipe
        # Copied before accelerate and torch.compile change how the network is called.
        self.average = None if recipe.ema_decay is None else ModelEmaV3(model, decay=recipe.ema_decay)
        optimizer = build_optimizer(recipe, model)
        self.scheduler = build_scheduler(recipe, optimizer, self.steps)
        view = view_of(self.data.train, self.data, recipe)
        self.order = ShuffledOrder(view, recipe.seed, recipe.batch_size)
        trained = trained_form(recipe, model, self.accelerator)
        self.model, self.optimizer, self.batches = self.accelerator.prepare(
            trained, optimizer, loader_of(view, recipe, self.order)
        )
        unwrapped = self.accelerator.unwrap_model(self.model)
        self.plain = self.deployed = unwrapped.model if isinstance(unwrapped, Branchwise) else unwrapped
        self.lasting = {"model": self.plain, "optimizer": self.optimizer}
        if self.accelerator.scaler is not None:
            self.lasting["scaler"] = self.accelerator.scaler
        if self.average is not None:
            self.deployed = self.lasting["average"] = self.average.to(self.accelerator.device).module

    def run(self, resume: bool, progress: bool) -> TrainingResult:
        """Train to the end, from the newest state if asked."""
        main = self.accelerator.is_main_process
        title = f"{self.recipe.model} K={self.recipe.branches}"
        if resume:
            self._resume()
        if self.step == 0 and self.recipe.start_from is not None:
            load_start(self.plain, self.recipe.start_from)
            if self.average is not None:
                self.average.set(self.plain)
        if main:
            self.recipe.to_yaml(self.output / RECIPE)
            write_environment(self.output / ENVIRONMENT, self.accelerator)
            for name in (CHECKPOINT, BEST, HISTORY, CURVES, RECIPE, ENVIRONMENT, f"{FOLDER}/step.safetensors"):
                remove_leftovers(self.output / name)
        try:
            bar = TrainingProgress(title, self.epochs, self.steps, shown=progress and main)
            with self.stop, self.logs, bar as shown:
                self.logs.begin(self.step)
                if resume:
                    shown.show_start(self.step)
                for epoch in range(len(self.history) + 1, self.epochs + 1):
                    result = self._epoch(epoch, shown)
                    self._save_epoch(result)
                    self.logs.add(result)
                    shown.show_epoch(result)
        finally:
            if main and self.history:
                plot_curves({title: self.history}, self.output / CURVES)
        self.accelerator.wait_for_everyone()
        # Built anew: neither compiled, nor synchronised, nor wrapped by accelerate.
        model = self.build(self.recipe, self.data).eval()
        model.load_state_dict(self.deployed.state_dict())
        return TrainingResult(model, self._record(self.history[-1]), self.history, self.output / CHECKPOINT)

    def _resume(self) -> None:
        """Load the newest state, in all processes the same one."""
        main, state = self.accelerator.is_main_process, None
        if main:
            state = self.states.newest(self.recipe.decisive())
        found = torch.tensor(-1 if state is None else state.step, device=self.accelerator.device)
        step = int(broadcast(found))
        if step < 0:
            return
        state = state or self.states.at(step)
        if state.versions != package_versions():
            warnings.warn(f"the run began with {state.versions}; it goes on, but not to the bit", stacklevel=4)
        for name, part in self.lasting.items():
            part.load_state_dict(state.parts[name])
        self.scheduler.step_update(step)
        self.step, self.lr, self.history = step, state.lr, state.history
        self.sums = state.sums if main else NOTHING

    def _save_state(self, sums: Sums) -> None:
        if not self.accelerator.is_main_process:
            return
        parts = {name: part.state_dict() for name, part in self.lasting.items()}
        self.states.save(
            RunState(self.recipe.decisive(), package_versions(), self.step, self.lr, sums, self.history, parts)
        )

    def _save_epoch(self, result: EpochResult) -> None:
        errors = [earlier.validation_error_percent for earlier in self.history]
        before = [error for error in errors if error is not None]
        self.history = (*self.history, result)
        if not self.accelerator.is_main_process:
            return
        model, record = self.deployed, self._record(result)
        save_checkpoint(self.output / CHECKPOINT, model, record)
        if result.validation_error_percent is None:
            if not before:
                (self.output / BEST).unlink(missing_ok=True)  # of an earlier run
        elif not before or result.validation_error_percent < min(before):
            save_checkpoint(self.output / BEST, model, record)
        write_history(self.history, self.output / HISTORY)
        # Last, so that a state of this epoch means that all the above is there.
        self._save_state(NOTHING)

    def _stop_if_asked(self, epoch: int, meter: Meter) -> None:
        if self.stop.agreed():
            self._save_state(meter.sums(self.accelerator))
            raise self.stop.error(
                f"after step {self.step} of {self.steps} (epoch {epoch} of {self.epochs}), saved in {self.output}"
            )

    def _epoch(self, epoch: int, shown: TrainingProgress) -> EpochResult:
        done = self.step - (epoch - 1) * self.steps_per_epoch
        self.order.start_epoch(epoch - 1, done * self.recipe.batch_size)
        meter = Meter(epoch, self.accelerator.num_processes, self.sums)
        self.sums = NOTHING
        self._train(epoch, meter, shown)
        throughput = meter.images_per_second()
        train_loss, train_error = mean_of(meter.sums(self.accelerator))
        test, validation = (None, None), (None, None)
        if epoch % self.recipe.evaluate_every == 0 or epoch == self.epochs:
            test = self._evaluate(self.test_batches, epoch, meter)
            if self.held_out_batches is not None:
                validation = self._evaluate(self.held_out_batches, epoch, meter)
        return EpochResult(epoch, self.step, self.lr, train_loss, train_error, *test, *validation, throughput)

    def _train(self, epoch: int, meter: Meter, shown: TrainingProgress) -> None:
        self.model.train()
        parts = self.recipe.accumulate
        for number, (images, targets) in enumerate(self.batches):
            part = number % parts
            # Whatever a pass draws depends on its number only, not on the passes before.
            set_seed(step_seed(self.recipe.seed, self.step * parts + part, self.accelerator.process_index))
            last = part == parts - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                self._pass(images, targets, meter)
            if last:
                self._step(epoch, meter, shown)
            if self.step == self.steps:
                break

    def _pass(self, images: Tensor, targets: Tensor, meter: Meter) -> None:
        images, wanted = self.objective.mixed(images, targets)
        logits = self._forward(self.model, images)
        loss = self.objective.loss(logits, wanted)
        if len(logits) > len(targets):  # those of several members
            logits = logits.unflatten(0, (-1, len(targets))).mean(0)
        meter.update(self.step + 1, loss, logits, targets)
        if (self.step + 1) % self.interval == 0:
            meter.check()  # before the step, so that R and w are still finite
        self.accelerator.backward(loss / self.recipe.accumulate)

    def _step(self, epoch: int, meter: Meter, shown: TrainingProgress) -> None:
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.scheduler.step_update(self.step)
        if self.average is not None:
            self.average.update(self.plain)
        if self.step % self.interval == 0:
            shown.show_step(epoch, self.step, *meter.running())
            self._stop_if_asked(epoch, meter)
        if self.recipe.save_every and self.step % self.recipe.save_every == 0:
            self._save_state(meter.sums(self.accelerator))

    @torch.no_grad()
    def _evaluate(self, batches: Iterable[Batch], epoch: int, meter: Meter) -> tuple[float, float]:
        """Return mean loss and error in percent."""
        model = self.model if self.average is None else self.deployed
        model.eval()
        losses, wrong = [], []
        for images, targets in batches:
            self._stop_if_asked(epoch, meter)
            with self.accelerator.autocast():  # of its own the average does not know of it
                logits = self._forward(model, images).float()
            loss = F.cross_entropy(logits, targets, reduction="none")
            # Drops the images that fill up the last batch of several processes.
            loss, miss = self.accelerator.gather_for_metrics((loss, logits.argmax(1) != targets))
            losses.append(loss)
            wrong.append(miss)
        mean_loss = torch.cat(losses).double().mean().item()
        require_finite(mean_loss, epoch, self.step, "evaluation")
        return mean_loss, 100 * torch.cat(wrong).double().mean().item()

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return model(images)

    def _evaluation_batches(self, images: Images) -> Iterable[Batch]:
        return self.accelerator.prepare(loader_of(view_of(images, self.data), self.recipe))

    def _record(self, result: EpochResult) -> TrainingRecord:
        return TrainingRecord(
            data=self.data.name,
            seed=self.recipe.seed,
            epochs=result.epoch,
            recipe=self.recipe.to_dict(),
            metrics=result.metrics(),
            versions=package_versions(),
        )
