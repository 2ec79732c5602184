"""A training run, on Hugging Face accelerate."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, set_seed
from timm.utils import ModelEmaV3
from torch import nn

from ccnn_zoo._files import remove_leftovers
from ccnn_zoo.branchwise import Branchwise
from ccnn_zoo.checkpoint import TrainingRecord

from ._accelerator import alone, make_accelerator, steps_per_epoch
from ._batches import ShuffledOrder, step_seed
from ._curves import plot_curves
from ._doubt import CONFIDENCE, DOUBTFUL
from ._environment import package_versions, write_environment
from ._history import EpochResult, History, write_history
from ._meter import NOTHING, Meter, Sums, require_finite
from ._network import build_optimizer, build_scheduler, trained_form
from ._pretrained import CHECKPOINT, load_start
from ._progress import TrainingProgress
from ._recipe import Recipe
from ._signals import StopRequest
from ._state import FOLDER, RunState, StateFolder
from ._tensorboard import TensorBoard
from .tasks import MakeTask

BEST, HISTORY, CURVES = "best.safetensors", "history.csv", "curves.png"
PICTURES = (CURVES, CONFIDENCE, DOUBTFUL)
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

    def __init__(self, recipe: Recipe, output: Path, tensorboard: bool, make_task: MakeTask) -> None:
        self.recipe, self.output = recipe, output
        self.accelerator = make_accelerator(recipe)
        logged = tensorboard and self.accelerator.is_main_process
        self.logs = TensorBoard(output / "tensorboard" if logged else None)
        task = self.task = make_task(recipe)
        self.steps_per_epoch = steps_per_epoch(recipe, len(task.train), self.accelerator.num_processes)
        self.steps = recipe.iterations or recipe.epochs * self.steps_per_epoch
        self.epochs = -(-self.steps // self.steps_per_epoch)

        self._prepare(task.build_model())
        parts = {"test": task.test} if task.held_out is None else {"test": task.test, "validation": task.held_out}
        self.evaluated = {
            name: self.accelerator.prepare(task.loader(task.evaluation_view(examples)))
            for name, examples in parts.items()
        }
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
        view = self.task.training_view()
        self.order = ShuffledOrder(view, recipe.seed, recipe.batch_size)
        trained = trained_form(recipe, model, self.accelerator)
        self.model, self.optimizer, self.batches = self.accelerator.prepare(
            trained, optimizer, self.task.loader(view, self.order)
        )
        unwrapped = self.accelerator.unwrap_model(self.model)
        self.plain = self.deployed = unwrapped.model if isinstance(unwrapped, Branchwise) else unwrapped
        self.lasting = {"model": self.plain, "optimizer": self.optimizer}
        if self.accelerator.scaler is not None:
            self.lasting["scaler"] = self.accelerator.scaler
        if self.average is not None:
            self.deployed = self.lasting["average"] = self.average.to(self.accelerator.device).module

    def run(self, resume: bool, progress: bool, pictures: bool) -> TrainingResult:
        """Train to the end, from the newest state if asked."""
        with alone(self.output, self.accelerator):
            return self._run(resume, progress, pictures)

    def _run(self, resume: bool, progress: bool, pictures: bool) -> TrainingResult:
        main = self.accelerator.is_main_process
        title = f"{self.recipe.model} K={self.recipe.branches}"
        if resume:
            self._resume()
        if self.step == 0 and self.recipe.start_from is not None:
            given = {name: value for name, value in self.recipe.model_kwargs.items() if name == "diversity"}
            load_start(self.plain, self.recipe.start_from, **given)
            if self.average is not None:
                self.average.set(self.plain)
        if main:
            self.recipe.to_yaml(self.output / RECIPE)
            write_environment(self.output / ENVIRONMENT, self.accelerator)
            for name in (CHECKPOINT, BEST, HISTORY, *PICTURES, RECIPE, ENVIRONMENT, f"{FOLDER}/step.safetensors"):
                remove_leftovers(self.output / name)
            for name in (CONFIDENCE, DOUBTFUL):  # of an earlier run
                (self.output / name).unlink(missing_ok=True)
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
            if main and self.history and pictures:
                plot_curves({title: self.history}, self.output / CURVES)
        self.accelerator.wait_for_everyone()
        # Built anew: neither compiled, nor synchronised, nor wrapped by accelerate.
        model = self.task.build_model().eval()
        model.load_state_dict(self.deployed.state_dict())
        if main and pictures:
            self.task.draw(model, self.accelerator.device, self.output)
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
        ranks = [earlier.validation_rank for earlier in self.history]
        before = [rank for rank in ranks if rank is not None]
        self.history = (*self.history, result)
        if not self.accelerator.is_main_process:
            return
        model, record = self.deployed, self._record(result)
        self.task.save(self.output / CHECKPOINT, model, record)
        if result.validation_rank is None:
            if not before:
                (self.output / BEST).unlink(missing_ok=True)  # of an earlier run
        elif not before or result.validation_rank < min(before):
            self.task.save(self.output / BEST, model, record)
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
        meter = Meter(epoch, self.accelerator.num_processes, self.sums, classifies=self.task.classifies)
        self.sums = NOTHING
        self._train(epoch, meter, shown)
        throughput = meter.images_per_second()
        train_loss, train_error = meter.means(self.accelerator)
        figures = {}
        if epoch % self.recipe.evaluate_every == 0 or epoch == self.epochs:
            for part, batches in self.evaluated.items():
                found = self._evaluate(batches, epoch, meter)
                figures |= {f"{part}_{name}": value for name, value in found.items()}
        return EpochResult(
            epoch=epoch,
            step=self.step,
            lr=self.lr,
            train_loss=train_loss,
            train_error_percent=train_error,
            images_per_second=throughput,
            **figures,
        )

    def _train(self, epoch: int, meter: Meter, shown: TrainingProgress) -> None:
        self.model.train()
        parts = self.recipe.accumulate
        for number, batch in enumerate(self.batches):
            part = number % parts
            # Whatever a pass draws depends on its number only, not on the passes before.
            set_seed(step_seed(self.recipe.seed, self.step * parts + part, self.accelerator.process_index))
            last = part == parts - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                self._pass(batch, meter)
            if last:
                self._step(epoch, meter, shown)
            if self.step == self.steps:
                break

    def _pass(self, batch: Any, meter: Meter) -> None:
        outcome = self.task.loss(self.model, batch)
        meter.update(self.step + 1, outcome)
        if (self.step + 1) % self.interval == 0:
            meter.check()  # before the step, so that R and w are still finite
        self.accelerator.backward(outcome.loss / self.recipe.accumulate)

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
        # Several processes have to agree, for which each waits for its device.
        if self.accelerator.num_processes == 1 or self.step % self.interval == 0:
            self._stop_if_asked(epoch, meter)
        if self.recipe.save_every and self.step % self.recipe.save_every == 0:
            self._save_state(meter.sums(self.accelerator))

    @torch.no_grad()
    def _evaluate(self, batches: Iterable[Any], epoch: int, meter: Meter) -> dict[str, float]:
        model = self.model if self.average is None else self.deployed
        model.eval()
        figures = self.task.evaluate(model, self._until_stopped(batches, epoch, meter), self.accelerator)
        if "loss" in figures:
            require_finite(figures["loss"], epoch, self.step, "evaluation")
        return figures

    def _until_stopped(self, batches: Iterable[Any], epoch: int, meter: Meter) -> Iterator[Any]:
        for batch in batches:
            self._stop_if_asked(epoch, meter)
            yield batch

    def _record(self, result: EpochResult) -> TrainingRecord:
        return TrainingRecord(
            data=self.task.data_name,
            seed=self.recipe.seed,
            epochs=result.epoch,
            recipe=self.recipe.to_dict(),
            metrics=result.metrics(),
            versions=package_versions(),
        )
