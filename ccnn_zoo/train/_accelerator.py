"""What accelerate is asked for."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration

from ccnn_zoo.errors import ConfigurationError, DeviceError

from ._recipe import Recipe


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Return accelerate's view of the processes and devices that the run was launched on.

    Raises:
        DeviceError: the device cannot compute in ``mixed_precision``.
    """
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
