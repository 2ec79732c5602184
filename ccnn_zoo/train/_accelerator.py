"""What accelerate is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast

from ccnn_zoo._base.compat import forget_accelerators
from ccnn_zoo._files.locks import held
from ccnn_zoo.errors import CCNNError, ConfigurationError, DeviceError

from ._recipe import Recipe

LOCK = "training.lock"
"""What keeps a second training out of a folder."""


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Return accelerate's view of the processes and devices that the run was launched on.

    Raises:
        DeviceError: the device cannot compute in ``mixed_precision``.
    """
    # Accelerate refuses a second precision in one process; nothing of ours outlives a run.
    forget_accelerators()
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


@contextmanager
def alone(output: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keep other trainings out of the folder; of a run's processes the first holds it for all.

    Raises:
        ConfigurationError: another training writes there; names it.
        RepositoryError: the folder cannot be written.
    """
    refusal: CCNNError | None = None
    with ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                stack.enter_context(held(output / LOCK, f"the training folder {output}"))
            except CCNNError as error:
                refusal = error
        refused = broadcast(torch.tensor(int(refusal is not None), device=accelerator.device))
        if refused:  # said to all, or the others would wait for the first one
            raise refusal or ConfigurationError(f"{output} is refused; the first process says why")
        yield


def steps_per_epoch(recipe: Recipe, images: int, processes: int) -> int:
    """Return the number of whole batches among ``images`` training images.

    Raises:
        ConfigurationError: ``batch_size`` does not fit the images or the processes.
    """
    if recipe.batch_size > images:
        raise ConfigurationError(
            f"batch_size={recipe.batch_size} exceeds the {images} training images; make it smaller"
        )
    parts = processes * recipe.accumulate
    if recipe.batch_size % parts:
        raise ConfigurationError(
            f"batch_size={recipe.batch_size} cannot be shared evenly by {processes} processes in "
            f"accumulate={recipe.accumulate} passes each; make it a multiple of {parts}"
        )
    if (recipe.mixup or recipe.cutmix) and recipe.batch_size // parts % 2:
        raise ConfigurationError(
            f"mixup and cutmix mix images in pairs, and a pass has {recipe.batch_size // parts}; make batch_size a "
            f"multiple of {2 * parts}"
        )
    return images // recipe.batch_size
