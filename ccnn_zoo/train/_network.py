"""The network, optimizer and schedule that a recipe names, from timm's factories."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from ccnn_zoo._arguments import ARGUMENTS, checked
from ccnn_zoo._base.roles import CALIBRATION, get_role
from ccnn_zoo._rebuild import created
from ccnn_zoo.branchwise import Branchwise
from ccnn_zoo.errors import CalibrationError, ConfigurationError
from ccnn_zoo.models import zoo_name

from ._data import Data
from ._recipe import Recipe

Builder: TypeAlias = Callable[[Recipe, Data], nn.Module]
"""Makes the network as training starts from it, of the classes of timm."""


_MEMBER = 1000
"""Between the seeds of the initial weights of two members, so that no member is another run's network."""


def build_model(recipe: Recipe, data: Data) -> nn.Module:
    """Return the network as training starts from it: the same for the same recipe.

    Class names and preprocessing stand in its ``pretrained_cfg``, by which export and publishing find them.

    Raises:
        ConfigurationError: the network refuses ``model_kwargs``, or no checkpoint may hold them.
    """
    further = checked(recipe.model_kwargs, ARGUMENTS, "model_kwargs")
    overlay = {
        **data.preprocessing(),
        "num_classes": len(data.labels),
        "label_names": list(data.labels),
        "pool_size": None,  # the architecture's own, for another input size
    }
    own = {
        "branches": recipe.branches,
        "merge": recipe.merge,
        "num_classes": len(data.labels),
        "in_chans": data.input_size[0],
    }
    if own.keys() & further.keys():
        raise ConfigurationError(f"model_kwargs may not hold {', '.join(own)}: recipe and data say them")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed + _MEMBER * recipe.member)
        name, base = zoo_name(recipe.model)
        model = created(name, pretrained_cfg_overlay=overlay, **base, **own, **further)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model


def trained_form(recipe: Recipe, model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return what runs in training, with the parameters of ``model``: itself, or a wrapper of a few branches a time.

    Raises:
        CalibrationError: ``branches_at_once`` is given, and the branches of the network depend on each other.
        ConfigurationError: ``sync_batchnorm`` is asked for where torch has none.
    """
    if recipe.sync_batchnorm and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise ConfigurationError("sync_batchnorm=True needs GPUs: torch has none for CPUs; set it to False")
        model = convert_sync_batchnorm(model)
    if recipe.compile:
        model.compile()  # in place: no wrapper comes between the network and its checkpoints
        return model
    if recipe.branches_at_once is not None:
        return Branchwise(model, recipe.branches_at_once)
    if accelerator.device.type != "cpu":
        return model
    try:
        # Fastest or nearly so for all K, see docs/training_speed.md.
        return Branchwise(model, 1 if recipe.channels_last else 2)
    except CalibrationError:
        return model


def build_optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    """Return CSGD, or torch's SGD with R frozen: as a free weight R would not stay normalised."""
    common = {
        "lr": recipe.lr,
        "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
        "filter_bias_and_bn": False,  # the paper decays all; CSGD never decays R
    }
    if recipe.optimizer == "sgd":
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.requires_grad and get_role(parameter) != CALIBRATION)
        return create_optimizer_v2(model, opt="momentum", **common)  # timm's "sgd" is Nesterov's
    return create_optimizer_v2(
        model,
        opt="csgd",
        noise_std=recipe.noise_std,
        noise=recipe.noise,
        noise_decay=recipe.noise_decay,
        calibration_lr=recipe.calibration_lr,
        calibration_update=recipe.calibration_update,
        seed=recipe.seed,
        **common,
    )


def build_scheduler(recipe: Recipe, optimizer: Optimizer, steps: int) -> Scheduler:
    """Return the schedule of ``lr`` over ``steps`` optimizer steps, to be told of every one of them."""
    warmup = round(recipe.warmup * steps)
    decay_at = [max(1, round(share * steps)) for share in recipe.decay_at]
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.scheduler,
        num_epochs=steps,
        warmup_epochs=warmup,
        warmup_lr=recipe.lr / (warmup + 1),  # a first step with lr 0 would be wasted
        decay_epochs=decay_at[0],
        decay_milestones=[step + 1 for step in decay_at],  # timm's takes effect one step early
        decay_rate=recipe.decay_rate,
        # One "epoch" of timm's schedule is one of our steps.
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return scheduler
